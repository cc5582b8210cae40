//! `make bench-ranges`: what source ranges cost a node's nftables: time and memory of nft's own runs.
//!
//! The rules of the speaker, and the real nft in a network namespace of this process. What they cost a packet: `make bench-xdp`. How to
//! read it: bench/README.md.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use sheave_bench::commit;
use speaker_core::attributes::{Prefix, ServiceAttributes, SourceRanges};
use speaker_core::backend::{Plan, Uplink, ruleset};
use speaker_core::view::{
    Conditions, Endpoint, EndpointSlice, Event, Node, Object, ObjectName, Port, Protocol, Service, View, VirtualIp,
};

/// A world of Services on one node.
struct World {
    services: u16,
    ports: u16,
    ranges: u32,
}

const WORLDS: [World; 4] = [
    World { services: 1000, ports: 1, ranges: 10 },
    World { services: 1, ports: 1000, ranges: 1024 },
    World { services: 64, ports: 100, ranges: 1024 },
    World { services: 4095, ports: 1, ranges: 10 },
];

fn main() -> Result<()> {
    let (commit, clean) = commit::here()?;
    let changed = if clean { "" } else { ", changed" };
    let nft = String::from_utf8(Command::new("nft").arg("--version").output().context("start nft")?.stdout)?;
    println!("commit {commit}{changed}; {}; {}", nft.trim(), machine()?);
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace needs root")?;
    println!("\n{HEAD}");
    for world in &WORLDS {
        println!("{}", world.line()?);
    }
    println!("\n{}", machine()?);
    Ok(())
}

const HEAD: &str = "\
| Services x ports x ranges | lines of rules | all ranges at once | one list changes | listed by an audit | built anew |
|---|---|---|---|---|---|";

impl World {
    fn line(&self) -> Result<String> {
        let Self { services, ports, ranges } = self;
        let (open, restricted, changed) = (self.plan(None), self.plan(Some(0)), self.plan(Some(1)));
        apply(&ruleset::replace(&open))?.done()?;
        let update = |from, to| ruleset::update(from, to).context("nothing to change");
        let all = update(&open, &restricted)?;
        let mut line = format!("| {services} x {ports} x {ranges} | {} |", all.lines().count());
        // Without an earlier one the others say nothing.
        let runs = [(all, true), (update(&restricted, &changed)?, true), (String::new(), false)];
        for (text, applies) in runs.into_iter().chain([(ruleset::replace(&changed), true)]) {
            let run = if applies { apply(&text)? } else { nft(&["-s", "list", "table", "ip", ruleset::TABLE], "")? };
            write!(line, " {} |", run.describe())?;
            if run.done().is_err() {
                break;
            }
        }
        Ok(line)
    }

    /// `shift`: of the first Service's ranges; `None`: no Service has any.
    fn plan(&self, shift: Option<u32>) -> Plan {
        let mut view = View::default();
        view.handle(Event::Apply(Object::Node(NODE.into(), Node::at(Ipv4Addr::new(192, 0, 2, 1)))));
        for service in 0..self.services {
            let name = ObjectName::new("default", format!("service-{service:05}"));
            let port = |number: u16| Port { name: number.to_string(), port: number, protocol: Protocol::Tcp };
            let ports: Vec<Port> = (1..=self.ports).map(port).collect();
            let moved = shift.map(|shift| if service == 0 { shift } else { 0 });
            let source_ranges = moved.map(|moved| self.list(service, moved));
            let attributes = ServiceAttributes { source_ranges, ..ServiceAttributes::default() };
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 1)) + u32::from(service));
            let endpoint = Endpoint { address, node: Some(NODE.into()), conditions: Conditions::READY };
            let slice = EndpointSlice { service: name.name.clone(), ports: ports.clone(), endpoints: vec![endpoint] };
            let vip = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + u32::from(service));
            let virtual_ip = VirtualIp { pool: "pool".into(), services: vec![name.clone()], ..VirtualIp::default() };
            for object in [
                Object::Service(name.clone(), Service { ports, attributes }),
                Object::EndpointSlice(name, slice),
                Object::VirtualIp(vip, virtual_ip),
            ] {
                view.handle(Event::Apply(object));
            }
        }
        Plan::new(&view, NODE, Uplink::new("eth0").expect("a name"))
    }

    /// Single addresses, none beside another: nothing can be joined.
    fn list(&self, service: u16, shift: u32) -> SourceRanges {
        let first = 0x0b00_0000 + u32::from(service) * 4 * self.ranges + shift;
        let range = |n: u32| Prefix { network: (first + 2 * n).into(), length: 32 };
        (0..self.ranges).map(range).collect::<Vec<_>>().into()
    }
}

/// One run of nft.
struct Run {
    took: Duration,
    cpu: Duration,
    /// The most memory that it took, in kB.
    memory: i64,
    outcome: Result<(), String>,
}

impl Run {
    fn describe(&self) -> String {
        let Self { took, cpu, memory, outcome } = self;
        let (took, cpu) = (took.as_secs_f64(), cpu.as_secs_f64());
        let failed = outcome.as_ref().err().map(|error| format!("failed ({error}) after ")).unwrap_or_default();
        format!("{failed}{took:.2} s, of a processor {cpu:.2} s, {:.0} MB", *memory as f64 / 1000.0)
    }

    fn done(&self) -> Result<()> {
        ensure!(self.outcome.is_ok(), "nft: {:?}", self.outcome);
        Ok(())
    }
}

fn apply(text: &str) -> Result<Run> {
    nft(&["-f", "-"], text)
}

/// Ended when the speaker would end it.
fn nft(arguments: &[&str], input: &str) -> Result<Run> {
    let began = Instant::now();
    let mut command = Command::new("timeout");
    command.args(["--signal", "KILL", LONGEST, "nft"]).args(arguments).env("LC_ALL", "C");
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().context("start nft")?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    // One that was ended reads no further, which its status says.
    let _ = stdin.context("a pipe")?.write_all(input.as_bytes());
    let (mut listing, mut errors) = (String::new(), String::new());
    stdout.context("a pipe")?.read_to_string(&mut listing)?;
    stderr.context("a pipe")?.read_to_string(&mut errors)?;
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: our own child, which nothing else waits for; the kernel fills in status and usage.
    let usage = unsafe {
        ensure!(libc::wait4(child.id() as i32, &raw mut status, 0, usage.as_mut_ptr()) > 0, "wait for nft");
        usage.assume_init()
    };
    let of = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    let cpu = of(usage.ru_utime) + of(usage.ru_stime);
    let first: String = errors.lines().next().unwrap_or("ended").chars().take(80).collect();
    let outcome = if status == 0 { Ok(()) } else { Err(first) };
    Ok(Run { took: began.elapsed(), cpu, memory: usage.ru_maxrss, outcome })
}

/// What else the machine has to do.
fn machine() -> Result<String> {
    let load = fs::read_to_string("/proc/loadavg")?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let processors = std::thread::available_parallelism()?;
    let load: Vec<&str> = load.split_whitespace().take(2).collect();
    Ok(format!("Linux {}, {processors} processors, load {}", kernel.trim(), load.join(" and ")))
}

const NODE: &str = "node-1";
/// In seconds; the speaker's own.
const LONGEST: &str = "60";
