//! Step 1b, only where nodes' addresses serve (docs/services.md, "Node addresses"): is the packet to a port that is a Service's?
//!
//! A node's address is the node's: its other ports, ARP, pings, other protocols and whatever cannot be read pass as without us. So this
//! question comes first, and a packet of which the answer is yes goes the way of a packet to a VIP. The node whose address it is
//! dispatches it; a node that it is sent to finds the address in its map as well.

use ebpf_common::FlowWords;

use crate::admit;
use crate::frame::Frame;
use crate::parse::{self, PROTO_ICMP, PROTO_UDP, Packet};
use crate::tables::Tables;
use crate::{fragments, icmp, service};

/// `None` as `Some(false)`: the packet is the node's own.
#[inline(always)]
pub fn is_node_port(frame: &impl Frame, tables: &impl Tables) -> Option<bool> {
    let header = parse::ipv4(frame).ok()?;
    if !tables.is_node_address(header.dst()) {
        return None;
    }
    let (config, sender) = admit::admit(tables, &parse::link(frame).ok()?).ok()?;
    let packet = parse::packet(frame, &header).ok()?;
    if packet.is_later_fragment() {
        // Another node's dispatcher sends all of a datagram here; to this node's own address it sends nothing that needs us.
        let is_ours = match sender {
            0 => is_of_known_datagram(tables, &packet),
            _ => tables.node(config.self_slot)?.addr != packet.dst(),
        };
        return Some(packet.proto == PROTO_UDP && is_ours);
    }
    Some(service::find(tables, flow(frame, &packet)?).is_some())
}

/// Of a fragment of TCP there is none: it is the kernel's to put together.
#[inline(always)]
fn flow(frame: &impl Frame, packet: &Packet) -> Option<FlowWords> {
    match (packet.is_fragment(), packet.proto) {
        (true, PROTO_UDP) => parse::first_fragment(frame, packet).ok().map(|subject| subject.flow),
        (true, _) => None,
        (false, PROTO_ICMP) => icmp::error(frame, packet),
        (false, _) => parse::subject(frame, packet).ok().map(|subject| subject.flow),
    }
}

#[inline(always)]
fn is_of_known_datagram(tables: &impl Tables, packet: &Packet) -> bool {
    tables.fragment(&fragments::key(packet)).is_some_and(|first| tables.now_ns() < first.until_ns)
}
