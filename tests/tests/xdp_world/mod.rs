//! The small world of the packet tests: four nodes on one segment, a router, a client behind it, two VIPs.

#![allow(dead_code, reason = "each test program uses a part")]

use ebpf_common::{Config, Fate, Lease, Mark, Node, Row, SearchState, ServiceKey, ServiceValue, Verdict};
use sheave_ebpf::checksum;
use sheave_ebpf::host::{HostFrame, HostTables};
use sheave_tests::packet::{Addr, Eth, Ipv4, Mac};
use sheave_tests::xdp::{Kernel, Outcome, boot_ns};

/// This node, slot 1.
pub const SELF: Mac = [0x02, 0, 0, 0, 0, 0x01];
/// Node 2, its MAC address known.
pub const PEER: Mac = [0x02, 0, 0, 0, 0, 0x02];
/// Node 4. Its MAC address is known to be a peer's.
pub const FOURTH: Mac = [0x02, 0, 0, 0, 0, 0x04];
/// Another station on the segment.
pub const STRANGER: Mac = [0x02, 0, 0, 0, 0, 0x77];
pub const ROUTER: Mac = [0x02, 0, 0, 0, 0, 0xfe];
pub const CLIENT: Addr = [198, 51, 100, 7];
/// An address of this node: no VIP.
pub const NODE: Addr = [192, 0, 2, 1];
/// Owned by this node.
pub const VIP: Addr = [192, 0, 2, 10];
/// Owned by another node.
pub const OTHER: Addr = [192, 0, 2, 11];

/// Ports of [`VIP`] and [`OTHER`], TCP and UDP alike, named after their ring. This node, then node 2.
pub const LOCAL: u16 = 80;
/// Node 2 alone.
pub const REMOTE: u16 = 81;
pub const EMPTY: u16 = 82;
pub const NO_MAC: u16 = 83;
pub const NO_RING: u16 = 84;
pub const ROW_ZERO: u16 = 85;
pub const ROW_OUT_OF_RANGE: u16 = 86;
pub const MIXED: u16 = 90;
pub const AFFINITY: u16 = 91;
/// This node alone.
pub const ALONE: u16 = 92;
/// As [`REMOTE`], and this node has a pod.
pub const REMOTE_SERVED: u16 = 93;
/// Node 2, then this node, then nodes 4 and 3.
pub const BETWEEN: u16 = 94;
/// Node 2, then nodes 4 and 3, then this node.
pub const LAST: u16 = 95;
/// As [`REMOTE`] and [`LOCAL`], and no pod is ready.
pub const REMOTE_NO_NEW_FLOWS: u16 = 96;
pub const LOCAL_NO_NEW_FLOWS: u16 = 97;
/// As [`LOCAL`], [`REMOTE`] and [`EMPTY`], for clients within [`RANGES`] alone.
pub const LOCAL_RANGES: u16 = 101;
pub const REMOTE_RANGES: u16 = 102;
pub const EMPTY_RANGES: u16 = 103;
/// As [`LOCAL_RANGES`], with a slot that has no range, and with that of another Service, which admits every client.
pub const NO_RANGE: u16 = 104;
pub const ANY_RANGE: u16 = 105;
/// The slot of the source ranges, and what is in it.
pub const RANGES: u16 = 300;
pub const RANGES_OF: [([u8; 4], u8); 4] =
    [([198, 51, 100, 0], 29), ([198, 51, 100, 128], 25), ([203, 0, 113, 77], 32), ([10, 0, 0, 0], 8)];
/// Unserved.
pub const UNSERVED: u16 = 9999;

pub const MIXED_ROWS: u32 = 1009;

