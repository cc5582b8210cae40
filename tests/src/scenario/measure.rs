//! What clients see around a fault: open connections, UDP probes, new connections, and which node claims the address.
//!
//! How it counts. Each measurement uses source ports that were not used before (a random place) and begins with empty ARP
//! entries, so nothing survives by accident. Connections whose pod was on a lost node cannot survive and are counted apart: they
//! must end with a reset. *Alive* is a connection on which an echo came back for data that was sent after the fault, when the
//! report was requested. All times are from the moment before the fault was ordered.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::deploy::Scene;
use super::settle::forget_neighbours;
use super::waits::{InTime, Waits, Watch, judge};
use crate::lab::{ClientKind, plan};
use crate::traffic::clock::milliseconds;
use crate::traffic::report::{ArpReport, ConnectReport, Held, HeldState, HoldReport, ProbeReport};
use crate::traffic::{self, Running};

/// What became of open connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Connections {
    pub opened: usize,
    /// Those whose pod kept running: all of them must be alive.
    pub eligible: usize,
    pub alive: usize,
    /// Of all opened: the pod saw the client's own address and port.
    pub saw_client: usize,
    /// Of the alive ones, between two echoes.
    pub longest_pause_ms: f64,
    pub pod_lost: PodLost,
    /// The first few that should be alive and are not.
    pub not_alive: Vec<String>,
}

/// Connections whose pod was on the lost node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PodLost {
    pub opened: usize,
    /// Ended by a reset, as they should.
    pub reset: usize,
    /// The client got neither a reset nor a FIN: a defect.
    pub silent: usize,
    pub slowest_reset_ms: Option<f64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Probes {
    pub sent: u64,
    pub lost: u64,
    pub longest_outage_ms: f64,
}

/// The MAC addresses that claimed the address, as seen on the segment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    pub before: Option<String>,
    /// The first other node that claimed it.
    pub after: Option<String>,
    pub takeover_ms: Option<f64>,
    /// The last claim of the old owner; `None` if it never claimed again after the fault, or if no other node did.
    pub old_owner_until_ms: Option<f64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NewConnections {
    pub attempts: u64,
    pub failed: u64,
    /// Of those begun later than 300 ms after the fault.
    pub failed_later: u64,
    /// From the fault to the beginning of the last of these; 0 if there is none.
    pub failed_until_ms: f64,
    pub slowest_ms: f64,
}

/// All of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Observed {
    pub connections: Connections,
    pub probes: Probes,
    pub claims: Claims,
    pub new_connections: Option<NewConnections>,
    /// Which programs waited for a processor meanwhile.
    pub waits: Waits,
}

impl Observed {
    /// Judges a figure that is a time from the fault on.
    pub fn in_time(&self, figure_ms: f64, limit_ms: f64) -> InTime {
        judge(figure_ms, limit_ms, self.waits.until(figure_ms))
    }
}

/// The measuring commands while they run.
pub struct Measurement {
    held: Running<HoldReport>,
    probes: Running<ProbeReport>,
    arp: Running<ArpReport>,
    connecting: Option<Running<ConnectReport>>,
    watch: Watch,
    mark_ns: u64,
    nodes: BTreeMap<String, String>,
}

impl Measurement {
    /// Returns when all connections are open.
    pub fn start(scene: &Scene, connections: u16, new_connections: bool) -> Result<Self> {
        Self::of(scene, &scene.vip.to_string(), &scene.tcp(), &scene.udp(), connections, new_connections)
    }

    /// The same for another address.
    pub fn of(scene: &Scene, ip: &str, tcp: &str, udp: &str, connections: u16, new_connections: bool) -> Result<Self> {
        forget_neighbours(scene)?;
        let lab = &scene.lab;
        let client = ClientKind::Segment;
        let nodes = scene.nodes.iter().map(|node| Ok((lab.mac(node)?.to_lowercase(), node.clone())));
        Ok(Self {
            nodes: nodes.collect::<Result<_>>()?,
            arp: traffic::arp_watch(lab, ip)?,
            probes: traffic::probe(lab, client, udp, PROBE_FLOWS)?,
            held: traffic::hold(lab, client, tcp, connections, RECORD_INTERVAL_MS)?,
            connecting: if new_connections { Some(traffic::connect(lab, client, tcp)?) } else { None },
            watch: Watch::start(scene)?,
            mark_ns: 0,
        })
    }

    /// The fault is ordered now. Some probes and records went before, so that a gap has two ends.
    pub fn mark(&mut self) -> Result<u64> {
        sleep(BEFORE);
        let at = self.held.mark()?;
        self.probes.mark_at(at)?;
        self.arp.mark_at(at)?;
        self.connecting.as_mut().map_or(Ok(()), |running| running.mark_at(at))?;
        self.mark_ns = at;
        Ok(at)
    }

