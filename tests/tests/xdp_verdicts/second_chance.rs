//! The verdicts and marks of packets whose flow another node may have. Read first: docs/dataplane.md, "Second chance".

use ebpf_common::{Mark, NextHop, SearchState, Verdict};
use sheave_tests::packet::{Eth, Tcp};

use super::xdp_world::*;
use super::{Case, asking, case, changed, error, quoted, too_big, up};

fn first(slot: u16) -> Mark {
    Mark { next_hop: NextHop::Alternate(1), no_reset: false, slot }
}

fn syn_of(slot: u16) -> Mark {
    Mark { slot, ..Mark::LOCAL }
}

/// To the dispatcher.
fn back(slot: u16) -> Mark {
    Mark { next_hop: NextHop::ToDispatcher, no_reset: false, slot }
}

/// A flow that this node is the primary of, and others may have.
pub fn from_client() -> Vec<Case> {
    use Verdict::*;
    let segment = |flags| inbound(VIP).tcp(40000, LOCAL).flags(flags).data(b"x").build();
    let reserved = || inbound(VIP).fragment(0xc000);
    vec![
        asking("segment", segment(Tcp::ACK), SecondChanceLocal, first(2)),
        asking("RST", segment(Tcp::RST), SecondChanceLocal, first(2)),
        asking("SYN, ACK", segment(Tcp::SYN | Tcp::ACK), SecondChanceLocal, first(2)),
        asking("no flag", segment(0), SecondChanceLocal, first(2)),
        asking("datagram", inbound(OTHER).udp(40000, LOCAL, b"x"), SecondChanceLocal, first(2)),
        asking("error", too_big(&quoted(LOCAL)), IcmpLocal, first(2)),
        up("SYN", segment(Tcp::SYN), DispatchedLocal),
        up("segment, no alternate", inbound(VIP).tcp(40000, ALONE).flags(Tcp::ACK).build(), DispatchedLocal),
        case("with the reserved flag", reserved().tcp(40000, LOCAL).flags(Tcp::ACK).build(), Malformed),
        case("with the reserved flag, to a peer", reserved().udp(40000, REMOTE, b"x"), Malformed),
    ]
}

pub fn from_dispatcher() -> Vec<Case> {
    use Verdict::*;
    let segment = |by, port| dispatched(by).tcp(40000, port).flags(Tcp::ACK).data(b"x").build();
    let datagram = |by, port| dispatched(by).udp(40000, port, b"x");
    let syn = |port| dispatched(PEER).tcp(40000, port).syn().build();
    // Hop 1: so that the next node keeps it.
    let passed_on =
        |dst, src| Eth { dst, src }.ipv4(CLIENT, VIP).ttl(15).fragment(0xc000).tcp(40000, BETWEEN).syn().build();
    vec![
        asking("segment", segment(FOURTH, LOCAL), SecondChancePeer, first(2)),
        asking("the dispatcher may have it too", segment(PEER, LOCAL), SecondChancePeer, first(2)),
        asking("datagram", datagram(PEER, LOCAL), SecondChancePeer, first(2)),
        asking("this node is not the primary", segment(FOURTH, BETWEEN), SecondChancePeer, first(2)),
        asking("nor in the row", datagram(FOURTH, REMOTE), SecondChancePeer, first(2)),
        asking("error", error(SELF, FOURTH, 64, 3, &quoted(LOCAL)), SecondChancePeer, first(2)),
        asking("segment, no alternate", segment(PEER, ALONE), FromPeer, back(2)),
        up("datagram, no alternate", datagram(PEER, ALONE), FromPeer),
        up("error, no alternate", error(SELF, PEER, 64, 3, &quoted(ALONE)), FromPeer),
        asking("SYN, this node is the primary", syn(LOCAL), FromPeer, syn_of(2)),
        asking("SYN, this node has a pod", syn(REMOTE_SERVED), FromPeer, syn_of(2)),
        changed(
            "SYN, neither",
            dispatched(FOURTH).tcp(40000, BETWEEN).syn().build(),
            SynPassedOn,
            passed_on(PEER, SELF),
        ),
        changed("SYN, neither, back to the dispatcher", syn(BETWEEN), SynPassedOn, passed_on(PEER, SELF)),
        changed(
            "SYN, may be fragmented, TTL 1",
            dispatched(FOURTH).fragment(0).ttl(1).tcp(40000, REMOTE).syn().build(),
            SynPassedOn,
            Eth { dst: PEER, src: SELF }.ipv4(CLIENT, VIP).ttl(15).fragment(0x8000).tcp(40000, REMOTE).syn().build(),
        ),
        case("SYN, no neighbour entry", syn(NO_MAC), NoNeighbour),
        asking("SYN, unserved", syn(UNSERVED), FromPeer, syn_of(2)),
        asking("segment, unserved", segment(PEER, UNSERVED), FromPeer, back(2)),
        asking("RST, unserved", dispatched(FOURTH).tcp(40000, UNSERVED).flags(Tcp::RST).build(), FromPeer, back(4)),
        up("datagram, unserved", datagram(PEER, UNSERVED), FromPeer),
        up("error, unserved", error(SELF, PEER, 64, 3, &quoted(UNSERVED)), FromPeer),
        asking("SYN, empty ring", syn(EMPTY), FromPeer, syn_of(2)),
        asking("segment, empty ring", segment(PEER, EMPTY), FromPeer, back(2)),
        up("datagram, empty ring", datagram(PEER, EMPTY), FromPeer),
        case("the ring is not there", segment(PEER, NO_RING), BadRing),
        case("GRE", dispatched(PEER).payload(47, &[0; 40]), Protocol),
        changed(
            "echo: a node pings",
            dispatched(PEER).icmp(8, 0, [0; 4], b"x"),
            EchoAnswered,
            Eth { dst: PEER, src: SELF }.ipv4(VIP, CLIENT).icmp(0, 0, [0; 4], b"x"),
        ),
    ]
}

