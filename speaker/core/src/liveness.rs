//! Is a node alive, that is, does its kernel answer? Not: does its speaker run.
//!
//! Read first: docs/design.md "What moves rows", docs/election.md section Liveness.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::machine::Machine;
use crate::name::NodeName;
use crate::time::{Duration, Instant};

/// Watches the kernels of the other nodes.
#[derive(Clone, Debug)]
pub struct Liveness {
    config: Config,
}

#[derive(Clone, Debug)]
pub struct Config {
    /// The heartbeat interval of the election.
    pub interval: Duration,
    /// Silence after which a node may be declared down.
    pub dead: Duration,
    /// Between probes of a node that has gone silent.
    pub probe_fast: Duration,
    /// Between probes of a node without a speaker and of a node that is down.
    pub probe_slow: Duration,
    /// Unanswered probes before a node is declared down.
    pub probes: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(50),
            dead: Duration::from_millis(150),
            probe_fast: Duration::from_millis(25),
            probe_slow: Duration::from_secs(1),
            probes: 3,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// All other nodes of the cluster. A new one is taken to be up until its kernel fails to answer.
    Nodes(BTreeSet<NodeName>),
    /// A heartbeat of a verified peer (`election::Action::Heard`).
    Heard(NodeName),
    /// An answer to a probe.
    ProbeReply(NodeName),
    /// The link of this node.
    Carrier(bool),
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the kernel of this node: a unicast ARP request for its address.
    Probe(NodeName),
    NodeDown(NodeName),
    NodeUp(NodeName),
    /// Nobody answers: it is this node that is cut off. Keep the last view of who is up.
    CutOff,
    /// Somebody answers again; `NodeDown` follows for those who stay silent.
    Restored,
}

impl Liveness {
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// Up as far as this node can tell; unknown nodes are down.
    pub fn is_up(&self, _node: &NodeName) -> bool {
        let _ = self.config.dead;
        false
    }

    pub fn is_cut_off(&self) -> bool {
        false
    }
}

impl Machine for Liveness {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, _event: Event, _now: Instant, _actions: &mut Vec<Action>) {}

    fn next_deadline(&self) -> Option<Instant> {
        None
    }
}
