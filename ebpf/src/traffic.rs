//! Step 4b: the traffic of a Service, counted once: where a client's packet comes in.
//!
//! The only exception are second chances, which the node sees that a search reaches first.

use ebpf_common::{SearchState, ServiceValue};

use crate::parse::{Content, Packet};
use crate::second_chance::Origin;
use crate::tables::Tables;

/// A packet to a row.
#[inline(always)]
pub fn count(tables: &impl Tables, service: ServiceValue, packet: &Packet, origin: Origin, content: &Content) {
    let slot = u32::from(service.counter_slot());
    match origin {
        Origin::Client => tables.count_in(slot, |counters| {
            counters.packets += 1;
            counters.bytes += bytes(packet);
            counters.new_flows += u64::from(content.is_syn());
        }),
        // A SYN does not search.
        Origin::Search { state: SearchState { hop: 1, .. }, .. } if !content.is_syn() => {
            tables.count_in(slot, |counters| counters.second_chances += 1);
        }
        _ => {}
    }
}

/// A packet of a client that has no row, or a fragment whose flow is not known.
#[inline(always)]
pub fn count_packet(tables: &impl Tables, slot: u32, packet: &Packet) {
    tables.count_in(slot, |counters| {
        counters.packets += 1;
        counters.bytes += bytes(packet);
    });
}

/// A reset in place of a client's packet.
#[inline(always)]
pub fn count_reset(tables: &impl Tables, service: ServiceValue) {
    tables.count_in(u32::from(service.counter_slot()), |counters| counters.resets += 1);
}

/// IP header and data.
#[inline(always)]
fn bytes(packet: &Packet) -> u64 {
    u64::from(packet.total_len)
}
