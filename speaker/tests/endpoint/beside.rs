//! The DaemonSet's speaker on members whose host speaker serves, and the other way round: installed, upgraded, deleted under load. Its pod
//! is the same program with the same paths as in manifests/base/speaker.yaml; its API server is away.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sheave_api::local::DRAIN;
use sheave_tests::lab::wait::wait_for;

use crate::client::{Connection, Failure};
use crate::status::is_ready;
use crate::world::{CLIENT, MEMBERS, Program, World};
use crate::{MANY, PATIENCE, alive, reached};

const PROBES: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7482);
/// Of `/readyz`.
const STANDS_BY: (u16, &str) = (200, "ok\nnote: HostSpeaker\n");

pub fn the_daemonset_costs_no_connection(world: &mut World, held: &mut [Connection]) -> Result<()> {
    for node in MEMBERS {
        wait_for(&format!("{node}'s speaker"), PATIENCE, || Ok(is_ready(world, node).then_some(())))?;
    }
    let load = Load::start(world);
    for node in MEMBERS {
        world.start_pod(node)?;
        stands_by(world, node).context("installed")?;
    }
    alive(held).context("installed")?;
    load.goes_on().context("installed")?;
    for node in MEMBERS {
        world.end(node, Program::Pod, Signal::SIGTERM)?;
        world.start_pod(node)?;
        stands_by(world, node).context("upgraded")?;
    }
    alive(held).context("upgraded")?;
    load.goes_on().context("upgraded")?;
    ensure!(
        world.uninstall("a", &["--host-speaker"]).is_err_and(|said| format!("{said:#}").contains("HostSpeakerRuns"))
    );
    for node in MEMBERS {
        world.end(node, Program::Pod, Signal::SIGTERM)?;
        world.uninstall(node, &[]).context("the DaemonSet's uninstall")?;
        world.uninstall(node, &["--check"]).context("it leaves the host speaker's")?;
    }
    alive(held).context("deleted")?;
    load.goes_on().context("deleted")?;
    let opened = load.stop()?;
    println!(
        "DaemonSet installed, upgraded, deleted: {opened} connections opened meanwhile, {} held, 0 lost",
        held.len()
    );
    a_host_speaker_that_restarts_keeps_its_place(world, held)?;
    the_daemonset_hands_over(world, held)
}

/// The pod does not take what the host speaker left for its successor.
fn a_host_speaker_that_restarts_keeps_its_place(world: &mut World, held: &mut [Connection]) -> Result<()> {
    world.start_pod("b")?;
    stands_by(world, "b")?;
    world.end("b", Program::HostSpeaker, Signal::SIGTERM)?;
    stands_by(world, "b").context("between two host speakers")?;
    alive(held).context("between two host speakers")?;
    world.start_speaker("b")?;
    wait_for("b's speaker", PATIENCE, || Ok(is_ready(world, "b").then_some(())))?;
    stands_by(world, "b")?;
    alive(held).context("with the next one")
}

/// Where the pod was first.
fn the_daemonset_hands_over(world: &mut World, held: &mut [Connection]) -> Result<()> {
    world.start_pod("c")?;
    stands_by(world, "c")?;
    world.end("c", Program::HostSpeaker, Signal::SIGTERM)?;
    world.uninstall("c", &["--host-speaker"])?;
    // It waits for the keys of a cluster, as it would without host speaker.
    wait_for("the pod of c to serve", PATIENCE, || {
        let said = readyz(world, "c").ok();
        Ok(said.filter(|(status, text)| *status == 503 && text.starts_with("keys_")).map(drop))
    })?;
    let pod = world.pid("c", Program::Pod)?;
    world.start_speaker("c")?;
    stands_by(world, "c").context("it hands over")?;
    wait_for("c's speaker", PATIENCE, || Ok(is_ready(world, "c").then_some(())))?;
    wait_for("c to serve", PATIENCE, || Ok(reached(world)?.contains("c").then_some(())))?;
    ensure!(world.pid("c", Program::Pod)? == pod, "the pod's container started again");
    // Those to c were without rules of ours meanwhile.
    let others = held.iter_mut().filter(|connection| connection.member != "c");
    for connection in others {
        connection.ask().with_context(|| format!("a connection to {}", connection.member))?;
    }
    ["b", "c"].into_iter().try_for_each(|node| world.end(node, Program::Pod, Signal::SIGTERM))
}

/// Serves nothing, and says so everywhere.
fn stands_by(world: &World, node: &str) -> Result<()> {
    let mut said = None;
    let found = wait_for(&format!("the pod of {node} to stand by"), PATIENCE, || {
        said = readyz(world, node).ok();
        Ok(said.as_ref().filter(|(status, text)| (*status, text.as_str()) == STANDS_BY).map(drop))
    });
    found.with_context(|| format!("it says {said:?}"))?;
    let stream = UnixStream::connect(world.pod_socket(node)).context("the pod's socket")?;
    let (status, text) = get(stream, DRAIN)?;
    ensure!(status == 409 && text.contains("HostSpeaker: "), "its socket says {status} {text}");
    Ok(())
}

fn readyz(world: &World, node: &str) -> Result<(u16, String)> {
    world.inside(node, || get(TcpStream::connect(PROBES)?, "/readyz"))
}

fn get(mut stream: impl Read + Write, path: &str) -> Result<(u16, String)> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).context("a status")?;
    Ok((status, answer.split_once("\r\n\r\n").context("a body")?.1.to_owned()))
}

/// New connections, one after the other.
struct Load {
    ends: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    thread: JoinHandle<Result<(), Failure>>,
}

impl Load {
    fn start(world: &World) -> Self {
        let (ends, opened) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (over, count, connect) = (ends.clone(), opened.clone(), world.connector(CLIENT, 6443));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                connect()?;
                count.fetch_add(1, Ordering::Relaxed);
                // A hundred a second are load enough for a machine that does other things.
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        });
        Self { ends, opened, thread }
    }

    /// Until many more were opened.
    fn goes_on(&self) -> Result<()> {
        let before = self.opened.load(Ordering::Relaxed);
        wait_for("new connections", PATIENCE, || {
            ensure!(!self.thread.is_finished(), "a connection could not be opened");
            Ok((self.opened.load(Ordering::Relaxed) >= before + MANY).then_some(()))
        })
    }

    /// How many were opened; the first one that could not be is an error.
    fn stop(self) -> Result<usize> {
        self.ends.store(true, Ordering::Relaxed);
        let ended = self.thread.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
        ended.context("a new connection under load")?;
        Ok(self.opened.load(Ordering::Relaxed))
    }
}
