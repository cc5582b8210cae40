//! Which members of the API server endpoint answer: checked by their own nodes, reported to the others.
//!
//! Each node checks its own member ([`checks`]) and reports what it found; for a member without a speaker the nodes that translate for it do.
//! What does not answer gets no new flows, on any node, [`HOLD`] after the verdict, so that all change their rings in the same moment. A
//! report only lowers, and no report means unknown. Where no member answers the port is refused; open flows live on in any case.
//!
//! While its own member fails, a node checks the others' first port as well, to know whether it reaches any ([`reach`]).

pub mod checks;
pub mod reach;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use ebpf_common::ServiceKey;

pub use crate::startup::Target;
use crate::time::{Duration, Instant};
use crate::view::Conditions;
use crate::view::endpoints::{Frontend, Pod};
use checks::{Check, Checks};
use reach::Reach;

/// How a check ended. The label is the reason in status and log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// `/readyz` says 200.
    Ready,
    /// 401 or 403: it serves, and whether it is ready is not known.
    Unauthorized,
    /// The handshake is complete; nothing else was asked.
    Handshake,
    /// It served another status.
    NotReady(u16),
    /// The connection was refused, or cut.
    Refused,
    /// No answer in time.
    Silent,
    /// The certificate is not by the CA, not for the name, or expired.
    Certificate,
    /// It speaks something else than TLS and HTTP.
    Protocol,
    /// There is no CA file: nothing can be verified.
    CaMissing,
    /// The CA file, certificate, key or token cannot be used.
    Credential,
}

impl Outcome {
    pub const fn answers(self) -> bool {
        matches!(self, Self::Ready | Self::Unauthorized | Self::Handshake)
    }

    pub const fn label(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Unauthorized => "Unauthorized",
            Self::Handshake => "Handshake",
            Self::NotReady(_) => "NotReady",
            Self::Refused => "Refused",
            Self::Silent => "Silent",
            Self::Certificate => "Certificate",
            Self::Protocol => "Protocol",
            Self::CaMissing => "CaMissing",
            Self::Credential => "Credential",
        }
    }
}

/// What a node reports of the members that it checks for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// It reaches a member on the first port.
    pub reaches: bool,
    /// It has given up ownership ([`reach`]).
    pub given_up: bool,
    /// Whether each target answers.
    pub targets: BTreeMap<Target, bool>,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub node: String,
    /// The ports of members that are checked; the first one decides about ownership.
    pub ports: BTreeSet<u16>,
    pub first: u16,
    pub checks: checks::Config,
}

#[derive(Debug)]
pub struct Health {
    config: Config,
    checks: Checks,
    reach: Reach,
    /// This node's own: those that it reports.
    own: BTreeSet<Target>,
    /// Other members' first ports.
    others: BTreeSet<Target>,
    reports: BTreeMap<String, Reported>,
    /// Per node that reports and target: as it counts now.
    shown: BTreeMap<(String, Target), Shown>,
}

#[derive(Debug)]
struct Reported {
    report: Report,
    at: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Shown {
    answers: bool,
    /// It is otherwise since then.
    differs: Option<Instant>,
}

/// How long after a verdict it counts: longer than a report takes to reach the other nodes.
pub const HOLD: Duration = Duration::from_millis(100);
/// A report counts for so long; it is repeated every second.
pub const EXPIRY: Duration = Duration::from_secs(3);
/// Nodes whose reports are kept.
const MAX_NODES: usize = 64;

impl Health {
    pub fn new(config: Config) -> Self {
        let checks = Checks::new(config.checks);
        Self {
            checks,
            config,
            reach: Reach::default(),
            own: BTreeSet::new(),
            others: BTreeSet::new(),
            reports: BTreeMap::new(),
            shown: BTreeMap::new(),
        }
    }

    /// Takes the members of a view, and marks those that do not answer.
    pub fn follow(&mut self, frontends: &mut BTreeMap<ServiceKey, Frontend<'_>>, now: Instant) {
        let pods = || frontends.values().flat_map(|frontend| &frontend.pods).filter(|pod| self.is_checked(pod));
        let own: BTreeSet<Target> = pods().filter(|pod| pod.node == self.config.node).map(target).collect();
        let first = pods().filter(|pod| pod.port == self.config.first).map(target);
        let others: BTreeSet<Target> = first.filter(|target| !own.contains(target)).collect();
        let places: BTreeSet<(String, Target)> = pods().map(|pod| (pod.node.into(), target(pod))).collect();
        self.shown.retain(|place, _| places.contains(place));
        for place in places {
            let answers = self.answers(&place);
            self.shown.entry(place).or_insert(Shown { answers, differs: None });
        }
        (self.own, self.others) = (own, others);
        self.observe(now);
        for pod in frontends.values_mut().flat_map(|frontend| &mut frontend.pods) {
            let shown = self.shown.get(&(String::from(pod.node), target(pod)));
            if shown.is_some_and(|shown| !shown.answers) {
                pod.conditions = FAILING;
            }
        }
    }

