//! Whatever can happen, at random moments, with many connections: the same seed makes the same choices.
//!
//! At most one node is without power or without its Node object at a time, and at most one is cut off from the API server, drained, has
//! another IP address, a frozen speaker, one whose nft is held or refused, or a full disk. What takes time (the return of a node, a drain)
//! goes on while other things happen.

use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use super::causes::{FROZEN, NO_POWER};
use super::draw::Random;
use super::watch::{Options, Watch};
use super::workload::{restart, scale, wait_rolled_out};
use super::{Setup, Survival, survive, whole};
use crate::lab::{Fault, ProxyMode};
use crate::scenario::api::text;
use crate::scenario::deploy::Scene;
use crate::scenario::http;
use crate::scenario::settle::wait_speakers;

/// For the duration in the setup. Connections whose pod has ended are replaced: the number stays.
pub fn changes(scene: &Scene, setup: &Setup) -> Result<Survival> {
    let options = Options { reopen: true, interval_ms: INTERVAL_MS, witness: true, ..Options::default() };
    survive(scene, setup, options, |watch| {
        let mut chaos = Chaos::new(scene, setup.seed + setup.repetition as u64);
        let until = Instant::now() + Duration::from_secs_f64(setup.minutes * 60.0);
        watch.fault(&format!("seed {}", chaos.random.seed()))?;
        while Instant::now() < until {
            chaos.step(watch)?;
            sleep(Duration::from_millis(chaos.random.between(500, 5000)));
        }
        chaos.end(watch)
    })
}

/// What goes on, and what comes next.
struct Chaos<'a> {
    scene: &'a Scene,
    random: Random,
    /// Faults that end by another one, at a time.
    pending: Vec<Pending>,
    /// What takes time, with the node it happens to.
    running: Vec<(Kind, String, JoinHandle<Result<()>>)>,
    done: usize,
    failed: usize,
}

struct Choice {
    action: usize,
    node: String,
    time: Duration,
    number: usize,
}

struct Pending {
    at: Instant,
    node: String,
    kind: Kind,
    ends: Vec<Fault>,
}

/// Only one of each kind at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Power,
    Api,
    Drain,
    Frozen,
    Pod,
    /// The Node object is deleted.
    Deleted,
    Multicast,
    Nft,
    Refused,
    /// Its uplink has another IP address.
    Address,
    Disk,
}

impl<'a> Chaos<'a> {
    fn new(scene: &'a Scene, seed: u64) -> Self {
        let random = Random::new(seed);
        Self { scene, random, pending: Vec::new(), running: Vec::new(), done: 0, failed: 0 }
    }

    /// Ends what is due, then makes one thing happen: the first of some choices that can be made now.
    fn step(&mut self, watch: &mut Watch<'_>) -> Result<()> {
        self.end_due(watch, Instant::now());
        self.help_speakers(watch);
        for _ in 0..CHOICES {
            let choice = Choice {
                action: self.random.below(ACTIONS),
                node: self.scene.nodes[self.random.below(self.scene.nodes.len())].clone(),
                time: Duration::from_millis(self.random.between(1000, 25_000)),
                number: self.random.below(usize::MAX),
            };
            let acted = self.act(watch, choice);
            self.note_states(watch);
            match acted {
                Ok(false) => continue,
                Ok(true) => self.done += 1,
                Err(error) => {
                    self.failed += 1;
                    watch.note(&format!("could not be done: {error:#}"));
                }
            }
            break;
        }
        Ok(())
    }

