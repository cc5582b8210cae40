//! sessionAffinity ClientIP: a hundred clients, 6, 9 and 12 pods, and one pod that is replaced. New pods come to some of the nodes only, so
//! that rows move from the node that gets none.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;
use socket2::{Domain, Socket, Type};

use super::deploy::{NAMESPACE, SERVICE, Scene, TCP_PORT};
use super::http;
use super::survive::workload::{scale, set_affinity, wait_rolled_out};
use crate::lab::{netns, plan, wait_for};
use crate::traffic::report::Greeting;

/// What clients saw.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Affinity {
    pub clients: usize,
    pub connections: usize,
    /// Connections of a client whose pod is ready, to another pod.
    pub changed: Vec<String>,
    /// Connections that were not served.
    pub failed: Vec<String>,
    /// Clients of the pod that was replaced.
    pub moved: usize,
    /// Clients that came again while rows moved, by the node of their pod.
    pub nodes: BTreeMap<String, usize>,
    /// Packets that a node got in search of a flow or a client.
    pub searched: f64,
}

/// The Service has affinity for this time; the cluster is as it was when it ends well.
pub fn session_affinity(scene: &Scene) -> Result<Affinity> {
    let (netns, pods) = (scene.lab.state()?.plan.netns("client"), scene.nodes.len() * scene.pods_per_node);
    netns::ip(&netns, &addresses("add"))?;
    let searched = searched(scene)?;
    cordon(scene, true)?;
    set_affinity(scene, SERVICE, "ClientIP")?;
    let mut watch = Clients {
        scene,
        netns: netns.clone(),
        pods: BTreeMap::new(),
        report: Affinity::default(),
        round_at: Instant::now(),
    };
    let watched = watch.watch(pods);
    watch.report.searched = self::searched(scene)? - searched;
    cordon(scene, false)?;
    set_affinity(scene, SERVICE, "None")?;
    scale(scene, pods)?;
    wait_rolled_out(scene)?;
    netns::ip(&netns, &addresses("del"))?;
    watched?;
    Ok(watch.report)
}

struct Clients<'a> {
    scene: &'a Scene,
    netns: String,
    /// Where each client has to come again.
    pods: BTreeMap<Ipv4Addr, Greeting>,
    report: Affinity,
    round_at: Instant,
}

