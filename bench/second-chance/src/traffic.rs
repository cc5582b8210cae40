//! Packets out of BPF_PROG_TEST_RUN: into the stack of a device (live frames), or through a program alone.
//!
//! One thread does everything (the packet's way through stack, veth and receiver included), so its CPU time over the number of
//! packets is the cost of one; waiting for a busy machine does not count.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, Map, MapData};
use aya::programs::{ProgramError, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, Pod, TestRunResult};
use ebpf_common::{Mark, NextHop};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use second_chance_xdp::{FlowKey, Traffic};
use sheave_tests::lab::netns;

use crate::world::{ALTERNATE, NODE_MAC, POD, VIP, World};

/// What a packet is in its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Syn,
    /// From the pod.
    SynAck,
    /// Mid-flow, from the client.
    Ack,
    /// The same, as our XDP program passes it up if another node may have the flow: it goes no further without our chains.
    Held,
}

/// A set of flows; `count` 0: one flow per packet.
#[derive(Clone, Copy, Debug)]
pub struct Flows {
    pub seed: u64,
    pub count: u64,
}

#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Action {
    Drop = 1,
    Pass = 2,
    Tx = 3,
}

#[derive(Clone, Copy, Debug)]
pub enum Program {
    /// Makes the packet and returns this.
    Generate(Action),
    /// Looks it up in the map of known flows.
    KnownFlows,
}

pub struct Generator {
    ebpf: Ebpf,
    /// Random flows never come twice.
    seed: u64,
}

impl Generator {
    /// With room for so many known flows.
    pub fn load(known_flows: u32) -> Result<Self> {
        ensure!(
            !OBJECT.is_empty(),
            "built without rustup's nightly toolchain or with SHEAVE_SKIP_EBPF=1: no BPF object"
        );
        let mut ebpf = EbpfLoader::new().map_max_entries("FLOWS", known_flows).load(OBJECT)?;
        for name in ["generate", "known_flows", "pass", "discard"] {
            let program: &mut Xdp = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("the verifier refused {name}"))?;
        }
        Ok(Self { ebpf, seed: RANDOM })
    }

    /// Attaches what live frames need to the devices of a world; it stays until the generator is dropped.
    pub fn attach(&mut self, namespace: &str, device: &str, program: &str) -> Result<()> {
        let program: &mut Xdp = self.ebpf.program_mut(program).context("no program")?.try_into()?;
        netns::inside(namespace, || {
            program.attach(device, XdpMode::Driver)?;
            Ok(())
        })
    }

    /// Flows that no packet had before.
    pub fn strangers(&mut self) -> Flows {
        self.seed += 1 << 40;
        Flows { seed: self.seed, count: 0 }
    }

    /// Injects packets into a world as if they came from the wire; CPU nanoseconds per packet. Those of clients carry the mark
    /// that our XDP program writes, so that rules know the alternate.
    pub fn inject(&mut self, world: &World, program: Program, kind: Kind, flows: Flows, packets: u32) -> Result<f64> {
        let device = if kind == Kind::SynAck { world.pod_ifindex } else { world.uplink_ifindex };
        let frame = self.prepare(program, kind, flows)?;
        let program = self.program(program)?;
        netns::inside(&world.node, || {
            let mut context = [0; 24];
            context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
            context[12..16].copy_from_slice(&device.to_ne_bytes());
            let options = TestRunOptions {
                data_in: Some(&frame),
                ctx_in: Some(&context),
                repeat: packets,
                attrs: TestRunAttrs::new().xdp_live_frames(64),
                ..TestRunOptions::new()
            };
            let spent = timed(|| program.test_run(options))?;
            Ok(spent.as_nanos() as f64 / f64::from(packets))
        })
    }

    /// Runs a program and nothing else; nanoseconds per run.
    pub fn run(&mut self, program: Program, kind: Kind, flows: Flows, packets: u32) -> Result<f64> {
        let frame = self.prepare(program, kind, flows)?;
        let program = self.program(program)?;
        let options = TestRunOptions { data_in: Some(&frame), repeat: packets, ..TestRunOptions::new() };
        let spent = timed(|| program.test_run(options))?;
        Ok(spent.as_nanos() as f64 / f64::from(packets))
    }

    /// Memory of the map of known flows, as the kernel accounts it.
    pub fn flow_map_bytes(&self) -> Result<u64> {
        let Some(Map::LruHashMap(map)) = self.ebpf.map("FLOWS") else { bail!("no LRU map FLOWS") };
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
        let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).context("no memlock line")?;
        Ok(line.trim().parse()?)
    }

    fn prepare(&mut self, program: Program, kind: Kind, flows: Flows) -> Result<Vec<u8>> {
        let action = match program {
            Program::Generate(action) => action as u32,
            Program::KnownFlows => 0,
        };
        let (head, traffic) = build(kind, flows, action);
        let mut map: Array<&mut MapData, Shared> = self.ebpf.map_mut("TRAFFIC").context("no map")?.try_into()?;
        map.set(0, Shared(traffic), 0)?;
        Ok(head)
    }

    fn program(&self, program: Program) -> Result<&Xdp> {
        let name = match program {
            Program::Generate(_) => "generate",
            Program::KnownFlows => "known_flows",
        };
        Ok(self.ebpf.program(name).context(name)?.try_into()?)
    }
}

