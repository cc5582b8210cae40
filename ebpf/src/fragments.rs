//! Step 5b, only for fragments: a datagram in pieces, all of which go to one node.
//!
//! Read first: RFC 791 section 3.2 (fragmentation); docs/dataplane.md, "Stated rules"; kernel net/ipv4/netfilter/nf_defrag_ipv4.c (a
//! node's kernel puts a datagram together before conntrack and our chains see it; the Ethernet header is that of the first fragment).
//!
//! The node where a client's fragments come in decides by the first one, and remembers its decision for the others. What another
//! node sends goes to the stack: the kernel waits for the first fragment there, in any order.
//!
//! UDP alone. TCP finds the path's MTU, and a reset or the search for a flow needs whole segments.

use ebpf_common::{Config, FragmentKey, FragmentValue, Mark, NextHop, RESERVED_FLAG, SearchState, Verdict};

use crate::forward;
use crate::frame::Frame;
use crate::parse::{self, Content, MAC_LEN, PROTO_UDP, Packet};
use crate::reset::{self, Refused};
use crate::second_chance::{self, Origin, Step};
use crate::tables::Tables;
use crate::{select, service, source_ranges, traffic};

#[inline(always)]
pub fn follow(
    frame: &mut impl Frame,
    tables: &impl Tables,
    config: &Config,
    mut packet: Packet,
    sender: Option<u16>,
) -> Result<Verdict, Verdict> {
    if packet.proto != PROTO_UDP {
        return Err(Verdict::Fragment);
    }
    let origin = origin(sender, &packet)?;
    if packet.flags & RESERVED_FLAG != 0 {
        // From here on it is as the client sent it.
        let flags = packet.flags & !RESERVED_FLAG;
        forward::flags_and_ttl(frame, &packet, flags, packet.ttl)?;
        packet.flags = flags;
    }
    if packet.is_later_fragment() {
        return later(frame, tables, config, &packet, origin);
    }
    let (verdict, slot, counters) = first(frame, tables, config, &packet, origin)?;
    if origin == Origin::Client {
        let until_ns = tables.now_ns() + FragmentValue::LIFETIME_NS;
        tables.keep_fragment(&key(&packet), FragmentValue { until_ns, slot, counters });
    }
    Ok(verdict)
}

/// As [`Origin::of`], with the flag the other way round: see `ebpf_common::second_chance`.
#[inline(always)]
fn origin(sender: Option<u16>, packet: &Packet) -> Result<Origin, Verdict> {
    match (sender, packet.flags & RESERVED_FLAG != 0) {
        (None, false) => Ok(Origin::Client),
        (None, true) => Err(Verdict::Malformed),
        (Some(from), true) => Ok(Origin::Dispatcher { from }),
        (Some(from), false) => Ok(match SearchState::of_fragment(packet.ttl) {
            Some(state) => Origin::Search { from, state },
            // A process of that node.
            None => Origin::Dispatcher { from },
        }),
    }
}

/// The way of a whole datagram. Also returns the node that it leads to, and where its Service is counted.
#[inline(always)]
fn first(
    frame: &mut impl Frame,
    tables: &impl Tables,
    config: &Config,
    packet: &Packet,
    origin: Origin,
) -> Result<(Verdict, u32, u32), Verdict> {
    let subject = parse::first_fragment(frame, packet)?;
    let own = config.self_slot;
    let Some(service) = service::find(tables, subject.flow) else {
        let verdict = reset::refuse(frame, config, packet, origin, &subject, Refused::Unserved)?;
        return Ok((verdict, own, FragmentValue::UNCOUNTED));
    };
    if source_ranges::judges_here(service, &Content::Udp) {
        let admitted = source_ranges::admit(tables, service, origin, &subject);
        // A datagram is not reset.
        admitted.map_err(|_| Verdict::SourceDenied)?;
    } else if source_ranges::denies(tables, service, origin, &subject) {
        second_chance::pass_to_stack(frame, packet, origin, Mark::SOURCE_DENIED)?;
        let verdict = second_chance::verdict(origin, &Content::Udp, Mark::SOURCE_DENIED);
        return Ok((verdict, own, FragmentValue::UNCOUNTED));
    }
    let counters = u32::from(service.counter_slot());
    let Some(row) = select::row(tables, config, service, subject.flow)? else {
        let why = Refused::EmptyRing;
        let verdict = reset::refuse_counted(frame, tables, config, packet, origin, &subject, service, why)?;
        return Ok((verdict, own, counters));
    };
    traffic::count(tables, service, packet, origin, &Content::Udp);
    // Where the search began the fragments do not say: their identification is the client's.
    match second_chance::next(config, service, row, origin, row.primary(), &Content::Udp) {
        Step::PassToStack(mut mark) => {
            if mark.next_hop == NextHop::Alternate(1) {
                mark.next_hop = NextHop::InFragments;
            }
            second_chance::pass_to_stack(frame, packet, origin, mark)?;
            Ok((second_chance::verdict(origin, &Content::Udp, mark), own, counters))
        }
        // A datagram is no SYN.
        Step::Dispatch | Step::ForwardSyn { .. } => {
            forward::fragment_to_node(frame, config, packet, select::primary(tables, row)?)?;
            Ok((Verdict::DispatchedPeer, u32::from(row.primary()), counters))
        }
    }
}

#[inline(always)]
fn later(
    frame: &mut impl Frame,
    tables: &impl Tables,
    config: &Config,
    packet: &Packet,
    origin: Origin,
) -> Result<Verdict, Verdict> {
    if origin == Origin::Client {
        let first = tables.fragment(&key(packet)).ok_or(Verdict::FragmentWithoutFirst)?;
        if tables.now_ns() >= first.until_ns {
            return Err(Verdict::FragmentWithoutFirst);
        }
        traffic::count_packet(tables, first.counters, packet);
        if first.slot != config.self_slot {
            forward::fragment_to_node(frame, config, packet, select::node(tables, first.slot)?)?;
            return Ok(Verdict::FragmentPeer);
        }
    }
    // Mark and time to live of the whole are those of the first. With this one a piece by itself goes nowhere.
    forward::flags_and_ttl(frame, packet, packet.flags, Mark::GUARD_TTL)?;
    frame.write(MAC_LEN, Mark::LOCAL.mac()).ok_or(Verdict::Malformed)?;
    Ok(Verdict::FragmentLocal)
}

#[inline(always)]
pub fn key(packet: &Packet) -> FragmentKey {
    FragmentKey { src: packet.src(), dst: packet.dst(), id: packet.id.to_be_bytes(), proto: packet.proto, pad: 0 }
}
