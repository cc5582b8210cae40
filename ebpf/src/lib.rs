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

pub mod service;

pub mod source_ranges;

pub mod select;

pub mod traffic;

pub mod reset;

pub mod icmp;

pub mod second_chance;

pub mod fragments;

pub mod forward;

pub mod checksum;

#[cfg(not(target_arch = "bpf"))]
pub mod host;
#[cfg(target_arch = "bpf")]
pub mod maps;

#[cfg(test)]
mod tests;

use ebpf_common::{Config, ServiceValue, Verdict};

pub use frame::Frame;
pub use tables::Tables;

use parse::{Content, ETHERTYPE_ARP, Link, PROTO_ICMP, Packet, Subject};
use reset::Refused;
use second_chance::{Origin, Step};

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
    let (config, sender) = admit::admit(tables, &link)?;
    let packet = parse::packet(frame, &header)?;
    if packet.is_fragment() {
        return fragments::follow(frame, tables, config, &link, packet, sender);
    }
    let origin = second_chance::origin(sender, &packet)?;
    if packet.proto == PROTO_ICMP {
        let subject = icmp::subject(frame, tables, config, &link, &packet)?;
        return follow(frame, tables, config, &link, &packet, origin, &subject);
    }
    let subject = parse::subject(frame, &packet)?;
    follow(frame, tables, config, &link, &packet, origin, &subject)
}

/// The way of a packet of which we know the flow. Twice in the program: joined, the two sorts of packets meet on the stack, which
/// costs a store that is not yet done for every load (5 ns).
#[inline(always)]
fn follow(
    frame: &mut impl Frame,
    tables: &impl Tables,
    config: &Config,
    link: &Link,
    packet: &Packet,
    origin: Origin,
    subject: &Subject,
) -> Result<Verdict, Verdict> {
    let Some(service) = service::find(tables, &subject.flow) else {
        return reset::refuse(frame, config, link, packet, origin, subject, Refused::Unserved);
    };
    if service.flags & ServiceValue::SOURCE_RANGES != 0 {
        source_ranges::admit(frame, tables, config, link, service, origin, subject)?;
    }
    let is_asked = service::is_asked(service, &subject.content, origin);
    let row = match is_asked || service::takes(service, &subject.content) {
        true => select::row(tables, config, service, &subject.flow)?,
        false => None,
    };
    let known = row.unwrap_or_default();
    let search_origin = second_chance::search_origin(tables, packet, known, origin, is_asked);
    // Who only asks is answered also by a node that has not heard of a pod.
    let Some(row) = row.or((is_asked && search_origin != 0).then_some(known)) else {
        return refuse(frame, tables, config, link, service, packet, origin, subject);
    };
    traffic::count(tables, service, packet, origin, &subject.content);
    let row = match second_chance::seeks_client(service, &subject.content) {
        true => second_chance::with_takers(tables, row),
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

/// A Service without a node for the packet.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a part of `follow`")]
fn refuse(
    frame: &mut impl Frame,
    tables: &impl Tables,
    config: &Config,
    link: &Link,
    service: ServiceValue,
    packet: &Packet,
    origin: Origin,
    subject: &parse::Subject,
) -> Result<Verdict, Verdict> {
    if origin == Origin::Client {
        traffic::count_packet(tables, u32::from(service.counter_slot()), packet);
    }
    let verdict = reset::refuse(frame, config, link, packet, origin, subject, Refused::EmptyRing)?;
    if verdict == Verdict::EmptyRingReset {
        traffic::count_reset(tables, service);
    }
    Ok(verdict)
}
