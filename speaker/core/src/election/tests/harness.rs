//! A small cluster on a virtual clock: links that can be cut one way, nodes that crash, freeze and restart.

use alloc::collections::BTreeMap;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::super::*;
use crate::name::{NodeName, Term};
use crate::time::{Duration, Instant};
use crate::wire::advert::{Advert, Body, Key, Keyring};
use crate::wire::pace::Pace;

pub const LATENCY: Duration = Duration::from_micros(200);

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn vip(last: u8) -> Vip {
    Vip([192, 0, 2, last].into())
}

pub fn name(node: usize) -> NodeName {
    NodeName::new(&format!("node-{node}")).unwrap()
}

pub fn keyring() -> Keyring {
    Keyring { current: Key { id: 1, secret: [7; 32] }, other: None }
}

pub fn config(node: usize, epoch: u64) -> Config {
    Config::new(name(node), 1, epoch, keyring(), 99 + node as u64)
}

fn paced(node: usize, epoch: u64, pace: Pace) -> Config {
    config(node, epoch).at_pace(pace.interval, pace.dead_intervals)
}

pub struct Node {
    pub election: Election,
    pub running: bool,
    pub frozen: bool,
    /// Since when.
    slept: Instant,
    pub own: BTreeMap<Vip, Term>,
    pub lease: Instant,
    inbox: Vec<Vec<u8>>,
}

pub struct Cluster {
    pub now: Instant,
    pub nodes: Vec<Node>,
    /// Directed links that are cut.
    pub cut: BTreeSet<(usize, usize)>,
    /// Everything but `Send`, `RenewLease` and `Received`: when, which node, what.
    pub log: Vec<(u64, usize, Action)>,
    /// Every datagram that was sent: when, by which node.
    pub sent: Vec<(Instant, usize, Vec<u8>)>,
    pub desired: BTreeMap<Vip, Eligible>,
    queue: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    counter: u64,
    /// Nodes of an earlier version, which knows of no pace.
    earlier: BTreeSet<usize>,
}

impl Cluster {
    /// Nodes that start together, ready, with the VIPs 192.0.2.1 to .`vips` desired. Time starts at one second.
    pub fn new(nodes: usize, vips: u8) -> Self {
        let start = Instant::from_millis(1000);
        let mut cluster = Self {
            now: start,
            nodes: Vec::new(),
            cut: BTreeSet::new(),
            log: Vec::new(),
            sent: Vec::new(),
            desired: (1..=vips).map(|last| (vip(last), Eligible::All)).collect(),
            queue: BTreeMap::new(),
            counter: 0,
            earlier: BTreeSet::new(),
        };
        for node in 0..nodes {
            let election = Election::new(config(node, 100), start);
            let (own, inbox) = (BTreeMap::new(), Vec::new());
            cluster.nodes.push(Node { election, running: true, frozen: false, slept: start, own, lease: start, inbox });
            cluster.event(node, Event::Desired(cluster.desired.clone()));
            cluster.event(node, Event::Ready(true));
        }
        cluster
    }

    /// The same, each node with a pace of its own.
    pub fn paced(paces: &[Pace], vips: u8) -> Self {
        let mut cluster = Self::new(0, 0);
        for (node, pace) in paces.iter().enumerate() {
            let start = cluster.now;
            let election = Election::new(paced(node, 100, *pace), start);
            let (own, inbox) = (BTreeMap::new(), Vec::new());
            cluster.nodes.push(Node { election, running: true, frozen: false, slept: start, own, lease: start, inbox });
            cluster.begin(node);
        }
        // All are members before there is something to claim.
        let vips: Vec<u8> = (1..=vips).collect();
        cluster.run(ms(4000));
        cluster.desire(&vips, &(0..paces.len()).collect::<Vec<_>>());
        cluster.run(ms(4000));
        assert!(vips.iter().all(|last| cluster.holders(vip(*last)).len() == 1), "{:?}", cluster.log);
        cluster.log.clear();
        cluster
    }

