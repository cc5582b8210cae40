//! New pods: which of them take new flows already.
//!
//! Kubernetes calls a pod without readiness probe ready as soon as its program runs, a moment before it listens. So each node probes
//! the TCP ports of its own pods when they become ready ([`trial`]), and reports which of its new pods have started. A pod that has not
//! started gets new flows only where no pod of the service port has, nor serves while it terminates (`forwarding::members`,
//! `backend::Plan`): then its own reset is the answer.
//!
//! New is a pod that becomes ready, for the first time or again: its container may have been restarted. Not new are the pods of the first
//! view that the API server has confirmed (the speaker was restarted, not they), and those that a service port has when it first appears:
//! except for those that are not there after their node has booted ([`Startup::not_there`]).
//!
//! For a pod of another node that node's report counts ([`Starts`]). It only lowers: it names pods of its sender, and what it does not name
//! has started. A node that does not name a new pod within [`GRACE`] has an earlier version, or no speaker: its pod counts as started. If
//! reports are late, the node of the pod passes SYNs on to its own row's primary, as for every port that it does not serve.
//!
//! Its node reports a pod only when its own rules name it ([`Startup::in_rules`]): where nft does not follow, a pod that listens would be
//! refused all the same.
//!
//! A pod counts as started [`HOLD`] after that, on its own node as on the others: by then all have the report, and change their rings in
//! the same moment, as they do when a view comes. Else each node would see its own pods start first, and have a ring that no other node has.
//! No previous ring of the others would name the nodes that get flows by it.
//!
//! The same holds the other way: rules that name a pod which is gone lead flows there, however many pods of the node live. While nft does
//! not follow, the node reports these as not started ([`Startup::rules`]), and other nodes take the new flows.
//!
//! And while the view of this node lags: its pods may have ended long ago. Every [`CHECK`] it tries those that have started: what refuses,
//! or has no host, starts over. Silence says nothing, as ever.
//!
//! Read first: docs/services.md, Start of a pod.

pub mod trial;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use ebpf_common::ServiceKey;

use crate::forwarding::members::is_ready;
use crate::time::{Duration, Instant};
use crate::view::Protocol;
use crate::view::endpoints::{Frontend, Pod};
use crate::wire::report::MAX_STARTS;

pub use trial::Answer;
use trial::Trial;

/// A TCP port of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub address: Ipv4Addr,
    pub port: u16,
}

/// The new pods of a node, and whether they have started.
pub type Starts = BTreeMap<Target, bool>;

/// A connection to be tried. The answer comes back with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub target: Target,
    /// When it was due: tells it from the probe of an earlier pod with the same address.
    pub asked: Instant,
}

#[derive(Debug)]
pub struct Startup {
    own: String,
    /// A view that the API server has confirmed was followed.
    confirmed: bool,
    /// Service ports whose pods are probed, as the view had them last.
    ports: BTreeSet<ServiceKey>,
    /// Their ready pods.
    pods: BTreeSet<Target>,
    /// Those among them on this node.
    own_pods: BTreeSet<Target>,
    /// Those among them that are new.
    new: BTreeMap<Target, State>,
    /// The pods of this node that have started, while the view of the node lags.
    checks: BTreeMap<Target, Check>,
    lagging: bool,
    /// Of the other nodes, by name.
    reports: BTreeMap<String, Reported>,
    /// See [`Startup::not_there`].
    not_there: BTreeSet<Target>,
    /// Which pods [`Startup::follow`] marked last.
    marked: Unstarted,
    /// Which pods [`Startup::admit`] let into the rules last.
    admitted: BTreeSet<Target>,
    /// Pods of this node beside which its rules name others that are gone, and since when.
    behind: BTreeMap<Target, Instant>,
    /// The time of the last turn.
    turned: Instant,
}

