//! Source ranges in the kernel: who is admitted, what becomes of the others, and what a Service without ranges sees of it: nothing.
//!
//! Needs root.

mod xdp_world;

use ebpf_common::{SearchState, Verdict};
use sheave_ebpf::host::HostTables;
use sheave_tests::packet::{Addr, Eth, Ipv4, Tcp};
use sheave_tests::xdp::{Kernel, Outcome};
use xdp_world::*;

struct World {
    kernel: Kernel,
    tables: HostTables,
}

impl World {
    fn new() -> Self {
        let tables = world();
        Self { kernel: Kernel::load(&tables).expect("loading the XDP program"), tables }
    }

    fn run(&mut self, frame: &[u8]) -> Outcome {
        both(&mut self.kernel, &self.tables, frame)
    }

    fn denied(&self, slot: u16) -> u64 {
        self.kernel.denied(slot).expect("DENIED")
    }
}

fn from(client: Addr) -> Ipv4 {
    Eth { dst: SELF, src: ROUTER }.ipv4(client, VIP)
}

/// Just outside of the ranges, on either side of their borders.
const OUTSIDE: [Addr; 6] =
    [[198, 51, 100, 8], [198, 51, 100, 127], [198, 51, 101, 0], [203, 0, 113, 76], [203, 0, 113, 78], [11, 0, 0, 0]];
const INSIDE: [Addr; 6] = [
    [198, 51, 100, 0],
    [198, 51, 100, 7],
    [198, 51, 100, 128],
    [198, 51, 100, 255],
    [203, 0, 113, 77],
    [10, 255, 255, 255],
];

#[test]
fn a_client_inside_is_served_and_one_outside_is_dropped_and_counted() {
    let mut world = World::new();
    for client in INSIDE {
        let verdicts = [LOCAL_RANGES, REMOTE_RANGES, EMPTY_RANGES]
            .map(|port| world.run(&from(client).tcp(40000, port).syn().build()).verdict);
        assert_eq!(
            verdicts,
            [Verdict::DispatchedLocal, Verdict::DispatchedPeer, Verdict::EmptyRingReset],
            "{client:?}"
        );
        assert_eq!(world.run(&from(client).udp(40000, REMOTE_RANGES, b"x")).verdict, Verdict::DispatchedPeer);
    }
    assert_eq!(world.denied(RANGES), 0);
    let mut sent = 0;
    for client in OUTSIDE {
        for port in [LOCAL_RANGES, REMOTE_RANGES, EMPTY_RANGES] {
            for frame in [from(client).tcp(40000, port).syn().build(), from(client).udp(40000, port, b"x")] {
                let outcome = world.run(&frame);
                assert_eq!((outcome.verdict, outcome.frame), (Verdict::SourceDenied, frame), "{client:?}");
                sent += 1;
                assert_eq!(world.denied(RANGES), sent);
            }
        }
    }
    assert_eq!(world.denied(RANGES + 1), 0, "counted for its own Service");
}

#[test]
fn without_a_range_no_client_is_admitted_and_the_ranges_of_another_service_do_not_count() {
    let mut world = World::new();
    for client in INSIDE.into_iter().chain(OUTSIDE) {
        let syn = |port| from(client).tcp(40000, port).syn().build();
        assert_eq!(world.run(&syn(NO_RANGE)).verdict, Verdict::SourceDenied);
        assert_eq!(world.run(&syn(ANY_RANGE)).verdict, Verdict::DispatchedLocal);
        // A Service without ranges.
        assert_eq!(world.run(&syn(LOCAL)).verdict, Verdict::DispatchedLocal);
    }
    assert_eq!(world.denied(0), (INSIDE.len() + OUTSIDE.len()) as u64);
}

