//! The packet path of Sheave: what happens to a frame that may concern a virtual address (VIP).
//!
//! The modules stand in the order in which a packet meets them; [`walk`] is the whole path on one page. The code is a `no_std`
//! core over two small traits, [`Frame`] (a bounds-checked window on the bytes) and [`Tables`] (the maps and the clock): the
//! XDP program in main.rs runs it on the kernel's, host tests, the simulator and `sheave explain` on their own (host.rs), so that
//! they see the very decisions that are made in the kernel.
//!
//! Read first: docs/dataplane.md (packet walk, map table, stated rules).
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod frame;
pub mod tables;

pub mod parse;

pub mod arp;

pub mod admit;

pub mod service;

pub mod select;

pub mod reset;

pub mod icmp;

pub mod forward;

pub mod checksum;

#[cfg(not(target_arch = "bpf"))]
pub mod host;
#[cfg(target_arch = "bpf")]
pub mod maps;

#[cfg(test)]
mod tests;

use ebpf_common::Verdict;

pub use frame::Frame;
pub use tables::Tables;

use parse::{ETHERTYPE_ARP, PROTO_ICMP};
use reset::Refused;
use select::Choice;

/// Decides about one frame and changes it in place. The caller counts the verdict and returns the action of its fate.
#[inline(always)]
pub fn walk(frame: &mut impl Frame, tables: &impl Tables) -> Verdict {
    match path(frame, tables) {
        Ok(verdict) | Err(verdict) => verdict,
    }
}

/// The path. A step that is done with the packet leaves through `?` with its verdict.
#[inline(always)]
fn path(frame: &mut impl Frame, tables: &impl Tables) -> Result<Verdict, Verdict> {
    let link = parse::ethernet(frame)?;
    if link.ethertype == ETHERTYPE_ARP {
        return arp::answer(frame, tables, &link);
    }
    let header = parse::ipv4(frame, &link)?;
    if !tables.is_vip(header.dst) {
        return Err(Verdict::NotOurs);
    }
    let config = admit::admit(tables, &link)?;
    let packet = parse::packet(frame, &header)?;
    if packet.proto == PROTO_ICMP {
        return icmp::answer(frame, tables, config, &link, &packet);
    }
    let transport = parse::transport(frame, &packet)?;
    let flow = transport.flow(&packet);
    let Some(service) = service::find(tables, &flow) else {
        return Err(reset::refuse(frame, config, &link, &packet, &transport, Refused::Unserved));
    };
    match select::node(tables, config, service, &flow)? {
        Choice::EmptyRing => Err(reset::refuse(frame, config, &link, &packet, &transport, Refused::EmptyRing)),
        Choice::Local => Ok(Verdict::DispatchedLocal),
        Choice::Peer(mac) => forward::to_node(frame, config, &packet, mac, Verdict::DispatchedPeer),
    }
}
