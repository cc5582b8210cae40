//! The flow hash and the rings in the kernel: the same node on every dispatcher, errors follow their flow, rings change at once.
//!
//! Needs root.

mod xdp_world;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ebpf_common::{FlowTuple, MAX_ROWS, Node, Row, ServiceCounters, ServiceValue, Verdict, row_of};
use sheave_tests::packet::{Addr, Eth};
use sheave_tests::xdp::Kernel;
use xdp_world::*;

#[test]
fn kernel_and_host_send_every_flow_to_the_same_node() {
    let tables = world();
    let mut kernel = Kernel::load(&tables).expect("loading the XDP program");
    let mut random = Random(1);
    let mut peers = 0;
    const FLOWS: usize = 20_000;
    for _ in 0..FLOWS {
        let src = client(&mut random);
        let port = random.next() as u16;
        let ip = Eth { dst: SELF, src: ROUTER }.ipv4(src, if random.below(2) == 0 { VIP } else { OTHER });
        let frame = if random.below(2) == 0 { ip.tcp(port, MIXED).build() } else { ip.udp(port, MIXED, b"x") };
        let outcome = both(&mut kernel, &tables, &frame);
        peers += usize::from(outcome.verdict == Verdict::DispatchedPeer);
    }
    // Of the mixed ring's rows a third name the peer.
    let rows = tables.rings[&7].iter().filter(|row| row.primary() == 2).count();
    let want = FLOWS * rows / MIXED_ROWS as usize;
    assert!(peers.abs_diff(want) < FLOWS / 50, "{peers} of {FLOWS} to the peer, {want} expected");
}

/// Each port has counters of its own, beside its other flags. The kernel's are compared with the host's, whose rules have tests of their own.
#[test]
fn kernel_and_host_count_the_same_traffic() {
    let mut tables = world();
    let ports = [LOCAL, REMOTE, EMPTY, MIXED, AFFINITY, REMOTE_RANGES, LOCAL_RANGES];
    let slots = [1, 2, 3, 700, 1024, 2046, 2047];
    for (port, slot) in ports.into_iter().zip(slots) {
        for (_, value) in tables.services.iter_mut().filter(|(key, _)| key.port == port.to_be_bytes()) {
            value.flags |= ServiceValue::counted_in(slot);
        }
    }
    let mut kernel = Kernel::load(&tables).expect("loading the XDP program");
    let mut random = Random(7);
    for _ in 0..10_000 {
        let port = ports[random.below(ports.len())];
        let src = if random.below(2) == 0 { CLIENT } else { client(&mut random) };
        let from = [ROUTER, PEER, FOURTH][random.below(3)];
        let ip = Eth { dst: SELF, src: from }.ipv4(src, VIP).ttl(10 + random.below(8) as u8);
        let word = [0x4000, 0x2000, 0x0010, 0xc000, 0xa000][random.below(5)];
        let ip = ip.id(random.below(4) as u16).fragment(word);
        let frame = match random.below(2) {
            0 => ip.udp(random.next() as u16, port, &vec![0; 8 * random.below(100)]),
            _ => ip.tcp(random.next() as u16, port).flags([2, 16, 17, 4][random.below(4)]).data(b"hello").build(),
        };
        both(&mut kernel, &tables, &frame);
    }
    let sum = |slot: u16| {
        kernel.service_counters(slot).expect("SERVICE_COUNTERS").into_iter().fold(
            ServiceCounters::default(),
            |sum, cpu| ServiceCounters {
                packets: sum.packets + cpu.packets,
                bytes: sum.bytes + cpu.bytes,
                new_flows: sum.new_flows + cpu.new_flows,
                resets: sum.resets + cpu.resets,
                second_chances: sum.second_chances + cpu.second_chances,
            },
        )
    };
    let host = tables.counters.borrow();
    for slot in slots {
        let counted = sum(slot);
        assert_eq!(counted, host[&slot.into()], "slot {slot}");
        assert!(counted.packets > 100 && counted.bytes > 28 * counted.packets, "{counted:?}");
    }
    for (of, name) in
        [(sum(1).new_flows, "new flows"), (sum(3).resets, "resets"), (sum(1).second_chances, "second chances")]
    {
        assert!(of > 10, "{name}: {of}");
    }
    assert_eq!(sum(0), ServiceCounters::default(), "none that is not counted apart");
}