#[derive(Debug)]
enum State {
    /// A pod of this node. `started`: when it had accepted and the rules named it.
    Tried { trial: Trial, started: Option<Instant> },
    /// A pod of another node. `started`: when that node first reported so.
    Awaited { node: String, since: Instant, started: Option<Instant> },
}

/// When it is tried next, or since when it is being tried.
#[derive(Clone, Copy, Debug)]
enum Check {
    Due(Instant),
    Asked(Instant),
}

#[derive(Debug)]
struct Reported {
    starts: Starts,
    at: Instant,
}

/// By node.
type Unstarted = BTreeMap<String, BTreeSet<Target>>;

/// For how long a new pod of another node waits for that node's report.
pub const GRACE: Duration = Duration::from_secs(1);
/// How long after a pod has started it counts: longer than a report takes to reach the other nodes.
pub const HOLD: Duration = Duration::from_millis(100);
/// A report counts for so long; it is repeated every second while it names a pod that has not started.
pub const EXPIRY: Duration = Duration::from_secs(3);
/// For how long a node reports that a pod has started: views of other nodes may lag.
pub const RECENT: Duration = Duration::from_secs(5);
/// A pod that refuses for longer is worth a log line.
pub const REFUSED: Duration = Duration::from_secs(10);
/// While the view of this node lags, between two connections to a pod that has started.
pub const CHECK: Duration = Duration::from_secs(1);
/// For how long rules may name a pod that is gone: several times what a transaction takes.
pub const BEHIND: Duration = Duration::from_millis(500);
/// Probes at the same time.
pub const MAX_PROBES: usize = 64;
/// Nodes whose reports are kept.
const MAX_NODES: usize = ebpf_common::MAX_NODES as usize;

impl Startup {
    pub fn new(own: &str) -> Self {
        Self {
            own: own.into(),
            confirmed: false,
            ports: BTreeSet::new(),
            pods: BTreeSet::new(),
            own_pods: BTreeSet::new(),
            new: BTreeMap::new(),
            checks: BTreeMap::new(),
            lagging: false,
            reports: BTreeMap::new(),
            not_there: BTreeSet::new(),
            marked: Unstarted::new(),
            admitted: BTreeSet::new(),
            behind: BTreeMap::new(),
            turned: Instant::ZERO,
        }
    }

    /// Takes a view, and marks the pods that have not started. `saved`: it is from disk.
    pub fn follow(&mut self, frontends: &mut BTreeMap<ServiceKey, Frontend<'_>>, saved: bool, now: Instant) {
        self.note(frontends, saved, now);
        self.expire(now);
        self.marked = self.unstarted();
        if self.marked.is_empty() {
            return;
        }
        for frontend in frontends.iter_mut().filter(|(key, frontend)| is_probed(key, frontend)).map(|(_, one)| one) {
            for pod in frontend.pods.iter_mut().filter(|pod| !pod.via) {
                pod.started = !self.marked.get(pod.node).is_some_and(|targets| targets.contains(&target(pod)));
            }
        }
    }

    fn note(&mut self, frontends: &BTreeMap<ServiceKey, Frontend<'_>>, saved: bool, now: Instant) {
        let probed = || frontends.iter().filter(|(key, frontend)| is_probed(key, frontend));
        // Where each stands, and whether it may be new.
        let mut ready: BTreeMap<Target, (&str, bool)> = BTreeMap::new();
        for (key, frontend) in probed() {
            let known = self.confirmed && self.ports.contains(key);
            for pod in frontend.pods.iter().filter(|pod| is_ready(pod) && !pod.via) {
                ready.entry(target(pod)).or_insert((pod.node, false)).1 |= known;
            }
        }
        self.new.retain(|target, _| ready.contains_key(target));
        let not_there = core::mem::take(&mut self.not_there);
        let is_new = |target: &Target, may_be| may_be && !self.pods.contains(target) || not_there.contains(target);
        for (target, (node, _)) in ready.iter().filter(|(target, (_, may_be))| is_new(target, *may_be)) {
            let state = match *node == self.own {
                true if not_there.contains(target) => State::Tried { trial: Trial::of_gone(now), started: None },
                true => State::Tried { trial: Trial::new(now), started: None },
                false => State::Awaited { node: (*node).into(), since: now, started: None },
            };
            self.new.insert(*target, state);
        }
        self.own_pods = ready.iter().filter(|(_, (node, _))| *node == self.own).map(|(target, _)| *target).collect();
        self.pods = ready.into_keys().collect();
        self.ports = probed().map(|(key, _)| *key).collect();
        self.confirmed |= !saved;
        self.set_checks(now);
    }

