//! `make bench-ports`: what many service ports cost a node: one pod's change until the maps follow, a start, the loss of a node; memory.
//!
//! The speaker's own parts on real maps in a BPF file system of this process's mount namespace, and the real nft in its network
//! namespace. Its sockets and threads have no part in it. How to read it: bench/README.md.

mod node;
mod ranges;
mod world;

#[path = "../../../../speaker/src/backend/nft.rs"]
#[expect(dead_code, reason = "the speaker's file; it has more than this needs")]
mod nft;

#[expect(dead_code, reason = "the speaker's files; they have more than this needs")]
#[path = "../../../../speaker/src/dataplane"]
mod dataplane {
    pub mod loader;
    pub mod maps;
}

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{ArrayOfMaps, IterableMap as _, Map, MapData};
use clap::Parser;
use ebpf_common::map;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};
use sheave_tests::xdp::map_memory;
use speaker_core::forwarding::diff::Contents;
use speaker_core::time::Instant;
use speaker_core::view::View;

use dataplane::loader::{self, Pins};
use nft::Nft;
use node::{Node, Pass};
use world::Kind;

/// What 1,000, 5,000 and 10,000 service ports cost a node.
#[derive(Parser)]
struct Arguments {
    /// Service ports
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 5_000, 10_000])]
    ports: Vec<usize>,
    /// Prints the steps of each change
    #[arg(long)]
    steps: bool,
    /// What a change of source ranges costs instead, with 1,000 Services that have some
    #[arg(long)]
    ranges: bool,
    /// One world alone, in this process: what each line of the table is measured in
    #[arg(long, hide = true, value_parser = ["usual", "shared", "apart"])]
    world: Option<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(world) = &arguments.world {
        let kind = match world.as_str() {
            "apart" => Kind::Apart,
            "shared" => Kind::Shared,
            _ => Kind::Usual,
        };
        return measure(kind, arguments.ports[0], arguments.steps);
    }
    if arguments.ranges {
        return ranges::measure();
    }
    println!("{HEAD}");
    for world in ["usual", "shared", "apart"] {
        for ports in &arguments.ports {
            // A process each: memory that was given back to the allocator would count as the next one's.
            let mut command = std::process::Command::new(std::env::current_exe()?);
            command.args(["--world", world, "--ports", &ports.to_string()]);
            command.args(arguments.steps.then_some("--steps"));
            anyhow::ensure!(command.status()?.success(), "{world}, {ports} service ports: failed");
        }
    }
    Ok(())
}

const HEAD: &str = "\
| world | service ports | rings | one pod, ms | nft, ms | first start, ms | restart, ms | node lost, ms | user space, MB | maps, MB | both, MB | highest, MB | rings, MB | not shared, MB | plain rows, MB |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|";

