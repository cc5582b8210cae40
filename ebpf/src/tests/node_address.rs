//! A node's address serves at the ports that are a Service's; everything else to it is the node's, byte for byte.

use ebpf_common::{Config, Fate, Mark, NextHop, RESERVED_FLAG, Row, SearchState, ServiceKey, ServiceValue, Verdict};
use proptest::prelude::*;

use super::{PEER, SELF, tables};
use crate::host::{HostFrame, HostTables};
use crate::walk;

const NODE: [u8; 4] = [192, 0, 2, 1];
const OTHER_NODE: [u8; 4] = [192, 0, 2, 2];
const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 9];
const CLIENT: [u8; 4] = [198, 51, 100, 7];
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Port 80 of both nodes, and port 8080, from which they open flows of their own. The rows name the other node, then this one.
fn serving() -> HostTables {
    let mut tables = tables();
    tables.config.flags |= Config::NODE_ADDRESSES;
    tables.nodes.insert(1, ebpf_common::Node { addr: NODE, mac: SELF, flags: 0 });
    tables.peers.insert(PEER, 2);
    tables.rings.insert(2, vec![Row::new(2, [1, 0, 0])]);
    for addr in [NODE, OTHER_NODE] {
        tables.node_addresses.insert(addr);
        for proto in [6, 17] {
            for (port, flags) in [(80u16, 0), (8080, ServiceValue::NODE_FLOWS)] {
                let key = ServiceKey { addr, port: port.to_be_bytes(), proto, pad: 0 };
                tables.services.insert(key, ServiceValue { ring: 2, flags });
            }
        }
    }
    tables
}

fn packet(from: [u8; 6], to: [u8; 4], word: u16, ttl: u8, proto: u8, rest: &[u8]) -> HostFrame {
    let length = (20 + rest.len() as u16).to_be_bytes();
    let mut frame = [&SELF[..], &from, &[8, 0, 0x45, 0], &length, &[0, 7], &word.to_be_bytes()].concat();
    frame.extend([ttl, proto, 0, 0]);
    frame.extend([&CLIENT[..], &to, rest].concat());
    HostFrame(frame)
}

fn segment(from: [u8; 6], to: [u8; 4], flags: u8, port: u16) -> HostFrame {
    let rest = [&[0x9c, 0x40][..], &port.to_be_bytes(), &[0; 8], &[0x50, flags], &[0; 6]].concat();
    packet(from, to, 0x4000, 64, 6, &rest)
}

fn datagram(from: [u8; 6], to: [u8; 4], word: u16, port: u16) -> HostFrame {
    packet(from, to, word, 64, 17, &[&[0x9c, 0x40][..], &port.to_be_bytes(), &[0, 8, 0, 0]].concat())
}

fn error_about(port: u16) -> HostFrame {
    let quoted =
        [&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0][..], &NODE, &CLIENT, &port.to_be_bytes(), &[0x9c, 0x40]];
    packet(ROUTER, NODE, 0, 64, 1, &[&[3, 4, 0, 0, 0, 0, 5, 0][..], &quoted.concat(), &[0; 4]].concat())
}

fn mark(frame: &HostFrame) -> [u8; 6] {
    *frame.0[6..].first_chunk().unwrap()
}

#[test]
fn a_port_of_a_service_is_dispatched_and_taken_from_a_peer() {
    let tables = serving();
    for mut frame in [segment(ROUTER, NODE, SYN, 80), segment(ROUTER, NODE, ACK, 80), datagram(ROUTER, NODE, 0, 80)] {
        assert_eq!(walk(&mut frame, &tables), Verdict::DispatchedPeer);
        assert_eq!((&frame.0[..6], &frame.0[6..12]), (&PEER[..], &SELF[..]));
    }
    let mut error = error_about(80);
    assert_eq!(walk(&mut error, &tables), Verdict::IcmpPeer);
    // The other node's address, dispatched by that node: this node is an alternate of the row.
    assert_eq!(walk(&mut segment(PEER, OTHER_NODE, ACK, 80), &tables), Verdict::SecondChancePeer);
}

#[test]
fn everything_else_to_the_address_is_the_nodes() {
    let mut tables = serving();
    let echo = packet(ROUTER, NODE, 0, 64, 1, &[8, 0, 0, 0, 0, 1, 0, 1]);
    let tunnel = packet(ROUTER, NODE, 0, 64, 47, &[0; 8]);
    let fragment_of_tcp = packet(ROUTER, NODE, 0x2000, 64, 6, &segment(ROUTER, NODE, SYN, 80).0[34..]);
    let later_fragment = packet(ROUTER, NODE, 0x00b9, 64, 17, &[1; 8]);
    let of_a_peer = packet(PEER, NODE, 0x00b9, 64, 17, &[1; 8]);
    let short = packet(ROUTER, NODE, 0, 64, 6, &[0, 80]);
    let other_port = segment(ROUTER, NODE, SYN, 22);
    let mut other_station = segment(ROUTER, NODE, SYN, 80);
    other_station.0[..6].copy_from_slice(&PEER);
    let arp = [&[0xff; 6][..], &ROUTER, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &ROUTER, &CLIENT, &[0; 6], &NODE].concat();
    let frames = [echo, tunnel, fragment_of_tcp, later_fragment, of_a_peer, short, other_port, other_station];
    for frame in frames.into_iter().chain([HostFrame(arp), error_about(22), datagram(ROUTER, NODE, 0, 53)]) {
        let mut walked = frame.clone();
        assert_eq!((walk(&mut walked, &tables), &walked), (Verdict::NotOurs, &frame));
    }
    // Without the flag the map is not asked; without a configuration nothing is done.
    tables.config.flags = 0;
    assert_eq!(walk(&mut segment(ROUTER, NODE, SYN, 80), &tables), Verdict::NotOurs);
    tables.config = Config { flags: Config::NODE_ADDRESSES, ..Config::default() };
    assert_eq!(walk(&mut segment(ROUTER, NODE, SYN, 80), &tables), Verdict::NotOurs);
}

