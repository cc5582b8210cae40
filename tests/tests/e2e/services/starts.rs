//! Pods that Kubernetes calls ready before they listen.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sheave_tests::lab::{ClientKind, wait_for};
use sheave_tests::scenario::{Scene, http};
use sheave_tests::traffic::report::ConnectReport;
use sheave_tests::traffic::{Running, connect};

use super::clients::{OUTSIDE, datagram, from, greeted_by, tcp, wait_served};
use super::{Room, Server, WITHIN};

/// One pod listens. Beside it come one that listens 6 s after it is ready, longer than an addition to a ring waits, and one that never
/// does; the first is replaced by one that is ready 2 s before it listens, in the ring that was in force a moment ago, which is restored
/// at once. 200 new connections a second, each way: none is refused. A Service with `startup-probe: "off"` shows that the pods refuse.
pub fn starts(scene: &Scene) -> Result<String> {
    let room = Room::open(scene, "starts")?;
    room.start(&[Server::on(0, "old", "starting")])?;
    let probed = room.service("probed", 217, "", "selector: {app: starting}")?;
    let unprobed = room.service("unprobed", 218, "", "selector: {app: starting}")?;
    let off = ["annotate", "service", "unprobed", "--namespace=starts", "sheave.dev/startup-probe=off"];
    scene.lab.kubectl(&off)?;
    [probed, unprobed].into_iter().try_for_each(|vip| wait_served(scene, vip))?;

    let late = |name, node, seconds| Server {
        listens_after_s: Some(seconds),
        drain_s: DRAIN_S,
        ..Server::on(node, name, "starting")
    };
    let load = [(ClientKind::Segment, probed), (ClientKind::BehindRouter, probed), (ClientKind::Segment, unprobed)];
    let load: Vec<Running<ConnectReport>> =
        load.iter().map(|(kind, vip)| connect(&scene.lab, *kind, &tcp(*vip).to_string())).collect::<Result<_>>()?;
    room.start(&[late("slow", 1, 6), late("never", 2, NEVER_S)])?;
    wait_answer(scene, probed, "slow")?;
    room.end(&["slow"])?;
    wait_for("the end of the slow pod", WITHIN, || Ok((room.slices("probed")?.concat().len() == 2).then_some(())))?;
    room.start(&[late("next", 1, 2)])?;
    wait_answer(scene, probed, "next")?;
    let [near, far, other] = load.try_into().map_err(|_| anyhow::anyhow!("three loads"))?;
    let [near, far, other] = [near.report()?, far.report()?, other.report()?];
    for report in [&near, &far] {
        ensure!(report.failed == 0, "{} of {} failed: {:?}", report.failed, report.attempts, report.failures);
    }
    let refused = other.failures.iter().filter(|failure| failure.error.contains("refused")).count();
    ensure!(refused > 0, "without probes none of {} was refused: this shows nothing", other.attempts);
    let named = refusing(scene, 2)?;
    ensure!(named >= 1.0, "the pod that never listens has no name in the metrics: {named}");
    let alone = alone(&room)?;
    Ok(format!(
        "0 of {} and {} refused, {refused} of {} without probes; alone: reset within {alone:.1} ms",
        near.attempts, far.attempts, other.attempts
    ))
}

/// The only pod never listens: clients get its reset. Its UDP port is served at once.
fn alone(room: &Room<'_>) -> Result<f64> {
    let scene = room.scene;
    let vip = room.service("alone", 219, "", "selector: {app: mute}")?;
    room.start(&[Server { listens_after_s: Some(NEVER_S), ..Server::on(1, "mute", "mute") }])?;
    wait_for("a datagram to be answered", WITHIN, || Ok(datagram(scene, "client", vip).ok()))?;
    let mut slowest = 0.0_f64;
    for (role, _) in OUTSIDE {
        for _ in 0..FEW {
            slowest = slowest.max(reset(scene, role, vip)?);
        }
    }
    Ok(slowest)
}

/// After how many milliseconds a connection was refused.
fn reset(scene: &Scene, role: &str, vip: Ipv4Addr) -> Result<f64> {
    from(scene, role, || {
        let began = std::time::Instant::now();
        match TcpStream::connect_timeout(&tcp(vip), PATIENCE) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(began.elapsed().as_secs_f64() * 1e3),
            Err(error) => bail!("not refused: {error}"),
            Ok(_) => bail!("answered"),
        }
    })
    .with_context(|| format!("from {role} to {vip}"))
}

/// Until this pod has answered; no connection may fail.
fn wait_answer(scene: &Scene, vip: Ipv4Addr, pod: &str) -> Result<()> {
    wait_for(&format!("an answer of {pod}"), WITHIN, || {
        let by = greeted_by(scene, "client", OUTSIDE[0].1, vip, FEW)?;
        Ok(by.contains_key(pod).then_some(()))
    })
}

/// The gauge of pods that refuse, on a node.
fn refusing(scene: &Scene, node: usize) -> Result<f64> {
    let metrics = http::metrics(&scene.lab, scene.node_address(&scene.nodes[node])?)?;
    http::value(&metrics, "sheave_startup_refused").context("sheave_startup_refused")
}

const FEW: usize = 20;
const PATIENCE: Duration = Duration::from_secs(2);
/// It serves until all nodes have noticed its end.
const DRAIN_S: u8 = 3;
/// Longer than the step.
const NEVER_S: u8 = 250;