    /// A new speaker that states its pace from its first datagram on.
    pub fn restart_at(&mut self, node: usize, epoch: u64, pace: Pace) {
        self.nodes[node].election = Election::new(paced(node, epoch, pace), self.now);
        self.nodes[node].running = true;
        self.nodes[node].own.clear();
        self.begin(node);
    }

    fn begin(&mut self, node: usize) {
        self.event(node, Event::OwnMac([2, 0, 0, 0, 0, node as u8]));
        self.event(node, Event::Desired(self.desired.clone()));
        self.event(node, Event::Ready(true));
    }

    /// A cluster in which all nodes are members and every VIP has an owner.
    pub fn settled(nodes: usize, vips: u8) -> Self {
        let mut cluster = Self::new(nodes, vips);
        cluster.run(ms(1000));
        assert!((1..=vips).all(|last| cluster.holders(vip(last)).len() == 1), "{:?}", cluster.log);
        cluster.log.clear();
        cluster
    }

    pub fn event(&mut self, node: usize, event: Event) {
        let mut actions = Vec::new();
        self.nodes[node].election.handle(event, self.now, &mut actions);
        for action in actions {
            match action {
                Action::Send(datagram) => self.send(node, datagram),
                Action::RenewLease { until } => self.nodes[node].lease = until,
                Action::Received { .. } => {}
                action => {
                    match &action {
                        Action::Acquire { vip, term } => drop(self.nodes[node].own.insert(*vip, *term)),
                        Action::Release { vip, .. } => drop(self.nodes[node].own.remove(vip)),
                        _ => {}
                    }
                    self.log.push((self.now.as_nanos() / 1_000_000, node, action));
                }
            }
        }
    }

    /// From now on it is of an earlier version.
    pub fn make_earlier(&mut self, node: usize) {
        self.earlier.insert(node);
    }

    fn send(&mut self, from: usize, datagram: Vec<u8>) {
        assert!(datagram.len() <= crate::wire::advert::MAX_DATAGRAM);
        self.sent.push((self.now, from, datagram.clone()));
        for to in (0..self.nodes.len()).filter(|to| *to != from) {
            if !self.cut.contains(&(from, to)) {
                let datagram = if self.is_earlier(from, to) { stateless(&datagram) } else { datagram.clone() };
                self.deliver(to, datagram, LATENCY);
            }
        }
    }

    /// One sends zeros there, or reads nothing.
    fn is_earlier(&self, from: usize, to: usize) -> bool {
        self.earlier.contains(&from) || self.earlier.contains(&to)
    }

    pub fn deliver(&mut self, to: usize, datagram: Vec<u8>, after: Duration) {
        self.counter += 1;
        self.queue.insert((self.now + after, self.counter), (to, datagram));
    }

