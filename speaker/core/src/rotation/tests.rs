//! A few nodes with a network in between: each sends a heartbeat every 50 ms, signed as its machine decides.

use alloc::{format, vec};

use proptest::prelude::*;

use super::*;

const BEAT: Duration = Duration::from_millis(50);
const DEAD: Duration = Duration::from_millis(160);

fn key(byte: u8) -> Key {
    Key::new([byte; 32])
}

fn secret(current: u8, previous: Option<u8>) -> Secret {
    Secret { current: key(current), previous: previous.map(key) }
}

fn name(node: usize) -> NodeName {
    NodeName::new(&format!("n{node}")).expect("a name")
}

struct Node {
    /// `None` while it is off.
    machine: Option<Rotation>,
    on_since: Instant,
    /// What is on its disk.
    ring: Keyring,
    secret: Secret,
    lacking: BTreeSet<NodeName>,
    signed_with: Vec<Key>,
}

struct Cluster {
    now: Instant,
    nodes: Vec<Node>,
    /// (sender, receiver) → heartbeats in a row that the receiver could not verify.
    lost: BTreeMap<(usize, usize), u32>,
    most_lost: u32,
}

impl Cluster {
    /// Running for long, with one key.
    fn new(count: usize) -> Self {
        let now = Instant::from_millis(1_000_000);
        let nodes = (0..count).map(|_| Node {
            machine: Some(Rotation::new(Config::new(DEAD), secret(1, None), None, now)),
            on_since: now,
            ring: Keyring { current: key(1), other: None },
            secret: secret(1, None),
            lacking: BTreeSet::new(),
            signed_with: vec![key(1)],
        });
        Self { now, nodes: nodes.collect(), lost: BTreeMap::new(), most_lost: 0 }
    }

    fn event(&mut self, node: usize, event: Event) {
        let node = &mut self.nodes[node];
        let Some(machine) = &mut node.machine else { return };
        let mut actions = Vec::new();
        machine.handle(event, self.now, &mut actions);
        for action in actions {
            match action {
                Action::Keys(ring) => {
                    assert_eq!(ring, machine.ring());
                    if node.signed_with.last() != Some(&ring.current) {
                        node.signed_with.push(ring.current.clone());
                    }
                    node.ring = ring;
                }
                Action::Lacking(nodes) => node.lacking = nodes,
            }
        }
    }

    fn notice(&mut self, node: usize, secret: Secret) {
        // On disk before it is used.
        self.nodes[node].secret = secret.clone();
        self.event(node, Event::Secret(secret));
    }

    fn off(&mut self, node: usize) {
        self.nodes[node].machine = None;
        self.lost.retain(|(from, to), _| *from != node && *to != node);
    }

    fn on(&mut self, node: usize) {
        let Node { ring, secret, .. } = &self.nodes[node];
        let machine = Rotation::new(Config::new(DEAD), secret.clone(), Some(ring.clone()), self.now);
        self.nodes[node].machine = Some(machine);
        self.nodes[node].on_since = self.now;
    }

    /// The heartbeats of all, then what is due.
    fn beat(&mut self) {
        self.now += BEAT;
        for from in 0..self.nodes.len() {
            let Some(ring) = self.nodes[from].machine.as_ref().map(Rotation::ring) else { continue };
            for to in 0..self.nodes.len() {
                if to != from && self.nodes[to].machine.is_some() {
                    self.deliver(from, &ring, to);
                }
            }
        }
        for node in 0..self.nodes.len() {
            let deadline = self.nodes[node].machine.as_ref().and_then(Rotation::next_deadline);
            if deadline.is_some_and(|deadline| deadline <= self.now) {
                self.event(node, Event::Tick);
                let after = self.nodes[node].machine.as_ref().and_then(Rotation::next_deadline);
                assert!(after.is_none_or(|after| after > self.now), "a deadline that stays");
            }
        }
    }

