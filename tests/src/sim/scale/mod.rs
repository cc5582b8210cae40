//! Large clusters in which work takes time: does the election settle, how long are its turns, what does a node spend?
//!
//! The unit costs are a measurement (`costs`). Files: `node` (the loop on a processor of some speed) → this (links, faults, what is
//! counted). Read first: docs/election.md, Limits; bench/README.md, Scale.

mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use speaker_core::election::{Config, Eligible, Event};
use speaker_core::name::Vip;

use super::clock::Clock;
use super::costs::Costs;
use super::node::{config, name};
use super::random::Random;
use node::{Node, Seen};

/// Which loop and which costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    Now,
    /// As at commit f452a5a.
    Before,
}

#[derive(Clone, Debug)]
pub struct Shape {
    pub nodes: usize,
    pub vips: usize,
    /// How many times slower than the machine of the measurement.
    pub slow: u32,
    pub kind: Loop,
    /// Bytes of the receive buffer.
    pub buffer: usize,
    pub seed: u64,
}

impl Shape {
    pub fn now(nodes: usize, vips: usize) -> Self {
        Self { nodes, vips, slow: 1, kind: Loop::Now, buffer: 4 << 20, seed: 1 }
    }

    /// Linux' default receive buffer.
    pub fn before(nodes: usize, vips: usize) -> Self {
        Self { kind: Loop::Before, buffer: 212_992, ..Self::now(nodes, vips) }
    }
}

/// What became of a cluster after a fault.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// When every VIP had exactly one owner and kept it; `None`: not within the time of observation.
    pub settled: Option<Duration>,
    /// VIPs with one owner at the end.
    pub held: usize,
    /// The most VIPs that two nodes held at a time.
    pub doubled: usize,
    pub longest_turn: Duration,
    /// VIPs released as frozen: no fault here freezes a node.
    pub frozen: u64,
    /// Datagrams for which there was no room.
    pub dropped: u64,
    /// The busiest node: its share of a processor, and bytes a second in and out.
    pub busy: f64,
    pub received: f64,
    pub sent: f64,
}

pub struct Cluster {
    shape: Shape,
    random: Random,
    config: Config,
    nodes: Vec<Node>,
    /// The next event of each node that has one.
    queue: BTreeSet<(Duration, usize)>,
    at: Vec<Option<Duration>>,
    now: Duration,
    order: u64,
    /// Nodes of different sides do not receive each other.
    side: Vec<bool>,
    watched: Watched,
}

#[derive(Debug, Default)]
struct Watched {
    unsettled: Option<Duration>,
    doubled: usize,
    held: usize,
}

const DELAY: std::ops::Range<Duration> = Duration::from_micros(50)..Duration::from_micros(400);
/// Between two checks of which node holds what.
const LOOK: Duration = Duration::from_millis(10);
/// It must stay in order for so long.
const STAY: Duration = Duration::from_secs(1);

impl Cluster {
    pub fn new(shape: Shape) -> Self {
        let mut random = Random::new(shape.seed);
        let config = config(random.word());
        let costs = Rc::new(if shape.kind == Loop::Before { Costs::before() } else { Costs::now() });
        let nodes = (0..shape.nodes)
            .map(|node| {
                Node::new(
                    Config { node: name(node), ..config.clone() },
                    Clock::new(&mut random),
                    costs.clone(),
                    shape.slow,
                    &shape,
                )
            })
            .collect();
        Self {
            random,
            config,
            nodes,
            queue: BTreeSet::new(),
            at: vec![None; shape.nodes],
            now: Duration::ZERO,
            order: 0,
            side: vec![false; shape.nodes],
            watched: Watched::default(),
            shape,
        }
    }

    /// The speakers of these nodes start within an interval.
    pub fn start(&mut self, nodes: std::ops::Range<usize>) {
        let mut starts: Vec<(Duration, usize)> = nodes
            .map(|node| (self.now + self.random.duration(Duration::ZERO..Duration::from_millis(50)), node))
            .collect();
        starts.sort();
        for (at, node) in starts {
            self.advance(at);
            let seed = self.random.word();
            let config = Config { node: name(node), epoch: 1000, seed, ..self.config.clone() };
            let desired: BTreeMap<Vip, Eligible> =
                (0..self.shape.vips).map(|index| (vip(index), Eligible::All)).collect();
            self.nodes[node].start(config, Event::Desired(desired), at);
            self.transmit(node);
            self.schedule(node);
        }
    }

    /// The node with most VIPs loses power; how many it had.
    pub fn kill_largest_owner(&mut self) -> usize {
        let held = |node: &Node| if node.around.running { node.around.own.len() } else { 0 };
        let largest = (0..self.nodes.len()).max_by_key(|node| held(&self.nodes[*node])).expect("there are nodes");
        let had = held(&self.nodes[largest]);
        self.nodes[largest].around.running = false;
        self.schedule(largest);
        had
    }

