//! Large clusters in which work takes time: does the election settle, how long are its turns, what does a node spend?
//!
//! The unit costs are a measurement (`costs`). Files: `node` (the loop on a processor of some speed) → this (links, faults) → `watched`
//! (what is counted) → `promise` (what is judged). Read first: docs/election.md, Limits; bench/README.md, Scale.

mod node;
pub mod promise;
mod watched;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use speaker_core::election::{Config, Eligible, Event};
use speaker_core::name::Vip;

use super::clock::Clock;
use super::costs::Costs;
use super::node::{config, name};
use super::random::Random;
use node::Node;
use watched::Watched;

pub use watched::Outcome;

/// Which loop and which costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    Now,
    /// The loop of commit f452a5a around today's `Election`, which is charged one decision over all VIPs and all peers, as measured at that
    /// commit, wherever f452a5a decided. The election of f452a5a itself is not run.
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

const DELAY: std::ops::Range<Duration> = Duration::from_micros(50)..Duration::from_micros(400);

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
            watched: Watched::new(shape.vips),
            shape,
        }
    }

    /// The speakers of these nodes start within an interval.
    pub fn start(&mut self, nodes: std::ops::Range<usize>) {
        self.begin();
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
            self.after_turn(node);
        }
    }

    /// The node with most VIPs loses power; how many it had.
    pub fn kill_largest_owner(&mut self) -> usize {
        let held = |node: &Node| if node.around.running { node.around.own.len() } else { 0 };
        let largest = (0..self.nodes.len()).max_by_key(|node| held(&self.nodes[*node])).expect("there are nodes");
        let had = held(&self.nodes[largest]);
        self.nodes[largest].around.running = false;
        self.begin();
        self.schedule(largest);
        had
    }

    /// Every second node is cut off from the others, or is not any more.
    pub fn partition(&mut self, cut: bool) {
        self.begin();
        self.side.iter_mut().enumerate().for_each(|(node, side)| *side = cut && node % 2 == 1);
    }

    fn advance(&mut self, end: Duration) {
        while let Some((at, node)) = self.queue.first().copied().filter(|(at, _)| *at <= end) {
            self.now = self.now.max(at);
            self.nodes[node].run(self.now, self.shape.kind, self.shape.vips);
            self.after_turn(node);
        }
        self.now = self.now.max(end);
    }

    pub fn advance_by(&mut self, time: Duration) {
        self.advance(self.now + time);
    }

    fn after_turn(&mut self, node: usize) {
        self.note_moves(node);
        self.transmit(node);
        self.schedule(node);
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