    fn deliver(&mut self, from: usize, ring: &Keyring, to: usize) {
        let Some(receiver) = &self.nodes[to].machine else { return };
        let mut bytes = vec![1, 2, 3];
        ring.seal(&mut bytes);
        let (signed, mac) = bytes.split_at(3);
        let lost = self.lost.entry((from, to)).or_default();
        match receiver.ring().verify(ring.current.id, signed, mac) {
            Ok(signer) => {
                *lost = 0;
                if receiver.has_two_keys() {
                    self.event(
                        to,
                        Event::Received { node: name(from), signer, other_hint: ring.other_hint(), dead: None },
                    );
                }
            }
            Err(_) => {
                *lost += 1;
                self.most_lost = self.most_lost.max(*lost);
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.beat();
        }
    }

    fn all_sign_with(&self, byte: u8) -> bool {
        self.nodes.iter().all(|node| node.ring.current == key(byte))
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_rotation_in_one_step() {
    let mut cluster = Cluster::new(3);
    for node in 0..3 {
        cluster.notice(node, secret(2, Some(1)));
        cluster.run(seconds(1));
        assert!(cluster.all_sign_with(1), "not before all have it");
    }
    cluster.run(seconds(2));
    assert!(cluster.all_sign_with(2));
    for node in 0..3 {
        cluster.notice(node, secret(2, None));
        cluster.run(seconds(1));
    }
    cluster.run(seconds(3));
    assert_eq!(cluster.nodes[0].ring, Keyring { current: key(2), other: None });
    assert_eq!(cluster.most_lost, 0);
}

/// It is named, no node signs with a key that it lacks, and the key is taken into use once it has noticed.
#[test]
fn one_node_notices_an_hour_later() {
    let mut cluster = Cluster::new(3);
    cluster.notice(0, secret(2, Some(1)));
    cluster.notice(1, secret(2, Some(1)));
    cluster.run(seconds(3600));
    assert!(cluster.all_sign_with(1));
    assert_eq!(cluster.nodes[0].lacking, [name(2)].into());
    cluster.notice(2, secret(2, Some(1)));
    cluster.run(seconds(3));
    assert!(cluster.all_sign_with(2) && cluster.nodes[0].lacking.is_empty());
    assert_eq!(cluster.most_lost, 0);
}

/// A node was off during the whole rotation and comes back without an API server: the others sign with its key again.
#[test]
fn a_node_comes_back_with_the_previous_key() {
    let mut cluster = Cluster::new(3);
    cluster.off(2);
    cluster.notice(0, secret(2, Some(1)));
    cluster.notice(1, secret(2, Some(1)));
    cluster.run(seconds(5));
    assert_eq!(cluster.nodes[0].ring.current, key(2));
    cluster.on(2);
    cluster.run(seconds(60));
    assert!(cluster.all_sign_with(1));
    assert!(cluster.most_lost <= 1, "{}: it listens for a dead interval first", cluster.most_lost);
    assert_eq!(cluster.nodes[0].signed_with, [key(1), key(2), key(1)], "back once, no flapping");
    cluster.notice(2, secret(2, Some(1)));
    cluster.run(seconds(3));
    assert!(cluster.all_sign_with(2));
}

/// The Secret names only the new key: the old one is accepted until no node signs with it, and not beyond the time of revocation.
#[test]
fn the_old_key_is_not_in_the_secret() {
    let mut cluster = Cluster::new(3);
    for node in 0..3 {
        cluster.notice(node, secret(2, None));
        cluster.run(seconds(20));
    }
    cluster.run(seconds(10));
    assert!(cluster.all_sign_with(2));
    assert_eq!((cluster.nodes[0].ring.other.clone(), cluster.most_lost), (None, 0));

    let mut cluster = Cluster::new(3);
    cluster.notice(0, secret(2, None));
    cluster.notice(1, secret(2, None));
    cluster.run(seconds(590));
    assert!(cluster.all_sign_with(1), "for the sake of the third");
    cluster.run(seconds(20));
    assert_eq!(cluster.nodes[0].ring, Keyring { current: key(2), other: None }, "a stolen key ends");
}

/// A new node has the Secret and no disk. Whatever the others sign with, it is understood from its first heartbeat.
#[test]
fn a_new_node_begins_with_the_previous_key() {
    for noticed in [vec![0], vec![0, 1], vec![0, 1, 2]] {
        let mut cluster = Cluster::new(4);
        cluster.off(3);
        for node in noticed {
            cluster.notice(node, secret(2, Some(1)));
        }
        cluster.run(seconds(5));
        cluster.nodes[3].machine = Some(Rotation::new(Config::new(DEAD), secret(2, Some(1)), None, cluster.now));
        cluster.run(seconds(1));
        assert_eq!(cluster.most_lost, 0);
    }
}

/// A second rotation before some node has noticed the first: it passes through the previous key.
#[test]
fn two_rotations_one_missed() {
    let mut cluster = Cluster::new(3);
    cluster.notice(0, secret(2, Some(1)));
    cluster.notice(1, secret(2, Some(1)));
    cluster.run(seconds(10));
    for node in 0..3 {
        cluster.notice(node, secret(3, Some(2)));
        cluster.run(seconds(5));
    }
    cluster.run(seconds(10));
    assert!(cluster.all_sign_with(3));
    assert!(cluster.most_lost <= 1, "{}", cluster.most_lost);
}

/// What a node of an earlier version sends names no key at all.
#[test]
fn an_earlier_version_counts_as_lacking() {
    let mut machine = Rotation::new(Config::new(DEAD), secret(1, None), None, Instant::ZERO);
    let mut actions = Vec::new();
    machine.handle(Event::Secret(secret(2, Some(1))), Instant::ZERO, &mut actions);
    for beat in 1..200 {
        let received = Event::Received { node: name(1), signer: Signer::Current, other_hint: 0, dead: None };
        machine.handle(received, Instant::ZERO + BEAT * beat, &mut actions);
    }
    assert_eq!(machine.ring().current, key(1));
    assert_eq!(actions[1..], [Action::Lacking([name(1)].into())]);
}

/// A slow peer that lacks the new key may not be received before the usual grace is over: it would take this node for dead.
#[test]
fn a_slow_peer_is_waited_for() {
    let slow = Duration::from_millis(3200);
    let start = Instant::from_millis(1000);
    for (heard, slowest) in [(false, Duration::ZERO), (false, slow), (true, Duration::ZERO)] {
        let mut machine = Rotation::new(Config::new(DEAD), secret(1, None), None, start);
        let mut actions = Vec::new();
        machine.handle(Event::Slowest(slowest), start, &mut actions);
        machine.handle(Event::Secret(secret(2, Some(1))), start, &mut actions);
        if heard {
            let has_it = key(2).hint();
            let received =
                Event::Received { node: name(1), signer: Signer::Current, other_hint: has_it, dead: Some(slow) };
            machine.handle(received, start, &mut actions);
        }
        let waits = machine.next_deadline().expect("it waits");
        let expected = if heard || slowest == slow { 6 * slow } else { seconds(2) };
        assert_eq!(waits.since(start), expected);
        machine.handle(Event::Tick, start + (expected - BEAT), &mut actions);
        assert_eq!(machine.ring().current, key(1));
        machine.handle(Event::Tick, waits, &mut actions);
        assert_eq!(machine.ring().current, key(2));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Any order of notice, restarts in between, one node late by a minute: two nodes that are up understand each other, but for one
    /// heartbeat after one of them came back, and in the end all sign with the new key.
    #[test]
    fn rotations_leave_no_advert_unverified(
        noticed in proptest::collection::vec(0u32..400, 4),
        late in 0usize..4,
        restarts in proptest::collection::vec((0usize..4, 0u32..1600, 1u32..120), 0..8),
    ) {
        let mut cluster = Cluster::new(4);
        let mut pending: Vec<Option<u32>> = noticed.into_iter().map(Some).collect();
        pending[late] = Some(1200);
        for beat in 0..2000 {
            for (node, from, length) in &restarts {
                if beat == *from {
                    cluster.off(*node);
                } else if beat == from + length && cluster.nodes[*node].machine.is_none() {
                    cluster.on(*node);
                }
            }
            for (node, pending) in pending.iter_mut().enumerate() {
                if pending.is_some_and(|at| at <= beat) && cluster.nodes[node].machine.is_some() {
                    *pending = None;
                    cluster.notice(node, secret(2, Some(1)));
                }
            }
            cluster.beat();
        }
        prop_assert!(cluster.most_lost <= 1, "{} heartbeats in a row", cluster.most_lost);
        prop_assert!(cluster.all_sign_with(2));
    }

    /// The same when the Secret was deleted and made anew with another key, as long as no node is late by the time of revocation.
    #[test]
    fn a_new_secret_leaves_no_advert_unverified(noticed in proptest::collection::vec(0u32..2000, 4)) {
        let mut cluster = Cluster::new(4);
        for beat in 0..2200 {
            for node in (0..4).filter(|node| noticed[*node] == beat) {
                cluster.notice(node, secret(2, None));
            }
            cluster.beat();
        }
        prop_assert!(cluster.most_lost <= 1, "{} heartbeats in a row", cluster.most_lost);
        prop_assert!(cluster.all_sign_with(2));
    }
}

/// 255 peers in the middle of a rotation, one of which lacks the new key: an advert that repeats the last one compares no peers.
#[test]
fn adverts_that_repeat_themselves_cost_no_more_with_more_peers() {
    let mut now = Instant::from_millis(1000);
    let mut rotation = Rotation::new(Config::new(DEAD), secret(1, None), None, now);
    rotation.handle(Event::Secret(secret(2, Some(1))), now, &mut Vec::new());
    assert!(rotation.has_two_keys());
    let (mut adverts, mut decided) = (0, 0);
    for _ in 0..100 {
        now += BEAT;
        for peer in 0..255 {
            let other_hint = if peer == 0 { 1 } else { key(2).hint() };
            let received = Event::Received { node: name(peer), signer: Signer::Current, other_hint, dead: None };
            rotation.handle(received, now, &mut Vec::new());
            adverts += 1;
        }
        if rotation.next_deadline().is_some_and(|at| at <= now) {
            rotation.handle(Event::Tick, now, &mut Vec::new());
            decided += 1;
        }
    }
    let per_advert = rotation.work() as f64 / f64::from(adverts);
    assert!(per_advert < 2.0, "{per_advert} peers are visited per advert");
    assert!((5..=30).contains(&decided), "{decided}");
    assert!(rotation.is_under_way(), "one peer lacks the key");
}