pub fn world() -> HostTables {
    let now = boot_ns();
    let mut world = HostTables {
        config: Config {
            hash_key: [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908],
            mac: SELF,
            flags: 0,
            self_slot: 1,
            abi: ebpf_common::ABI_VERSION,
        },
        lease: Lease { until_ns: now + HOUR, mute_until_ns: now + HOUR },
        now_ns: now,
        ..HostTables::default()
    };
    world.vips.extend([VIP, OTHER]);
    world.own.insert(VIP);
    world.peers.extend([(PEER, 2), (FOURTH, 4)]);
    for (slot, mac) in [(1, SELF), (2, PEER), (3, [0; 6]), (4, FOURTH)] {
        world.nodes.insert(slot, Node { addr: [192, 0, 2, slot as u8], mac, flags: 0 });
    }
    let rings: [(u16, u32, Vec<Row>); 9] = [
        (LOCAL, 1, vec![Row::new(1, [2, 0, 0]); 3]),
        (REMOTE, 2, vec![Row::new(2, [0; 3]); 5]),
        (EMPTY, 3, vec![]),
        (NO_MAC, 4, vec![Row::new(3, [0; 3])]),
        (ROW_ZERO, 5, vec![Row::new(0, [2, 0, 0])]),
        (ROW_OUT_OF_RANGE, 6, vec![Row::new(5000, [0; 3])]),
        (ALONE, 8, vec![Row::new(1, [0; 3])]),
        (BETWEEN, 9, vec![Row::new(2, [1, 4, 3])]),
        (LAST, 10, vec![Row::new(2, [4, 3, 1])]),
    ];
    for (port, ring, rows) in rings {
        world.rings.insert(ring, rows);
        serve(&mut world, port, ServiceValue { ring, flags: 0 });
    }
    serve(&mut world, NO_RING, ServiceValue { ring: 999, flags: 0 });
    world.rings.insert(7, (0..MIXED_ROWS).map(|row| Row::new(1 + (row * 7 % 3 % 2) as u16, [0; 3])).collect());
    serve(&mut world, REMOTE_SERVED, ServiceValue { ring: 2, flags: ServiceValue::SERVED_HERE });
    serve(&mut world, REMOTE_NO_NEW_FLOWS, ServiceValue { ring: 2, flags: ServiceValue::NO_NEW_FLOWS });
    serve(&mut world, LOCAL_NO_NEW_FLOWS, ServiceValue { ring: 1, flags: ServiceValue::NO_NEW_FLOWS });
    let restricted = ServiceValue::restricted_to;
    for (port, ring, slot) in [
        (LOCAL_RANGES, 1, RANGES),
        (REMOTE_RANGES, 2, RANGES),
        (EMPTY_RANGES, 3, RANGES),
        (NO_RANGE, 1, 0),
        (ANY_RANGE, 1, RANGES + 1),
    ] {
        serve(&mut world, port, ServiceValue { ring, flags: restricted(slot) });
    }
    world.source_ranges.extend([(RANGES, RANGES_OF.to_vec()), (RANGES + 1, vec![([0; 4], 0)])]);
    serve(&mut world, MIXED, ServiceValue { ring: 7, flags: 0 });
    serve(&mut world, AFFINITY, ServiceValue { ring: 7, flags: ServiceValue::CLIENT_AFFINITY });
    world
}

fn serve(world: &mut HostTables, port: u16, service: ServiceValue) {
    for (addr, proto) in [(VIP, 6), (VIP, 17), (OTHER, 6), (OTHER, 17)] {
        world.services.insert(ServiceKey { addr, port: port.to_be_bytes(), proto, pad: 0 }, service);
    }
}

/// An IPv4 packet from the client by way of the router.
pub fn inbound(vip: Addr) -> Ipv4 {
    Eth { dst: SELF, src: ROUTER }.ipv4(CLIENT, vip)
}

/// An IPv4 packet from the client by way of another node's dispatcher.
pub fn dispatched(by: Mac) -> Ipv4 {
    Eth { dst: SELF, src: by }.ipv4(CLIENT, VIP).ttl(63)
}

/// An IPv4 packet from the client in search of its flow, from a node that does not know it.
pub fn searching(from: Mac, state: SearchState) -> Ipv4 {
    Eth { dst: SELF, src: from }.ipv4(CLIENT, VIP).ttl(state.ttl()).fragment(0xc000)
}

/// What a frame looks like to the stack: the mark in place of the source MAC address.
pub fn marked(mut frame: Vec<u8>, mark: Mark) -> Vec<u8> {
    frame[6..12].copy_from_slice(&mark.mac());
    if mark.next_hop.needs_ttl_guard() { guarded(frame) } else { frame }
}

/// With the TTL guard.
pub fn guarded(mut frame: Vec<u8>) -> Vec<u8> {
    // The sum changes with the 16 bits that hold the time to live.
    let word = |ttl: u8| u16::from_be_bytes([ttl, frame[23]]);
    let sum = u16::from_be_bytes([frame[24], frame[25]]);
    let sum = checksum::update(sum, word(frame[22]), word(Mark::GUARD_TTL));
    frame[22] = Mark::GUARD_TTL;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Runs the frame on the host core.
pub fn host(tables: &HostTables, frame: &[u8]) -> Outcome {
    let mut host = HostFrame(frame.to_vec());
    let verdict = sheave_ebpf::walk(&mut host, tables);
    Outcome { verdict, action: action(verdict), frame: host.0 }
}

/// Runs the frame in the kernel and on the host, which must agree in everything.
pub fn both(kernel: &mut Kernel, tables: &HostTables, frame: &[u8]) -> Outcome {
    let outcome = kernel.run(frame).expect("BPF_PROG_TEST_RUN");
    assert_eq!(outcome, host(tables, frame), "kernel (left) and host (right) disagree about {frame:02x?}");
    assert_eq!(outcome.action, action(outcome.verdict));
    outcome
}

/// include/uapi/linux/bpf.h: enum xdp_action.
fn action(verdict: Verdict) -> u32 {
    match verdict.fate() {
        Fate::Drop => 1,
        Fate::Pass => 2,
        Fate::Tx => 3,
    }
}

pub const HOUR: u64 = 3_600_000_000_000;

/// SplitMix64: the same frames in every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
