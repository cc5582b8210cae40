//! Datagrams in fragments. The cases of a scene follow each other: what a first fragment leaves behind is there for the next.

use ebpf_common::{FragmentKey, FragmentValue, Mark, NextHop, SearchState, Verdict};
use sheave_tests::packet::{Eth, Ipv4};

use super::xdp_world::*;
use super::{Case, asking, case, changed, up};

const MORE: u16 = 0x2000;
const RESERVED: u16 = 0x8000;
/// In the middle, and the end.
const LATER: [u16; 2] = [MORE | 185, 370];

fn first(port: u16) -> Vec<u8> {
    inbound(VIP).fragment(MORE).payload(17, &header(port))
}

/// The header of a datagram of 3,000 bytes, and the first of them.
fn header(port: u16) -> Vec<u8> {
    [&40000_u16.to_be_bytes()[..], &port.to_be_bytes(), &3008_u16.to_be_bytes(), &[0, 0], &[5; 16]].concat()
}

fn piece(ip: Ipv4, flags: u16) -> Vec<u8> {
    ip.fragment(flags).payload(17, &[7; 24])
}

/// To the stack: as the client sent it, and it goes no further by itself.
fn joins(name: &'static str, frame: Vec<u8>, as_sent: Ipv4, flags: u16) -> Case {
    let mut out = piece(as_sent.ttl(Mark::GUARD_TTL), flags);
    out[6..12].copy_from_slice(&Mark::LOCAL.mac());
    changed(name, frame, Verdict::FragmentLocal, out)
}

fn to_peer() -> Ipv4 {
    Eth { dst: PEER, src: SELF }.ipv4(CLIENT, VIP).ttl(63)
}

fn in_fragments(slot: u16) -> Mark {
    Mark { next_hop: NextHop::InFragments, no_reset: false, slot }
}

pub fn from_client() -> Vec<Case> {
    use Verdict::*;
    let later = |flags| piece(inbound(VIP), flags);
    let on = |frame| case("later, no first", frame, FragmentWithoutFirst);
    let mut cases = vec![
        on(later(LATER[0])),
        changed(
            "first, to a peer",
            first(REMOTE),
            DispatchedPeer,
            to_peer().fragment(RESERVED | MORE).payload(17, &header(REMOTE)),
        ),
        changed("middle, to a peer", later(LATER[0]), FragmentPeer, piece(to_peer(), RESERVED | LATER[0])),
        changed("last, to a peer", later(LATER[1]), FragmentPeer, piece(to_peer(), RESERVED | LATER[1])),
        case("later, TTL 1", piece(inbound(VIP).ttl(1), LATER[0]), TtlExpired),
        on(piece(inbound(VIP).id(0x1235), LATER[0])),
        on(piece(inbound(OTHER), LATER[0])),
        on(piece(Eth { dst: SELF, src: ROUTER }.ipv4([198, 51, 100, 6], VIP), LATER[0])),
        case("of a station that is none of ours, with the flag", piece(inbound(VIP), RESERVED | LATER[0]), Malformed),
        // The number's next datagram.
        up("first, to this node", first(ALONE), DispatchedLocal),
        asking("first, other nodes may have the flow", first(LOCAL), SecondChanceLocal, in_fragments(2)),
        case("first, its port is not there", inbound(VIP).fragment(MORE).payload(17, &[0; 4]), Malformed),
        case("first, TTL 1", inbound(VIP).id(9).ttl(1).fragment(MORE).payload(17, &header(REMOTE)), TtlExpired),
        on(piece(inbound(VIP).id(9), LATER[0])),
        case("TCP, first", inbound(VIP).fragment(MORE).tcp(40000, LOCAL).build(), Fragment),
        case("TCP, later", inbound(VIP).fragment(LATER[0]).payload(6, &[1; 40]), Fragment),
        case("echo", inbound(VIP).fragment(MORE).icmp(8, 0, [0; 4], &[0; 16]), Fragment),
        up("first, unserved", first(UNSERVED), UnservedUnreachable),
    ];
    cases.extend(LATER.map(|flags| joins("later, to this node", later(flags), inbound(VIP), flags)));
    cases
}