    /// Whether it can be done now.
    fn act(&mut self, watch: &mut Watch<'_>, choice: Choice) -> Result<bool> {
        let (scene, lab, Choice { action, node, time, number }) = (self.scene, &self.scene.lab, choice);
        let powered = !self.is_away(&node);
        let whole = powered && self.speakers_serve();
        let even = number.is_multiple_of(2);
        match action {
            0 | 1 if !self.any_away() && !self.any_that_power_ends() && self.speakers_serve() => {
                watch.power_off(&[&node])?;
                self.ends_later(time, Kind::Power, &node, vec![Fault::PowerOn { node: node.clone() }]);
            }
            2 => {
                let replicas = 3 + number % 10;
                watch.note(&format!("{replicas} pods"));
                scale(scene, replicas)?;
            }
            3 => {
                watch.note("every pod is replaced");
                restart(scene)?;
            }
            4 if powered && !self.any(Kind::Drain) => {
                watch.note(&format!("{node} is drained"));
                watch.leaving(&[&node])?;
                lab.fault(Fault::Exclude { node: node.clone() })?;
                self.goes_on(Kind::Drain, &node, Fault::Drain { node: node.clone() });
                let ends = vec![Fault::Uncordon { node: node.clone() }, Fault::Include { node: node.clone() }];
                self.ends_later(time, Kind::Drain, &node, ends);
            }
            5 if whole => {
                watch.fault(&format!("the speaker of {node} is killed"))?;
                lab.fault(Fault::KillSpeaker { node })?;
            }
            6 if whole && !self.any_away() => {
                watch.fault("every speaker is killed")?;
                lab.fault(Fault::KillAllSpeakers)?;
            }
            7 if whole => {
                watch.fault(&format!("the speaker of {node} is frozen"))?;
                lab.fault(Fault::StopSpeaker { node: node.clone() })?;
                let ends = vec![Fault::ContSpeaker { node: node.clone() }];
                self.ends_later(time.min(FROZEN_AT_MOST), Kind::Frozen, &node, ends);
            }
            8 if powered && !self.busy(&node, Kind::Pod) => {
                watch.note(&format!("the speaker of {node} is deleted"));
                self.goes_on(Kind::Pod, &node, Fault::DeleteSpeakerPod { node: node.clone() });
            }
            9 if whole && !self.busy(&node, Kind::Refused) => {
                watch.fault(&format!("the nftables table of {node} is deleted"))?;
                lab.fault(Fault::NftDelete { node })?;
            }
            10 if whole => {
                watch.fault(&format!("the XDP link of {node} is {}", if even { "detached" } else { "unpinned" }))?;
                lab.fault(if even { Fault::XdpDetach { node } } else { Fault::XdpUnpin { node } })?;
            }
            11 if powered => {
                let mode = if even { ProxyMode::Nftables } else { ProxyMode::Iptables };
                watch.note(&format!("kube-proxy of {node} starts anew: {mode}"));
                lab.fault(Fault::KubeProxyMode { node, mode })?;
            }
            12 if powered => {
                watch.note(&format!("kube-proxy's rules on {node} are flushed"));
                lab.fault(Fault::KubeProxyFlush { node })?;
            }
            13 if powered && !self.any(Kind::Api) => {
                watch.note(&format!("{node} and the API server do not reach each other"));
                lab.fault(Fault::ApiCut { node: node.clone() })?;
                self.ends_later(time, Kind::Api, &node, vec![Fault::ApiHeal { node: node.clone() }]);
            }
            _ => return self.act_on_what_a_node_is(watch, action, node, time),
        }
        Ok(true)
    }

