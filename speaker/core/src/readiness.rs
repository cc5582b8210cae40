//! Readiness of the speakers of other nodes: may a node get new flows, or flows at all?
//!
//! Read first: docs/architecture.md (two signals, never mixed). `liveness` decides whether a node's kernel answers: open flows
//! follow that. New flows need more: a node that has just booted answers long before it can translate anything, and the rules of
//! a node whose speaker has been silent for long name pods of long ago.
//!
//! *Silent*: no heartbeat of a ready speaker for a while. The node gets no rows, and keeps its flows by the second chance.
//! *Unknown*: no speaker has been ready since the node was new or down. There may be no program of ours at all, and other rules
//! (kube-proxy's) would answer a flow of another node with a reset. The node gets no packets before its speaker has reported,
//! which it does when its packet path is in place (`reports::exchange`), or its program has answered a query (`PROGRAM_QUERY`):
//! then the node is silent, whatever its speaker does. A speaker that restarts is back long before its node counts as silent.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::machine::Machine;
use crate::name::NodeName;
use crate::time::{Duration, Instant};

/// Watches the speakers of the other nodes.
#[derive(Clone, Debug)]
pub struct Readiness {
    config: Config,
    /// Present when this process was not there yet.
    known: BTreeSet<NodeName>,
    nodes: BTreeMap<NodeName, Seen>,
    /// The last sign of any node.
    last_ready: Option<Instant>,
    check_at: Option<Instant>,
}

#[derive(Clone, Debug)]
pub struct Config {
    /// A node without a ready speaker for this long is silent.
    pub silent: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { silent: Duration::from_secs(30) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// All other nodes of the cluster. A new one is unknown until its speaker is ready.
    Nodes(BTreeSet<NodeName>),
    /// A heartbeat with the flag ready.
    Ready(NodeName),
    /// Its program has answered: our packet path is in place there, and was when its speaker ended.
    Program(NodeName),
    /// `liveness::Action::NodeDown`: the state of its speaker ended with its kernel.
    Down(NodeName),
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Silent(NodeName),
    Unknown(NodeName),
    Ready(NodeName),
}

#[derive(Clone, Debug)]
struct Seen {
    state: State,
    ready: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Silent,
    Unknown,
}

impl Seen {
    fn is_ready(&self) -> bool {
        self.state == State::Ready
    }
}

impl Readiness {
    /// `known`: the nodes that were present when the speaker before this one ended; none if this node has booted since.
    pub fn new(config: Config, known: BTreeSet<NodeName>) -> Self {
        Self { config, known, nodes: BTreeMap::new(), last_ready: None, check_at: None }
    }

    /// The nodes that are present, for the next process.
    pub fn ready_nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.nodes.iter().filter(|(_, seen)| seen.is_ready()).map(|(name, _)| name)
    }

    fn set_nodes(&mut self, nodes: BTreeSet<NodeName>, now: Instant, actions: &mut Vec<Action>) {
        self.nodes.retain(|name, _| nodes.contains(name));
        for name in nodes {
            if self.nodes.contains_key(&name) {
                continue;
            }
            let state = if self.known.remove(&name) { State::Ready } else { State::Unknown };
            if state == State::Unknown {
                actions.push(Action::Unknown(name.clone()));
            }
            self.nodes.insert(name, Seen { state, ready: now });
        }
        self.check_at.get_or_insert(now + self.config.silent);
    }

    fn on_ready(&mut self, name: NodeName, now: Instant, actions: &mut Vec<Action>) {
        let Some(seen) = self.nodes.get_mut(&name) else { return };
        seen.ready = now;
        self.last_ready = Some(now);
        if core::mem::replace(&mut seen.state, State::Ready) != State::Ready {
            actions.push(Action::Ready(name));
        }
    }

    /// All silent at once is this node's own trouble, or the only peer's: no reason to move its rows.
    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let silent = self.config.silent;
        if self.last_ready.is_some_and(|at| now.since(at) < silent / 2) {
            let ends = |seen: &Seen| seen.is_ready() && now >= seen.ready + silent;
            for (name, seen) in self.nodes.iter_mut().filter(|(_, seen)| ends(seen)) {
                seen.state = State::Silent;
                actions.push(Action::Silent(name.clone()));
            }
        }
        let ends = self.nodes.values().filter(|seen| seen.is_ready()).map(|seen| seen.ready + silent).min();
        // Not before a moment has passed: the silent ones that stay present would make every moment due.
        self.check_at = ends.map(|end| end.max(now + silent / 10));
    }
}

impl Machine for Readiness {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Nodes(nodes) => self.set_nodes(nodes, now, actions),
            Event::Ready(node) => self.on_ready(node, now, actions),
            Event::Down(node) => {
                if let Some(seen) = self.nodes.get_mut(&node)
                    && core::mem::replace(&mut seen.state, State::Unknown) != State::Unknown
                {
                    actions.push(Action::Unknown(node));
                }
            }
            Event::Program(node) => {
                if let Some(seen) = self.nodes.get_mut(&node).filter(|seen| seen.state == State::Unknown) {
                    seen.state = State::Silent;
                    actions.push(Action::Silent(node));
                }
            }
            Event::Tick => self.tick(now, actions),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.check_at
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec;

