//! Which nodes are sent adverts by unicast as well, because multicast does not arrive; and whose adverts do not arrive at all.
//!
//! Read first: docs/election.md section Unicast. Host firewalls, access points and fabrics filter multicast, sometimes in one
//! direction only. Unicast to a node begins when no multicast of it arrives, or when it does not name this node. The second reason
//! lasts for as long as that node sends unicast itself: it does not receive this node's multicast then.
//!
//! A program answers although its speaker is dead. Adverts of a node that were received, and that no node receives now whose adverts
//! arrive here, are not missing: its speaker is. Where none arrive of any node it cannot be told, and they are called missing unless the
//! speaker had said that it ends.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::machine::Machine;
use crate::name::NodeName;
use crate::time::{Duration, Instant};
use crate::wire::pace::Pace;

#[derive(Clone, Debug)]
pub struct Unicast {
    config: Config,
    nodes: BTreeMap<NodeName, Node>,
    next: Instant,
}

#[derive(Clone, Debug)]
pub struct Config {
    /// Without multicast of a node, or without its naming this one, for so long: unicast begins; later where it transmits so seldom that
    /// this is no silence yet.
    pub patience: Duration,
    /// Silence of a node that states no pace is death after this time.
    pub dead: Duration,
    /// Without unicast of a node that names this one for so long: unicast for its sake ends.
    pub hold: Duration,
    /// A node whose program answers and whose adverts do not arrive for so long.
    pub missing: Duration,
}

impl Config {
    /// For a node that is dead for its peers after `dead`.
    pub fn new(dead: Duration) -> Self {
        Self { patience: Duration::from_secs(1), dead, hold: Duration::from_secs(5), missing: Duration::from_secs(10) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// All other nodes of the view.
    Nodes(BTreeSet<NodeName>),
    /// A verified advert of this node arrived.
    Received {
        node: NodeName,
        multicast: bool,
        receives_us: bool,
        pace: Option<Pace>,
    },
    /// No node that this one receives receives it now. `left`: it had said that it ends.
    Silent {
        node: NodeName,
        left: bool,
    },
    /// Its program has answered a query: a packet path of ours is there.
    Program(NodeName),
    /// Its kernel does not answer: nothing is sent to it.
    Down(NodeName),
    Up(NodeName),
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Adverts go to this node by unicast too, or not any more.
    Start(NodeName),
    Stop(NodeName),
    /// Unicast of this node arrives where multicast does not: its speaker runs, and multicast is filtered in one direction at least.
    Filtered(NodeName),
    /// Its program answers, and its adverts do not arrive although its speaker runs, as far as that can be known.
    Missing(NodeName),
    Arrived(NodeName),
}

#[derive(Clone, Debug)]
struct Node {
    up: bool,
    multicast: Instant,
    unicast: Option<Instant>,
    received_us: Instant,
    any: Instant,
    pace: Option<Pace>,
    program: bool,
    speaker: Speaker,
    /// It did not name this node.
    one_way: bool,
    sending: bool,
    filtered: bool,
    missing: bool,
}

/// What is known of its speaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaker {
    /// Nothing of it was ever received.
    Unknown,
    /// This node receives it, or another one.
    Runs,
    Silent,
    Left,
}

const TURN: Duration = Duration::from_millis(250);

impl Unicast {
    pub fn new(config: Config) -> Self {
        Self { config, nodes: BTreeMap::new(), next: Instant::ZERO }
    }

    /// Nodes that adverts are sent to by unicast.
    pub fn targets(&self) -> impl Iterator<Item = &NodeName> {
        self.nodes.iter().filter(|(_, node)| node.sending).map(|(name, _)| name)
    }

    /// Nodes whose program answers and whose adverts do not arrive.
    pub fn missing(&self) -> impl Iterator<Item = &NodeName> {
        self.nodes.iter().filter(|(_, node)| node.missing).map(|(name, _)| name)
    }

    /// Such nodes are all there are, but for those whose speakers have ended: it is this node that receives no adverts.
    pub fn receives_none(&self) -> bool {
        let is_received = |node: &Node| node.program && !node.missing && node.speaker != Speaker::Left;
        self.missing().next().is_some() && !self.nodes.values().any(is_received)
    }

    fn set_nodes(&mut self, nodes: BTreeSet<NodeName>, now: Instant) {
        self.nodes.retain(|name, _| nodes.contains(name));
        for name in nodes {
            self.nodes.entry(name).or_insert(Node {
                up: true,
                multicast: now,
                unicast: None,
                received_us: now,
                any: now,
                pace: None,
                program: false,
                speaker: Speaker::Unknown,
                one_way: false,
                sending: false,
                filtered: false,
                missing: false,
            });
        }
    }

    fn received(
        &mut self,
        name: &NodeName,
        multicast: bool,
        receives_us: bool,
        pace: Option<Pace>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        (node.any, node.speaker, node.pace) = (now, Speaker::Runs, pace);
        match multicast {
            true => node.multicast = now,
            false => node.unicast = Some(now),
        }
        if receives_us {
            node.received_us = now;
        }
        if core::mem::take(&mut node.missing) {
            actions.push(Action::Arrived(name.clone()));
        }
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let config = &self.config;
        let is_received = |node: &Node| node.speaker == Speaker::Runs && now.since(node.any) < config.missing;
        let receives = self.nodes.values().any(is_received);
        for (name, node) in &mut self.nodes {
            let patience = node.pace.map_or(config.dead, Pace::dead).max(config.patience);
            let silent = now.since(node.multicast) >= patience;
            let not_received = now.since(node.received_us) >= patience;
            let requested = node.unicast.is_some_and(|at| now.since(at) < config.hold);
            // Without multicast of it either, that is reason enough, and ends when it arrives again.
            node.one_way = !silent && (not_received || node.one_way && requested);
            let send = node.up && (silent || node.one_way);
            if core::mem::replace(&mut node.sending, send) != send {
                actions.push(if send { Action::Start(name.clone()) } else { Action::Stop(name.clone()) });
            }
            let filtered = send && node.unicast.is_some_and(|at| now.since(at) < patience);
            if filtered && !node.filtered {
                actions.push(Action::Filtered(name.clone()));
            }
            node.filtered = send && (filtered || node.filtered);
            let runs = match node.speaker {
                Speaker::Unknown | Speaker::Runs => true,
                Speaker::Silent => !receives,
                Speaker::Left => false,
            };
            let missing = node.up && node.program && runs && now.since(node.any) >= config.missing;
            if missing && !node.missing {
                actions.push(Action::Missing(name.clone()));
            }
            node.missing = missing;
        }
        self.next = now + TURN;
    }
}

impl Machine for Unicast {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Nodes(nodes) => self.set_nodes(nodes, now),
            Event::Received { node, multicast, receives_us, pace } => {
                self.received(&node, multicast, receives_us, pace, now, actions)
            }
            Event::Silent { node, left } => {
                if let Some(node) = self.nodes.get_mut(&node) {
                    node.speaker = if left { Speaker::Left } else { Speaker::Silent };
                }
            }
            Event::Program(name) => {
                if let Some(node) = self.nodes.get_mut(&name) {
                    node.program = true;
                }
            }
            Event::Down(name) => {
                if let Some(node) = self.nodes.get_mut(&name) {
                    (node.up, node.program, node.missing) = (false, false, false);
                }
            }
            Event::Up(name) => {
                if let Some(node) = self.nodes.get_mut(&name) {
                    (node.up, node.any) = (true, now);
                }
            }
            Event::Tick => self.tick(now, actions),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        (!self.nodes.is_empty()).then_some(self.next)
    }
}

#[cfg(test)]
mod tests;
