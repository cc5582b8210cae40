//! Is a node alive, that is, does its kernel answer? Not: does its speaker run.
//!
//! Read first: docs/architecture.md (two signals, never mixed), docs/election.md section Liveness. While heartbeats come no node
//! is probed. A node that falls silent is probed in quick succession (a unicast ARP request for its address; the kernel answers
//! without any speaker), and is down when it owes several answers; then it is probed with back-off. When all are silent at once,
//! this node is cut off.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::backoff::Backoff;
use crate::machine::Machine;
use crate::name::NodeName;
use crate::time::{Duration, Instant};
use crate::wire::pace::Pace;

/// Watches the kernels of the other nodes.
#[derive(Clone, Debug)]
pub struct Liveness {
    config: Config,
    nodes: BTreeMap<NodeName, Watch>,
    /// No node is to be probed before. A heartbeat only puts a probe off, so this is computed anew when it is reached: a heartbeat
    /// must not cost what grows with the number of nodes.
    earliest: Option<Instant>,
    carrier: bool,
    cut_off: bool,
}

#[derive(Clone, Debug)]
pub struct Config {
    /// The heartbeat interval of the election.
    pub interval: Duration,
    /// Silence after which a node may be declared down.
    pub dead: Duration,
    /// Between queries to a node that has fallen silent.
    pub probe_fast: Duration,
    /// Between queries to a node whose speaker has stopped, and while cut off to all that have ever given a sign.
    pub probe_steady: Duration,
    /// Between queries to a node without a speaker.
    pub probe_slow: Duration,
    /// Answers that a silent node must owe before it is down; twice as many if it had no speaker, since then these queries
    /// are the only evidence.
    pub probes: u32,
    /// Between probes of a node that is down, and while cut off of a node that has never given a sign.
    pub backoff: Backoff,
}

