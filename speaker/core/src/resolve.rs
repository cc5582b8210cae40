//! When a node is queried for its MAC address: dispatching needs it before liveness has a reason to query.
//!
//! Read first: RFC 826, docs/election.md section Liveness. A node whose MAC address is not known is queried with back-off; one whose
//! address is known is queried again now and then, since it may have changed without a frame that reached this node: if the query
//! stays without an answer the address counts as not known any more, whatever heartbeats the node sends. A node that is down is left to liveness, which queries it with a back-off of its own. Every query also carries this node's own addresses to
//! the kernel and the speaker that is queried: when these change, all nodes are queried in a burst.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::backoff::Backoff;
use crate::machine::Machine;
use crate::name::NodeName;
use crate::time::{Duration, Instant};

/// Schedules queries for MAC addresses.
#[derive(Clone, Debug)]
pub struct Resolver {
    config: Config,
    nodes: BTreeMap<NodeName, Schedule>,
    carrier: bool,
}

#[derive(Clone, Debug)]
pub struct Config {
    /// Between queries to a node whose MAC address is not known; [`Backoff::most`] also between those to one whose address is.
    pub backoff: Backoff,
    /// Offsets from a change of this node's own addresses, ascending.
    pub burst: Vec<Duration>,
}

impl Config {
    pub fn new(seed: u64) -> Self {
        Self {
            backoff: Backoff { first: Duration::from_millis(100), most: Duration::from_secs(30), seed },
            burst: [0, 50, 200, 1000].into_iter().map(Duration::from_millis).collect(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// All other nodes. A new one is not known.
    Nodes(BTreeSet<NodeName>),
    /// The node's MAC address is known.
    Known(NodeName),
    /// The node's MAC address is not known any more: its IP address is another.
    Unknown(NodeName),
    /// Liveness queries the node from now on.
    Down(NodeName),
    /// The node answers again.
    Up(NodeName),
    /// The MAC or IP address of this node's uplink changed: the others must receive it.
    OwnAddress,
    /// Nothing is queried while the link is down.
    Carrier(bool),
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A unicast ARP request for the node's address.
    Query(NodeName),
    /// The same by broadcast: the node's MAC address is not known, or may be another by now.
    Search(NodeName),
}

#[derive(Clone, Debug)]
struct Schedule {
    known: bool,
    down: bool,
    /// Known, and queried since the node's last frame.
    unanswered: bool,
    /// Queries since the MAC address was known last.
    queried: u32,
    /// The burst that runs: its beginning, and how many of it are done.
    burst: Option<(Instant, usize)>,
    next: Instant,
}

impl Schedule {
    fn new(now: Instant) -> Self {
        Self { known: false, down: false, unanswered: false, queried: 0, burst: None, next: now }
    }
}

impl Resolver {
    pub fn new(config: Config) -> Self {
        Self { config, nodes: BTreeMap::new(), carrier: true }
    }

    fn set_nodes(&mut self, nodes: BTreeSet<NodeName>, now: Instant) {
        self.nodes.retain(|name, _| nodes.contains(name));
        for name in nodes {
            self.nodes.entry(name).or_insert_with(|| Schedule::new(now));
        }
    }

    /// Only the first frame changes the schedule: a node that sends much must not put its next query off.
    fn known(&mut self, name: &NodeName, now: Instant) {
        let Some(schedule) = self.nodes.get_mut(name) else { return };
        if schedule.known && !schedule.unanswered {
            return;
        }
        (schedule.known, schedule.unanswered, schedule.queried) = (true, false, 0);
        if schedule.burst.is_none() {
            schedule.next = now + self.config.backoff.pause(name, u32::MAX);
        }
    }

    fn start_over(&mut self, name: &NodeName, now: Instant, change: impl FnOnce(&mut Schedule)) {
        if let Some(schedule) = self.nodes.get_mut(name) {
            (schedule.queried, schedule.next) = (0, now);
            change(schedule);
        }
    }

    fn start_bursts(&mut self, now: Instant) {
        let first = self.config.burst.first().copied().unwrap_or_default();
        for schedule in self.nodes.values_mut() {
            (schedule.burst, schedule.next) = (Some((now, 0)), now + first);
        }
    }

    fn query_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !self.carrier {
            return;
        }
        let Config { backoff, burst } = &self.config;
        let due = |schedule: &Schedule| schedule.is_queried() && schedule.next <= now;
        for (name, schedule) in self.nodes.iter_mut().filter(|(_, schedule)| due(schedule)) {
            let in_burst = schedule.burst.is_some();
            schedule.query(name, in_burst, backoff, now, actions);
            // After a delay the queries that were missed are one, not a volley.
            schedule.burst = schedule.burst.and_then(|(started, mut done)| {
                while burst.get(done).is_some_and(|offset| started + *offset <= now) {
                    done += 1;
                }
                let offset = burst.get(done)?;
                schedule.next = started + *offset;
                Some((started, done))
            });
        }
    }
}

impl Schedule {
    /// The queries of a burst follow each other faster than answers have to come.
    fn query(&mut self, name: &NodeName, in_burst: bool, backoff: &Backoff, now: Instant, actions: &mut Vec<Action>) {
        if self.known && self.unanswered && !in_burst {
            (self.known, self.unanswered, self.queried) = (false, false, 0);
        }
        if self.known {
            self.unanswered = true;
            self.next = now + backoff.pause(name, PATIENCE);
            actions.push(Action::Query(name.clone()));
        } else {
            self.next = now + backoff.pause(name, self.queried);
            self.queried = self.queried.saturating_add(1);
            actions.push(Action::Search(name.clone()));
        }
    }

    /// A node that is down receives a change of ours all the same: its silence may come from the change.
    fn is_queried(&self) -> bool {
        !self.down || self.burst.is_some()
    }
}

impl Machine for Resolver {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Nodes(nodes) => self.set_nodes(nodes, now),
            Event::Known(node) => self.known(&node, now),
            Event::Unknown(node) => self.start_over(&node, now, |schedule| schedule.known = false),
            Event::Down(node) => {
                if let Some(schedule) = self.nodes.get_mut(&node) {
                    schedule.down = true;
                }
            }
            Event::Up(node) => self.start_over(&node, now, |schedule| schedule.down = false),
            Event::OwnAddress => self.start_bursts(now),
            Event::Carrier(up) => {
                // Changes meanwhile at either end have not arrived.
                if up && !self.carrier {
                    self.start_bursts(now);
                }
                self.carrier = up;
            }
            Event::Tick => {}
        }
        self.query_due(now, actions);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let queried = self.nodes.values().filter(|schedule| schedule.is_queried());
        if self.carrier { queried.map(|schedule| schedule.next).min() } else { None }
    }
}

/// A known node has as long to answer as the back-off pauses after this many attempts: 0.6 to 0.8 s by default.
const PATIENCE: u32 = 3;

#[cfg(test)]
mod tests;
