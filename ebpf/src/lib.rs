//! The packet path of Sheave: what happens to a frame that may concern a virtual address (VIP).
//!
//! The modules stand in the order in which a packet meets them; [`walk`] is the whole path on one page. The code is a `no_std`
//! core over two small traits, [`Frame`] (a bounds-checked window on the bytes) and [`Tables`] (the maps and the clock): the
//! XDP program in main.rs runs it on the kernel's, host tests and the simulator on their own (host.rs), so that they see the very
//! decisions that are made in the kernel.
//!
//! Read first: docs/dataplane.md (packet walk, map table, stated rules).
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod frame;
pub mod tables;

pub mod parse;

pub mod arp;

pub mod admit;

pub mod node_address;

pub mod service;

pub mod source_ranges;

pub mod select;

pub mod traffic;

pub mod reset;

pub mod icmp;

pub mod second_chance;

pub mod fragments;

mod uncommon;

pub mod forward;

pub mod checksum;

#[cfg(not(target_arch = "bpf"))]
pub mod host;
#[cfg(target_arch = "bpf")]
pub mod maps;

#[cfg(test)]
mod tests;

use ebpf_common::{Config, Mark, ServiceValue, Verdict};

pub use frame::Frame;
pub use tables::Tables;

use parse::{Content, ETHERTYPE_ARP, ETHERTYPE_IPV4, PROTO_ICMP, Packet, Subject};
use reset::Refused;
use second_chance::{Origin, Step};
use uncommon::Case;

/// Decides about one frame and changes it in place. The caller counts the verdict and returns the action of its fate.
#[inline(always)]
pub fn walk(frame: &mut impl Frame, tables: &impl Tables) -> Verdict {
    verdict(path(frame, tables))
}

#[inline(always)]
fn verdict(result: Result<Verdict, Verdict>) -> Verdict {
    match result {
        Ok(verdict) | Err(verdict) => verdict,
    }
}

/// The path. A step that is done with the packet leaves through `?` with its verdict.
#[inline(always)]
fn path(frame: &mut impl Frame, tables: &impl Tables) -> Result<Verdict, Verdict> {
    match parse::ethertype(frame)? {
        ETHERTYPE_IPV4 => {}
        ETHERTYPE_ARP => return Ok(uncommon::arp(frame, tables)),
        _ => return Err(Verdict::NotOurs),
    }
    let (config, sender, packet) = arrival(frame, tables)?;
    // Copies for the functions out of line: else these few would have the packet in memory for all.
    if packet.is_fragment() {
        return Ok(uncommon::fragment(frame, tables, config, &{ packet }, sender));
    }
    let is_in_search = second_chance::is_in_search(sender, &packet)?;
    if packet.proto == PROTO_ICMP {
        return icmp_path(frame, tables, config, packet, sender);
    }
    let subject = parse::subject(frame, &packet)?;
    let Some(service) = service::find(tables, subject.flow) else {
        return Ok(uncommon::refuse(frame, tables, &Case { config, packet, sender, subject }, 0, Refused::Unserved));
    };
    let end = match service.asks_more() || is_in_search {
        true => uncommon::follow(frame, tables, &Case { config, packet, sender, subject }, service.ring, service.flags),
        false => End::of(follow(frame, tables, config, &packet, Origin::direct(sender), &subject, service)),
    };
    match end.refused() {
        Ok(verdict) => Ok(verdict),
        Err(why) => Ok(uncommon::refuse(frame, tables, &Case { config, packet, sender, subject }, service.flags, why)),
    }
}

/// A packet to a VIP, or to a port of a node's address that is a Service's, which this node may act on.
#[inline(always)]
fn arrival<'a>(frame: &mut impl Frame, tables: &'a impl Tables) -> Result<(&'a Config, u16, Packet), Verdict> {
    let to_vip = tables.is_vip(parse::ipv4(frame)?.dst());
    if !(to_vip || tables.has_node_addresses() && uncommon::is_node_port(frame, tables)) {
        return Err(Verdict::NotOurs);
    }
    let header = parse::ipv4(frame)?;
    let (config, sender) = admit::admit(tables, &parse::link(frame)?)?;
    Ok((config, sender, parse::packet(frame, &header)?))
}