impl Config {
    /// The defaults; `seed` spreads the queries of different speakers.
    pub fn new(seed: u64) -> Self {
        Self {
            interval: Duration::from_millis(50),
            dead: Duration::from_millis(150),
            probe_fast: Duration::from_millis(25),
            probe_steady: Duration::from_millis(100),
            probe_slow: Duration::from_secs(1),
            probes: 3,
            backoff: Backoff { first: Duration::from_millis(100), most: Duration::from_secs(30), seed },
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// All other nodes of the cluster; at most [`MAX_WATCHED`]. A new one is up until its kernel fails to answer.
    Nodes(BTreeSet<NodeName>),
    /// A heartbeat of a verified peer (`election::Action::Received`).
    Heartbeat(NodeName),
    /// At which pace a node sends heartbeats; `None`: at this node's.
    Pace(NodeName, Option<Pace>),
    /// An answer to a probe.
    ProbeReply(NodeName),
    /// The node sent a frame that answers nothing. No sign of life by itself, since it may be a forgery or a remnant, but reason
    /// to probe a node that is down without waiting for the end of its back-off.
    Seen(NodeName),
    /// The link of this node.
    Carrier(bool),
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Query the kernel of this node: a unicast ARP request for its address.
    Probe(NodeName),
    /// The same by broadcast: the node has not answered for long, and may come back with another MAC address.
    Search(NodeName),
    NodeDown(NodeName),
    NodeUp(NodeName),
    /// No node answers: this node is cut off. Keep the last view of which nodes are up.
    CutOff,
    /// A node answers again; `NodeDown` follows for nodes that stay silent.
    Restored,
}

/// Nodes that are watched at most: what the packet path can forward to.
pub const MAX_WATCHED: usize = ebpf_common::MAX_NODES as usize - 1;

/// A node whose speaker has been silent for this long is one without a speaker.
const SPEAKER_GONE: Duration = Duration::from_secs(60);
/// A node that is down is up again after this many answers (or one heartbeat).
const ANSWERS_TO_RISE: u32 = 2;
/// A node that is down is searched by broadcast from this query on.
const SEARCH_FROM: u32 = 4;

#[derive(Clone, Debug)]
struct Watch {
    up: bool,
    /// It has given a sign since it is known.
    known: bool,
    heartbeat: Option<Instant>,
    pace: Option<Pace>,
    /// The last heartbeat or answer.
    sign: Instant,
    /// Questions since the last sign.
    owed: u32,
    /// Answers since it went down.
    answers: u32,
    down_at: Option<Instant>,
    /// Questions of the back-off that runs.
    backed_off: u32,
    probed: Instant,
    next_probe: Instant,
}

impl Watch {
    fn new(now: Instant) -> Self {
        Self {
            up: true,
            known: false,
            heartbeat: None,
            pace: None,
            sign: now,
            owed: 0,
            answers: 0,
            down_at: None,
            backed_off: 0,
            probed: Instant::ZERO,
            next_probe: now,
        }
    }

    /// It owes so many answers that it is down.
    fn is_silent(&self, config: &Config, now: Instant) -> bool {
        let by_heartbeat = self.heartbeat.is_some_and(|heartbeat| heartbeat == self.sign);
        let owed = if by_heartbeat { config.probes } else { 2 * config.probes };
        // The last query that counts has had time to be answered.
        let overdue = self.owed > owed || self.owed == owed && now >= self.next_probe;
        now >= self.sign + self.dead(config) && overdue
    }

    fn dead(&self, config: &Config) -> Duration {
        self.pace.map_or(config.dead, Pace::dead)
    }

    /// Silence after which a heartbeat is overdue.
    fn overdue(&self, config: &Config) -> Duration {
        self.pace.map_or(config.interval * 3 / 2, Pace::overdue)
    }

    /// A node that is down and has begun to answer again no longer counts as silent.
    fn backs_off(&self, cut_off: bool) -> bool {
        if self.up { cut_off && !self.known } else { self.answers == 0 }
    }

    fn pause(&self, config: &Config, cut_off: bool) -> Duration {
        if !self.up || cut_off {
            config.probe_steady
        } else if self.owed > 0 {
            config.probe_fast
        } else {
            self.rest(config)
        }
    }

    /// Between a sign and the next query.
    fn rest(&self, config: &Config) -> Duration {
        match self.heartbeat {
            Some(heartbeat) if heartbeat == self.sign => self.overdue(config),
            Some(heartbeat) if self.sign.since(heartbeat) < SPEAKER_GONE => config.probe_steady,
            _ => config.probe_slow,
        }
    }
}

impl Liveness {
    pub fn new(config: Config) -> Self {
        Self { config, nodes: BTreeMap::new(), earliest: None, carrier: true, cut_off: false }
    }

    /// Up as far as this node knows; unknown nodes are not.
    pub fn is_up(&self, node: &NodeName) -> bool {
        self.nodes.get(node).is_some_and(|watch| watch.up)
    }

    pub fn is_cut_off(&self) -> bool {
        self.cut_off
    }

    fn set_nodes(&mut self, nodes: BTreeSet<NodeName>, now: Instant) {
        self.nodes.retain(|name, _| nodes.contains(name));
        for name in nodes {
            if self.nodes.len() < MAX_WATCHED {
                self.nodes.entry(name).or_insert_with(|| Watch::new(now));
            }
        }
        self.compute_earliest();
    }

    fn compute_earliest(&mut self) {
        self.earliest = self.nodes.values().map(|watch| watch.next_probe).min();
    }

    /// A node is to be probed at that time.
    fn probe_at(&mut self, at: Instant) {
        self.earliest = Some(self.earliest.map_or(at, |earliest| earliest.min(at)));
    }

    fn sign(&mut self, name: &NodeName, beat: bool, now: Instant, actions: &mut Vec<Action>) {
        let Some(watch) = self.nodes.get_mut(name) else { return };
        watch.sign = now;
        (watch.known, watch.owed, watch.backed_off) = (true, 0, 0);
        if beat {
            watch.heartbeat = Some(now);
        }
        if !watch.up {
            watch.answers += 1;
            if !beat && watch.answers < ANSWERS_TO_RISE {
                watch.next_probe = now + self.config.probe_fast;
            } else {
                (watch.up, watch.answers, watch.down_at) = (true, 0, None);
                actions.push(Action::NodeUp(name.clone()));
            }
        }
        if watch.up {
            watch.next_probe = now + watch.rest(&self.config);
        }
        let next_probe = watch.next_probe;
        self.probe_at(next_probe);
        if core::mem::take(&mut self.cut_off) {
            actions.push(Action::Restored);
            self.start_over(now);
        }
    }

    /// The back-off of a node that is down begins anew, at most once in a steady pause.
    fn seen(&mut self, name: &NodeName, now: Instant) {
        let Some(watch) = self.nodes.get_mut(name).filter(|watch| !watch.up) else { return };
        let soon = now.max(watch.probed + self.config.probe_steady);
        if soon < watch.next_probe {
            (watch.backed_off, watch.next_probe) = (0, soon);
            self.probe_at(soon);
        }
    }

    /// A node that is silent from now on for a full dead interval is down.
    fn start_over(&mut self, now: Instant) {
        for watch in self.nodes.values_mut().filter(|watch| watch.up && watch.owed > 0) {
            (watch.sign, watch.owed, watch.next_probe) = (now, 0, now);
        }
        self.compute_earliest();
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !self.cut_off {
            self.judge(now, actions);
        }
        for (name, watch) in self.nodes.iter_mut().filter(|(_, watch)| watch.next_probe <= now) {
            watch.owed = watch.owed.saturating_add(1);
            watch.answers = if watch.owed > self.config.probes { 0 } else { watch.answers };
            watch.probed = now;
            let search = watch.backs_off(self.cut_off) && watch.backed_off >= SEARCH_FROM;
            let pause = if watch.backs_off(self.cut_off) {
                watch.backed_off = watch.backed_off.saturating_add(1);
                self.config.backoff.pause(name, watch.backed_off - 1)
            } else {
                watch.pause(&self.config, self.cut_off)
            };
            watch.next_probe = now + pause;
            actions.push(if search { Action::Search(name.clone()) } else { Action::Probe(name.clone()) });
        }
        self.compute_earliest();
    }

    /// A silent node is down if another has given a sign since. If all others have fallen silent too, wait for them to answer or
    /// to be as silent.
    fn judge(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let config = &self.config;
        let silent = |watch: &Watch| watch.up && watch.is_silent(config, now);
        // Signs of a node come within an interval of each other; a cut ends those of all within one of the first that is overdue.
        let overdue = |watch: &Watch| watch.sign + watch.overdue(config);
        let Some(overdue) = self.nodes.values().filter(|watch| silent(watch)).map(overdue).min() else { return };
        let up = self.nodes.values().filter(|watch| watch.up).count();
        let elsewhere = self.nodes.values().filter(|watch| watch.up && !silent(watch));
        let (mut waiting, mut witnessed) = (false, false);
        for watch in elsewhere {
            witnessed |= watch.sign > overdue;
            waiting = true;
        }
        let window = self.slowest();
        let recent = |watch: &Watch| watch.down_at.is_some_and(|at| now.since(at) <= window);
        let lately = self.nodes.values().filter(|watch| recent(watch)).count();
        if waiting && !witnessed {
            // The others are probed too, now.
            for watch in self.nodes.values_mut().filter(|watch| watch.up && watch.owed == 0) {
                watch.next_probe = now;
            }
        } else if !waiting && up + lately > 1 {
            self.cut_off(now, actions);
        } else {
            self.declare_down(now, actions);
        }
    }

    fn declare_down(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for (name, watch) in &mut self.nodes {
            if watch.up && watch.is_silent(&self.config, now) {
                (watch.up, watch.down_at, watch.answers, watch.backed_off) = (false, Some(now), 0, 0);
                actions.push(Action::NodeDown(name.clone()));
            }
        }
    }

    /// All nodes that fall silent together are down within this time.
    fn slowest(&self) -> Duration {
        let of = |watch: &Watch| watch.dead(&self.config) + watch.overdue(&self.config);
        self.nodes.values().map(of).max().unwrap_or_default()
    }

    /// What was taken for the death of a few a moment ago was the beginning of this.
    fn cut_off(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if core::mem::replace(&mut self.cut_off, true) {
            return;
        }
        actions.push(Action::CutOff);
        let window = self.slowest();
        for (name, watch) in &mut self.nodes {
            if watch.down_at.is_some_and(|at| now.since(at) <= window) {
                (watch.up, watch.down_at) = (true, None);
                actions.push(Action::NodeUp(name.clone()));
            }
        }
    }

    /// If this node was frozen, the silence was its own.
    fn notice_freeze(&mut self, now: Instant) {
        if !self.is_late(now) {
            return;
        }
        self.compute_earliest();
        if self.is_late(now) {
            for watch in self.nodes.values_mut().filter(|watch| watch.up) {
                (watch.sign, watch.owed, watch.next_probe) = (now, 0, now);
            }
            self.compute_earliest();
        }
    }

    fn is_late(&self, now: Instant) -> bool {
        self.next_deadline().is_some_and(|due| now >= due + self.config.interval)
    }
}

impl Machine for Liveness {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        self.notice_freeze(now);
        match event {
            Event::Nodes(nodes) => self.set_nodes(nodes, now),
            Event::Heartbeat(node) => self.sign(&node, true, now, actions),
            Event::Pace(node, pace) => {
                if let Some(watch) = self.nodes.get_mut(&node) {
                    watch.pace = pace;
                }
            }
            Event::ProbeReply(node) => self.sign(&node, false, now, actions),
            Event::Seen(node) => self.seen(&node, now),
            Event::Carrier(carrier) => {
                self.carrier = carrier;
                if !carrier && !self.nodes.is_empty() {
                    self.cut_off(now, actions);
                }
            }
            Event::Tick => self.tick(now, actions),
        }
    }

    /// No node is probed while the link is down.
    fn next_deadline(&self) -> Option<Instant> {
        if self.carrier { self.earliest } else { None }
    }
}

#[cfg(test)]
mod tests;