/// Every hop, in every place of the row. Up the stack the reserved flag is gone, the time to live is as it came or holds the packet.
pub fn in_search() -> Vec<Case> {
    let hop = |hop| SearchState { hop, no_reset: false };
    let no_reset = |hop| SearchState { hop, no_reset: true };
    let to_primary = Mark { next_hop: NextHop::ToPrimary, ..first(2) };
    let second = |slot| Mark { next_hop: NextHop::Alternate(2), ..first(slot) };
    let third = |slot| Mark { next_hop: NextHop::Alternate(3), ..first(slot) };
    let silent = |mark| Mark { no_reset: true, ..mark };
    let local = Mark::LOCAL;
    let tcp = |name, from, state: SearchState, port, mark| {
        let build = |ip: sheave_tests::packet::Ipv4| ip.tcp(40000, port).flags(Tcp::ACK).data(b"x").build();
        arrived(name, build(searching(from, state)), build(dispatched(from).ttl(state.ttl())), mark)
    };
    let began = |name, at: u8, segment, mark| {
        let id = SearchState::origin_id([192, 0, 2, at]) + segment;
        let build = |ip: sheave_tests::packet::Ipv4| ip.id(id).tcp(40000, BETWEEN).flags(Tcp::ACK).build();
        arrived(name, build(searching(FOURTH, hop(2))), build(dispatched(FOURTH).ttl(hop(2).ttl())), mark)
    };
    let udp = |name, from, state: SearchState, port, mark| {
        let build = |ip: sheave_tests::packet::Ipv4| ip.udp(40000, port, b"x");
        arrived(name, build(searching(from, state)), build(dispatched(from).ttl(state.ttl())), mark)
    };
    let marked_syn = |name, state: SearchState, port, mark| {
        let build = |ip: sheave_tests::packet::Ipv4| ip.tcp(40000, port).syn().build();
        arrived(name, build(searching(PEER, state)), build(dispatched(PEER).ttl(state.ttl())), mark)
    };
    let syn = |name, state, port| marked_syn(name, state, port, local);
    let ip_error = |port, fragment, ttl: u8| {
        let ip = Eth { dst: SELF, src: PEER }.ipv4([203, 0, 113, 9], VIP).ttl(ttl).fragment(fragment);
        ip.icmp(3, 4, [0, 0, 5, 0], &quoted(port))
    };
    let error = |name, port, mark| arrived(name, ip_error(port, 0xc000, 15), ip_error(port, 0x4000, 15), mark);
    vec![
        tcp("hop 1", PEER, hop(1), BETWEEN, second(4)),
        tcp("hop 1: not from the primary", FOURTH, hop(1), BETWEEN, second(2)),
        tcp("hop 1: another order", PEER, hop(1), LAST, second(4)),
        tcp("hop 2", PEER, hop(2), BETWEEN, third(4)),
        tcp("hop 2: without who sent it, nor the primary", FOURTH, hop(2), BETWEEN, third(3)),
        began("hop 2: the primary has not been visited", 3, 0, third(2)),
        began("hop 2: nor has it by a segment of many", 3, 44, third(2)),
        began("hop 2: it began at the primary", 2, 0, third(3)),
        began("hop 2: it began at a node that is not in the row", 7, 0, third(3)),
        tcp("hop 3: all have been visited", PEER, hop(3), BETWEEN, local),
        tcp("hop 4: the last", PEER, hop(4), BETWEEN, local),
        tcp("without reset", PEER, no_reset(1), BETWEEN, silent(second(4))),
        tcp("without reset, all have been visited", FOURTH, no_reset(3), LAST, silent(local)),
        tcp("without reset, the last", PEER, no_reset(4), BETWEEN, silent(local)),
        marked_syn("without reset, SYN, no new flows", no_reset(2), REMOTE_NO_NEW_FLOWS, silent(local)),
        marked_syn("SYN, no new flows", hop(2), REMOTE_NO_NEW_FLOWS, local),
        tcp("not in the row, no alternate: back", PEER, hop(1), REMOTE, second(2)),
        tcp("not in the row", FOURTH, hop(1), REMOTE, second(2)),
        tcp("this node is the primary", FOURTH, hop(1), LOCAL, second(2)),
        tcp("this node is the primary, no alternate: back", PEER, hop(1), LOCAL, second(2)),
        tcp("no alternate, not at once", PEER, hop(2), LOCAL, local),
        udp("datagram", PEER, hop(1), BETWEEN, second(4)),
        udp("datagram, all have been visited", FOURTH, hop(3), LAST, to_primary),
        udp("datagram, the primary sent it", PEER, hop(1), REMOTE, to_primary),
        udp("datagram, all have been visited, without reset", FOURTH, no_reset(3), LAST, silent(to_primary)),
        udp("datagram, not in the row", FOURTH, hop(3), REMOTE, to_primary),
        udp("datagram, at the primary", PEER, hop(4), LOCAL, local),
        udp("datagram, the last, not the primary", PEER, hop(4), LAST, local),
        udp("datagram, at the primary early", PEER, hop(1), ALONE, local),
        udp("datagram, no primary", PEER, hop(1), ROW_ZERO, local),
        syn("SYN: taken", hop(2), REMOTE),
        syn("SYN, this node has a pod", hop(1), REMOTE_SERVED),
        changed(
            "SYN, neither, once more",
            searching(PEER, hop(1)).tcp(40000, REMOTE).syn().build(),
            Verdict::SynPassedOn,
            Eth { dst: PEER, src: SELF }.ipv4(CLIENT, VIP).ttl(14).fragment(0xc000).tcp(40000, REMOTE).syn().build(),
        ),
        syn("SYN, unserved", hop(1), UNSERVED),
        tcp("unserved: back", PEER, hop(1), UNSERVED, second(2)),
        tcp("unserved, not at once", PEER, hop(2), UNSERVED, local),
        tcp("unserved, without reset: back", PEER, no_reset(1), UNSERVED, silent(second(2))),
        udp("empty ring", PEER, hop(2), EMPTY, local),
        error("error", BETWEEN, second(4)),
        error("error, no alternate", REMOTE, local),
        error("error, unserved", UNSERVED, local),
    ]
}

fn arrived(name: &'static str, frame: Vec<u8>, without_state: Vec<u8>, mark: Mark) -> Case {
    changed(name, frame, Verdict::SecondChanceArrived, marked(without_state, mark))
}