/// Port 8080: what may be an answer to the node's own flow asks conntrack before it goes to the row's primary.
#[test]
fn only_syns_are_dispatched_where_the_node_opens_flows_itself() {
    let tables = serving();
    assert_eq!(walk(&mut segment(ROUTER, NODE, SYN, 8080), &tables), Verdict::DispatchedPeer);
    let first = Mark { next_hop: NextHop::Alternate(1), no_reset: false, slot: 2 };
    for mut frame in [
        segment(ROUTER, NODE, ACK, 8080),
        segment(ROUTER, NODE, SYN | ACK, 8080),
        datagram(ROUTER, NODE, 0, 8080),
        error_about(8080),
    ] {
        assert_eq!(walk(&mut frame, &tables).fate(), Fate::Pass);
        assert_eq!((mark(&frame), frame.0[22]), (first.mac(), Mark::GUARD_TTL));
    }
    // The primary has it as hop 1 then, and takes a datagram of no flow.
    let mut primary = serving();
    primary.rings.insert(2, vec![Row::new(1, [0; 3])]);
    let ttl = SearchState { hop: 1, no_reset: false }.ttl();
    let mut frame = datagram(PEER, OTHER_NODE, RESERVED_FLAG, 8080);
    frame.0[22] = ttl;
    assert_eq!(walk(&mut frame, &primary), Verdict::SecondChanceArrived);
    assert_eq!(mark(&frame), Mark::LOCAL.mac());
}

/// No ring, or a client outside of the source ranges: the node's own flows go on, SYNs are refused. What is to be refused if it is none of
/// those the mark says.
#[test]
fn the_nodes_own_flows_are_never_refused() {
    let mut tables = serving();
    for case in 0..2 {
        if case == 0 {
            tables.rings.insert(2, vec![]);
        } else {
            tables = serving();
            for value in tables.services.values_mut() {
                value.flags |= ServiceValue::restricted_to(5);
            }
        }
        let answers = [segment(ROUTER, NODE, ACK, 8080), segment(ROUTER, NODE, SYN | ACK, 8080)];
        for mut frame in answers.into_iter().chain([error_about(8080), datagram(ROUTER, NODE, 0, 8080)]) {
            assert_eq!(walk(&mut frame, &tables).fate(), Fate::Pass, "case {case}");
            let mark = if case == 0 { Mark::LOCAL } else { Mark::SOURCE_DENIED };
            assert_eq!(frame.0[6..12], mark.mac(), "case {case}");
            assert_eq!(frame.0[22] == Mark::GUARD_TTL, case == 1);
        }
        // The client's kernel ends a connection so: its pod is to know.
        let mut reset = segment(ROUTER, NODE, RST, 8080);
        assert_eq!(walk(&mut reset, &tables).fate(), Fate::Pass);
        assert_ne!(mark(&reset), Mark::SOURCE_DENIED.mac());
        assert_eq!(walk(&mut segment(ROUTER, NODE, ACK, 80), &tables).fate(), Fate::Tx, "a reset");
        assert_ne!(walk(&mut segment(ROUTER, NODE, SYN, 8080), &tables).fate(), Fate::Pass);
    }
}

#[test]
fn all_fragments_of_a_datagram_go_one_way() {
    let tables = serving();
    assert_eq!(walk(&mut datagram(ROUTER, NODE, 0x2000, 80), &tables), Verdict::DispatchedPeer);
    assert_eq!(walk(&mut packet(ROUTER, NODE, 0x00b9, 64, 17, &[1; 8]), &tables), Verdict::FragmentPeer);
    // At the other end of such a dispatch.
    let later = packet(PEER, OTHER_NODE, 0x00b9 | RESERVED_FLAG, 64, 17, &[1; 8]);
    assert_eq!(walk(&mut later.clone(), &tables), Verdict::FragmentLocal);
}

proptest! {
    /// Whatever comes to an address of a node: what is no Service's passes as it came.
    #[test]
    fn what_is_not_a_services_stays_as_it_is(
        proto in prop_oneof![Just(1u8), Just(6), Just(17), any::<u8>()],
        word in prop_oneof![Just(0u16), any::<u16>()],
        rest in proptest::collection::vec(any::<u8>(), 0..60),
        from in prop_oneof![Just(ROUTER), Just(PEER)],
    ) {
        let mut tables = serving();
        tables.services.clear();
        let frame = packet(from, NODE, word, 64, proto, &rest);
        let mut walked = frame.clone();
        prop_assert_eq!((walk(&mut walked, &tables), &walked), (Verdict::NotOurs, &frame));
    }
}