fn measure(kind: Kind, ports: usize, steps: bool) -> Result<()> {
    let pins = Pins::new(&namespaces()?);
    runtime()?.block_on(async {
        let loaded = loader::load(&pins)?;
        let figures = figures(kind, ports, steps, &pins).await?;
        drop(loaded);
        println!("{}", figures.line(kind));
        Ok(())
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

struct Figures {
    service_ports: usize,
    change: Pass,
    first_start: Pass,
    restart: Pass,
    loss: Pass,
    steady: Memory,
    highest: u64,
    rings: Rings,
}

async fn figures(kind: Kind, ports: usize, steps: bool, pins: &Pins) -> Result<Figures> {
    let say = |what: &str, pass: &Pass| {
        if steps {
            let memory = [status("VmRSS").unwrap_or_default(), in_use()].map(mb);
            println!(
                "{what}: {:.1} ms: {}; nft {:.1}; {:.1} MB resident, {:.1} in use",
                ms(pass.total()),
                pass.describe(),
                ms(pass.nft),
                memory[0],
                memory[1]
            );
        }
    };
    let nft = Nft::new("nft");
    let mut cluster = Cluster::new(kind, ports);
    // The first start: empty maps, and no report yet.
    let (mut node, opened) = Node::start(pins, None, Instant::from_millis(1_000_000))?;
    let first_start = opened.and(node.pass(&cluster.view, Some(&nft)).await?);
    say("first start", &first_start);
    let mut most_in_maps = Memory::of(&node, pins)?.maps;
    say("settled", &settle(&mut node, &cluster, &nft).await?);

    let mut changes = Vec::new();
    for round in 0..ROUNDS {
        let service = (7 + round * 31) % world::services(kind, ports);
        let (began, cpu) = (std::time::Instant::now(), cpu_time());
        cluster.change(world::scaled(kind, service, true));
        let view = Pass::step("view", began.elapsed(), cpu_time() - cpu);
        let pass = view.and(node.pass(&cluster.view, Some(&nft)).await?);
        say("one pod more", &pass);
        changes.push(pass);
        say("settled", &settle(&mut node, &cluster, &nft).await?);
    }
    changes.sort_by_key(Pass::total);
    let change = changes.swap_remove(changes.len() / 2);
    let steady = Memory::of(&node, pins)?;

    // A restart: pinned maps, the history from disk.
    let (saved, now) = (node.save(), node.now());
    drop(node);
    let (mut node, opened) = Node::start(pins, Some(&saved), now)?;
    drop(saved);
    let restart = opened.and(node.pass(&cluster.view, Some(&nft)).await?);
    say("restart", &restart);
    most_in_maps = most_in_maps.max(Memory::of(&node, pins)?.maps);
    say("settled", &settle(&mut node, &cluster, &nft).await?);
    let rings = Rings::of(&node);

    node.traffic_states.no_flows.insert(world::name(LOST));
    let loss = node.pass(&cluster.view, Some(&nft)).await?;
    say("node lost", &loss);
    most_in_maps = most_in_maps.max(Memory::of(&node, pins)?.maps);
    say("settled", &settle(&mut node, &cluster, &nft).await?);
    let (highest, service_ports) = (status("VmHWM")? + most_in_maps, node.have.services.len());
    Ok(Figures { service_ports, change, first_start, restart, loss, steady, highest, rings })
}

impl Figures {
    fn line(&self, kind: Kind) -> String {
        let Self { service_ports, change, first_start, restart, loss, steady, highest, rings } = self;
        let time = |pass: &Pass| format!("{:.0} / {:.0}", ms(pass.total()), ms(pass.cpu));
        let nft = format!("{:.0}", ms(change.nft));
        let times = [time(change), nft, time(first_start), time(restart), time(loss)];
        let bytes = [
            steady.resident,
            steady.maps,
            steady.resident + steady.maps,
            *highest,
            rings.shared,
            rings.apart,
            rings.plain,
        ];
        let bytes = bytes.map(|bytes| format!("{:.1}", mb(bytes)));
        format!("| {kind:?} | {service_ports} | {} | {} | {} |", rings.number, times.join(" | "), bytes.join(" | "))
    }
}

/// The rings in the kernel, by the bytes of their elements.
struct Rings {
    number: usize,
    shared: u64,
    /// As if every service port had one of its own.
    apart: u64,
    /// The same with 8 bytes for each row.
    plain: u64,
}

impl Rings {
    fn of(node: &Node) -> Self {
        let size = |contents: &Contents| size_of_val(&*ebpf_common::pack(&contents.rows().collect::<Vec<_>>())) as u64;
        let sizes: BTreeMap<u32, u64> = node.have.rings.iter().map(|(slot, ring)| (*slot, size(ring))).collect();
        let slots = || node.have.services.values().map(|value| value.ring);
        Self {
            number: sizes.len(),
            shared: sizes.values().sum(),
            apart: slots().map(|slot| sizes[&slot]).sum(),
            plain: slots().map(|slot| 8 * (1 + node.have.rings[&slot].len() as u64)).sum(),
        }
    }
}

/// All nodes have the same table, and report it once late flows have come.
async fn settle(node: &mut Node, cluster: &Cluster, nft: &Nft) -> Result<Pass> {
    node.wait(11);
    node.all_agree();
    node.pass(&cluster.view, Some(nft)).await
}

/// The view as the main loop of the speaker has it, and the copy that the dataplane has.
struct Cluster {
    main: View,
    view: View,
}

impl Cluster {
    fn new(kind: Kind, ports: usize) -> Self {
        let main = world::view(kind, ports);
        Self { view: main.clone(), main }
    }

    fn change(&mut self, event: speaker_core::view::Event) {
        self.main.handle(event);
        self.view = self.main.clone();
    }
}

struct Memory {
    resident: u64,
    maps: u64,
}

impl Memory {
    /// The kernel's own count of every map, and of every ring.
    fn of(node: &Node, pins: &Pins) -> Result<Self> {
        let open = |name: &str| MapData::from_pin(pins.map(name)).with_context(|| format!("open {name}"));
        let mut maps = 0;
        for name in loader::MAPS {
            maps += map_memory(open(name)?.fd().as_fd())?;
        }
        let rings: ArrayOfMaps<_, ebpf_object::Ring> = Map::ArrayOfMaps(open(map::RINGS)?).try_into()?;
        for slot in node.have.rings.keys() {
            maps += map_memory(rings.get(slot, 0)?.map().fd().as_fd())?;
        }
        Ok(Self { resident: status("VmRSS")?, maps })
    }
}

/// A line of /proc/self/status, in bytes.
fn status(line: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let value = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':')).context("no such line")?;
    Ok(value.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// What the allocator has given out.
pub fn in_use() -> u64 {
    // SAFETY: reads the allocator's statistics under its own locks.
    let statistics = unsafe { libc::mallinfo2() };
    (statistics.uordblks + statistics.hblkhd) as u64
}

/// Of this thread: the time of a change on an idle processor.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has this clock");
    Duration::new(time.tv_sec() as u64, time.tv_nsec() as u32)
}

/// A mount namespace with a BPF file system, and a network namespace; both end with this process.
fn namespaces() -> Result<PathBuf> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).context("namespaces need root")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("private mounts")?;
    let at = Path::new("/sys/fs/bpf");
    mount(Some("bpf"), at, Some("bpf"), MsFlags::empty(), none).context("mount a BPF file system")?;
    Ok(at.join("sheave"))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Changes of one pod; the median counts.
const ROUNDS: usize = 9;
/// The node that is lost.
const LOST: usize = 42;
