//! What the packet path costs: nanoseconds per frame by BPF_PROG_TEST_RUN, beside a program that does nothing but XDP_TX, for
//! 1, 1,000 and 100,000 flows that take turns; and the memory of all maps.
//!
//! `make bench-xdp`, as root. How a run gets another flow each time: feeder.rs. The maps are as full as they can be: every VIP, service
//! port and node there is room for. All cases run in turn, round by round, on one CPU; printed is the median of the rounds.

mod feeder;

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, ensure};
use aya::maps::IterableMap as _;
use ebpf_common::{
    Config, Lease, MAX_NODES, MAX_SERVICES, MAX_VIPS, Node, Row, SearchState, ServiceKey, ServiceValue, Verdict,
};
use feeder::Program;
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use sheave_ebpf::host::HostTables;
use sheave_tests::packet::{Addr, Eth, Ipv4, Mac, Tcp};
use sheave_tests::xdp::{Kernel, map_memory};

fn main() -> Result<()> {
    let mut cpu = CpuSet::new();
    cpu.set(sched_getcpu()?)?;
    sched_setaffinity(Pid::from_raw(0), &cpu)?;
    for rows in RINGS {
        costs(rows)?;
    }
    memory()
}

fn costs(rows: usize) -> Result<()> {
    let mut kernel = Kernel::load(&world(rows))?;
    let bare = Program::bare().context("loading the bare program")?;
    let cases = cases();
    for case in &cases {
        let outcome = kernel.run(&case.frame)?;
        ensure!(outcome.verdict == case.verdict, "{}: {}", case.name, outcome.verdict.label());
    }
    // What the feeder costs: the bare program behind it, less the bare program alone.
    let mut alone = Vec::new();
    let mut behind = vec![Vec::new(); FLOWS.len()];
    let mut ours = vec![vec![Vec::new(); FLOWS.len()]; cases.len()];
    let frame = &cases[0].frame;
    let fed_bare =
        FLOWS.iter().map(|flows| Program::feeder(frame, *flows, bare.as_fd())).collect::<Result<Vec<_>, _>>()?;
    let fed_ours = cases
        .iter()
        .map(|case| FLOWS.iter().map(|flows| Ok(Program::feeder(&case.frame, *flows, kernel.program_fd()?)?)).collect())
        .collect::<Result<Vec<Vec<_>>>>()?;
    for _ in 0..ROUNDS {
        alone.push(bare.time(frame, REPEAT)?);
        for (program, times) in fed_bare.iter().zip(&mut behind) {
            times.push(program.time(frame, REPEAT)?);
        }
        for (at, case) in cases.iter().enumerate() {
            for (program, times) in fed_ours[at].iter().zip(&mut ours[at]) {
                times.push(program.time(&case.frame, REPEAT)?);
            }
        }
    }
    let alone = median(alone);
    let behind: Vec<u32> = behind.into_iter().map(median).collect();
    println!("\nRings of {rows} rows; ns per packet (net of bare; ratio to bare), median of {ROUNDS} x {REPEAT}");
    println!("| packet | verdict | {} |", COLUMNS.join(" | "));
    println!("|---|---|{}", "---|".repeat(FLOWS.len()));
    println!("| bare `XDP_TX` | – | {} |", FLOWS.map(|_| format!("{alone}")).join(" | "));
    for (case, times) in cases.iter().zip(ours) {
        let cells: Vec<String> = times
            .into_iter()
            .zip(&behind)
            .map(|(times, behind)| {
                let net = median(times).saturating_sub(*behind);
                format!("{} (+{net}; {:.1}x)", alone + net, f64::from(alone + net) / f64::from(alone))
            })
            .collect();
        println!("| {} | `{}` | {} |", case.name, case.verdict.label(), cells.join(" | "));
    }
    println!(
        "The feeder: {} ns, taken off.",
        behind.iter().map(|ns| (ns - alone).to_string()).collect::<Vec<_>>().join(", ")
    );
    Ok(())
}

/// The kernel's own figure for every map at its full size, and for the rings that it holds.
fn memory() -> Result<()> {
    let kernel = Kernel::load(&world(1))?;
    println!("\n| map | memory, bytes |");
    println!("|---|---|");
    let maps = kernel.memory()?;
    for (name, bytes) in &maps {
        println!("| `{name}` | {bytes} |");
    }
    println!("| all | {} |", maps.values().sum::<u64>());
    for rows in RINGS {
        let ring = ebpf_object::create_ring(&vec![Row::new(1, [0; 3]); rows])?;
        println!("| a ring of {rows} rows | {} |", map_memory(ring.map().fd().as_fd())?);
    }
    Ok(())
}

struct Case {
    name: &'static str,
    frame: Vec<u8>,
    verdict: Verdict,
}

