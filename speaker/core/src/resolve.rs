//! When a node is asked for its MAC address: dispatching needs it before any trouble makes liveness ask.
//!
//! Read first: RFC 826, docs/election.md section Liveness. A node whose MAC address is not known is asked with back-off; one whose
//! address is known is asked again now and then, since it may have changed without a frame that reached this node. A node that is
//! down is left to liveness, which asks it with a back-off of its own. Every question also carries this node's own addresses to
//! the kernel and the speaker that is asked: when these change, all nodes are asked in a burst.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::backoff::Backoff;
use crate::machine::Machine;
use crate::name::NodeName;
use crate::time::{Duration, Instant};

/// Schedules questions for MAC addresses.
#[derive(Clone, Debug)]
pub struct Resolver {
    config: Config,
    nodes: BTreeMap<NodeName, Schedule>,
    carrier: bool,
}

#[derive(Clone, Debug)]
pub struct Config {
    /// Between questions to a node whose MAC address is not known; [`Backoff::most`] also between those to one whose address is.
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
    /// Liveness asks the node from now on.
    Down(NodeName),
    /// The node answers again.
    Up(NodeName),
    /// The MAC or IP address of this node's uplink changed: the others must learn it.
    OwnAddress,
    /// Nothing is asked while the link is down.
    Carrier(bool),
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// An ARP request for the node's address: unicast if its MAC address is known.
    Ask(NodeName),
}

#[derive(Clone, Debug)]
struct Schedule {
    known: bool,
    down: bool,
    /// Questions since the MAC address was known last.
    asked: u32,
    /// The burst that runs: its beginning, and how many of it are done.
    burst: Option<(Instant, usize)>,
    next: Instant,
}

impl Schedule {
    fn new(now: Instant) -> Self {
        Self { known: false, down: false, asked: 0, burst: None, next: now }
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

    /// Only the first sign changes the schedule: a node that sends much must not put its next question off.
    fn known(&mut self, name: &NodeName, now: Instant) {
        let Some(schedule) = self.nodes.get_mut(name).filter(|schedule| !schedule.known) else { return };
        (schedule.known, schedule.asked) = (true, 0);
        if schedule.burst.is_none() {
            schedule.next = now + self.config.backoff.pause(name, u32::MAX);
        }
    }

    fn start_over(&mut self, name: &NodeName, now: Instant, change: impl FnOnce(&mut Schedule)) {
        if let Some(schedule) = self.nodes.get_mut(name) {
            (schedule.asked, schedule.next) = (0, now);
            change(schedule);
        }
    }

    fn start_bursts(&mut self, now: Instant) {
        let first = self.config.burst.first().copied().unwrap_or_default();
        for schedule in self.nodes.values_mut() {
            (schedule.burst, schedule.next) = (Some((now, 0)), now + first);
        }
    }

    fn ask_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !self.carrier {
            return;
        }
        let Config { backoff, burst } = &self.config;
        let due = |schedule: &Schedule| schedule.is_asked() && schedule.next <= now;
        for (name, schedule) in self.nodes.iter_mut().filter(|(_, schedule)| due(schedule)) {
            actions.push(Action::Ask(name.clone()));
            let attempt = if schedule.known { u32::MAX } else { schedule.asked };
            schedule.asked = schedule.asked.saturating_add(1);
            schedule.next = now + backoff.pause(name, attempt);
            // After a delay the questions that were missed are one, not a volley.
            schedule.burst = schedule.burst.and_then(|(started, mut done)| {
                while burst.get(done).is_some_and(|offset| started + *offset <= now) {
                    done += 1;
                }
                let offset = burst.get(done)?;
                schedule.next = schedule.next.min(started + *offset);
                Some((started, done))
            });
        }
    }
}

impl Schedule {
    /// A node that is down is told of a change of ours all the same: its silence may come from the change.
    fn is_asked(&self) -> bool {
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
                // What changed meanwhile at either end has reached nobody.
                if up && !self.carrier {
                    self.start_bursts(now);
                }
                self.carrier = up;
            }
            Event::Tick => {}
        }
        self.ask_due(now, actions);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let asked = self.nodes.values().filter(|schedule| schedule.is_asked());
        if self.carrier { asked.map(|schedule| schedule.next).min() } else { None }
    }
}

#[cfg(test)]
mod tests;