    /// The report of another node.
    pub fn reported(&mut self, node: &str, starts: Starts, now: Instant) {
        if self.reports.len() < MAX_NODES || self.reports.contains_key(node) {
            let before = self.reports.insert(node.into(), Reported { starts: starts.clone(), at: now });
            let refused = before.into_iter().flat_map(|before| before.starts).filter(|(_, started)| !started);
            // Also one that was not new to this node: the others wait.
            for (target, _) in refused.filter(|(target, _)| starts.get(target) == Some(&true)) {
                let state = || State::Awaited { node: node.into(), since: now, started: None };
                self.new.entry(target).or_insert_with(state);
            }
        }
        self.expire(now);
    }

    /// Pods of this node that the view names, and that no host has had since the node booted: they have to start. The API server may not have
    /// noticed yet that they are gone, or the node may not reach it. Counts for the next view to be followed.
    pub fn not_there(&mut self, pods: BTreeSet<Target>) {
        self.not_there = pods;
    }

    /// What became of a probe.
    pub fn answered(&mut self, probe: Probe, answer: Answer, now: Instant) {
        if let Some(State::Tried { trial, .. }) = self.new.get_mut(&probe.target) {
            trial.answered(probe.asked, answer, now);
        }
        let Some(check) = self.checks.get_mut(&probe.target) else { return };
        if !matches!(check, Check::Asked(asked) if *asked == probe.asked) {
            return;
        }
        *check = Check::Due(probe.asked + CHECK);
        let trial = match answer {
            Answer::Accepted | Answer::Silence => return,
            Answer::Refused => Trial::of_refusing(now),
            Answer::Unreachable => Trial::of_gone(now),
        };
        self.checks.remove(&probe.target);
        self.new.insert(probe.target, State::Tried { trial, started: None });
    }

    /// Whether the view of this node is not known to be the present one.
    pub fn set_lagging(&mut self, lagging: bool, now: Instant) {
        if core::mem::replace(&mut self.lagging, lagging) != lagging {
            self.set_checks(now);
        }
    }

    /// What has not started is tried anyway.
    fn set_checks(&mut self, now: Instant) {
        let has_started = |target: &&Target| match self.new.get(*target) {
            None => true,
            Some(State::Tried { started, .. }) => started.is_some(),
            Some(State::Awaited { .. }) => false,
        };
        let checked = self.own_pods.iter().filter(|_| self.lagging).filter(has_started);
        let check = |target: &Target| (*target, self.checks.get(target).copied().unwrap_or(Check::Due(now)));
        self.checks = checked.map(check).collect();
    }

    fn expire(&mut self, now: Instant) {
        self.turned = now;
        self.start_over(now);
        self.reports.retain(|_, reported| now.since(reported.at) < EXPIRY);
        let reports = &self.reports;
        self.new.retain(|target, state| match state {
            State::Tried { started, .. } => started.is_none_or(|started| now.since(started) < RECENT),
            State::Awaited { node, since, started } => {
                let said = reports.get(node).and_then(|reported| reported.starts.get(target)).copied();
                match said {
                    Some(true) => *started = started.or(Some(now)),
                    // Once more: it has been replaced.
                    Some(false) => *started = None,
                    None => {}
                }
                match started {
                    Some(started) => now.since(*started) < HOLD,
                    None => said == Some(false) || now.since(*since) < GRACE,
                }
            }
        });
    }