fn cases() -> Vec<Case> {
    use Verdict::*;
    let case = |name, frame, verdict| Case { name, frame, verdict };
    let client = |dst| Eth { dst: SELF, src: ROUTER }.ipv4(CLIENT, dst);
    let peer = || Eth { dst: SELF, src: PEER }.ipv4(CLIENT, VIP);
    let search = || peer().ttl(SearchState { hop: 1, no_reset: false }.ttl()).fragment(0xc000);
    let syn = |ip: Ipv4, port| ip.tcp(40000, port).syn().build();
    let segment = |ip: Ipv4, port| ip.tcp(40000, port).flags(Tcp::ACK).data(&[0; 64]).build();
    vec![
        case("not ours, IPv6", Eth { dst: SELF, src: ROUTER }.payload(0x86dd, &[0x60; 60]), NotOurs),
        case("not ours, IPv4", segment(client([10, 0, 0, 1]), ALONE), NotOurs),
        case("SYN, to this node", syn(client(VIP), SHARED), DispatchedLocal),
        case("SYN, to a peer", syn(client(VIP), REMOTE), DispatchedPeer),
        case("SYN, from a peer", syn(peer(), SHARED), FromPeer),
        case("SYN of an older ring", syn(peer(), REMOTE), SynPassedOn),
        case("established, to this node", segment(client(VIP), ALONE), DispatchedLocal),
        case("established, to a peer", segment(client(VIP), REMOTE), DispatchedPeer),
        case("established, from a peer", segment(peer(), ALONE), FromPeer),
        case("second chance, to this node", segment(client(VIP), SHARED), SecondChanceLocal),
        case("second chance, from a peer", segment(peer(), SHARED), SecondChancePeer),
        case("second chance, in search", segment(search(), BEHIND), SecondChanceArrived),
        case("established, to this node, source ranges", segment(client(VIP), RANGES), DispatchedLocal),
        case("SYN, denied", syn(client(VIP), OUTSIDE), SourceDenied),
    ]
}

/// Every map full. The rings of all service ports but those that are measured are one and the same.
fn world(rows: usize) -> HostTables {
    let mut world = HostTables {
        config: Config { hash_key: [1, 2], mac: SELF, self_slot: 1, ..Config::default() },
        lease: Lease::default(),
        ..HostTables::default()
    };
    world.vips.insert(VIP);
    world.vips.extend((1..MAX_VIPS).map(|number| (0xc612_0000 + number).to_be_bytes()));
    world.own.extend(world.vips.iter().copied());
    for slot in 2..MAX_NODES as u16 {
        let [high, low] = slot.to_be_bytes();
        let mac = if slot == 2 { PEER } else { [0x02, 1, 0, 0, high, low] };
        world.nodes.insert(u32::from(slot), Node { addr: [10, 0, high, low], mac, flags: 0 });
        world.peers.insert(mac, slot);
    }
    for (port, row) in [
        (ALONE, Row::new(1, [0; 3])),
        (REMOTE, Row::new(2, [0; 3])),
        (SHARED, Row::new(1, [2, 3, 4])),
        (BEHIND, Row::new(2, [1, 3, 4])),
    ] {
        serve(&mut world, VIP, port, u32::from(port));
        world.rings.insert(u32::from(port), vec![row; rows]);
    }
    // A thousand Services with ten ranges each.
    for slot in 1..=1000u16 {
        let [high, low] = slot.to_be_bytes();
        let mut list: Vec<(Addr, u8)> = (0..10).map(|range| ([10 + range, high, low, 0], 24)).collect();
        if slot == 500 {
            list[0] = (CLIENT, 10);
        }
        world.source_ranges.insert(slot, list);
    }
    for (port, slot) in [(RANGES, 500), (OUTSIDE, 501)] {
        let key = ServiceKey { addr: VIP, port: port.to_be_bytes(), proto: 6, pad: 0 };
        let flags = ServiceValue::restricted_to(slot);
        world.services.insert(key, ServiceValue { ring: u32::from(ALONE), flags });
    }
    let vips: Vec<Addr> = world.vips.iter().copied().collect();
    for number in world.services.len()..MAX_SERVICES as usize {
        serve(&mut world, vips[number % vips.len()], 1000 + (number / vips.len()) as u16, u32::from(ALONE));
    }
    world
}

fn serve(world: &mut HostTables, addr: Addr, port: u16, ring: u32) {
    let key = ServiceKey { addr, port: port.to_be_bytes(), proto: 6, pad: 0 };
    world.services.insert(key, ServiceValue { ring, flags: 0 });
}

fn median(mut times: Vec<u32>) -> u32 {
    times.sort_unstable();
    times[times.len() / 2]
}

const FLOWS: [u32; 3] = [1, 1_000, 100_000];
const COLUMNS: [&str; 3] = ["1 flow", "1,000 flows", "100,000 flows"];
/// Every flow at least once in a batch.
const REPEAT: u32 = 100_000;
const ROUNDS: usize = 21;
/// Up to 40 members, and above.
const RINGS: [usize; 2] = [4093, 65488];

const SELF: Mac = [0x02, 0, 0, 0, 0, 1];
const PEER: Mac = [0x02, 0, 0, 0, 0, 2];
const ROUTER: Mac = [0x02, 0, 0, 0, 0, 0xfe];
const CLIENT: Addr = [100, 64, 0, 0];
const VIP: Addr = [192, 0, 2, 10];
/// Rows that name this node alone, another alone, this node first, this node second.
const ALONE: u16 = 80;
const REMOTE: u16 = 81;
const SHARED: u16 = 82;
const BEHIND: u16 = 83;
/// As [`ALONE`], with source ranges that the client is in, and is not.
const RANGES: u16 = 84;
const OUTSIDE: u16 = 85;
