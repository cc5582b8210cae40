//! Step 3b, only for Services with source ranges: is this client admitted?
//!
//! Judged where the client's packet arrives. A packet from another node was judged there, and by that node's own list. (The backend
//! judges new flows once more: speaker/core/src/backend/ruleset/source_ranges.rs.)
//!
//! A connection whose client is no longer admitted ends with a reset, at the first segment that either end sends: the client gets it
//! here. Its resets pass, so that the pod gets one from the client's kernel; a reset can end a flow, and never begins one.

use ebpf_common::{ServiceValue, Verdict};

use crate::End;
use crate::parse::{Content, Subject, Tcp};
use crate::second_chance::{self, Origin};
use crate::tables::Tables;

/// What begins a flow, the rules of the pod's node judge again. For what may be an answer to a flow of this node itself see [`denies`].
#[inline(always)]
pub(crate) fn judges_here(service: ServiceValue, content: &Content) -> bool {
    service.flags & ServiceValue::SOURCE_RANGES != 0 && (!second_chance::may_be_of_node(service) || content.is_syn())
}

/// The client is not admitted, and the packet may be an answer to a flow of this node itself all the same: conntrack knows those, and our
/// chains refuse the rest (docs/services.md, "Node addresses").
#[inline(always)]
pub(crate) fn denies(tables: &impl Tables, service: ServiceValue, origin: Origin, subject: &Subject) -> bool {
    let is_reset = matches!(subject.content, Content::Tcp(tcp) if tcp.flags & Tcp::RST != 0);
    let is_judged = service.flags & ServiceValue::SOURCE_RANGES != 0 && origin == Origin::Client && !is_reset;
    is_judged && !tables.admits(service.ranges_slot(), subject.flow.src())
}

#[inline(always)]
pub(crate) fn admit(tables: &impl Tables, service: ServiceValue, origin: Origin, subject: &Subject) -> Result<(), End> {
    let slot = service.ranges_slot();
    if origin != Origin::Client || tables.admits(slot, subject.flow.src()) {
        return Ok(());
    }
    match subject.content {
        Content::Tcp(tcp) if tcp.flags & Tcp::RST != 0 => Ok(()),
        Content::Tcp(tcp) => {
            tables.count_denied(slot);
            Err(if tcp.flags & Tcp::SYN != 0 { Verdict::SourceDenied.into() } else { End::Source })
        }
        // An ICMP error counts as the flow that it quotes.
        Content::Udp | Content::Error => {
            tables.count_denied(slot);
            Err(Verdict::SourceDenied.into())
        }
    }
}