    /// Pods start once more when the rules have named others that are gone for too long.
    fn start_over(&mut self, now: Instant) {
        let late = |(target, since): &(&Target, &Instant)| now.since(**since) >= BEHIND && self.pods.contains(target);
        for (target, _) in self.behind.iter().filter(late) {
            let accepted = || State::Tried { trial: Trial::accepted(now), started: None };
            if let State::Tried { started, .. } = self.new.entry(*target).or_insert_with(accepted) {
                *started = None;
            }
        }
    }

    /// All pods of this node beside which its rules name others that are gone ([`crate::backend::lag`]).
    pub fn rules(&mut self, behind: &BTreeSet<Target>, now: Instant) {
        self.behind.retain(|target, _| behind.contains(target));
        for target in behind {
            self.behind.entry(*target).or_insert(now);
        }
    }

    fn is_behind(&self, target: &Target, now: Instant) -> bool {
        self.behind.get(target).is_some_and(|since| now.since(*since) >= BEHIND)
    }

    /// What time alone changes. Returns the probes that are due, and at most as many as may run.
    pub fn turn(&mut self, now: Instant) -> Vec<Probe> {
        self.expire(now);
        let room = MAX_PROBES.saturating_sub(self.asked());
        let trials = self.trials().filter_map(|(target, trial, _)| Some((trial.due()?, target)));
        let checks = self.checks.iter().filter_map(|(target, check)| match check {
            Check::Due(due) => Some((*due, *target)),
            Check::Asked(_) => None,
        });
        let mut due: Vec<(Instant, Target)> = trials.chain(checks).filter(|(due, _)| *due <= now).collect();
        // Those that have waited longest first: none is passed over.
        due.sort_unstable();
        due.truncate(room);
        for (_, target) in &due {
            if let Some(check) = self.checks.get_mut(target) {
                *check = Check::Asked(now);
            } else if let Some(State::Tried { trial, .. }) = self.new.get_mut(target) {
                trial.ask(now);
            }
        }
        due.into_iter().map(|(_, target)| Probe { target, asked: now }).collect()
    }

    /// How many probes are under way.
    fn asked(&self) -> usize {
        let trials = self.trials().filter(|(_, trial, _)| trial.is_asked()).count();
        trials + self.checks.values().filter(|check| matches!(check, Check::Asked(_))).count()
    }

    /// When [`Startup::turn`] has something to do. After a turn it is in the future.
    pub fn next_deadline(&self) -> Option<Instant> {
        let full = self.asked() >= MAX_PROBES;
        let of_pod = |state: &State| match state {
            State::Tried { trial, started: None } => trial.due().filter(|_| !full),
            State::Tried { started: Some(started), .. } => Some(*started + HOLD).filter(|end| *end > self.turned),
            State::Awaited { since, started, .. } => {
                Some(started.map_or(*since + GRACE, |started| started + HOLD)).filter(|end| *end > self.turned)
            }
        };
        let of_report =
            |reported: &Reported| reported.starts.values().any(|started| !started).then_some(reported.at + EXPIRY);
        let behind = self.behind.values().map(|since| *since + BEHIND).filter(|end| *end > self.turned);
        let checks = self.checks.values().filter_map(|check| match check {
            Check::Due(due) if !full => Some(*due),
            _ => None,
        });
        let pods = self.new.values().filter_map(of_pod).chain(checks);
        pods.chain(self.reports.values().filter_map(of_report)).chain(behind).min()
    }

    /// Other pods have started than [`Startup::follow`] has marked, or accept than [`Startup::admit`] has let into the rules.
    pub fn is_due(&self) -> bool {
        self.admitted != self.accepting() || self.marked != self.unstarted()
    }

