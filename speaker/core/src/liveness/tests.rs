//! A virtual cluster of kernels and speakers, with explicit times.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use super::*;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn name(node: usize) -> NodeName {
    NodeName::new(&format!("node-{node}")).unwrap()
}

struct Lab {
    now: Instant,
    machine: Liveness,
    sending: BTreeSet<usize>,
    answers: BTreeSet<usize>,
    /// Milliseconds since the last `mark`, and what was done, but for probes.
    log: Vec<(u64, Action)>,
    probes: BTreeMap<NodeName, usize>,
    /// Of these, those by broadcast.
    searches: usize,
    marked: Instant,
}

impl Lab {
    fn new(nodes: usize) -> Self {
        let now = Instant::from_millis(1000);
        let (sending, answers) = ((0..nodes).collect(), (0..nodes).collect());
        let machine = Liveness::new(Config::new(1));
        let mut lab =
            Self { now, machine, sending, answers, log: vec![], probes: BTreeMap::new(), searches: 0, marked: now };
        lab.event(Event::Nodes((0..nodes).map(name).collect()));
        lab.run(ms(1000));
        assert_eq!(lab.log, []);
        lab.mark();
        lab
    }

    fn mark(&mut self) {
        self.marked = self.now;
        self.log.clear();
        self.probes.clear();
        self.searches = 0;
    }

    fn event(&mut self, event: Event) {
        let mut actions = vec![];
        self.machine.handle(event, self.now, &mut actions);
        for action in actions {
            self.searches += usize::from(matches!(action, Action::Search(_)));
            match action {
                Action::Probe(node) | Action::Search(node) => {
                    *self.probes.entry(node.clone()).or_default() += 1;
                    if self.answers.iter().any(|answers| name(*answers) == node) {
                        self.event(Event::ProbeReply(node));
                    }
                }
                action => self.log.push((self.now.since(self.marked).as_millis() as u64, action)),
            }
        }
    }

    /// Node n sends at 7 n ms after each full interval.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += ms(1);
            let at = self.now.as_nanos() / 1_000_000 % 50;
            for node in self.sending.clone() {
                if at == 7 * node as u64 % 50 {
                    self.event(Event::Heartbeat(name(node)));
                }
            }
            if self.machine.next_deadline().is_some_and(|due| due <= self.now) {
                self.event(Event::Tick);
            }
        }
    }

    fn lose(&mut self, node: usize) {
        self.sending.remove(&node);
        self.answers.remove(&node);
    }

    fn gain(&mut self, node: usize) {
        self.sending.insert(node);
        self.answers.insert(node);
    }
}

#[test]
fn heartbeats_make_questions_needless() {
    let mut lab = Lab::new(3);
    lab.run(ms(5000));
    assert_eq!(lab.probes, BTreeMap::new());
    assert_eq!(lab.log, []);
}

#[test]
fn a_dead_speaker_is_not_a_dead_node() {
    let mut lab = Lab::new(3);
    lab.sending.remove(&1);
    lab.run(ms(5000));
    assert_eq!((&lab.log[..], lab.searches), (&[][..], 0));
    assert!((45..60).contains(&lab.probes[&name(1)]), "{:?}", lab.probes);
    lab.mark();
    lab.lose(1);
    lab.run(ms(1000));
    assert_eq!(lab.log.len(), 1);
    assert!(lab.log[0].0 <= 300 && lab.log[0].1 == Action::NodeDown(name(1)), "{:?}", lab.log);
}

#[test]
fn a_dead_node_is_down_after_the_dead_interval() {
    let mut lab = Lab::new(3);
    lab.lose(1);
    lab.run(ms(1000));
    assert_eq!(lab.log.len(), 1);
    assert!((100..=160).contains(&lab.log[0].0) && lab.log[0].1 == Action::NodeDown(name(1)), "{:?}", lab.log);
    assert!(!lab.machine.is_up(&name(1)));
    lab.mark();
    lab.gain(1);
    lab.run(ms(100));
    assert_eq!(lab.log.len(), 1);
    assert_eq!(lab.log[0].1, Action::NodeUp(name(1)));
}