/// Narrowed ranges: the client of an open connection gets a reset in place of any segment, and its own resets reach the pod.
#[test]
fn an_open_connection_of_a_client_outside_is_reset() {
    let mut world = World::new();
    let segment = |port, flags| from(OUTSIDE[0]).tcp(40000, port).flags(flags).data(b"hello").build();
    for port in [LOCAL_RANGES, REMOTE_RANGES] {
        let before = world.denied(RANGES);
        for flags in [Tcp::ACK, Tcp::ACK | Tcp::FIN] {
            let outcome = world.run(&segment(port, flags));
            assert_eq!(outcome.verdict, Verdict::SourceReset);
            // The reset of the same segment to a port that nobody serves: its form has a test of its own.
            let unserved = world.run(&segment(UNSERVED, flags));
            assert_eq!(unserved.verdict, Verdict::UnservedReset);
            assert_eq!(outcome.frame.len(), unserved.frame.len());
            assert_eq!(outcome.frame[..34], unserved.frame[..34]);
            assert_eq!(outcome.frame[34..36], port.to_be_bytes());
            assert_eq!(outcome.frame[36..50], unserved.frame[36..50]);
        }
        assert_eq!(world.denied(RANGES) - before, 2);
    }
    let rst = |port| segment(port, Tcp::RST | Tcp::ACK);
    assert_eq!(world.run(&rst(LOCAL_RANGES)).verdict, Verdict::SecondChanceLocal);
    assert_eq!(world.run(&rst(REMOTE_RANGES)).verdict, Verdict::DispatchedPeer);
    assert_eq!(world.denied(RANGES), 4, "a reset is not denied");
}

#[test]
fn an_icmp_error_counts_as_the_flow_that_it_quotes() {
    let mut world = World::new();
    for (client, verdict) in [(INSIDE[0], Verdict::IcmpPeer), (OUTSIDE[0], Verdict::SourceDenied)] {
        let reply = Eth { dst: ROUTER, src: SELF }.ipv4(VIP, client).udp(REMOTE_RANGES, 40000, b"y");
        // From a router, which is in no range.
        let error = from([203, 0, 113, 9]).icmp(3, 4, [0, 0, 5, 0], &reply[14..42]);
        assert_eq!(world.run(&error).verdict, verdict);
    }
}

/// It was judged where it came in, by that node's list.
#[test]
fn what_another_node_sends_is_not_judged_again() {
    let mut world = World::new();
    let dispatched = || Eth { dst: SELF, src: PEER }.ipv4(OUTSIDE[0], VIP);
    let search = dispatched().ttl(SearchState { hop: 1, no_reset: false }.ttl()).fragment(0xc000);
    let segment = |ip: Ipv4| ip.tcp(40000, LOCAL_RANGES).flags(Tcp::ACK).build();
    assert_eq!(world.run(&dispatched().tcp(40000, LOCAL_RANGES).syn().build()).verdict, Verdict::FromPeer);
    assert_eq!(world.run(&segment(dispatched())).verdict, Verdict::SecondChancePeer);
    assert_eq!(world.run(&segment(search)).verdict, Verdict::SecondChanceArrived);
    assert_eq!(world.denied(RANGES), 0);
}

/// Random lists in many slots, as full as the map can be; the host's answer is that of a naive comparison.
#[test]
fn kernel_and_host_admit_the_same_clients() {
    const SLOTS: u16 = 1000;
    let mut tables = world();
    let mut random = Random(18);
    let address =
        |random: &mut Random| -> Addr { [10, random.below(3) as u8, random.below(4) as u8, random.next() as u8] };
    for slot in 1..=SLOTS {
        let list = (0..10).map(|_| {
            let length = 8 + random.below(25) as u8;
            let network = u32::from_be_bytes(address(&mut random)) & (u32::MAX << (32 - length));
            (network.to_be_bytes(), length)
        });
        // A list in a hundred has short prefixes, which would admit nearly all.
        let list: Vec<_> = list.filter(|(_, length)| *length > 20 || slot % 100 == 0).collect();
        tables.source_ranges.insert(slot, list);
    }
    let mut kernel = Kernel::load(&tables).expect("loading the XDP program");
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..20_000 {
        let slot = 1 + random.below(SLOTS.into()) as u16;
        let key = ebpf_common::ServiceKey { addr: VIP, port: LOCAL_RANGES.to_be_bytes(), proto: 6, pad: 0 };
        let value = ebpf_common::ServiceValue { ring: 1, flags: ebpf_common::ServiceValue::restricted_to(slot) };
        tables.services.insert(key, value);
        kernel.serve(&key, value).expect("SERVICES");
        let frame = from(address(&mut random)).tcp(random.next() as u16, LOCAL_RANGES).syn().build();
        *seen.entry(both(&mut kernel, &tables, &frame).verdict).or_insert(0) += 1;
    }
    let few = seen.values().min().copied().unwrap_or(0);
    assert!(seen.len() == 2 && few > 200, "both answers, often: {seen:?}");
}