    /// Every second node is cut off from the others, or is not any more.
    pub fn partition(&mut self, cut: bool) {
        self.side.iter_mut().enumerate().for_each(|(node, side)| *side = cut && node % 2 == 1);
    }

    /// Watches until all is in order and stays so, at most for `limit`.
    pub fn settle(&mut self, limit: Duration) -> Outcome {
        let before: Vec<Seen> = self.nodes.iter().map(|node| node.around.seen).collect();
        for node in &mut self.nodes {
            node.around.seen.longest_turn = Duration::ZERO;
        }
        let start = self.now;
        self.watched = Watched { unsettled: Some(start), ..Watched::default() };
        while self.now < start + limit {
            self.advance(self.now + LOOK);
            self.look();
            if self.watched.unsettled.is_none_or(|at| self.now >= at + STAY) {
                break;
            }
        }
        self.outcome(start, &before)
    }

    fn outcome(&self, start: Duration, before: &[Seen]) -> Outcome {
        let took = (self.now - start).as_secs_f64();
        let last = self.watched.unsettled.unwrap_or(start);
        let mut outcome = Outcome {
            settled: (self.now >= last + STAY).then_some(last - start),
            held: self.watched.held,
            doubled: self.watched.doubled,
            ..Outcome::default()
        };
        for (node, before) in self.nodes.iter().zip(before) {
            let seen = node.around.seen;
            outcome.longest_turn = outcome.longest_turn.max(seen.longest_turn);
            outcome.frozen += seen.frozen - before.frozen;
            outcome.dropped += seen.dropped - before.dropped;
            let per_second = |after: u64, before: u64| (after - before) as f64 / took;
            outcome.busy = outcome.busy.max((seen.busy - before.busy).as_secs_f64() / took);
            outcome.received = outcome.received.max(per_second(seen.received_bytes, before.received_bytes));
            outcome.sent = outcome.sent.max(per_second(seen.sent_bytes, before.sent_bytes));
        }
        outcome
    }

    /// Which node holds what now. On a processor of its own a turn may be ahead of the others by its length, no more.
    fn look(&mut self) {
        let mut holders: BTreeMap<Vip, usize> = BTreeMap::new();
        for node in &self.nodes {
            for vip in node.around.own.iter().filter(|vip| node.holds(**vip, self.now)) {
                *holders.entry(*vip).or_default() += 1;
            }
        }
        self.watched.held = holders.values().filter(|count| **count == 1).count();
        let doubled = holders.values().filter(|count| **count > 1).count();
        self.watched.doubled = self.watched.doubled.max(doubled);
        if self.watched.held != self.shape.vips || !self.agree() {
            self.watched.unsettled = Some(self.now);
        }
    }

    /// All nodes that run name the same owners.
    fn agree(&self) -> bool {
        let mut owners: Vec<Option<&speaker_core::name::NodeName>> = vec![None; self.shape.vips];
        for node in self.nodes.iter().filter(|node| node.around.running) {
            for held in &node.around.own {
                owners[index(*held)] = Some(node.election.node());
            }
        }
        self.nodes.iter().filter(|node| node.around.running).all(|node| {
            (0..self.shape.vips).all(|at| node.election.owner(vip(at)).map(|owner| &owner.node) == owners[at])
        })
    }

    fn advance(&mut self, end: Duration) {
        while let Some((at, node)) = self.queue.first().copied().filter(|(at, _)| *at <= end) {
            self.now = self.now.max(at);
            self.nodes[node].run(self.now, self.shape.kind, self.shape.vips);
            self.transmit(node);
            self.schedule(node);
        }
        self.now = self.now.max(end);
    }

    pub fn advance_by(&mut self, time: Duration) {
        self.advance(self.now + time);
    }

    /// What the turn has sent is under way to all others.
    fn transmit(&mut self, from: usize) {
        for (at, datagram) in std::mem::take(&mut self.nodes[from].around.sent) {
            for to in 0..self.nodes.len() {
                if to == from || !self.nodes[to].around.running || self.side[to] != self.side[from] {
                    continue;
                }
                self.order += 1;
                let arrives = at + self.random.duration(DELAY);
                self.nodes[to].around.arrive(arrives, self.order, datagram.clone());
                if self.at[to].is_none_or(|known| arrives < known) {
                    self.schedule(to);
                }
            }
        }
    }

    fn schedule(&mut self, node: usize) {
        if let Some(at) = self.at[node].take() {
            self.queue.remove(&(at, node));
        }
        self.at[node] = self.nodes[node].next();
        if let Some(at) = self.at[node] {
            self.queue.insert((at, node));
        }
    }
}

fn vip(index: usize) -> Vip {
    Vip((0x0a00_0001 + index as u32).into())
}

fn index(vip: Vip) -> usize {
    (u32::from(vip.0) - 0x0a00_0001) as usize
}