    /// Loses what is under way to this node.
    pub fn queue_without(&mut self, node: usize) {
        self.queue.retain(|_, (to, _)| *to != node);
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let awake = |node: &&Node| node.running && !node.frozen;
            let tick = self.nodes.iter().filter(awake).filter_map(|node| node.election.next_deadline()).min();
            let datagram = self.queue.keys().next().map(|(at, _)| *at);
            let Some(next) = tick.into_iter().chain(datagram).min().filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let (to, datagram) = entry.remove();
                if self.nodes[to].frozen {
                    self.nodes[to].inbox.push(datagram);
                } else if self.nodes[to].running {
                    self.event(to, Event::Datagram(datagram));
                }
            }
            for node in 0..self.nodes.len() {
                let due = self.nodes[node].election.next_deadline().is_some_and(|at| at <= self.now);
                if due && awake(&&self.nodes[node]) {
                    self.event(node, Event::Tick);
                }
            }
        }
        self.now = end;
    }

    /// Until `done`, at most for `limit`; returns how long it took.
    pub fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        while !done(self) {
            assert!(self.now.since(start) < limit, "not within {limit:?}: {:#?}", self.log);
            self.run(ms(1));
        }
        self.now.since(start)
    }

    /// The nodes that would answer ARP for this VIP now.
    pub fn holders(&self, vip: Vip) -> Vec<usize> {
        let holds = |node: &Node| self.now < node.lease && node.own.contains_key(&vip);
        (0..self.nodes.len()).filter(|node| holds(&self.nodes[*node])).collect()
    }

    /// Of them those whose speakers run.
    pub fn owners_alive(&self, vip: Vip) -> usize {
        self.holders(vip).into_iter().filter(|node| self.nodes[*node].running).count()
    }

    pub fn owner(&self, vip: Vip) -> usize {
        let holders = self.holders(vip);
        assert_eq!(holders.len(), 1, "one owner of {vip}: {holders:?} {:#?}", self.log);
        holders[0]
    }

    pub fn others(&self, node: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|other| *other != node).collect()
    }

    pub fn cut_both(&mut self, a: usize, b: usize) {
        self.cut.extend([(a, b), (b, a)]);
    }

    pub fn isolate(&mut self, node: usize) {
        for other in self.others(node) {
            self.cut_both(node, other);
        }
    }

    /// The speaker is killed: the OWN map stays, the lease runs out.
    pub fn crash(&mut self, node: usize) {
        self.nodes[node].running = false;
    }

    /// A new speaker: the daemon empties OWN before anything else.
    pub fn restart(&mut self, node: usize, epoch: u64) {
        self.nodes[node].election = Election::new(config(node, epoch), self.now);
        self.nodes[node].running = true;
        self.nodes[node].own.clear();
        self.event(node, Event::Desired(self.desired.clone()));
        self.event(node, Event::Ready(true));
    }

    pub fn freeze(&mut self, node: usize) {
        self.nodes[node].frozen = true;
        self.nodes[node].slept = self.now;
    }

    /// The driver's loop goes on: what is pending first.
    pub fn thaw(&mut self, node: usize) {
        self.nodes[node].frozen = false;
        self.event(node, Event::Woke { stalled: self.now.since(self.nodes[node].slept) });
        for datagram in core::mem::take(&mut self.nodes[node].inbox) {
            self.event(node, Event::Datagram(datagram));
        }
        self.event(node, Event::Tick);
    }

    /// It was busy, not frozen: what is pending, then the tick.
    pub fn resume_from_work(&mut self, node: usize) {
        self.nodes[node].frozen = false;
        self.event(node, Event::Woke { stalled: Duration::ZERO });
        for datagram in core::mem::take(&mut self.nodes[node].inbox) {
            self.event(node, Event::Datagram(datagram));
        }
        self.event(node, Event::Tick);
    }

    pub fn desire(&mut self, vips: &[u8], nodes: &[usize]) {
        self.desired = vips.iter().map(|last| (vip(*last), Eligible::All)).collect();
        for node in nodes {
            self.event(*node, Event::Desired(self.desired.clone()));
        }
    }

    /// What the log has of one kind, as "node action".
    pub fn logged(&self, wanted: impl Fn(&Action) -> bool) -> Vec<String> {
        let wanted = self.log.iter().filter(|(_, _, action)| wanted(action));
        wanted.map(|(_, node, action)| format!("{node} {action:?}")).collect()
    }

    pub fn rejected(&self, node: usize) -> Vec<Reject> {
        let of = self.log.iter().filter(|(_, who, _)| *who == node);
        of.filter_map(|(_, _, action)| if let Action::Rejected { reason } = action { Some(*reason) } else { None })
            .collect()
    }

    pub fn acquired(&self) -> Vec<String> {
        self.logged(|action| matches!(action, Action::Acquire { .. }))
    }

    pub fn released(&self) -> Vec<String> {
        self.logged(|action| matches!(action, Action::Release { .. }))
    }
}

/// The same without a pace.
fn stateless(datagram: &[u8]) -> Vec<u8> {
    let mut advert = Advert::open(datagram, 1, &keyring()).unwrap();
    if let Body::Node { pace, .. } = &mut advert.body {
        *pace = None;
    }
    advert.seal(&keyring())
}

pub fn nothing() -> Vec<String> {
    vec![]
}
