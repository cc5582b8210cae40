//! Which members of the API server endpoint answer: checked by their own nodes, reported to the others.
//!
//! Each node checks its own member ([`checks`]) and reports what it found; for a member without a speaker the nodes that translate for it do.
//! What does not answer gets no new flows, on any node, [`HOLD`] after the verdict, so that all change their rings in the same moment. A
//! report only lowers, and no report means unknown. Where no member answers the port is refused; open flows live on in any case. A server
//! that serves in doubt ([`Outcome::serves_in_doubt`]: its etcd has no quorum, it is overloaded, a clock is wrong) gets new flows while no
//! other does.
//!
//! A member that an administrator has drained ([`drains`]) keeps its connections and gets no new ones while another answers.
//!
//! While its own member fails, a node checks the others' first port as well, to know whether it reaches any ([`reach`]).

pub mod checks;
pub mod drains;
mod outcome;
pub mod reach;
pub mod totals;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use ebpf_common::ServiceKey;

pub use crate::startup::Target;
use crate::time::{Duration, Instant};
use crate::view::Conditions;
use crate::view::endpoints::{Frontend, Pod};
use checks::{Check, Checks};
use drains::{Drains, Refused, Wish};
pub use outcome::Outcome;
use reach::Reach;

/// What a node reports of the members that it checks for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// It reaches a member on the first port.
    pub reaches: bool,
    /// It has given up ownership ([`reach`]).
    pub given_up: bool,
    /// Whether each target answers.
    pub targets: BTreeMap<Target, bool>,
    /// All that the node knows.
    pub drains: Drains,
    /// For status: they decide nothing.
    pub details: Details,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    pub checks: BTreeMap<Target, Checked>,
    /// `None`: not counted yet.
    pub connections: Option<Connections>,
}

/// Open connections that this node's kernel leads to a member, by port of the addresses and member.
pub type Connections = BTreeMap<(u16, Ipv4Addr), u32>;

/// The last check that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    pub outcome: Outcome,
    pub took: Duration,
}

impl Report {
    /// The other nodes have to know at once.
    pub fn is_news_after(&self, before: &Self) -> bool {
        let decides = |report: &Self| Self { details: Details::default(), ..report.clone() };
        decides(self) != decides(before) || self.not_ready() != before.not_ready()
    }

    fn not_ready(&self) -> BTreeSet<Target> {
        self.targets.keys().filter(|target| self.is_not_ready(target)).copied().collect()
    }

    /// It fails, and its last check was served.
    fn is_not_ready(&self, target: &Target) -> bool {
        let served = |checked: &Checked| checked.outcome.serves_in_doubt();
        self.targets.get(target) == Some(&false) && self.details.checks.get(target).is_some_and(served)
    }
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
    drains: Drains,
    connections: Option<Connections>,
}

#[derive(Debug)]
struct Reported {
    report: Report,
    at: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Shown {
    standing: Standing,
    /// It is otherwise since then.
    differs: Option<Instant>,
}

/// What a member gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// New connections.
    Serves,
    /// New ones where no other gets them. It is drained.
    Drained,
    /// New ones where no other gets them, drained ones included. It serves in doubt.
    NotReady,
    /// None. It is drained by force.
    DrainedByForce,
    Fails,
}