    /// After [`Startup::follow`]: for the rules of this node its pods that accept have started. Returns those that are new.
    pub fn admit(&mut self, frontends: &mut BTreeMap<ServiceKey, Frontend<'_>>) -> BTreeSet<Target> {
        self.admitted = self.accepting();
        if !self.admitted.is_empty() {
            for frontend in frontends.iter_mut().filter(|(key, frontend)| is_probed(key, frontend)).map(|(_, one)| one)
            {
                for pod in frontend.pods.iter_mut().filter(|pod| pod.node == self.own && !pod.via) {
                    pod.started |= self.admitted.contains(&target(pod));
                }
            }
        }
        self.admitted.clone()
    }

    /// For the rings this pod of the node has not started: new flows that reach the node go on to the ring's own.
    pub fn waits(&self, pod: Target) -> bool {
        self.marked.get(&self.own).is_some_and(|targets| targets.contains(&pod))
    }

    /// Which of the pods that [`Startup::admit`] returned the rules in force name.
    pub fn in_rules(&mut self, pods: &BTreeSet<Target>, now: Instant) {
        let follow: Vec<Target> = pods.iter().filter(|target| !self.is_behind(target, now)).copied().collect();
        for target in follow {
            if let Some(State::Tried { trial, started: started @ None }) = self.new.get_mut(&target)
                && trial.has_accepted()
            {
                *started = Some(now);
            }
        }
    }

    fn accepting(&self) -> BTreeSet<Target> {
        self.trials().filter(|(_, trial, _)| trial.has_accepted()).map(|(target, ..)| target).collect()
    }

    /// The report of this node, and how many pods are left out of it: those that have started first. Other nodes count them as started, a
    /// moment later.
    pub fn starts(&self) -> (Starts, usize) {
        let mut starts: Starts = self.trials().map(|(target, _, started)| (target, started.is_some())).collect();
        let all = starts.len();
        if all > MAX_STARTS {
            starts.retain(|_, started| !*started);
        }
        while starts.len() > MAX_STARTS {
            starts.pop_last();
        }
        let left_out = all - starts.len();
        (starts, left_out)
    }

    /// Pods of this node that have refused for [`REFUSED`].
    pub fn refusing(&self, now: Instant) -> BTreeSet<Target> {
        let refuses = |trial: &Trial| trial.refused().is_some_and(|since| now.since(since) >= REFUSED);
        self.trials().filter(|(_, trial, _)| refuses(trial)).map(|(target, ..)| target).collect()
    }

    fn trials(&self) -> impl Iterator<Item = (Target, &Trial, Option<Instant>)> {
        self.new.iter().filter_map(|(target, state)| match state {
            State::Tried { trial, started } => Some((*target, trial, *started)),
            State::Awaited { .. } => None,
        })
    }

    fn unstarted(&self) -> Unstarted {
        let mut unstarted = Unstarted::new();
        let mut add = |node: &str, target: Target| {
            unstarted.entry(node.into()).or_default().insert(target);
        };
        let waits = |started: Instant| self.turned.since(started) < HOLD;
        for (target, state) in &self.new {
            let (node, started) = match state {
                State::Tried { started, .. } => (&self.own, *started),
                State::Awaited { node, started, .. } => (node, *started),
            };
            if started.is_none_or(waits) {
                add(node, *target);
            }
        }
        for (node, reported) in self.reports.iter().filter(|(node, _)| **node != self.own) {
            reported.starts.iter().filter(|(_, started)| !**started).for_each(|(target, _)| add(node, *target));
        }
        unstarted
    }
}

fn is_probed(key: &ServiceKey, frontend: &Frontend<'_>) -> bool {
    key.proto == Protocol::Tcp.number() && frontend.attributes.startup_probe.is_on()
}

fn target(pod: &Pod<'_>) -> Target {
    Target { address: pod.address, port: pod.port }
}

#[cfg(test)]
mod tests;
