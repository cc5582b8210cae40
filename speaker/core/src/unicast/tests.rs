//! Two nodes with ways between them that are open or filtered, and one node with peers.

use super::*;

fn name(node: &str) -> NodeName {
    NodeName::new(node).unwrap()
}

const DEAD: Duration = Duration::from_millis(160);

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
            let mut node = Unicast::new(Config::new(DEAD));
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
                let receives_us = self.received[from].is_some_and(|at| self.now.since(at) < Duration::from_millis(150));
                let sends = self.nodes[from].targets().next().is_some();
                for multicast in [true, false] {
                    let arrives = if multicast { self.multicast[from] } else { sends && self.unicast };
                    if arrives && self.runs[to] {
                        self.received[to] = Some(self.now);
                        let event = Event::Received { node: Self::other(to), multicast, receives_us, pace: None };
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

/// Heartbeats every second, of which some are lost, are no silence, whether the node states its pace or has that of this one; and a fast
/// node that has been silent for so long is sent unicast.
#[test]
fn a_slow_node_is_not_sent_unicast_for_its_pace() {
    let slow = Pace { interval: Duration::from_secs(1), dead_intervals: 3 };
    for (dead, pace) in [(DEAD, Some(slow)), (slow.dead(), None)] {
        let (mut now, mut unicast) = (Instant::from_millis(1000), Unicast::new(Config::new(dead)));
        unicast.handle(Event::Nodes(["b", "c"].map(name).into()), now, &mut Vec::new());
        let fast = Some(Pace { interval: Duration::from_millis(50), dead_intervals: 3 });
        for (node, pace) in [("b", pace), ("c", fast)] {
            let event = Event::Received { node: name(node), multicast: true, receives_us: true, pace };
            unicast.handle(event, now, &mut Vec::new());
        }
        let end = now + Duration::from_millis(2900);
        while now < end {
            now += TURN;
            unicast.handle(Event::Tick, now, &mut Vec::new());
            assert!(!unicast.targets().any(|target| *target == name("b")), "{now:?}");
        }
        assert_eq!(unicast.targets().collect::<Vec<_>>(), [&name("c")]);
        now += TURN * 2;
        unicast.handle(Event::Tick, now, &mut Vec::new());
        assert_eq!(unicast.targets().count(), 2, "three lost ones are silence");
    }
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
    world.nodes[1] = Unicast::new(Config::new(DEAD));
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
        let (now, mut unicast) = (Instant::from_millis(1000), Unicast::new(Config::new(DEAD)));
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
                let event = Event::Received { node: name(peer), multicast: true, receives_us: true, pace: None };
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