    /// The reports, when the clients have watched for a while longer. `lost`: the node whose pods are gone.
    pub fn finish(self, owner: &str, lost: Option<&str>) -> Result<Observed> {
        sleep(AFTER);
        // New connections first: they would go on failing or not while the others report.
        let new_connections = self.connecting.map(Running::report).transpose()?;
        let probes = self.probes.report()?;
        let held = self.held.report()?;
        let arp = self.arp.report()?;
        Ok(Observed {
            connections: connections(&held, lost),
            probes: Probes {
                sent: probes.sent,
                lost: probes.lost,
                longest_outage_ms: probes.longest_outage_after_mark_ms.unwrap_or(probes.longest_outage_ms),
            },
            claims: claims(&arp, &self.nodes, owner),
            new_connections: new_connections.map(|report| NewConnections::of(&report)),
            waits: self.watch.finish(self.mark_ns, held.late_ms)?,
        })
    }
}

impl NewConnections {
    fn of(report: &ConnectReport) -> Self {
        let mark_ns = report.mark_ns.unwrap_or_default();
        let later = report.failures.iter().filter(|failure| failure.later);
        Self {
            attempts: report.attempts,
            failed: report.failed,
            failed_later: report.failed_after_mark.unwrap_or(report.failed),
            failed_until_ms: later.map(|one| milliseconds(mark_ns, one.begun_ns)).fold(0.0, f64::max),
            slowest_ms: report.slowest_ms,
        }
    }
}

impl Connections {
    pub fn all_alive(&self) -> bool {
        self.alive == self.eligible && self.eligible > 0
    }
}

impl PodLost {
    pub fn all_reset(&self) -> bool {
        self.reset == self.opened
    }
}

fn connections(report: &HoldReport, lost: Option<&str>) -> Connections {
    let is_lost = |held: &&Held| Some(held.node.as_str()) == lost && held.state != HeldState::Failed;
    let eligible: Vec<_> = report.connections.iter().filter(|held| !is_lost(held)).collect();
    let lost: Vec<_> = report.connections.iter().filter(is_lost).collect();
    let alive = || eligible.iter().filter(|held| held.state == HeldState::Alive);
    let pause = |held: &&&Held| held.longest_pause_after_mark_ms.unwrap_or(held.longest_pause_ms);
    let count = |state| lost.iter().filter(|held| held.state == state).count();
    let resets = lost.iter().filter(|held| held.state == HeldState::Reset).filter_map(|held| held.mark_to_end_ms);
    let not_alive = eligible.iter().filter(|held| held.state != HeldState::Alive).take(FEW);
    Connections {
        opened: report.connections.len(),
        eligible: eligible.len(),
        alive: alive().count(),
        saw_client: report.connections.iter().filter(|held| saw_client(held, plan::CLIENT)).count(),
        longest_pause_ms: alive().map(|held| pause(&held)).fold(0.0, f64::max),
        pod_lost: PodLost {
            opened: lost.len(),
            reset: count(HeldState::Reset),
            silent: count(HeldState::Silent),
            slowest_reset_ms: resets.reduce(f64::max),
        },
        not_alive: not_alive
            .map(|held| {
                let (error, after) = (held.error.as_deref().unwrap_or("-"), held.mark_to_end_ms.unwrap_or_default());
                format!("{} on {} {:?} after {after:.0} ms: {error}", held.local, held.node, held.state)
            })
            .collect(),
    }
}

/// Whether the pod saw the client as it is: address and port.
pub fn saw_client(held: &Held, client: Ipv4Addr) -> bool {
    let port = held.local.rsplit_once(':').map(|(_, port)| port);
    held.seen.rsplit_once(':').is_some_and(|(ip, seen)| ip == client.to_string() && Some(seen) == port)
}

fn claims(report: &ArpReport, nodes: &BTreeMap<String, String>, owner: &str) -> Claims {
    let mark = report.mark_ns.unwrap_or_default();
    let name = |mac: &str| nodes.get(&mac.to_lowercase()).cloned().unwrap_or_else(|| mac.to_owned());
    let before = report.answers.iter().rfind(|answer| answer.at_ns <= mark).map(|answer| name(&answer.mac));
    let later = || report.answers.iter().filter(|answer| answer.at_ns > mark);
    let first_other = later().find(|answer| name(&answer.mac) != owner);
    let last_of_old = later().rfind(|answer| name(&answer.mac) == owner);
    Claims {
        before,
        after: first_other.map(|answer| name(&answer.mac)),
        takeover_ms: first_other.map(|answer| milliseconds(mark, answer.at_ns)),
        old_owner_until_ms: last_of_old
            .filter(|_| first_other.is_some())
            .map(|answer| milliseconds(mark, answer.at_ns)),
    }
}

/// Between two records on one connection: 200 of them make 8 000 packets a second at the client, each way.
const RECORD_INTERVAL_MS: u64 = 25;
/// UDP flows, each with one probe a millisecond: several, so that they have pods on several nodes.
const PROBE_FLOWS: u16 = 3;
const BEFORE: Duration = Duration::from_millis(200);
const AFTER: Duration = Duration::from_millis(1200);
const FEW: usize = 5;
