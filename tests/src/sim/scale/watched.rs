//! What is counted of a large cluster: which node holds what, when all is in order, and which releases were wrong.

use std::time::Duration;

use speaker_core::name::NodeName;

use super::node::Seen;
use super::{Cluster, index, vip};

/// What became of a cluster after a fault.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// When every VIP had exactly one owner and kept it (in a partition: one on each side); `None`: not within the time of observation.
    pub settled: Option<Duration>,
    /// VIPs with one owner at the end, on each side.
    pub held: usize,
    /// The most VIPs that two nodes of one side held at a time, and the longest that one was.
    pub doubled: usize,
    pub doubled_for: Duration,
    pub longest_turn: Duration,
    /// Since the fault: releases of a VIP whose owner the fault had not struck, and those that left a VIP without an owner.
    pub wrong: usize,
    /// Since the fault: VIPs claimed or released.
    pub moves: usize,
    /// VIPs released as frozen: no fault here freezes a node.
    pub frozen: u64,
    /// Datagrams for which there was no room.
    pub dropped: u64,
    /// The busiest node: its share of a processor, and bytes a second in and out.
    pub busy: f64,
    pub received: f64,
    pub sent: f64,
}

#[derive(Debug)]
pub(super) struct Watched {
    unsettled: Option<Duration>,
    doubled: usize,
    doubled_for: Duration,
    /// Since when each VIP has been held twice.
    doubled_since: Vec<Option<Duration>>,
    held: usize,
    /// The owner of each VIP that the last fault did not strike.
    kept: Vec<Option<usize>>,
    wrong: usize,
    moves: usize,
}

impl Watched {
    pub fn new(vips: usize) -> Self {
        Self {
            unsettled: None,
            doubled: 0,
            doubled_for: Duration::ZERO,
            doubled_since: vec![None; vips],
            held: 0,
            kept: vec![None; vips],
            wrong: 0,
            moves: 0,
        }
    }
}

/// Between two checks of which node holds what.
pub(super) const LOOK: Duration = Duration::from_millis(10);
/// It must stay in order for so long.
const STAY: Duration = Duration::from_secs(1);

impl Cluster {
    /// A fault, or nothing: from here on it is counted what moves. Struck are VIPs without exactly one owner that runs.
    pub fn begin(&mut self) {
        let mut kept = vec![(0, None); self.shape.vips];
        for (node, one) in self.nodes.iter().enumerate().filter(|(_, one)| one.around.running) {
            for held in &one.around.own {
                let (holders, owner) = &mut kept[index(*held)];
                (*holders, *owner) = (*holders + 1, Some(node));
            }
        }
        self.watched.kept = kept.into_iter().map(|(holders, owner)| owner.filter(|_| holders == 1)).collect();
        (self.watched.wrong, self.watched.moves) = (0, 0);
    }

    /// What the turn of this node has claimed and released.
    pub(super) fn note_moves(&mut self, node: usize) {
        self.watched.moves += std::mem::take(&mut self.nodes[node].around.claimed);
        for released in std::mem::take(&mut self.nodes[node].around.released) {
            let here = |other: usize| self.side[other] == self.side[node];
            let holds = |other: usize| {
                let around = &self.nodes[other].around;
                other != node && here(other) && around.running && around.own.contains(&released)
            };
            let unstruck = self.watched.kept[index(released)].is_some_and(here);
            let wrong = unstruck || !(0..self.nodes.len()).any(holds);
            self.watched.wrong += usize::from(wrong);
            self.watched.moves += 1;
        }
    }

    /// Watches until all is in order and stays so, at most for `limit`.
    pub fn settle(&mut self, limit: Duration) -> Outcome {
        let before: Vec<Seen> = self.nodes.iter().map(|node| node.around.seen).collect();
        for node in &mut self.nodes {
            node.around.seen.longest_turn = Duration::ZERO;
        }
        let start = self.now;
        (self.watched.unsettled, self.watched.doubled, self.watched.doubled_for) = (Some(start), 0, Duration::ZERO);
        while self.now < start + limit {
            self.advance(self.now + LOOK);
            self.look();
            if self.watched.unsettled.is_none_or(|at| self.now >= at + STAY) {
                break;
            }
        }
        self.outcome(start, &before)
    }

    /// How many VIPs have one owner each, now.
    pub fn held(&mut self) -> usize {
        self.look();
        self.watched.held
    }

    fn outcome(&self, start: Duration, before: &[Seen]) -> Outcome {
        let took = (self.now - start).as_secs_f64();
        let last = self.watched.unsettled.unwrap_or(start);
        let mut outcome = Outcome {
            settled: (self.now >= last + STAY).then_some(last - start),
            held: self.watched.held,
            doubled: self.watched.doubled,
            doubled_for: self.watched.doubled_for,
            wrong: self.watched.wrong,
            moves: self.watched.moves,
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

    fn sides(&self) -> usize {
        1 + usize::from(self.side.contains(&true))
    }

    /// Which node holds what now. On a processor of its own a turn may be ahead of the others by its length, no more.
    fn look(&mut self) {
        let mut holders = vec![[0_u32; 2]; self.shape.vips];
        for (node, side) in self.nodes.iter().zip(&self.side) {
            for vip in node.around.own.iter().filter(|vip| node.holds(**vip, self.now)) {
                holders[index(*vip)][usize::from(*side)] += 1;
            }
        }
        let sides = self.sides();
        self.watched.held = holders.iter().filter(|of| of[..sides].iter().all(|count| *count == 1)).count();
        let mut doubled = 0;
        for (of, since) in holders.iter().zip(&mut self.watched.doubled_since) {
            *since = since.or(Some(self.now)).filter(|_| of.iter().any(|count| *count > 1));
            if let Some(since) = since {
                doubled += 1;
                // From one look to the next, at least.
                self.watched.doubled_for = self.watched.doubled_for.max(self.now + LOOK - *since);
            }
        }
        self.watched.doubled = self.watched.doubled.max(doubled);
        if self.watched.held != self.shape.vips || !self.agree() {
            self.watched.unsettled = Some(self.now);
        }
    }

    /// All nodes of a side that run name the same owners.
    fn agree(&self) -> bool {
        let mut owners: Vec<[Option<&NodeName>; 2]> = vec![[None; 2]; self.shape.vips];
        let running = || self.nodes.iter().zip(&self.side).filter(|(node, _)| node.around.running);
        for (node, side) in running() {
            for held in &node.around.own {
                owners[index(*held)][usize::from(*side)] = Some(node.election.node());
            }
        }
        running().all(|(node, side)| {
            (0..self.shape.vips)
                .all(|at| node.election.owner(vip(at)).map(|owner| &owner.node) == owners[at][usize::from(*side)])
        })
    }
}
