//! What is counted of a Service, and where: every packet of a client once, on the node where it comes in.

use ebpf_common::{Row, SearchState, ServiceCounters, ServiceKey, ServiceValue, Verdict};

use super::{PEER, SELF, VIP, tables};
use crate::host::{HostFrame, HostTables};
use crate::walk;

const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 9];
const CLIENT: [u8; 4] = [198, 51, 100, 7];
const SYN: u8 = 2;
const ACK: u8 = 16;
const SLOT: u16 = 3;

/// Port 80 is counted in [`SLOT`]; its row names node 1, then node 2.
fn counted() -> HostTables {
    let mut tables = tables();
    tables.peers.insert(PEER, 2);
    tables.rings.insert(1, vec![Row::new(1, [2, 0, 0])]);
    serve(&mut tables, 0);
    tables
}

fn serve(tables: &mut HostTables, flags: u32) {
    for proto in [6, 17] {
        let flags = flags | ServiceValue::counted_in(SLOT);
        tables.services.insert(ServiceKey { addr: VIP, port: [0, 80], proto, pad: 0 }, ServiceValue { ring: 1, flags });
    }
}

/// An IPv4 packet; flags, fragment offset and time to live as given.
fn packet(from: [u8; 6], word: u16, ttl: u8, proto: u8, rest: &[u8]) -> HostFrame {
    let length = (20 + rest.len() as u16).to_be_bytes();
    let mut frame = [&SELF[..], &from, &[8, 0, 0x45, 0], &length, &[0, 7], &word.to_be_bytes()].concat();
    frame.extend([ttl, proto, 0, 0]);
    frame.extend([&CLIENT[..], &VIP, rest].concat());
    HostFrame(frame)
}

fn segment(from: [u8; 6], word: u16, ttl: u8, flags: u8, port: u8) -> HostFrame {
    let head = [&[0x9c, 0x40, 0, port][..], &[0; 8], &[0x50, flags], &[0; 6], b"hello"].concat();
    packet(from, word, ttl, 6, &head)
}

fn piece(word: u16) -> HostFrame {
    packet(ROUTER, word, 64, 17, &[0x9c, 0x40, 0, 80, 0x1f, 0x48, 0, 0])
}

fn counts(tables: &HostTables) -> ServiceCounters {
    let counters = tables.counters.borrow();
    assert!(counters.keys().all(|slot| *slot == u32::from(SLOT)), "{counters:?}");
    counters.get(&SLOT.into()).copied().unwrap_or_default()
}

#[test]
fn packets_of_clients_count_and_syns_among_them() {
    for row in [Row::new(1, [0; 3]), Row::new(1, [2, 0, 0]), Row::new(2, [0; 3])] {
        let mut tables = counted();
        tables.rings.insert(1, vec![row]);
        for flags in [SYN, ACK, ACK | SYN] {
            walk(&mut segment(ROUTER, 0x4000, 64, flags, 80), &tables);
        }
        let want = ServiceCounters { packets: 3, bytes: 3 * 45, new_flows: 1, ..Default::default() };
        assert_eq!(counts(&tables), want, "{row:?}");
        // Unserved: no Service.
        walk(&mut segment(ROUTER, 0x4000, 64, SYN, 81), &tables);
        assert_eq!(counts(&tables), want);
    }
}

#[test]
fn all_fragments_count_for_the_service_of_the_first() {
    let tables = counted();
    assert_eq!(walk(&mut piece(0x2010), &tables), Verdict::FragmentWithoutFirst);
    walk(&mut piece(0x2000), &tables);
    walk(&mut piece(0x2010), &tables);
    walk(&mut piece(0x0020), &tables);
    assert_eq!(counts(&tables), ServiceCounters { packets: 3, bytes: 3 * 28, ..Default::default() });
    let mut tables = counted();
    tables.services.clear();
    assert_eq!(walk(&mut piece(0x2000), &tables), Verdict::UnservedUnreachable);
    assert_eq!(walk(&mut piece(0x2010), &tables), Verdict::FragmentLocal);
    assert_eq!(counts(&tables), ServiceCounters::default(), "no Service");
}

#[test]
fn resets_count_and_what_a_service_does_not_admit_is_no_packet_of_it() {
    let mut tables = counted();
    tables.rings.insert(1, vec![]);
    assert_eq!(walk(&mut segment(ROUTER, 0x4000, 64, SYN, 80), &tables), Verdict::EmptyRingReset);
    assert_eq!(counts(&tables), ServiceCounters { packets: 1, bytes: 45, resets: 1, ..Default::default() });
    serve(&mut tables, ServiceValue::restricted_to(9));
    assert_eq!(walk(&mut segment(ROUTER, 0x4000, 64, ACK, 80), &tables), Verdict::SourceReset);
    assert_eq!(walk(&mut segment(ROUTER, 0x4000, 64, SYN, 80), &tables), Verdict::SourceDenied);
    assert_eq!(counts(&tables), ServiceCounters { packets: 1, bytes: 45, resets: 2, ..Default::default() });
}

#[test]
fn of_what_nodes_send_only_the_first_hop_of_a_search_counts() {
    let tables = counted();
    let ttl = |hop| SearchState { hop, no_reset: false }.ttl();
    let second_chances = |number| ServiceCounters { second_chances: number, ..Default::default() };
    for (word, time, flags, want) in [
        (0x4000, 63, ACK, 0),
        (0x4000, 63, SYN, 0),
        (0xc000, ttl(1), ACK, 1),
        (0xc000, ttl(1), SYN, 1),
        (0xc000, ttl(2), ACK, 1),
        (0xc000, ttl(1), ACK, 2),
    ] {
        walk(&mut segment(PEER, word, time, flags, 80), &tables);
        assert_eq!(counts(&tables), second_chances(want), "{word:#x}, {time}, {flags}");
    }
}