    use super::*;

    fn name(node: usize) -> NodeName {
        NodeName::new(&format!("node-{node}")).unwrap()
    }

    struct Lab {
        now: Instant,
        machine: Readiness,
        log: Vec<Action>,
    }

    impl Lab {
        fn new(nodes: usize, known: impl IntoIterator<Item = usize>) -> Self {
            let known = known.into_iter().map(name).collect();
            let machine = Readiness::new(Config::default(), known);
            let mut lab = Self { now: Instant::from_millis(1000), machine, log: vec![] };
            lab.event(Event::Nodes((0..nodes).map(name).collect()));
            lab
        }

        fn event(&mut self, event: Event) {
            self.machine.handle(event, self.now, &mut self.log);
        }

        /// These nodes send a heartbeat once a second.
        fn run(&mut self, seconds: u64, sending: &[usize]) {
            for _ in 0..seconds {
                self.now += Duration::from_secs(1);
                sending.iter().for_each(|node| self.event(Event::Ready(name(*node))));
                if self.machine.next_deadline().is_some_and(|due| due <= self.now) {
                    self.event(Event::Tick);
                }
            }
        }

        fn actions(&mut self) -> Vec<Action> {
            core::mem::take(&mut self.log)
        }
    }

    #[test]
    fn a_new_node_is_unknown_until_its_speaker_is_ready() {
        let mut lab = Lab::new(2, [0]);
        assert_eq!(lab.actions(), [Action::Unknown(name(1))]);
        lab.run(1, &[0, 1]);
        assert_eq!(lab.actions(), [Action::Ready(name(1))]);
        assert_eq!(lab.machine.ready_nodes().count(), 2);
    }

    #[test]
    fn a_node_that_was_down_is_unknown_until_its_speaker_is_ready_again() {
        let mut lab = Lab::new(2, [0, 1]);
        lab.event(Event::Down(name(1)));
        lab.event(Event::Down(name(1)));
        assert_eq!(lab.actions(), [Action::Unknown(name(1))]);
        lab.run(100, &[0]);
        assert_eq!(lab.actions(), []);
        lab.event(Event::Ready(name(1)));
        assert_eq!(lab.actions(), [Action::Ready(name(1))]);
        // Its speaker is silent, then its kernel is gone as well.
        lab.run(40, &[0]);
        lab.event(Event::Down(name(1)));
        assert_eq!(lab.actions(), [Action::Silent(name(1)), Action::Unknown(name(1))]);
    }

    /// A node that boots meets one whose speaker is dead; or that one was cut off meanwhile.
    #[test]
    fn an_unknown_node_whose_program_answers_is_silent_until_its_speaker_is_ready() {
        let mut lab = Lab::new(3, [0]);
        assert_eq!(lab.actions(), [Action::Unknown(name(1)), Action::Unknown(name(2))]);
        lab.event(Event::Program(name(1)));
        lab.event(Event::Program(name(1)));
        lab.event(Event::Program(name(0)));
        assert_eq!(lab.actions(), [Action::Silent(name(1))], "once, and no ready node");
        lab.event(Event::Ready(name(1)));
        lab.event(Event::Down(name(1)));
        lab.event(Event::Program(name(1)));
        assert_eq!(lab.actions(), [Action::Ready(name(1)), Action::Unknown(name(1)), Action::Silent(name(1))]);
    }

    #[test]
    fn a_restarted_speaker_is_not_noticed_and_a_lost_one_is() {
        let mut lab = Lab::new(3, [0, 1, 2]);
        lab.run(100, &[0, 1, 2]);
        lab.run(20, &[0, 1]);
        lab.run(5, &[0, 1, 2]);
        assert_eq!(lab.actions(), []);
        lab.run(40, &[0, 1]);
        assert_eq!(lab.actions(), [Action::Silent(name(2))]);
    }

    #[test]
    fn silence_of_all_is_our_own_trouble() {
        let mut lab = Lab::new(2, [0, 1]);
        lab.run(10, &[0, 1]);
        lab.run(500, &[]);
        assert_eq!(lab.actions(), []);
        // One is back, the other is not.
        lab.run(20, &[0]);
        assert_eq!(lab.actions(), [Action::Silent(name(1))]);
    }

    #[test]
    fn a_known_node_without_heartbeats_is_silent_in_the_end() {
        let mut lab = Lab::new(2, [0, 1]);
        lab.run(40, &[0]);
        assert_eq!(lab.actions(), [Action::Silent(name(1))]);
    }

    #[test]
    fn it_is_never_due_all_the_time() {
        let mut lab = Lab::new(2, [0, 1]);
        for _ in 0..100 {
            lab.now = lab.machine.next_deadline().unwrap();
            let before = lab.now;
            lab.event(Event::Tick);
            assert!(lab.machine.next_deadline().unwrap() > before);
        }
    }
}
