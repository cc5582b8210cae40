//! What the packet path costs: nanoseconds per frame by BPF_PROG_TEST_RUN, beside a program that does nothing but XDP_TX.
//!
//! `cargo run --release -p sheave-tests --bin xdp_cost`, as root. All programs run in turn, round by round, on one CPU; printed is
//! the median of the rounds. The kernel measures whole batches, its own loop included: read the difference to the bare program.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use ebpf_common::{Config, Lease, Node, Row, ServiceKey, ServiceValue};
use sheave_ebpf::host::HostTables;
use sheave_tests::packet::{Addr, Arp, BROADCAST, Eth, Mac};
use sheave_tests::xdp::{Kernel, boot_ns};

fn main() -> Result<()> {
    let kernel = Kernel::load(&world())?;
    let bare = Bare::load().context("loading the bare program")?;
    let inbound = |dst| Eth { dst: SELF, src: ROUTER }.ipv4(CLIENT, dst).ttl(255);
    let frames = [
        ("not ours, IPv4", inbound([10, 0, 0, 1]).tcp(1, 80).build()),
        ("not ours, IPv6", Eth { dst: SELF, src: ROUTER }.payload(0x86dd, &[0x60; 60])),
        ("to this node", inbound(VIP).tcp(40000, LOCAL).data(&[0; 64]).build()),
        ("to a peer", inbound(VIP).tcp(40000, REMOTE).data(&[0; 64]).build()),
        ("ARP for another's VIP", Eth { dst: BROADCAST, src: ROUTER }.arp(Arp::request(ROUTER, CLIENT, VIP))),
    ];
    let mut bare_ns = Vec::new();
    let mut ours_ns = vec![Vec::new(); frames.len()];
    for _ in 0..ROUNDS {
        bare_ns.push(bare.time(&frames[0].1)?);
        for ((_, frame), times) in frames.iter().zip(&mut ours_ns) {
            times.push(kernel.time(frame, REPEAT)?);
        }
    }
    let bare_ns = median(bare_ns);
    println!("{:<24} {bare_ns:>4} ns", "bare XDP_TX");
    for ((name, _), times) in frames.iter().zip(ours_ns) {
        let ns = median(times);
        println!("{name:<24} {ns:>4} ns  (+{})", ns.saturating_sub(bare_ns));
    }
    Ok(())
}

/// A frame that is sent on comes back into the next run as it left: so the peer has our own address here, and the time to live
/// lasts for one batch.
const REPEAT: u32 = 250;
const ROUNDS: usize = 101;

fn world() -> HostTables {
    let now = boot_ns();
    let mut world = HostTables {
        config: Config { hash_key: [1, 2], mac: SELF, self_slot: 1, ..Config::default() },
        lease: Lease { until_ns: now, mute_until_ns: now + 3_600_000_000_000 },
        ..HostTables::default()
    };
    world.vips.insert(VIP);
    world.nodes.insert(2, Node { addr: [0; 4], mac: SELF, pad: [0; 2] });
    for (port, node) in [(LOCAL, 1), (REMOTE, 2)] {
        let key = ServiceKey { addr: VIP, port: port.to_be_bytes(), proto: 6, pad: 0 };
        world.services.insert(key, ServiceValue { ring: u32::from(port), flags: 0 });
        world.rings.insert(u32::from(port), vec![Row::new(node, [0; 3]); 1009]);
    }
    world
}

const SELF: Mac = [0x02, 0, 0, 0, 0, 1];
const ROUTER: Mac = [0x02, 0, 0, 0, 0, 0xfe];
const CLIENT: Addr = [198, 51, 100, 7];
const VIP: Addr = [192, 0, 2, 10];
const LOCAL: u16 = 80;
const REMOTE: u16 = 81;

fn median(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times[times.len() / 2]
}

/// `return XDP_TX;` in two instructions, loaded without an object file. Read first: include/uapi/linux/bpf.h, `union bpf_attr`.
struct Bare(OwnedFd);

impl Bare {
    fn load() -> io::Result<Self> {
        // r0 = 3 (XDP_TX); exit
        const PROGRAM: [u64; 2] = [0x0000_0003_0000_00b7, 0x95];
        let mut attr = ProgLoad {
            prog_type: 6,
            insn_cnt: 2,
            insns: PROGRAM.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            rest: [0; 12],
        };
        let fd = bpf(5, &mut attr)?;
        // SAFETY: a new descriptor that nobody else has.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    fn time(&self, frame: &[u8]) -> io::Result<u64> {
        let mut attr = TestRun {
            prog_fd: self.0.as_raw_fd() as u32,
            retval: 0,
            data_size_in: frame.len() as u32,
            data_size_out: 0,
            data_in: frame.as_ptr() as u64,
            data_out: 0,
            repeat: REPEAT,
            duration: 0,
            rest: [0; 4],
        };
        bpf(10, &mut attr)?;
        Ok(u64::from(attr.duration))
    }
}

#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    rest: [u64; 12],
}

#[repr(C)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    rest: [u64; 4],
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is one of the two structures above, as long as it says; the kernel writes no more than that.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