    /// The report of another node.
    pub fn reported(&mut self, node: &str, report: Report, now: Instant) {
        if self.reports.len() < MAX_NODES || self.reports.contains_key(node) {
            self.reports.insert(node.into(), Reported { report, at: now });
        }
        self.observe(now);
    }

    /// What became of a check.
    pub fn ended(&mut self, check: Check, outcome: Outcome, now: Instant) {
        self.checks.ended(check, outcome, now);
        self.observe(now);
    }

    /// What time alone changes. Returns the checks that start now, and whether members count otherwise than [`Health::follow`] marked them.
    pub fn turn(&mut self, now: Instant) -> (Vec<Check>, bool) {
        let checks = self.checks.turn(now);
        self.observe(now);
        let mut changed = false;
        for shown in self.shown.values_mut() {
            if shown.differs.is_some_and(|since| now.since(since) >= HOLD) {
                *shown = Shown { answers: !shown.answers, differs: None };
                changed = true;
            }
        }
        (checks, changed)
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let held = self.shown.values().filter_map(|shown| shown.differs).map(|since| since + HOLD);
        let expiry = self.reports.values().map(|reported| reported.at + EXPIRY);
        held.chain(expiry).chain(self.checks.next_deadline()).chain(self.reach.next_deadline()).min()
    }

    pub fn report(&self) -> Report {
        let targets = self.own.iter().filter_map(|target| {
            // Before the first check has ended nothing is known, and nothing is reported.
            let state = self.checks.get(*target).filter(|state| state.outcome.is_some())?;
            Some((*target, state.answers))
        });
        Report { reaches: self.reaches(), given_up: self.reach.given_up(), targets: targets.collect() }
    }

    /// Nodes that have given up ownership.
    pub fn given_up(&self) -> BTreeSet<String> {
        let peers = self.reports.iter().filter(|(_, reported)| reported.report.given_up);
        let own = self.reach.given_up().then(|| self.config.node.clone());
        peers.map(|(node, _)| node.clone()).chain(own).collect()
    }

    /// Everything that this node checks, for status.
    pub fn targets(&self) -> impl Iterator<Item = (Target, &checks::State)> {
        self.checks.targets()
    }

    /// Whether a member counts, by what its node reports.
    pub fn counts(&self, node: &str, target: Target) -> bool {
        self.shown.get(&(String::from(node), target)).is_none_or(|shown| shown.answers)
    }

    /// Brings together what checks and reports say now.
    fn observe(&mut self, now: Instant) {
        self.reports.retain(|_, reported| now.since(reported.at) < EXPIRY);
        // While an own one answers on the first port, the node reaches one: the others need no checks of this node.
        let own_answers = self.answering(&self.own);
        let mut targets = self.own.clone();
        if !own_answers {
            targets.extend(&self.others);
        }
        self.checks.set_targets(&targets, now);
        let peer = self.reports.values().any(|reported| reported.report.reaches);
        self.reach.observe(self.reaches(), peer, now);
        let places: Vec<(String, Target)> = self.shown.keys().cloned().collect();
        for place in places {
            let answers = self.answers(&place);
            if let Some(shown) = self.shown.get_mut(&place) {
                shown.differs = (answers != shown.answers).then(|| shown.differs.unwrap_or(now));
            }
        }
    }

    fn reaches(&self) -> bool {
        self.answering(&self.own) || self.answering(&self.others)
    }

    /// One of these answers on the first port, by a check that has ended.
    fn answering(&self, targets: &BTreeSet<Target>) -> bool {
        let first = targets.iter().filter(|target| target.port == self.config.first);
        first.filter_map(|target| self.checks.get(*target)).any(|state| state.answers && state.outcome.is_some())
    }

    fn answers(&self, (node, target): &(String, Target)) -> bool {
        match *node == self.config.node {
            true => self.checks.get(*target).is_none_or(|state| state.answers),
            false => self.reports.get(node).and_then(|reported| reported.report.targets.get(target)) != Some(&false),
        }
    }

    fn is_checked(&self, pod: &Pod<'_>) -> bool {
        self.config.ports.contains(&pod.port)
    }
}

fn target(pod: &Pod<'_>) -> Target {
    Target { address: pod.address, port: pod.port }
}

/// It takes no new flows, and keeps those that it has.
const FAILING: Conditions = Conditions { ready: false, serving: false, terminating: false };

#[cfg(test)]
mod tests;
