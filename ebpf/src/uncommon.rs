//! The ways of few packets, out of line: registers and stack of the path are those of the common way.
//!
//! A function of its own in the kernel's program (Documentation/bpf/bpf_design_QA.rst, "BPF to BPF calls"): at most five arguments of one
//! word each, and a result of one word. The stacks of functions that call each other have 512 bytes together, so none of these calls
//! another.

use ebpf_common::{Config, ServiceValue, Verdict};

use crate::frame::Frame;
use crate::parse::{Packet, Subject};
use crate::reset::{self, Refused};
use crate::second_chance::Origin;
use crate::tables::Tables;
use crate::{End, arp, fragments, icmp, node_address};

/// A packet of which we know the flow.
pub struct Case<'a> {
    pub config: &'a Config,
    pub packet: Packet,
    /// The slot of the node that sent it, or 0.
    pub sender: u16,
    pub subject: Subject,
}

#[inline(never)]
pub fn arp(frame: &mut impl Frame, tables: &impl Tables) -> Verdict {
    crate::verdict(arp::answer(frame, tables))
}

/// Of a packet to no VIP, where nodes have ports that are a Service's.
#[inline(never)]
pub fn is_node_port(frame: &mut impl Frame, tables: &impl Tables) -> bool {
    node_address::is_node_port(frame, tables).unwrap_or(false)
}

#[inline(never)]
pub fn fragment(
    frame: &mut impl Frame,
    tables: &impl Tables,
    config: &Config,
    packet: &Packet,
    sender: u16,
) -> Verdict {
    crate::verdict(fragments::follow(frame, tables, config, *packet, (sender != 0).then_some(sender)))
}

/// Finds what an error is about. Whatever else it is has ended with this verdict.
#[inline(never)]
pub fn icmp(frame: &mut impl Frame, tables: &impl Tables, case: &mut Case) -> Option<Verdict> {
    match icmp::subject(frame, tables, case.config, &case.packet) {
        Ok(subject) => {
            case.subject = subject;
            None
        }
        Err(verdict) => Some(verdict),
    }
}

/// Whatever the Service asks for, and the packet. (The parts of a [`ServiceValue`] are words.)
#[inline(never)]
pub fn follow(frame: &mut impl Frame, tables: &impl Tables, case: &Case, ring: u32, flags: u32) -> End {
    let Case { config, packet, sender, subject } = case;
    let origin = Origin::of(*sender, packet);
    End::of(crate::follow(frame, tables, config, packet, origin, subject, ServiceValue { ring, flags }))
}

/// `flags`: of the Service, if there is one.
#[inline(never)]
pub fn refuse(frame: &mut impl Frame, tables: &impl Tables, case: &Case, flags: u32, why: Refused) -> Verdict {
    let Case { config, packet, sender, subject } = case;
    let (origin, service) = (Origin::of(*sender, packet), ServiceValue { ring: 0, flags });
    crate::verdict(reset::refuse_counted(frame, tables, config, packet, origin, subject, service, why))
}