#[test]
fn with_client_affinity_all_ports_of_a_client_go_to_one_node() {
    let tables = world();
    let mut kernel = Kernel::load(&tables).expect("loading the XDP program");
    let mut random = Random(2);
    let mut nodes = BTreeMap::new();
    for _ in 0..200 {
        let src = client(&mut random);
        let mut verdicts: Vec<_> = (0..20)
            .map(|_| {
                let ip = Eth { dst: SELF, src: ROUTER }.ipv4(src, VIP);
                both(&mut kernel, &tables, &ip.tcp(random.next() as u16, AFFINITY).build()).verdict
            })
            .collect();
        verdicts.dedup();
        assert_eq!(verdicts.len(), 1, "{src:?}");
        *nodes.entry(verdicts[0]).or_insert(0) += 1;
    }
    assert!(nodes.len() == 2, "both nodes have clients: {nodes:?}");
}

#[test]
fn an_icmp_error_goes_where_its_flow_goes() {
    let tables = world();
    let mut kernel = Kernel::load(&tables).expect("loading the XDP program");
    let mut random = Random(3);
    let mut seen = BTreeMap::new();
    for _ in 0..2_000 {
        let src = client(&mut random);
        let port = random.next() as u16;
        let service = if random.below(2) == 0 { MIXED } else { AFFINITY };
        let (packet, reply) = if random.below(2) == 0 {
            (inbound_from(src).tcp(port, service).build(), outbound_to(src).tcp(service, port).build())
        } else {
            (inbound_from(src).udp(port, service, b"x"), outbound_to(src).udp(service, port, b"y"))
        };
        let error = inbound_from([203, 0, 113, 9]).icmp(3, 4, [0, 0, 5, 0], &reply[14..42]);
        let flow = both(&mut kernel, &tables, &packet).verdict;
        let error = both(&mut kernel, &tables, &error).verdict;
        match flow {
            Verdict::DispatchedLocal => assert_eq!(error, Verdict::IcmpLocal),
            Verdict::DispatchedPeer => assert_eq!(error, Verdict::IcmpPeer),
            other => panic!("{other:?}"),
        }
        *seen.entry(flow).or_insert(0) += 1;
    }
    assert!(seen.len() == 2, "both nodes have flows: {seen:?}");
}

/// A ring of the largest size, every row naming a node of its own as far as there are any: the kernel reads the very row.
#[test]
fn the_largest_ring_is_read_to_its_last_row() {
    let mut tables = world();
    let nodes = ebpf_common::MAX_NODES - 1;
    for slot in 2..=nodes {
        tables.nodes.insert(slot, Node { addr: [10, 0, 0, 0], mac: mac_of(slot), flags: 0 });
    }
    tables.rings.insert(7, (0..MAX_ROWS).map(|row| Row::new(2 + (row % (nodes - 1)) as u16, [0; 3])).collect());
    let mut kernel = Kernel::load(&tables).expect("loading the XDP program");
    let mut random = Random(4);
    for _ in 0..5_000 {
        let frame = inbound_from(client(&mut random)).tcp(random.next() as u16, MIXED).build();
        let outcome = both(&mut kernel, &tables, &frame);
        assert_eq!(outcome.verdict, Verdict::DispatchedPeer);
    }
    assert_eq!(row_of(u64::MAX, MAX_ROWS), Some(MAX_ROWS - 1));
}

