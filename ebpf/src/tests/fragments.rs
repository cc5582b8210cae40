//! Datagrams in fragments: all pieces go where the first one goes, or nowhere.

use ebpf_common::{Config, Fate, FragmentValue, Mark, Node, Row, ServiceKey, ServiceValue, Verdict};
use proptest::prelude::*;

use super::{PEER, SELF, VIP, tables};
use crate::host::{HostFrame, HostTables};
use crate::{checksum, walk};

const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 9];
const CLIENT: [u8; 4] = [198, 51, 100, 7];
const MORE: u16 = 0x2000;

/// A fragment of a datagram of the client, to port 80 if it is the first.
#[derive(Clone, Copy, Debug)]
struct Piece {
    from: [u8; 6],
    client: [u8; 4],
    id: u16,
    flags: u16,
    ttl: u8,
    port: u16,
}

const FIRST: Piece = Piece { from: ROUTER, client: CLIENT, id: 77, flags: MORE, ttl: 64, port: 40000 };
const LATER: Piece = Piece { flags: MORE | 185, ..FIRST };

impl Piece {
    fn frame(self) -> HostFrame {
        let data = [&self.port.to_be_bytes()[..], &[0, 80, 0x1f, 0x48, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]].concat();
        let mut frame = [&SELF[..], &self.from, &[8, 0, 0x45, 0, 0, 20 + data.len() as u8]].concat();
        frame.extend([self.id.to_be_bytes(), self.flags.to_be_bytes()].concat());
        frame.extend([self.ttl, 17, 0, 0]);
        frame.extend(self.client);
        frame.extend(VIP);
        let sum = checksum::finish(checksum::sum(&frame[14..34].try_into().expect("a header") as &[u8; 20]));
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend(data);
        HostFrame(frame)
    }

    fn run(self, tables: &HostTables) -> (Verdict, HostFrame) {
        let mut frame = self.frame();
        let verdict = walk(&mut frame, tables);
        let header: &[u8; 20] = frame.0[14..34].try_into().expect("a header");
        assert_eq!(checksum::finish(checksum::sum(header)), 0, "the header's checksum");
        (verdict, frame)
    }
}

/// The node that sends it next: ours (the stack), the peer, or none.
fn goes_to(verdict: Verdict, frame: &HostFrame) -> Option<[u8; 6]> {
    match verdict.fate() {
        Fate::Pass => Some(SELF),
        Fate::Tx => Some(frame.0[..6].try_into().expect("an address")),
        Fate::Drop => None,
    }
}

proptest! {
    #[test]
    fn later_fragments_follow_the_first(port: u16, id: u16, more in 1..=8191u16, ttl in 2..=255u8) {
        let tables = tables();
        let first = Piece { port, id, ttl, ..FIRST };
        let last = Piece { flags: more, ..first };
        prop_assert_eq!(last.run(&tables).0, Verdict::FragmentWithoutFirst, "it overtook the first");
        let (verdict, frame) = first.run(&tables);
        let target = goes_to(verdict, &frame);
        prop_assert!(target == Some(SELF) || target == Some(PEER), "{verdict:?}");
        for piece in [last, Piece { flags: MORE | more, ..first }] {
            let (verdict, frame) = piece.run(&tables);
            prop_assert_eq!(goes_to(verdict, &frame), target);
            let flags = u16::from_be_bytes([frame.0[20], frame.0[21]]);
            if target == Some(PEER) {
                prop_assert_eq!((verdict, flags, frame.0[22]), (Verdict::FragmentPeer, piece.flags | 0x8000, ttl - 1));
            } else {
                prop_assert_eq!((verdict, flags, frame.0[22]), (Verdict::FragmentLocal, piece.flags, Mark::GUARD_TTL));
            }
        }
        for other in [
            Piece { id: id.wrapping_add(1), ..last },
            Piece { client: [198, 51, 100, 8], ..last },
        ] {
            prop_assert_eq!(other.run(&tables).0, Verdict::FragmentWithoutFirst, "another datagram");
        }
    }

    /// What a dispatcher sends is taken for what it is, and what the kernel of a node in search sends too.
    #[test]
    fn fragments_of_another_node_all_reach_the_stack(flags in 1..=8191u16, ttl: u8, dispatched: bool) {
        let mut tables = tables();
        tables.peers.insert(PEER, 2);
        let reserved = if dispatched { 0x8000 } else { 0 };
        for flags in [MORE, flags, MORE | flags] {
            let piece = Piece { from: PEER, flags: flags | reserved, ttl, ..FIRST };
            let (verdict, frame) = piece.run(&tables);
            prop_assert_eq!(verdict.fate(), Fate::Pass, "{:?}", verdict);
            prop_assert_eq!(u16::from_be_bytes([frame.0[20], frame.0[21]]), flags, "as the client sent it");
        }
        prop_assert!(tables.fragments.borrow().is_empty(), "remembered where they come in");
    }
}