/// The kernel is back before the speaker: two answers make it up, at the latest when its back-off ends.
#[test]
fn a_node_returns_without_speaker() {
    for (gone, bound) in [(200, 250), (1000, 1000), (200_000, 30_100)] {
        let mut lab = Lab::new(3);
        lab.lose(1);
        lab.run(ms(gone));
        lab.mark();
        lab.answers.insert(1);
        lab.run(ms(40_000));
        let [(after, Action::NodeUp(node))] = &lab.log[..] else { panic!("gone for {gone} ms: {:?}", lab.log) };
        assert!(*after >= 20 && *after <= bound && *node == name(1), "gone for {gone} ms: {:?}", lab.log);
    }
}

/// Its kernel is back and has something to send: it need not wait for the end of its back-off.
#[test]
fn a_frame_of_a_node_that_is_down_ends_its_back_off() {
    let mut lab = Lab::new(3);
    lab.lose(1);
    lab.run(ms(200_000));
    lab.mark();
    lab.answers.insert(1);
    lab.event(Event::Seen(name(1)));
    lab.run(ms(200));
    assert!(matches!(&lab.log[..], [(0..=130, Action::NodeUp(node))] if *node == name(1)), "{:?}", lab.log);
}

#[test]
fn a_frame_is_no_sign_of_life() {
    let mut lab = Lab::new(3);
    lab.lose(1);
    lab.run(ms(200_000));
    lab.mark();
    for _ in 0..1000 {
        lab.event(Event::Seen(name(1)));
        lab.run(ms(1));
    }
    assert_eq!(lab.log, []);
    assert!(lab.probes[&name(1)] <= 11, "a node that sends and never answers is probed every 100 ms: {:?}", lab.probes);
}

#[test]
fn a_node_that_is_down_is_probed_with_back_off() {
    let mut lab = Lab::new(3);
    lab.lose(1);
    lab.run(ms(1000));
    lab.mark();
    lab.run(ms(120_000));
    let probed = lab.probes[&name(1)];
    assert!(probed <= 12, "{:?}", lab.probes);
    assert!(lab.searches + 2 >= probed, "it may have another MAC address: {} of {probed} by broadcast", lab.searches);
}

/// Nor does a node of the view that was never there cost more while this node is cut off.
#[test]
fn a_node_that_was_never_there_is_probed_with_back_off_while_cut_off() {
    let mut lab = Lab::new(3);
    lab.event(Event::Nodes((0..4).map(name).collect()));
    (0..3).for_each(|node| lab.lose(node));
    lab.run(ms(1000));
    assert!(lab.machine.is_cut_off(), "{:?}", lab.log);
    lab.mark();
    lab.run(ms(120_000));
    assert!(lab.probes[&name(3)] <= 16, "{:?}", lab.probes);
    assert!(lab.probes[&name(0)] >= 1000, "the others end the cut: {:?}", lab.probes);
}

#[test]
fn all_gone_at_once_is_our_own_trouble() {
    let mut lab = Lab::new(3);
    (0..3).for_each(|node| lab.lose(node));
    lab.run(ms(1000));
    assert!(matches!(lab.log[..], [(100..=300, Action::CutOff)]), "{:?}", lab.log);
    assert!((0..3).all(|node| lab.machine.is_up(&name(node))) && lab.machine.is_cut_off());
    // Two come back, the third does not.
    lab.mark();
    lab.gain(0);
    lab.gain(1);
    lab.run(ms(1000));
    assert_eq!(lab.log[0].1, Action::Restored);
    assert!(matches!(&lab.log[1..], [(150..=350, Action::NodeDown(node))] if *node == name(2)), "{:?}", lab.log);
}