impl Clients<'_> {
    fn watch(&mut self, pods: usize) -> Result<()> {
        wait_for("all nodes to keep clients", WITHIN, || {
            let [first, second] = [self.round()?, self.round()?];
            let same =
                first.iter().all(|(client, greeting)| second.get(client).is_some_and(|pod| pod.pod == greeting.pod));
            self.pods = first;
            Ok((same && self.pods.len() == CLIENTS.len()).then_some(()))
        })?;
        self.report.clients = self.pods.len();
        for greeting in self.pods.values() {
            *self.report.nodes.entry(greeting.node.clone()).or_default() += 1;
        }
        for more in [pods + pods / 2, 2 * pods] {
            scale(self.scene, more)?;
            self.come_again_until(more, true)?;
        }
        // Its successor comes to the same node: the ring that was in force before is back at once.
        let full = self.scene.nodes.first().context("nodes")?;
        let replaced = self.pods.values().find(|greeting| greeting.node != *full).context("clients")?.pod.clone();
        self.report.moved = self.pods.values().filter(|greeting| greeting.pod == replaced).count();
        self.pods.retain(|_, greeting| greeting.pod != replaced);
        self.scene.api.delete(&format!("/api/v1/namespaces/{NAMESPACE}/pods/{replaced}"))?;
        wait_for("the pod to take no more clients", WITHIN, || {
            Ok((!self.round()?.values().any(|greeting| greeting.pod == replaced)).then_some(()))
        })?;
        self.come_again_until(2 * pods, false)
    }

    /// Until so many pods are Ready and have rows on every node, and for some rounds more: reports of rows that moved follow. `wait`: the
    /// rows must have waited on every node.
    fn come_again_until(&mut self, pods: usize, wait: bool) -> Result<()> {
        let (mut waited, mut rounds) = (BTreeSet::new(), 0);
        let mut seen = String::new();
        let all = wait_for(&format!("{pods} pods to have rows"), WITHIN, || {
            self.come_again()?;
            let ready = self.scene.pods()?.iter().filter(|pod| pod.ready).count();
            let waiting = nodes_with(self.scene, WAITING)?;
            seen = format!("{ready} pods ready; rows wait on {waiting:?}, have waited on {waited:?}");
            let done = ready == pods && waiting.is_empty() && (!wait || waited.len() == self.scene.nodes.len());
            waited.extend(waiting);
            rounds = if done { rounds + 1 } else { 0 };
            Ok((rounds == ROUNDS).then_some(()))
        });
        all.with_context(|| format!("last seen: {seen}"))
    }

    fn come_again(&mut self) -> Result<()> {
        for (client, greeting) in self.round()? {
            self.report.connections += 1;
            let known = self.pods.entry(client).or_insert_with(|| greeting.clone());
            if known.pod != greeting.pod {
                self.report.changed.push(format!(
                    "{client}: {} on {}, then {} on {}",
                    known.pod, known.node, greeting.pod, greeting.node
                ));
            }
        }
        Ok(())
    }

    /// One connection of each client, some time after the round before.
    fn round(&mut self) -> Result<BTreeMap<Ipv4Addr, Greeting>> {
        // A measurement at a fixed rate: as fast as it goes, a hundred clients take a processor for themselves.
        sleep((self.round_at + PACE).saturating_duration_since(Instant::now()));
        self.round_at = Instant::now();
        let to = SocketAddrV4::new(self.scene.vip, TCP_PORT);
        let connect = || Ok(CLIENTS.map(plan::address).map(|from| (from, greeting(from, to))).collect::<Vec<_>>());
        let mut answers = BTreeMap::new();
        for (client, answer) in netns::inside(&self.netns, connect)? {
            match answer {
                Ok(greeting) => drop(answers.insert(client, greeting)),
                Err(error) => self.report.failed.push(format!("{client}: {error:#}")),
            }
        }
        if answers.is_empty() {
            bail!("no client was served: {:?}", self.report.failed.last());
        }
        Ok(answers)
    }
}

/// The node that gets no new pods.
fn cordon(scene: &Scene, unschedulable: bool) -> Result<()> {
    let node = scene.nodes.first().context("nodes")?;
    scene.api.patch(&format!("/api/v1/nodes/{node}"), &json!({"spec": {"unschedulable": unschedulable}})).map(drop)
}

fn searched(scene: &Scene) -> Result<f64> {
    Ok(values(scene, SEARCHED)?.iter().map(|(_, value)| value).sum())
}

fn nodes_with(scene: &Scene, gauge: &str) -> Result<Vec<String>> {
    Ok(values(scene, gauge)?.into_iter().filter(|(_, value)| *value > 0.0).map(|(node, _)| node).collect())
}

/// By node, from its speaker.
fn values(scene: &Scene, series: &str) -> Result<Vec<(String, f64)>> {
    let of = |node: &String| {
        let metrics = http::metrics(&scene.lab, scene.node_address(node)?)?;
        Ok((node.clone(), http::value(&metrics, series).with_context(|| format!("{node} has no {series}"))?))
    };
    scene.nodes.iter().map(of).collect()
}

fn greeting(from: Ipv4Addr, to: SocketAddrV4) -> Result<Greeting> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddrV4::new(from, 0).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(TcpStream::from(socket)).read_line(&mut line)?;
    serde_json::from_str(&line).with_context(|| format!("greeting {line:?}"))
}

fn addresses(verb: &str) -> String {
    CLIENTS
        .map(plan::address)
        .map(|address| format!("address {verb} {address}/24 dev {UPLINK}\n", UPLINK = plan::UPLINK))
        .collect()
}

/// The last bytes of their addresses, which nothing else in the segment has.
const CLIENTS: std::ops::Range<u8> = 100..200;
const SEARCHED: &str = "sheave_frames_total{verdict=\"second_chance_arrived\"}";
/// Added pods that wait for others before rows move (decision 15).
const WAITING: &str = "sheave_batches_waiting";
/// Between two rounds.
const PACE: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(2);
const WITHIN: Duration = Duration::from_secs(60);
/// Without a row that waits, before they count as moved: peers take a batch over within moments.
const ROUNDS: usize = 5;