/// As the rest of the path, for ICMP. Joined, the two sorts of packets would meet on the stack, which costs a store that is not yet
/// done for every load (5 ns).
#[inline(always)]
fn icmp_path(
    frame: &mut impl Frame,
    tables: &impl Tables,
    config: &Config,
    packet: Packet,
    sender: u16,
) -> Result<Verdict, Verdict> {
    let mut case = Case { config, packet, sender, subject: Subject::default() };
    if let Some(verdict) = uncommon::icmp(frame, tables, &mut case) {
        return Ok(verdict);
    }
    let Some(service) = service::find(tables, case.subject.flow) else {
        return Ok(uncommon::refuse(frame, tables, &case, 0, Refused::Unserved));
    };
    match uncommon::follow(frame, tables, &case, service.ring, service.flags).refused() {
        Ok(verdict) => Ok(verdict),
        Err(why) => Ok(uncommon::refuse(frame, tables, &case, service.flags, why)),
    }
}

/// How a packet leaves its way: with a verdict, or to be refused, which costs room on the stack that the way needs itself.
#[derive(Clone, Copy)]
enum End {
    Verdict(Verdict),
    EmptyRing,
    NoNewFlows,
    Source,
}

impl End {
    #[inline(always)]
    fn of(result: Result<Verdict, Self>) -> Self {
        match result {
            Ok(verdict) => Self::Verdict(verdict),
            Err(end) => end,
        }
    }

    #[inline(always)]
    fn refused(self) -> Result<Verdict, Refused> {
        match self {
            Self::Verdict(verdict) => Ok(verdict),
            Self::EmptyRing => Err(Refused::EmptyRing),
            Self::NoNewFlows => Err(Refused::NoNewFlows),
            Self::Source => Err(Refused::Source),
        }
    }
}

impl From<Verdict> for End {
    #[inline(always)]
    fn from(verdict: Verdict) -> Self {
        Self::Verdict(verdict)
    }
}

/// The way of a packet of which we know the flow and the Service. Twice in the program: here and, where more is to be looked at than
/// the row, in [`uncommon`].
#[inline(always)]
fn follow(
    frame: &mut impl Frame,
    tables: &impl Tables,
    config: &Config,
    packet: &Packet,
    origin: Origin,
    subject: &Subject,
    service: ServiceValue,
) -> Result<Verdict, End> {
    if source_ranges::judges_here(service, &subject.content) {
        source_ranges::admit(tables, service, origin, subject)?;
    } else if source_ranges::denies(tables, service, origin, subject) {
        second_chance::pass_to_stack(frame, packet, origin, Mark::SOURCE_DENIED)?;
        return Ok(second_chance::verdict(origin, &subject.content, Mark::SOURCE_DENIED));
    }
    let is_asked = service::is_asked(service, &subject.content, origin);
    let takes = service::takes(service, &subject.content);
    let row = match is_asked || takes {
        true => select::row(tables, config, service, subject.flow)?,
        false => None,
    };
    let known = row.unwrap_or_default();
    let search_origin = second_chance::search_origin(tables, packet, known, origin, is_asked);
    // Who only asks is answered also by a node that has not heard of a pod.
    let row = row.or((is_asked && search_origin != 0).then_some(known));
    let row = row.ok_or(if takes { End::EmptyRing } else { End::NoNewFlows })?;
    traffic::count(tables, service, packet, origin, &subject.content);
    let row = match second_chance::seeks_client(service, &subject.content) {
        true => second_chance::with_takers(tables, service, row),
        false => row,
    };
    match second_chance::next(config, service, row, origin, search_origin, &subject.content) {
        Step::Dispatch => {
            forward::to_node(frame, config, packet, select::primary(tables, row)?)?;
            Ok(if matches!(subject.content, Content::Error) { Verdict::IcmpPeer } else { Verdict::DispatchedPeer })
        }
        Step::ForwardSyn { hop } => {
            forward::with_search_state(frame, config, packet, select::primary(tables, row)?, hop)?;
            Ok(Verdict::SynPassedOn)
        }
        Step::PassToStack(mark) => {
            second_chance::pass_to_stack(frame, packet, origin, mark)?;
            Ok(second_chance::verdict(origin, &subject.content, mark))
        }
    }
}