/// Two rings of different length take turns. In each, the row that the other's length would lead to is bad: a packet that saw the
/// length of one and a row of the other would be counted as such. The verdicts leave the frame as it is but for its source,
/// so that one system call can run it again and again.
#[test]
fn a_ring_is_replaced_at_once() {
    const SHORT: u32 = 251;
    const LONG: u32 = 1009;
    /// Of one system call: many times what a change takes. Each call waits for RCU grace periods of its own before and after (it
    /// changes the kernel's XDP dispatcher), as a change does: with short runs all changes fall between them.
    const PACKETS: u32 = 2_000_000;
    const RUNS: u32 = 20;
    let tables = world();
    let kernel = Kernel::load(&tables).expect("loading the XDP program");
    let row_in = |port: u16, rows: u32| {
        let flow =
            FlowTuple { src: CLIENT, dst: VIP, src_port: port.to_be_bytes(), dst_port: MIXED.to_be_bytes(), proto: 6 };
        row_of(flow.hash(&tables.config.hash_key), rows).expect("rows")
    };
    let port = (1024..).find(|port| row_in(*port, LONG) > SHORT).expect("a port");
    let only = |len: u32, owner: u16| -> Vec<Row> {
        (0..len).map(|row| Row::new(if row == row_in(port, len) { owner } else { 0 }, [0; 3])).collect()
    };
    let turns = [only(SHORT, 1), only(LONG, 3)];
    let frame = inbound(VIP).tcp(port, MIXED).build();
    let put = |rows: &[Row]| {
        let ring = ebpf_object::create_ring(rows).expect("a ring");
        kernel.put_rings(&[(7, ring)]).expect("the swap");
    };
    put(&turns[1]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swaps = scope.spawn(|| {
            let mut swaps = 0;
            while !done.load(Ordering::Relaxed) {
                put(&turns[swaps % 2]);
                swaps += 1;
            }
            swaps
        });
        let limit = Instant::now() + Duration::from_secs(60);
        let (mut saw_both, mut mixed, mut other) = (0, 0, 0);
        while saw_both < RUNS && !swaps.is_finished() && Instant::now() < limit {
            let before = kernel.counters().expect("counters");
            kernel.time(&frame, PACKETS).expect("BPF_PROG_TEST_RUN");
            let after = kernel.counters().expect("counters");
            let seen = |verdict: Verdict| after[verdict as usize] - before[verdict as usize];
            let (short, long) = (seen(Verdict::DispatchedLocal), seen(Verdict::NoNeighbour));
            mixed += seen(Verdict::BadRing);
            other += u64::from(PACKETS) - short - long;
            saw_both += u32::from(short > 0 && long > 0);
        }
        // Nothing is asserted before: the other thread would never end.
        done.store(true, Ordering::Relaxed);
        let swaps = swaps.join().expect("the swapping thread");
        println!("{swaps} swaps");
        assert_eq!(mixed, 0, "mixtures of two rings");
        assert_eq!(other, 0, "each packet saw one of the rings");
        assert_eq!(saw_both, RUNS, "so many runs in which rings changed between two packets, of {swaps} changes");
    });
}

/// A lost node changes all rings: they wait for one grace period together, not for one each.
#[test]
fn many_rings_are_put_in_place_together() {
    const RINGS: u32 = 200;
    let kernel = Kernel::load(&world()).expect("loading the XDP program");
    let rows = |slot: u32| -> Vec<Row> { (0..slot % 50).map(|row| Row::new(1 + row as u16, [7, 0, 0])).collect() };
    let rings: Vec<_> = (0..RINGS).map(|slot| (slot, ebpf_object::create_ring(&rows(slot)).expect("a ring"))).collect();
    let start = Instant::now();
    kernel.put_rings(&rings).expect("the swap");
    println!("{RINGS} rings in {:?}", start.elapsed());
    drop(rings);
    for slot in 0..RINGS {
        assert_eq!(kernel.rows(slot).expect("the ring"), rows(slot), "slot {slot}");
    }
    assert!(ebpf_object::create_ring(&vec![Row::default(); MAX_ROWS as usize + 1]).is_err());
}

fn client(random: &mut Random) -> Addr {
    let [a, b, c, ..] = random.next().to_be_bytes();
    [100, a, b, c]
}

fn inbound_from(src: Addr) -> sheave_tests::packet::Ipv4 {
    Eth { dst: SELF, src: ROUTER }.ipv4(src, VIP)
}

fn outbound_to(dst: Addr) -> sheave_tests::packet::Ipv4 {
    Eth { dst: ROUTER, src: PEER }.ipv4(VIP, dst)
}

fn mac_of(slot: u32) -> [u8; 6] {
    let [_, _, high, low] = slot.to_be_bytes();
    [0x02, 1, 0, 0, high, low]
}
