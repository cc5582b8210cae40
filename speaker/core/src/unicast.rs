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

#[derive(Clone, Debug)]
pub struct Unicast {
    config: Config,
    nodes: BTreeMap<NodeName, Node>,
    next: Instant,
}

#[derive(Clone, Debug)]
pub struct Config {
    /// Without multicast of a node, or without its naming this one, for so long: unicast begins.
    pub patience: Duration,
    /// Without unicast of a node that names this one for so long: unicast for its sake ends.
    pub hold: Duration,
    /// A node whose program answers and whose adverts do not arrive for so long.
    pub missing: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { patience: Duration::from_secs(1), hold: Duration::from_secs(5), missing: Duration::from_secs(10) }
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
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        (node.any, node.speaker) = (now, Speaker::Runs);
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
            let silent = now.since(node.multicast) >= config.patience;
            let not_received = now.since(node.received_us) >= config.patience;
            let requested = node.unicast.is_some_and(|at| now.since(at) < config.hold);
            // Without multicast of it either, that is reason enough, and ends when it arrives again.
            node.one_way = !silent && (not_received || node.one_way && requested);
            let send = node.up && (silent || node.one_way);
            if core::mem::replace(&mut node.sending, send) != send {
                actions.push(if send { Action::Start(name.clone()) } else { Action::Stop(name.clone()) });
            }
            let filtered = send && node.unicast.is_some_and(|at| now.since(at) < config.patience);
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
            Event::Received { node, multicast, receives_us } => {
                self.received(&node, multicast, receives_us, now, actions)
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
mod tests {
    use super::*;

    fn name(node: &str) -> NodeName {
        NodeName::new(node).unwrap()
    }

    /// Two nodes whose adverts take the ways that are open.
    struct World {
        now: Instant,
        nodes: [Unicast; 2],
        /// Whether multicast of this node reaches the other.
        multicast: [bool; 2],
        unicast: bool,
        received: [Option<Instant>; 2],
        starts: usize,
        /// How often multicast was called filtered.
        filtered: usize,
        /// Whose speakers run.
        runs: [bool; 2],
    }

    impl World {
        fn new() -> Self {
            let now = Instant::from_millis(1000);
            let node = |other: &str| {
                let mut node = Unicast::new(Config::default());
                node.handle(Event::Nodes([name(other)].into()), now, &mut Vec::new());
                node
            };
            World {
                now,
                nodes: [node("b"), node("a")],
                multicast: [true; 2],
                unicast: true,
                received: [None; 2],
                starts: 0,
                filtered: 0,
                runs: [true; 2],
            }
        }

        fn other(node: usize) -> NodeName {
            name(["b", "a"][node])
        }

        /// A heartbeat of each node every 50 ms.
        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                self.now += Duration::from_millis(50);
                for from in (0..2).filter(|node| self.runs[*node]) {
                    let to = 1 - from;
                    // Does the sender echo the receiver: has it received it lately?
                    let receives_us =
                        self.received[from].is_some_and(|at| self.now.since(at) < Duration::from_millis(150));
                    let sends = self.nodes[from].targets().next().is_some();
                    for multicast in [true, false] {
                        let arrives = if multicast { self.multicast[from] } else { sends && self.unicast };
                        if arrives && self.runs[to] {
                            self.received[to] = Some(self.now);
                            let event = Event::Received { node: Self::other(to), multicast, receives_us };
                            self.nodes[to].handle(event, self.now, &mut Vec::new());
                        }
                    }
                }
                for (node, _) in self.nodes.iter_mut().zip(self.runs).filter(|(_, runs)| *runs) {
                    let mut actions = Vec::new();
                    if node.next_deadline().is_some_and(|due| due <= self.now) {
                        node.handle(Event::Tick, self.now, &mut actions);
                    }
                    self.starts += actions.iter().filter(|action| matches!(action, Action::Start(_))).count();
                    self.filtered += actions.iter().filter(|action| matches!(action, Action::Filtered(_))).count();
                }
            }
        }

        fn sending(&self) -> [bool; 2] {
            [0, 1].map(|node| self.nodes[node].targets().next().is_some())
        }

        fn both_receive(&self) -> bool {
            self.received.iter().all(|at| at.is_some_and(|at| self.now.since(at) < Duration::from_millis(150)))
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn nothing_by_unicast_while_multicast_arrives() {
        let mut world = World::new();
        world.run(LONG);
        assert_eq!((world.sending(), world.starts), ([false; 2], 0));
    }

    #[test]
    fn filtered_multicast_is_replaced_and_taken_up_again() {
        let mut world = World::new();
        world.multicast = [false; 2];
        world.run(Duration::from_millis(1500));
        assert!(world.both_receive());
        world.run(LONG);
        assert_eq!((world.sending(), world.starts, world.filtered), ([true; 2], 2, 2), "no flapping, and said once");
        world.multicast = [true; 2];
        world.run(Duration::from_secs(7));
        assert_eq!(world.sending(), [false; 2]);
        assert!(world.both_receive());
    }

    #[test]
    fn one_direction_filtered() {
        let mut world = World::new();
        world.run(Duration::from_secs(5));
        world.multicast = [false, true];
        world.run(Duration::from_secs(3));
        assert!(world.both_receive());
        assert_eq!(world.sending(), [true; 2]);
        let starts = world.starts;
        world.run(LONG);
        assert!(world.both_receive());
        assert_eq!(world.starts, starts, "no flapping");
        world.multicast = [true; 2];
        world.run(Duration::from_secs(10));
        assert_eq!(world.sending(), [false; 2]);
    }

    /// Its speaker restarts: the filter is what it would be called, and there is none.
    #[test]
    fn a_speaker_that_does_not_run_is_no_filter() {
        let mut world = World::new();
        world.run(Duration::from_secs(5));
        world.runs[1] = false;
        world.run(Duration::from_secs(5));
        assert_eq!(world.sending(), [true, false]);
        world.runs[1] = true;
        world.nodes[1] = Unicast::new(Config::default());
        world.nodes[1].handle(Event::Nodes([name("a")].into()), world.now, &mut Vec::new());
        world.run(Duration::from_secs(7));
        assert_eq!((world.sending(), world.filtered), ([false; 2], 0));
    }

    /// The program answers, adverts take no way: named after ten seconds, until one arrives.
    #[test]
    fn adverts_that_never_arrive_are_named() {
        let mut world = World::new();
        (world.multicast, world.unicast) = ([false; 2], false);
        world.nodes[0].handle(Event::Program(name("b")), world.now, &mut Vec::new());
        world.run(Duration::from_secs(9));
        assert!(!world.nodes[0].receives_none());
        world.run(Duration::from_secs(2));
        assert_eq!(world.nodes[0].missing().collect::<Vec<_>>(), [&name("b")]);
        assert!(world.nodes[0].receives_none());
        assert!(!world.nodes[1].receives_none(), "no program answers: there may be no node");
        world.unicast = true;
        world.run(Duration::from_secs(1));
        assert!(!world.nodes[0].receives_none());
    }

    /// Of node `a`, whose peers' programs answer: nodes whose adverts are missing, and whether it receives none.
    struct Peers {
        now: Instant,
        unicast: Unicast,
    }

    impl Peers {
        fn new(peers: &[&str]) -> Self {
            let (now, mut unicast) = (Instant::from_millis(1000), Unicast::new(Config::default()));
            let nodes = peers.iter().map(|peer| name(peer)).collect();
            unicast.handle(Event::Nodes(nodes), now, &mut Vec::new());
            let programs = peers.iter().map(|peer| Event::Program(name(peer)));
            programs.for_each(|event| unicast.handle(event, now, &mut Vec::new()));
            Self { now, unicast }
        }

        /// For so many seconds these are received.
        fn run(&mut self, seconds: u32, received: &[&str]) {
            for _ in 0..seconds * 4 {
                self.now += TURN;
                for peer in received {
                    let event = Event::Received { node: name(peer), multicast: true, receives_us: true };
                    self.unicast.handle(event, self.now, &mut Vec::new());
                }
                self.unicast.handle(Event::Tick, self.now, &mut Vec::new());
            }
        }

        fn silent(&mut self, peer: &str, left: bool) {
            self.unicast.handle(Event::Silent { node: name(peer), left }, self.now, &mut Vec::new());
        }

        fn seen(&self) -> (Vec<&str>, bool) {
            (self.unicast.missing().map(NodeName::as_str).collect(), self.unicast.receives_none())
        }
    }

    /// Its program answers on, and the other nodes do not receive it either.
    #[test]
    fn adverts_of_a_dead_speaker_are_not_missing() {
        for left in [false, true] {
            let mut peers = Peers::new(&["b", "c"]);
            peers.run(5, &["b", "c"]);
            peers.silent("b", left);
            peers.run(60, &["c"]);
            assert_eq!(peers.seen(), (alloc::vec![], false));
            // It is back; then this node does not receive it, and another one does.
            peers.run(5, &["b", "c"]);
            peers.run(60, &["c"]);
            assert_eq!(peers.seen(), (alloc::vec!["b"], false));
            // That one ceases to receive it as well: then it is its speaker.
            peers.silent("b", left);
            peers.run(1, &["c"]);
            assert_eq!(peers.seen(), (alloc::vec![], false));
        }
    }

    /// One that was never received may be filtered; and where none is received any more, all are.
    #[test]
    fn adverts_are_missing_where_it_cannot_be_the_speaker_or_is_not_known_to_be() {
        let mut peers = Peers::new(&["b", "c"]);
        peers.run(11, &["c"]);
        assert_eq!(peers.seen(), (alloc::vec!["b"], false));
        peers.silent("c", false);
        peers.run(11, &[]);
        assert_eq!(peers.seen(), (alloc::vec!["b", "c"], true));
        // Of two nodes the other one ends in order, or not.
        for (left, missing) in [(true, (alloc::vec![], false)), (false, (alloc::vec!["b"], true))] {
            let mut two = Peers::new(&["b"]);
            two.run(5, &["b"]);
            two.silent("b", left);
            two.run(11, &[]);
            assert_eq!(two.seen(), missing);
        }
    }

    #[test]
    fn nothing_is_sent_to_a_node_that_is_down() {
        let mut world = World::new();
        world.multicast = [false; 2];
        world.nodes[0].handle(Event::Down(name("b")), world.now, &mut Vec::new());
        world.run(Duration::from_secs(5));
        assert_eq!(world.sending(), [false, true]);
    }
}