/// One node had been silent a little longer when the link went: still one event.
#[test]
fn what_looked_like_one_death_was_the_beginning_of_it() {
    let mut lab = Lab::new(3);
    lab.lose(2);
    lab.run(ms(110));
    lab.lose(0);
    lab.lose(1);
    lab.run(ms(1000));
    let actions: Vec<_> = lab.log.iter().map(|(_, action)| action.clone()).collect();
    assert_eq!(actions.iter().filter(|action| **action == Action::CutOff).count(), 1, "{:?}", lab.log);
    assert!((0..3).all(|node| lab.machine.is_up(&name(node))), "{:?}", lab.log);
}

#[test]
fn one_after_the_other_are_deaths() {
    let mut lab = Lab::new(2);
    lab.lose(0);
    lab.run(ms(1000));
    lab.lose(1);
    lab.run(ms(1000));
    assert!(matches!(lab.log[..], [(_, Action::NodeDown(_)), (_, Action::NodeDown(_))]), "{:?}", lab.log);
}

/// With one peer the two cases look the same; its loss is its death, unless the link is down.
#[test]
fn the_only_peer() {
    let mut lab = Lab::new(1);
    lab.lose(0);
    lab.run(ms(500));
    assert!(matches!(lab.log[..], [(_, Action::NodeDown(_))]));
    lab.gain(0);
    lab.run(ms(500));
    lab.mark();
    lab.lose(0);
    lab.event(Event::Carrier(false));
    lab.run(ms(500));
    assert_eq!(lab.log, [(0, Action::CutOff)]);
    lab.event(Event::Carrier(true));
    lab.gain(0);
    lab.run(ms(500));
    assert!(matches!(lab.log[1..], [(500..=560, Action::Restored)]), "{:?}", lab.log);
}

#[test]
fn nodes_without_speaker() {
    let mut lab = Lab::new(3);
    lab.sending.clear();
    lab.run(ms(70_000));
    lab.mark();
    lab.run(ms(10_000));
    assert!(lab.probes.values().all(|count| (9..=11).contains(count)), "{:?}", lab.probes);
    lab.mark();
    lab.lose(1);
    lab.run(ms(2000));
    assert!(matches!(&lab.log[..], [(150..=1200, Action::NodeDown(node))] if *node == name(1)), "{:?}", lab.log);
}

/// This node slept; no node died meanwhile.
#[test]
fn frozen() {
    let mut lab = Lab::new(3);
    lab.now += ms(5000);
    lab.event(Event::Tick);
    lab.run(ms(2000));
    assert_eq!(lab.log, []);
}

#[test]
fn a_node_that_leaves_the_cluster_is_forgotten() {
    let mut lab = Lab::new(3);
    lab.lose(2);
    lab.event(Event::Nodes([name(0), name(1)].into()));
    lab.run(ms(1000));
    assert_eq!(lab.log, []);
    assert!(!lab.machine.is_up(&name(2)));
}

/// What a heartbeat costs must not grow with the number of nodes: it leaves the deadline alone, which is computed with a tick.
#[test]
fn a_heartbeat_among_many_nodes_computes_no_deadline() {
    let (mut machine, mut now) = (Liveness::new(Config::new(1)), Instant::from_millis(1000));
    let names: Vec<NodeName> = (0..MAX_WATCHED).map(name).collect();
    let mut actions = vec![];
    machine.handle(Event::Nodes(names.iter().cloned().collect()), now, &mut actions);
    // The first heartbeats replace the probes of new nodes.
    names.iter().for_each(|name| machine.handle(Event::Heartbeat(name.clone()), now, &mut actions));
    machine.handle(Event::Tick, now, &mut actions);
    assert_eq!(actions, []);
    let mut ticks = 0;
    for _ in 0..20 {
        for sender in &names {
            now += ms(50) / names.len() as u32;
            let due = machine.next_deadline();
            machine.handle(Event::Heartbeat(sender.clone()), now, &mut actions);
            assert_eq!(machine.next_deadline(), due);
            if due.is_some_and(|due| due <= now) {
                machine.handle(Event::Tick, now, &mut actions);
                ticks += 1;
            }
        }
    }
    assert_eq!(actions, []);
    assert!((1..=50).contains(&ticks), "{ticks} in a second");
}
