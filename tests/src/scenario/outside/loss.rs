//! The loss of a node that translates for an endpoint outside.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Connection, NAME, WITHIN, greeting, with_service};
use crate::lab::{Fault, wait_for};
use crate::scenario::deploy::{Scene, address_of};
use crate::scenario::http;
use crate::scenario::settle::{wait_holder, wait_nodes_down};

/// What clients saw when a node that translates lost power.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TranslatorLoss {
    pub lost: String,
    pub open: usize,
    /// Of those, through the node that was lost.
    pub through_lost: usize,
    /// Of those, reset at the next byte. The others had no answer.
    pub reset: usize,
    /// Connections through other nodes that did not go on.
    pub others_ended: usize,
    /// Resets that the nodes which are left count.
    pub counted: f64,
    /// New connections from the loss on, and how long after it the last one began that took longer than `SLOW_MS` or failed. (The node
    /// loses power while the first ones are opened.)
    pub new: usize,
    pub slow_until_ms: f64,
}

/// A connection of a client that was sent to the lost node first waits a second for its second SYN.
const SLOW_MS: f64 = 500.0;

/// A node that translates loses power under open connections; the owner of the VIP stays. It stays without: `restore` gives it back.
pub fn translator_loss(scene: &Scene, connections: usize) -> Result<TranslatorLoss> {
    with_service(scene, None, |scene| lose(scene, connections))
}

fn lose(scene: &Scene, connections: usize) -> Result<TranslatorLoss> {
    let vip = wait_for("an address for the Service", WITHIN, || address_of(&scene.api, NAME))?;
    wait_for("an answer from outside", WITHIN, || Ok(greeting(scene, vip).ok()))?;
    let mut open = (0..connections).map(|_| Connection::open(scene, vip)).collect::<Result<Vec<_>>>()?;
    let owner = wait_for("the owner of the VIP", WITHIN, || owner_of(scene, vip))?;
    let addresses: Vec<(String, IpAddr)> =
        scene.nodes.iter().map(|node| Ok((node.clone(), scene.node_address(node)?.into()))).collect::<Result<_>>()?;
    let translates = |address: IpAddr| open.iter().any(|connection| connection.seen == address);
    let mut others = addresses.iter().filter(|(node, address)| *node != owner && translates(*address));
    let (lost, address) = others.next().context("no node but the owner translates")?.clone();
    let left: Vec<String> = scene.nodes.iter().filter(|node| **node != lost).cloned().collect();
    let resets_before = resets(scene, &left)?;

    let client = scene.lab.state()?.plan.netns("client");
    let (new, slow_until_ms) = std::thread::scope(|scope| {
        let opened = scope.spawn(|| open_new(&client, vip));
        let off = scene.lab.fault(Fault::PowerOff { node: lost.clone() });
        let opened = opened.join().expect("no connection panics");
        off.map(|_| opened)
    })?;
    wait_holder(scene, &left)?;
    wait_nodes_down(scene, &left, 1.0)?;
    let (through, others): (Vec<_>, Vec<_>) = open.iter_mut().partition(|connection| connection.seen == address);
    let (through_lost, others_open) = (through.len(), others.len());
    let fates: Vec<_> = through.into_iter().filter_map(|connection| connection.carry().err()).collect();
    ensure!(fates.len() == through_lost, "{} of {through_lost} went on without their node", through_lost - fates.len());
    let reset = fates.iter().filter(|error| error.kind() == std::io::ErrorKind::ConnectionReset).count();
    let others_alive = others.into_iter().filter_map(|connection| connection.carry().ok()).count();
    // Speakers read the kernel's counters now and then.
    let counted = wait_for("the resets to be counted", WITHIN, || {
        let counted = resets(scene, &left)? - resets_before;
        Ok((counted >= reset as f64).then_some(counted))
    })?;
    Ok(TranslatorLoss {
        lost,
        open: connections,
        through_lost,
        reset,
        others_ended: others_open - others_alive,
        counted,
        new,
        slow_until_ms,
    })
}

/// A connection every [`PACE`] for [`LONG`], whatever becomes of the others: how many, and when the last one began that was slow or failed.
fn open_new(client: &str, vip: Ipv4Addr) -> (usize, f64) {
    let began = Instant::now();
    let ms = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
    let attempt = move || {
        let (at, this) = (ms(began), Instant::now());
        let served = Connection::open_in(client, vip).is_ok();
        (!served || ms(this) > SLOW_MS).then_some(at)
    };
    std::thread::scope(|scope| {
        let mut attempts = Vec::new();
        while began.elapsed() < LONG {
            attempts.push(scope.spawn(attempt));
            std::thread::sleep(PACE);
        }
        let new = attempts.len();
        let slow = attempts.into_iter().filter_map(|attempt| attempt.join().expect("an attempt does not panic"));
        (new, slow.fold(0.0, f64::max))
    })
}

pub(super) fn owner_of(scene: &Scene, vip: Ipv4Addr) -> Result<Option<String>> {
    let series = format!("sheave_vip_owned_term{{vip=\"{vip}\"}}");
    let mut nodes = scene.nodes.iter();
    nodes.try_fold(None, |found, node| {
        let metrics = http::metrics(&scene.lab, scene.node_address(node)?)?;
        Ok(found.or_else(|| http::value(&metrics, &series).map(|_| node.clone())))
    })
}

fn resets(scene: &Scene, nodes: &[String]) -> Result<f64> {
    nodes.iter().try_fold(0.0, |sum, node| {
        let metrics = http::metrics(&scene.lab, scene.node_address(node)?)?;
        Ok(sum + http::value(&metrics, RESETS).with_context(|| format!("{RESETS} of {node}"))?)
    })
}

const PACE: Duration = Duration::from_millis(20);
/// Longer than anything is slow.
const LONG: Duration = Duration::from_secs(3);
const RESETS: &str = "sheave_guard_packets_total{guard=\"guard_reset\"}";