impl Standing {
    /// The lowest that there is gets new connections; `None`: never.
    pub const fn choice(self) -> Option<u8> {
        match self {
            Self::Serves => Some(0),
            Self::Drained => Some(1),
            Self::NotReady => Some(2),
            Self::DrainedByForce | Self::Fails => None,
        }
    }
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
            drains: Drains::new(),
            connections: None,
        }
    }

    /// Other ports are checked from the next view on.
    pub fn set_ports(&mut self, ports: BTreeSet<u16>, first: u16, now: Instant) {
        (self.config.ports, self.config.first) = (ports, first);
        self.observe(now);
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
            let standing = self.standing(&place);
            self.shown.entry(place).or_insert(Shown { standing, differs: None });
        }
        (self.own, self.others) = (own, others);
        self.observe(now);
        for frontend in frontends.values_mut() {
            // Never none while any answers.
            let best = frontend.pods.iter().filter_map(|pod| self.shown(pod)).filter_map(Standing::choice).min();
            for pod in &mut frontend.pods {
                if self.shown(pod).is_some_and(|standing| standing.choice().is_none_or(|choice| Some(choice) > best)) {
                    pod.conditions = FAILING;
                }
            }
        }
    }

    fn shown(&self, pod: &Pod<'_>) -> Option<Standing> {
        Some(self.shown.get(&(String::from(pod.node), target(pod)))?.standing)
    }

    /// The records once this wish is among them; they count from [`Health::drained`] on. `by_force` drains also the last member.
    pub fn wish(&self, member: Ipv4Addr, wish: Wish, wall_millis: u64) -> Result<Drains, Refused> {
        if !self.shown.keys().any(|(_, target)| target.address == member) {
            return Err(Refused::NoMember);
        }
        if wish == Wish::Drain
            && let Some(port) = self.last_on(member)
        {
            return Err(Refused::LastMember { port });
        }
        let mut drains = self.drains.clone();
        let record = drains::newer(&drains, member, wish, wall_millis);
        match drains.contains_key(&member) || drains.len() < drains::MAX {
            true => drains.insert(member, record),
            false => return Err(Refused::TooMany),
        };
        Ok(drains)
    }

    /// Records of this node's disk, or those that [`Health::wish`] has made.
    pub fn drained(&mut self, drains: &Drains, now: Instant) {
        drains::merge(&mut self.drains, drains);
        self.observe(now);
    }

    pub fn drains(&self) -> &Drains {
        &self.drains
    }

    pub fn set_connections(&mut self, connections: Connections) {
        self.connections = Some(connections);
    }

    /// A port on which this member is the last one: all others are drained, or it takes new connections and no other does.
    fn last_on(&self, member: Ipv4Addr) -> Option<u16> {
        let is = |target: &Target| target.address == member;
        let remains =
            |(_, target): &&(String, Target)| !is(target) && drains::wish(&self.drains, target.address) == Wish::Serve;
        if !self.shown.keys().any(|place| remains(&place)) {
            return Some(self.config.first);
        }
        let serves = |port: u16, own: bool| {
            let mut of_port = self.shown.iter().filter(|((_, target), _)| target.port == port && is(target) == own);
            // A record counts here at once, and for packets after HOLD.
            let serves = |target: &Target, shown: &Shown| {
                shown.standing == Standing::Serves && drains::wish(&self.drains, target.address) == Wish::Serve
            };
            of_port.any(|((_, target), shown)| serves(target, shown))
        };
        self.config.ports.iter().copied().find(|port| serves(*port, true) && !serves(*port, false))
    }

    /// The report of another node.
    pub fn reported(&mut self, node: &str, report: Report, now: Instant) {
        drains::merge(&mut self.drains, &report.drains);
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
        let due = |shown: &Shown| shown.differs.is_some_and(|since| now.since(since) >= HOLD);
        let due: Vec<(String, Target)> =
            self.shown.iter().filter(|(_, shown)| due(shown)).map(|(place, _)| place.clone()).collect();
        let changed = !due.is_empty();
        for place in due {
            let standing = self.standing(&place);
            self.shown.insert(place, Shown { standing, differs: None });
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
        Report {
            reaches: self.reaches(),
            given_up: self.reach.given_up(),
            targets: targets.collect(),
            drains: self.drains.clone(),
            details: Details {
                checks: self.own.iter().filter_map(|target| Some((*target, self.checked(*target)?))).collect(),
                connections: self.connections.clone(),
            },
        }
    }

    fn checked(&self, target: Target) -> Option<Checked> {
        let state = self.checks.get(target)?;
        Some(Checked { outcome: state.outcome?, took: state.took })
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

    /// Every member's port, by the node that checks it for all: what it gets.
    pub fn places(&self) -> impl Iterator<Item = (&str, Target, Standing)> {
        self.shown.iter().map(|((node, target), shown)| (node.as_str(), *target, shown.standing))
    }

    /// How the last check of a member's port ended, by the node that checks it for all. `None`: not known.
    pub fn last_check(&self, node: &str, target: Target) -> Option<Checked> {
        if node == self.config.node {
            return self.checked(target);
        }
        self.reports.get(node)?.report.details.checks.get(&target).copied()
    }

    /// Open connections of all nodes that report them, this one included.
    pub fn connections(&self) -> BTreeMap<&str, &Connections> {
        let reported = self
            .reports
            .iter()
            .filter_map(|(node, reported)| Some((node.as_str(), reported.report.details.connections.as_ref()?)));
        let own = self.connections.as_ref().map(|own| (self.config.node.as_str(), own));
        reported.chain(own).collect()
    }

    /// Whether the node's checks are known.
    pub fn is_known(&self, node: &str, target: Target) -> bool {
        match node == self.config.node {
            true => self.checks.get(target).is_some_and(|state| state.outcome.is_some()),
            false => self.reports.get(node).is_some_and(|reported| reported.report.targets.contains_key(&target)),
        }
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
            let standing = self.standing(&place);
            if let Some(shown) = self.shown.get_mut(&place) {
                shown.differs = (standing != shown.standing).then(|| shown.differs.unwrap_or(now));
            }
        }
    }

    fn reaches(&self) -> bool {
        self.answering(&self.own) || self.answering(&self.others)
    }

    /// One of these answers on the first port, by a check that has ended. A node whose clock is wrong reaches it all the same.
    fn answering(&self, targets: &BTreeSet<Target>) -> bool {
        let first = targets.iter().filter(|target| target.port == self.config.first);
        first.filter_map(|target| self.checks.get(*target)).any(|state| match state.outcome {
            None => false,
            Some(outcome) => state.answers || outcome == Outcome::CertificateTime,
        })
    }

    fn standing(&self, place: &(String, Target)) -> Standing {
        let wish = drains::wish(&self.drains, place.1.address);
        if !self.answers(place) {
            let may_serve = wish != Wish::DrainByForce && self.is_not_ready(place);
            return if may_serve { Standing::NotReady } else { Standing::Fails };
        }
        match wish {
            Wish::Serve => Standing::Serves,
            Wish::Drain => Standing::Drained,
            Wish::DrainByForce => Standing::DrainedByForce,
        }
    }

    fn answers(&self, (node, target): &(String, Target)) -> bool {
        match *node == self.config.node {
            true => self.checks.get(*target).is_none_or(|state| state.answers),
            false => self.reports.get(node).and_then(|reported| reported.report.targets.get(target)) != Some(&false),
        }
    }

    fn is_not_ready(&self, (node, target): &(String, Target)) -> bool {
        match *node == self.config.node {
            true => self.checks.get(*target).is_some_and(|state| state.outcome.is_some_and(Outcome::serves_in_doubt)),
            false => self.reports.get(node).is_some_and(|reported| reported.report.is_not_ready(target)),
        }
    }

    fn is_checked(&self, pod: &Pod<'_>) -> bool {
        self.config.ports.contains(&pod.port)
    }
}

/// Takes members out whose nodes take no new flows, where others serve: a lost node reports no failure of its member. Rings do so by
/// themselves; clients on nodes reach the members without a ring.
pub fn leave_out(frontends: &mut BTreeMap<ServiceKey, Frontend<'_>>, takes_new_flows: impl Fn(&str) -> bool) {
    for frontend in frontends.values_mut() {
        let serves = |pod: &Pod<'_>| pod.conditions.ready && takes_new_flows(pod.node);
        if frontend.pods.iter().any(serves) {
            let others = frontend.pods.iter_mut().filter(|pod| !takes_new_flows(pod.node));
            others.for_each(|pod| pod.conditions = FAILING);
        }
    }
}

fn target(pod: &Pod<'_>) -> Target {
    Target { address: pod.address, port: pod.port }
}

/// It takes no new flows, and keeps those that it has.
const FAILING: Conditions = Conditions { ready: false, serving: false, terminating: false };

#[cfg(test)]
mod tests;