#[test]
fn an_entry_ends_at_its_nanosecond_and_the_next_datagram_of_this_number_replaces_it() {
    let mut tables = tables();
    assert_eq!(FIRST.run(&tables).0.fate(), Fate::Tx, "a port whose row is the peer's: see below");
    for (now, want) in [
        (5 + FragmentValue::LIFETIME_NS - 1, Verdict::FragmentPeer),
        (5 + FragmentValue::LIFETIME_NS, Verdict::FragmentWithoutFirst),
    ] {
        tables.now_ns = now;
        assert_eq!(LATER.run(&tables).0, want, "at {now}");
    }
    let local = (1..).map(|port| Piece { port, ..FIRST }).find(|piece| piece.run(&tables).0.fate() == Fate::Pass);
    assert!(local.is_some());
    assert_eq!(LATER.run(&tables).0, Verdict::FragmentLocal);
    assert_eq!(tables.fragments.borrow().len(), 1);
}

#[test]
fn a_refused_first_fragment_leaves_nothing_behind() {
    let mut tables = tables();
    let of = |flags| ServiceValue { ring: 1, flags };
    let key = ServiceKey { addr: VIP, port: [0, 80], proto: 17, pad: 0 };
    tables.services.insert(key, of(ServiceValue::restricted_to(1)));
    for (ranges, want) in
        [(vec![([198, 51, 100, 8], 32)], Verdict::SourceDenied), (vec![(CLIENT, 32)], Verdict::DispatchedPeer)]
    {
        tables.source_ranges.insert(1, ranges);
        assert_eq!(FIRST.run(&tables).0, want);
    }
    tables.fragments.borrow_mut().clear();
    tables.source_ranges.clear();
    assert_eq!(FIRST.run(&tables).0, Verdict::SourceDenied);
    assert_eq!(LATER.run(&tables).0, Verdict::FragmentWithoutFirst, "no piece of a denied client passes");

    // The guard answers for the whole of it, or nobody.
    tables.services.clear();
    assert_eq!(FIRST.run(&tables).0, Verdict::UnservedUnreachable);
    assert_eq!(LATER.run(&tables).0, Verdict::FragmentLocal);
    tables.fragments.borrow_mut().clear();
    tables.config = Config { flags: Config::UDP_SILENT, ..tables.config };
    assert_eq!((FIRST.run(&tables).0, LATER.run(&tables).0), (Verdict::UnservedSilent, Verdict::FragmentWithoutFirst));
}

/// The peer's address is forgotten between two fragments.
#[test]
fn without_a_neighbour_later_fragments_are_dropped() {
    let mut tables = tables();
    tables.rings.insert(1, vec![Row::new(2, [0; 3])]);
    assert_eq!(FIRST.run(&tables).0, Verdict::DispatchedPeer);
    tables.nodes.insert(2, Node::default());
    assert_eq!(LATER.run(&tables).0, Verdict::NoNeighbour);
}