/// The frame of a kind without its client, and the same for the program.
fn build(kind: Kind, flows: Flows, action: u32) -> (Vec<u8>, Traffic) {
    let (flags, seq, ack) = match kind {
        Kind::Syn => (0x02, 1000_u32, 0_u32),
        Kind::SynAck => (0x12, 2000, 1001),
        Kind::Ack | Kind::Held => (0x10, 1001, 2001),
    };
    let answer = kind == Kind::SynAck;
    let (source_mac, addr, port) = match kind {
        Kind::SynAck => ([2, 0, 0, 0, 0, 5], POD, 8080_u16),
        Kind::Syn => (Mark::LOCAL.mac(), VIP, 80),
        Kind::Ack | Kind::Held => {
            (Mark { next_hop: NextHop::Alternate(1), no_reset: false, slot: ALTERNATE }.mac(), VIP, 80)
        }
    };
    let ttl = if kind == Kind::Held { Mark::GUARD_TTL } else { 64 };
    let mut frame = vec![0; FRAME];
    frame[0..6].copy_from_slice(&NODE_MAC);
    frame[6..12].copy_from_slice(&source_mac);
    frame[12] = 8;
    // Version and length, don't fragment, time to live, TCP.
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&(FRAME as u16 - 14).to_be_bytes());
    frame[20..24].copy_from_slice(&[0x40, 0, ttl, 6]);
    let (addr_at, port_at) = if answer { (26, 34) } else { (30, 36) };
    frame[addr_at..addr_at + 4].copy_from_slice(&addr);
    frame[port_at..port_at + 2].copy_from_slice(&port.to_be_bytes());
    frame[38..42].copy_from_slice(&seq.to_be_bytes());
    frame[42..46].copy_from_slice(&ack.to_be_bytes());
    frame[46..50].copy_from_slice(&[0x50, flags, 0xff, 0xff]);
    let length = u32::from((FRAME as u16 - 34).to_be());
    let traffic = Traffic {
        next: 0,
        flows: flows.count,
        seed: flows.seed,
        head: std::array::from_fn(|index| {
            u64::from_ne_bytes(frame[8 * index..8 * index + 8].try_into().expect("eight"))
        }),
        ip_sum: words(&frame[14..34]),
        // With the pseudo header: addresses, protocol, length.
        tcp_sum: words(&frame[26..]) + u32::from(6_u16.to_be()) + length,
        answer: answer.into(),
        action,
    };
    (frame, traffic)
}

fn words(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum()
}

/// CPU time of this thread, on one CPU.
fn timed(work: impl FnOnce() -> Result<TestRunResult, ProgramError>) -> Result<Duration> {
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    let before = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    work()?;
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)? - before))
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Shared(Traffic);

// SAFETY: plain integers without padding.
unsafe impl Pod for Shared {}

const _: () = assert!(size_of::<Traffic>() == 3 * 8 + 7 * 8 + 4 * 4 && size_of::<FlowKey>() == 16);

/// Headers and 64 bytes.
const FRAME: usize = 54 + 64;
/// Seeds of strangers begin far from those of named flows.
const RANDOM: u64 = 1 << 62;
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/second-chance-xdp-object"));

#[cfg(test)]
mod tests {
    use second_chance_xdp::client;

    use super::*;

    #[test]
    fn strangers_are_others() {
        let mut seen = std::collections::BTreeSet::new();
        let fresh = (0..100_000).filter(|number| seen.insert(client(RANDOM, *number))).count();
        assert_eq!(fresh, 100_000);
    }
}