    /// Its addresses, its Node object, what its speaker needs.
    fn act_on_what_a_node_is(
        &mut self,
        watch: &mut Watch<'_>,
        action: usize,
        node: String,
        time: Duration,
    ) -> Result<bool> {
        let lab = &self.scene.lab;
        let whole = !self.is_away(&node) && self.speakers_serve();
        let disturbs = [Kind::Drain, Kind::Api, Kind::Pod, Kind::Address, Kind::Disk];
        let undisturbed = !self.any_away() && !disturbs.iter().any(|kind| self.any(*kind));
        match action {
            14 if whole => {
                watch.fault(&format!("{node} gets another MAC address"))?;
                lab.fault(Fault::ChangeMac { node })?;
            }
            15 if whole && !self.any(Kind::Multicast) => {
                watch.fault("the switch loses the speakers' multicast")?;
                lab.fault(Fault::FilterMulticast)?;
                self.ends_later(time, Kind::Multicast, &node, vec![Fault::PassMulticast]);
            }
            16 if whole && undisturbed => {
                watch.note(&format!("the Node {node} is deleted"));
                watch.leaving(&[&node])?;
                lab.fault(Fault::DeleteNode { node: node.clone() })?;
                self.ends_later(time, Kind::Deleted, &node, vec![Fault::RestartKubelet { node: node.clone() }]);
            }
            17 if whole && undisturbed => {
                watch.fault(&format!("{node} gets another IP address"))?;
                lab.fault(Fault::ChangeAddress { node: node.clone() })?;
                self.ends_later(time, Kind::Address, &node, vec![Fault::ChangeAddress { node: node.clone() }]);
            }
            _ if whole => return self.act_on_what_a_speaker_needs(watch, action, node, time, undisturbed),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// nft, and its disk.
    fn act_on_what_a_speaker_needs(
        &mut self,
        watch: &mut Watch<'_>,
        action: usize,
        node: String,
        time: Duration,
        undisturbed: bool,
    ) -> Result<bool> {
        let lab = &self.scene.lab;
        let nft_runs = !self.any(Kind::Nft) && !self.any(Kind::Refused);
        let seconds = time.min(HELD_AT_MOST).as_secs();
        match action {
            18 if nft_runs => {
                watch.note(&format!("nft is held on {node} for {seconds} s"));
                self.goes_on(Kind::Nft, &node, Fault::HoldNft { node: node.clone(), seconds });
            }
            19 if nft_runs => {
                watch.note(&format!("nft is refused on {node} for {seconds} s"));
                self.goes_on(Kind::Refused, &node, Fault::RefuseNft { node: node.clone(), seconds });
            }
            20 if undisturbed => {
                watch.fault(&format!("the disk of {node} is full, and its speaker is killed"))?;
                // Its container has the small file system from its start until it ends.
                self.ends_later(time, Kind::Disk, &node, vec![Fault::FreeDisk { node: node.clone() }]);
                lab.fault(Fault::FillDisk { node: node.clone() })?;
                lab.fault(Fault::KillSpeaker { node })?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn end_due(&mut self, watch: &mut Watch<'_>, now: Instant) {
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_iter().partition(|one| one.at <= now);
        self.pending = later;
        for Pending { node, kind, ends, .. } in due {
            watch.note(&format!("{node}: {kind:?} ends"));
            for end in ends {
                // What it ends may have ended with the node's power.
                if let Err(error) = self.scene.lab.fault(end) {
                    watch.note(&format!("{node}: {error:#}"));
                }
            }
            if kind == Kind::Disk {
                self.goes_on(Kind::Pod, &node, Fault::DeleteSpeakerPod { node: node.clone() });
            }
            if matches!(kind, Kind::Power | Kind::Deleted | Kind::Address) {
                let (lab, name) = (self.scene.lab.clone(), node.clone());
                self.running.push((kind, node, thread::spawn(move || lab.wait_back(&name))));
            }
        }
        self.running.retain(|(_, _, thread)| !thread.is_finished());
        self.note_states(watch);
    }

    /// What happens on which node, for the causes of failures.
    fn note_states(&self, watch: &mut Watch<'_>) {
        for node in &self.scene.nodes {
            for (kind, what) in WHAT {
                if self.busy(node, kind) { watch.begins(node, what) } else { watch.ends(node, what) }
            }
        }
    }

    /// kubelet starts what dies often ever more slowly. Here it dies so often because it is killed: a pod that kubelet waits with is
    /// replaced.
    fn help_speakers(&mut self, watch: &mut Watch<'_>) {
        let pods = match self.scene.api.list(SPEAKER_PODS) {
            Ok(pods) => pods,
            Err(error) => return watch.note(&format!("speakers could not be checked: {error:#}")),
        };
        for node in pods.iter().filter(|pod| is_made_to_wait(pod)).map(|pod| text(pod, "/spec/nodeName").to_owned()) {
            if ![Kind::Api, Kind::Pod, Kind::Power, Kind::Deleted].iter().any(|kind| self.busy(&node, *kind)) {
                watch.note(&format!("the speaker pod of {node} is replaced"));
                self.goes_on(Kind::Pod, &node, Fault::DeleteSpeakerPod { node: node.clone() });
            }
        }
    }

    /// Everything ends and comes to rest.
    fn end(mut self, watch: &mut Watch<'_>) -> Result<()> {
        watch.note("no more changes");
        for pending in &mut self.pending {
            pending.at = Instant::now();
        }
        self.end_due(watch, Instant::now());
        for (_, _, thread) in self.running.drain(..) {
            // An error here was noted by its effect: what follows waits for the whole cluster.
            let _ = thread.join();
        }
        watch.figure("changes", self.done as f64);
        watch.figure("changes that could not be made", self.failed as f64);
        let scene = self.scene;
        scale(scene, scene.nodes.len() * scene.pods_per_node)?;
        scene.nodes.iter().try_for_each(|node| scene.lab.wait_back(node))?;
        whole::speakers(scene, &[])?;
        wait_speakers(scene)?;
        wait_rolled_out(scene)?;
        sleep(AFTERWARDS);
        Ok(())
    }

    fn ends_later(&mut self, time: Duration, kind: Kind, node: &str, ends: Vec<Fault>) {
        self.pending.push(Pending { at: Instant::now() + time, node: node.to_owned(), kind, ends });
    }

    fn goes_on(&mut self, kind: Kind, node: &str, fault: Fault) {
        let lab = self.scene.lab.clone();
        self.running.push((kind, node.to_owned(), thread::spawn(move || lab.fault(fault))));
    }

    /// Whether something of this kind goes on anywhere; a node that is coming back is not back yet.
    fn any(&self, kind: Kind) -> bool {
        self.scene.nodes.iter().any(|node| self.busy(node, kind))
    }

    fn busy(&self, node: &str, kind: Kind) -> bool {
        self.pending.iter().any(|one| one.kind == kind && one.node == node)
            || self.running.iter().any(|(running, name, _)| *running == kind && name == node)
    }

    /// The lab could not undo it on a node that has lost power meanwhile.
    fn any_that_power_ends(&self) -> bool {
        [Kind::Address, Kind::Refused, Kind::Disk].iter().any(|kind| self.any(*kind))
    }

    /// Without power, or without its Node.
    fn is_away(&self, node: &str) -> bool {
        self.busy(node, Kind::Power) || self.busy(node, Kind::Deleted)
    }

    fn any_away(&self) -> bool {
        self.scene.nodes.iter().any(|node| self.is_away(node))
    }

    /// Whether every node with power has a ready speaker: faults that only a speaker repairs happen only then, and speakers are
    /// killed, and nodes lose power, only then. With the last serving node no connections survive.
    fn speakers_serve(&self) -> bool {
        let ready = |node: &&String| {
            let metrics = self.scene.node_address(node).and_then(|address| http::metrics(&self.scene.lab, address));
            metrics.is_ok_and(|metrics| http::value(&metrics, "sheave_ready") == Some(1.0))
        };
        !self.any(Kind::Frozen) && self.scene.nodes.iter().filter(|node| !self.is_away(node)).all(|node| ready(&node))
    }
}

/// kubelet will start its container again, but not yet.
fn is_made_to_wait(pod: &Value) -> bool {
    let containers = pod.pointer("/status/containerStatuses").and_then(Value::as_array);
    containers.into_iter().flatten().any(|one| text(one, "/state/waiting/reason") == "CrashLoopBackOff")
}

const WHAT: [(Kind, &str); 10] = [
    (Kind::Power, NO_POWER),
    (Kind::Frozen, FROZEN),
    (Kind::Deleted, "its Node is deleted"),
    (Kind::Api, "no API server"),
    (Kind::Drain, "drained"),
    (Kind::Nft, "nft is held"),
    (Kind::Refused, "nft is refused"),
    (Kind::Address, "it has another IP address"),
    (Kind::Disk, "its disk is full"),
    (Kind::Pod, "the speaker is deleted"),
];
const ACTIONS: usize = 21;
const CHOICES: usize = 8;
/// A thousand connections make 10 000 packets a second at the clients, each way.
const INTERVAL_MS: u64 = 100;
const SPEAKER_PODS: &str =
    "/api/v1/namespaces/sheave-system/pods?labelSelector=app.kubernetes.io%2Fname%3Dsheave-speaker";
/// Longer, and its liveness probe ends it.
const FROZEN_AT_MOST: Duration = Duration::from_secs(10);
const HELD_AT_MOST: Duration = Duration::from_secs(10);
const AFTERWARDS: Duration = Duration::from_secs(5);