/// What first fragments have left: one expired, one not, one whose node has no address any more.
pub fn earlier(now_ns: u64) -> [(FragmentKey, FragmentValue); 3] {
    let entry = |id: u16, until_ns, slot| {
        let key = FragmentKey { src: CLIENT, dst: VIP, id: id.to_be_bytes(), proto: 17, pad: 0 };
        (key, FragmentValue { until_ns, slot, counters: 0 })
    };
    [entry(1, now_ns - 1, 2), entry(2, now_ns + HOUR, 2), entry(3, now_ns + HOUR, 3)]
}

pub fn after_a_while() -> Vec<Case> {
    let later = |id| piece(inbound(VIP).id(id), LATER[0]);
    let sent_on = piece(to_peer().id(2), RESERVED | LATER[0]);
    vec![
        case("expired", later(1), Verdict::FragmentWithoutFirst),
        changed("not expired", later(2), Verdict::FragmentPeer, sent_on),
        case("no neighbour entry", later(3), Verdict::NoNeighbour),
    ]
}

/// A client outside of the source ranges leaves no way for its later fragments, also not by the datagram before.
pub fn denied() -> Vec<Case> {
    let outside = || Eth { dst: SELF, src: ROUTER }.ipv4([203, 0, 113, 76], VIP).id(5);
    let inside = || Eth { dst: SELF, src: ROUTER }.ipv4([203, 0, 113, 77], VIP).id(5);
    let first = |ip: Ipv4| ip.fragment(MORE).payload(17, &header(LOCAL_RANGES));
    vec![
        case("first, outside", first(outside()), Verdict::SourceDenied),
        case("later, outside", piece(outside(), LATER[0]), Verdict::FragmentWithoutFirst),
        asking("first, inside", first(inside()), Verdict::SecondChanceLocal, in_fragments(2)),
        case("later, outside, still", piece(outside(), LATER[0]), Verdict::FragmentWithoutFirst),
        joins("later, inside", piece(inside(), LATER[0]), inside(), LATER[0]),
    ]
}

/// A dispatcher's carry the reserved flag; those that a kernel made of a datagram in search do not.
pub fn from_nodes() -> Vec<Case> {
    use Verdict::*;
    let dispatcher = || dispatched(PEER);
    let search = |hop| dispatched(PEER).ttl(SearchState { hop, no_reset: false }.ttl());
    let first = |ip: Ipv4, port| ip.payload(17, &header(port));
    let expects = |name, frame, as_sent: Ipv4, port, verdict, mark| {
        changed(name, frame, verdict, marked(first(as_sent.fragment(MORE), port), mark))
    };
    let flagged = |port| first(dispatcher().fragment(RESERVED | MORE), port);
    let mark = |next_hop, slot| Mark { next_hop, no_reset: false, slot };
    vec![
        expects("dispatched", flagged(LOCAL), dispatcher(), LOCAL, SecondChancePeer, in_fragments(2)),
        expects("dispatched, no alternate", flagged(ALONE), dispatcher(), ALONE, FromPeer, Mark::LOCAL),
        expects("dispatched, unserved", flagged(UNSERVED), dispatcher(), UNSERVED, FromPeer, Mark::LOCAL),
        joins("dispatched, later", piece(dispatcher(), RESERVED | LATER[0]), dispatcher(), LATER[0]),
        joins("a node's own, later", piece(dispatcher(), LATER[0]), dispatcher(), LATER[0]),
        asking("a node's own", first(dispatcher().fragment(MORE), LOCAL), SecondChancePeer, in_fragments(2)),
        asking("hop 1", first(search(1).fragment(MORE), BETWEEN), SecondChanceArrived, mark(NextHop::Alternate(2), 4)),
        asking(
            "hop 1, home",
            first(search(1).fragment(MORE), REMOTE),
            SecondChanceArrived,
            mark(NextHop::ToPrimary, 2),
        ),
        asking("hop 4", first(search(4).fragment(MORE), BETWEEN), SecondChanceArrived, Mark::LOCAL),
        joins("hop 1, later", piece(search(1), LATER[1]), search(1), LATER[1]),
        case("TCP", dispatcher().fragment(MORE).tcp(1, LOCAL).build(), Fragment),
    ]
}
