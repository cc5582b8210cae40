//! The machines beside the election, as its thread runs them for each verified advert: liveness, readiness, unicast, unverified, and
//! their ticks, which are due now and then.

use std::collections::{BTreeMap, BTreeSet};

use speaker_core::liveness::{self, Liveness};
use speaker_core::machine::Machine;
use speaker_core::name::NodeName;
use speaker_core::readiness::{self, Readiness};
use speaker_core::time::{Duration, Instant};
use speaker_core::unicast::{self, Unicast};
use speaker_core::unverified::{self, Unverified};
use speaker_core::wire::pace::Pace;

use crate::machine::name;
use crate::{linear, time};

const PACE: Pace = Pace { interval: Duration::from_millis(50), dead_intervals: 3 };

pub fn print() {
    linear("received", [3, 200].map(|nodes| Beside::new(nodes).received()));
}

struct Beside {
    now: Instant,
    peers: Vec<NodeName>,
    turn: usize,
    liveness: Liveness,
    readiness: Readiness,
    unicast: Unicast,
    unverified: Unverified,
    incarnations: BTreeMap<NodeName, u64>,
}

impl Beside {
    fn new(nodes: usize) -> Self {
        let now = Instant::from_millis(1000);
        let peers: Vec<NodeName> = (1..nodes).map(name).collect();
        let mut beside = Self {
            now,
            turn: 0,
            liveness: Liveness::new(liveness::Config::new(1)),
            readiness: Readiness::new(readiness::Config::default(), BTreeSet::new()),
            unicast: Unicast::new(unicast::Config::new(PACE.dead())),
            unverified: Unverified::new(name(0), true, now),
            incarnations: BTreeMap::new(),
            peers,
        };
        let names: BTreeSet<NodeName> = beside.peers.iter().cloned().collect();
        beside.liveness.handle(liveness::Event::Nodes(names.clone()), now, &mut Vec::new());
        beside.readiness.handle(readiness::Event::Nodes(names.clone()), now, &mut Vec::new());
        beside.unicast.handle(unicast::Event::Nodes(names.clone()), now, &mut Vec::new());
        beside.unverified.handle(unverified::Event::Nodes(names), now, &mut Vec::new());
        beside
    }

    /// Each peer sends every 50 ms.
    fn received(&mut self) -> f64 {
        time(9, 20_000, || {
            self.turn = (self.turn + 1) % self.peers.len();
            self.now += Duration::from_millis(50) / self.peers.len() as u32;
            let node = self.peers[self.turn].clone();
            self.on_received(node);
            self.tick();
        })
    }

    fn on_received(&mut self, node: NodeName) {
        let now = self.now;
        let mut told = 0;
        match self.incarnations.get_mut(&node) {
            Some(known) => *known = 1,
            None => drop(self.incarnations.insert(node.clone(), 1)),
        }
        if self.unverified.is_news(&node, now) {
            let mut actions = Vec::new();
            self.unverified.handle(
                unverified::Event::Verified { node: node.clone(), pace: Some(PACE) },
                now,
                &mut actions,
            );
            told += actions.len();
        }
        let mut actions = Vec::new();
        let pace = Some(PACE);
        let event = unicast::Event::Received { node: node.clone(), multicast: true, receives_us: true, pace };
        self.unicast.handle(event, now, &mut actions);
        told += actions.len();
        let mut actions = Vec::new();
        self.liveness.handle(liveness::Event::Pace(node.clone(), pace), now, &mut actions);
        self.liveness.handle(liveness::Event::Heartbeat(node.clone()), now, &mut actions);
        told += actions.len();
        let mut actions = Vec::new();
        self.readiness.handle(readiness::Event::Ready(node), now, &mut actions);
        // Each speaker becomes ready once.
        assert!(told + actions.len() <= 1, "all is well, so nothing happens");
    }

    fn tick(&mut self) {
        let now = self.now;
        let due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if due(self.liveness.next_deadline()) {
            self.liveness.handle(liveness::Event::Tick, now, &mut Vec::new());
        }
        if due(self.readiness.next_deadline()) {
            self.readiness.handle(readiness::Event::Tick, now, &mut Vec::new());
        }
        if due(self.unicast.next_deadline()) {
            self.unicast.handle(unicast::Event::Tick, now, &mut Vec::new());
        }
        if due(self.unverified.next_deadline()) {
            self.unverified.handle(unverified::Event::Tick, now, &mut Vec::new());
        }
    }
}
