//! Source ranges with real clients: outside, pods and nodes; a change under load.

use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sheave_tests::lab::{ClientKind, netns, plan, wait_for};
use sheave_tests::scenario::Scene;
use sheave_tests::scenario::inside::process_of;
use sheave_tests::scenario::pods::greeting_from;
use sheave_tests::scenario::settle::forget_neighbours;
use sheave_tests::traffic::{self, report::HeldState};

use super::clients::{OUTSIDE, greeted_by, is_dropped, tcp, wait_served};
use super::{Room, Server, WITHIN};

pub fn source_ranges(scene: &Scene) -> Result<String> {
    let room = Room::open(scene, "ranges")?;
    room.start(&[
        Server::on(0, "ranged-1", "all"),
        Server::on(1, "ranged-2", "all"),
        Server::on(2, "ranged-3", "all"),
    ])?;
    let [admitted, denied] = [scene.node_address(&scene.nodes[0])?, scene.node_address(&scene.nodes[1])?];
    let of_admitted_pod = room.find("ranged-1")?.ip.context("the address of a pod")?;
    let ranges = [plan::CLIENT, admitted, of_admitted_pod].map(|address| format!("{address}/32")).join(", ");
    let vip =
        room.service("ranged", 216, "", &format!("selector: {{app: all}}\n  loadBalancerSourceRanges: [{ranges}]"))?;
    wait_served(scene, vip)?;
    ensure!(is_dropped(scene, "far", vip)?, "a client outside is not denied");
    inside(&room, vip, denied)?;
    let narrowed = narrowed_under_load(&room, vip)?;
    let widened = widened(&room, vip)?;
    Ok(format!("{narrowed}; {widened}"))
}

/// kube-proxy's part: a pod and a node of the ranges, and others.
fn inside(room: &Room<'_>, vip: Ipv4Addr, denied: Ipv4Addr) -> Result<()> {
    let (scene, to) = (room.scene, format!("{vip}:80"));
    let pod = |name: &str| process_of(&scene.lab, &room.find(name)?, "sheave-traffic");
    pod("ranged-1")?.greeting(&scene.lab, &to).context("an admitted pod")?;
    greeting_from(&scene.lab, &scene.nodes[0], &to).context("an admitted node")?;
    ensure!(is_dropped(scene, &scene.nodes[1], vip)?, "the node {denied} is not denied");
    let answer = pod("ranged-2")?.greeting(&scene.lab, &to);
    ensure!(answer.is_err(), "a pod that no range has: {answer:?}");
    Ok(())
}

/// The client is taken out of the ranges while it sends on open connections and opens new ones: it is reset, and denied by every node,
/// owner or not. The other client is admitted by the same change.
fn narrowed_under_load(room: &Room<'_>, vip: Ipv4Addr) -> Result<String> {
    let scene = room.scene;
    let mut held = traffic::hold(&scene.lab, ClientKind::Segment, &format!("{vip}:80"), CONNECTIONS, 10)?;
    held.mark()?;
    set(room, &[plan::FAR_CLIENT])?;
    let began = Instant::now();
    let mut denied_after = Vec::new();
    for node in &scene.nodes {
        let way = Way::by(scene, node, vip)?;
        // When the first attempt began that was not answered.
        denied_after.push(wait_for(&format!("{node} to deny the client"), WITHIN, || {
            let at = began.elapsed().as_millis();
            Ok(is_dropped(scene, "client", vip)?.then_some(at))
        })?);
        drop(way);
    }
    forget_neighbours(scene)?;
    wait_served_by_far(scene, vip)?;
    let report = held.report()?;
    let ended = report.count(HeldState::Reset, |_| true);
    ensure!(ended == usize::from(CONNECTIONS), "not all connections of the client were reset: {:?}", report.counts);
    let last = report.connections.iter().filter_map(|one| one.mark_to_end_ms).fold(0.0, f64::max);
    ensure!(last < SANE_MS, "the last reset came after {last:.0} ms");
    let late = report.late_ms;
    Ok(format!(
        "{ended} connections reset within {last:.0} ms (the client itself was late by {late:.0} ms), each node denied what began after {denied_after:?} ms"
    ))
}

/// And back, on every node.
fn widened(room: &Room<'_>, vip: Ipv4Addr) -> Result<String> {
    let scene = room.scene;
    set(room, &[plan::CLIENT, plan::FAR_CLIENT])?;
    let began = Instant::now();
    for node in &scene.nodes {
        let way = Way::by(scene, node, vip)?;
        wait_for(&format!("{node} to admit the client"), WITHIN, || {
            Ok((!is_dropped(scene, "client", vip)?).then_some(()))
        })?;
        drop(way);
    }
    let took = began.elapsed().as_millis();
    forget_neighbours(scene)?;
    for (role, address) in OUTSIDE {
        greeted_by(scene, role, address, vip, FEW)?;
    }
    Ok(format!("admitted by every node {took} ms after the ranges were widened"))
}

fn set(room: &Room<'_>, clients: &[Ipv4Addr]) -> Result<()> {
    let ranges: Vec<String> = clients.iter().map(|client| format!("{client}/32")).collect();
    let patch = json!({"spec": {"loadBalancerSourceRanges": ranges}});
    room.scene.api.patch(&room.path("services", "ranged"), &patch).map(drop)
}

fn wait_served_by_far(scene: &Scene, vip: Ipv4Addr) -> Result<()> {
    let (role, address) = OUTSIDE[1];
    wait_for("the other client to be admitted", WITHIN, || Ok(greeted_by(scene, role, address, vip, 1).ok()))?;
    greeted_by(scene, role, address, vip, FEW).map(drop)
}

/// The client on the segment sends what goes to the address by one node, owner or not, until dropped.
struct Way<'a> {
    scene: &'a Scene,
    vip: Ipv4Addr,
}

impl<'a> Way<'a> {
    fn by(scene: &'a Scene, node: &str, vip: Ipv4Addr) -> Result<Self> {
        let way = Self { scene, vip };
        way.neighbour(&["replace", &vip.to_string(), "lladdr", &scene.lab.mac(node)?, "nud", "permanent"])?;
        Ok(way)
    }

    fn neighbour(&self, arguments: &[&str]) -> Result<()> {
        let client = self.scene.lab.state()?.plan.netns("client");
        let command = [&["-netns", &client, "neighbour"], arguments, &["dev", "eth0"]].concat();
        netns::run("ip", &command).map(drop)
    }
}

impl Drop for Way<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.neighbour(&["delete", &self.vip.to_string()]) {
            eprintln!("the client keeps its way to {}: {error:#}", tcp(self.vip));
        }
    }
}

const CONNECTIONS: u16 = 60;
const FEW: usize = 8;
/// The promise is a second, on a machine that has nothing else to do.
const SANE_MS: f64 = 5000.0;
