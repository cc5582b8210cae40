//! A new port of a Service that the speaker of its pod's node has not heard of. By the other nodes' tables there is a pod, so they send it
//! SYNs.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use sheave_tests::lab::{Fault, wait_for};
use sheave_tests::scenario::Scene;
use sheave_tests::scenario::settle::wait_holder;

use super::clients::{from, wait_served};
use super::endings::of;
use super::{Asked, Room, Server, WITHIN};

/// On every node once. No connection is refused: they are answered late, when the node's table is there.
pub fn late_table(scene: &Scene) -> Result<String> {
    let room = Room::open(scene, "latetable")?;
    let pods = ["late-1", "late-2", "late-3"];
    let servers: Vec<Server> = pods.into_iter().enumerate().map(|(node, name)| Server::on(node, name, name)).collect();
    room.start(&servers)?;
    let mut longest = Duration::ZERO;
    for (number, node) in scene.nodes.iter().enumerate() {
        let name = pods[number];
        let more = format!("selector: {{app: {name}}}");
        let service =
            |ports| room.service_with(name, 203 + number as u8, Asked { ports, more: &more, ..Asked::default() });
        let first = "[{name: first, protocol: TCP, port: 80, targetPort: web}]";
        let vip = service(first)?;
        wait_served(scene, vip)?;
        let frozen = Frozen::begin(scene, node)?;
        let owner = wait_other_owner(scene, vip, node)?;
        let context = || format!("the speaker of {node} frozen, owner {owner}");
        service(&first.replace(']', &format!(", {{name: second, protocol: TCP, port: {SECOND}, targetPort: web}}]")))?;
        wait_not_refused(scene, vip).with_context(context)?;
        let waits = thread::scope(|threads| {
            let attempts: Vec<_> = (0..ATTEMPTS).map(|_| threads.spawn(|| attempt(scene, vip))).collect();
            thread::sleep(FROZEN);
            drop(frozen);
            let waits = attempts.into_iter().map(|one| one.join().map_err(|_| anyhow!("a client panicked"))?);
            waits.collect::<Result<Vec<Duration>>>()
        });
        let waits = waits.with_context(context)?;
        ensure!(waits.iter().all(|wait| *wait >= FROZEN), "{}: answered, by whom? {waits:?}", context());
        longest = longest.max(waits.into_iter().max().unwrap_or_default());
    }
    Ok(format!("{} connections late, none refused; at most {:.1} s", ATTEMPTS * pods.len(), longest.as_secs_f64()))
}

/// A stopped speaker, until this is dropped.
struct Frozen<'a> {
    scene: &'a Scene,
    node: &'a str,
}

impl<'a> Frozen<'a> {
    fn begin(scene: &'a Scene, node: &'a str) -> Result<Self> {
        scene.lab.fault(Fault::StopSpeaker { node: node.to_owned() })?;
        Ok(Self { scene, node })
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.scene.lab.fault(Fault::ContSpeaker { node: self.node.to_owned() }) {
            eprintln!("the speaker of {} stays stopped: {error:#}", self.node);
        }
    }
}

/// The owner of an address once this node is none.
fn wait_other_owner(scene: &Scene, vip: Ipv4Addr, node: &str) -> Result<String> {
    let others: Vec<String> = scene.nodes.iter().filter(|other| *other != node).cloned().collect();
    wait_holder(&of(scene, vip), &others)
}

fn second(vip: Ipv4Addr) -> SocketAddr {
    (vip, SECOND).into()
}

/// Until the owner has heard of the port: before that nobody serves, as far as it knows, and it says so.
fn wait_not_refused(scene: &Scene, vip: Ipv4Addr) -> Result<()> {
    from(scene, "client", || {
        wait_for("a connection that is not refused", WITHIN, || match TcpStream::connect_timeout(&second(vip), LATE) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(None),
            _ => Ok(Some(())),
        })
    })
}

/// How long one connection took that may not fail.
fn attempt(scene: &Scene, vip: Ipv4Addr) -> Result<Duration> {
    from(scene, "client", || {
        let began = Instant::now();
        TcpStream::connect_timeout(&second(vip), WITHIN)?;
        Ok(began.elapsed())
    })
}

const SECOND: u16 = 81;
const ATTEMPTS: usize = 20;
/// Over the first repetition of a SYN (1 s).
const FROZEN: Duration = Duration::from_millis(1500);
const LATE: Duration = Duration::from_millis(300);
