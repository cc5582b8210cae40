//! The machine itself, by the counts of `Election::work`.

use speaker_core::election::{Action, Config, Election, Eligible, Event};
use speaker_core::machine::Machine;
use speaker_core::name::{NodeName, Term, Vip};
use speaker_core::rank;
use speaker_core::time::{Duration, Instant};
use speaker_core::wire::advert::{Advert, Body, Claim, Flags, Key, Keyring, claims_per_part, digest};

use crate::{cost, linear, time};

pub fn print() {
    let sealed = [3, 200].map(|nodes| World::new(nodes, 0).seal());
    linear("seal", sealed);
    linear("heartbeat", [heartbeat(3) - sealed[0], heartbeat(200) - sealed[1]]);
    let (beat, peers) = (World::new(3, 0).beat(), World::new(200, 0).beat());
    let per_peer = (peers.0 - beat.0) / (peers.1 - beat.1);
    cost("beat", beat.0 - beat.1 * per_peer);
    cost("scan", per_peer);
    cost("decision", World::new(100, VIPS).decision());
    cost("claim", World::new(3, VIPS).claim());
    let names: Vec<NodeName> = (1..200).map(name).collect();
    let mut at = 0;
    let ranks = time(9, 2000, || {
        at += 1;
        assert!(rank::rank(vip(at), &name(0), &names) < 200);
    });
    cost("comparison", ranks / 199.0);
}

const VIPS: usize = 4000;

/// With the test's own signing of it.
fn heartbeat(nodes: usize) -> f64 {
    let mut world = World::new(nodes, 0);
    time(9, 200, || world.next_peer())
}

/// One member among peers that hold all VIPs, in turns.
struct World {
    election: Election,
    now: Instant,
    peers: Vec<Advert>,
    turn: usize,
    challenge: u32,
}

fn keys() -> Keyring {
    Keyring { current: Key { id: 1, secret: [7; 32] }, other: None }
}

pub fn name(node: usize) -> NodeName {
    NodeName::new(&format!("node-{node}")).expect("a valid name")
}

fn vip(index: usize) -> Vip {
    Vip((0x0a00_0001 + index as u32).into())
}

impl World {
    fn new(nodes: usize, vips: usize) -> Self {
        let now = Instant::from_millis(1000);
        let election = Election::new(Config::new(name(0), 1, 1, keys(), 1), now);
        let mut world = Self { election, now, peers: Vec::new(), turn: 0, challenge: 0 };
        world.handle(Event::Ready(true));
        world.handle(Event::Tick);
        for node in 1..nodes {
            let held = (node - 1..vips).step_by(nodes - 1);
            let claims: Vec<Claim> =
                held.map(|at| Claim { vip: vip(at), term: Term(1), stepping_down: false }).collect();
            world.introduce(node, nodes, &claims);
        }
        world.handle(Event::Desired((0..vips).map(|at| (vip(at), Eligible::All)).collect()));
        // The join ends.
        for _ in 0..30 {
            world.now += Duration::from_millis(50);
            for _ in 1..nodes {
                world.next_peer();
            }
            world.handle(Event::Tick);
        }
        world
    }

    fn introduce(&mut self, node: usize, nodes: usize, claims: &[Claim]) {
        let echoes = (0..nodes as u32 - 2).map(|other| 1000 + other).chain([self.challenge]).collect();
        let mut advert = Advert {
            node: name(node),
            cluster: 1,
            epoch: 1,
            sequence: 1,
            flags: Flags { ready: true, ..Flags::default() },
            digest: digest(claims.iter().copied()),
            challenge: node as u32,
            body: Body::Heartbeat { echoes },
        };
        self.handle(Event::Datagram(advert.seal(&keys())));
        let per_part = claims_per_part(advert.node.as_str().len());
        let parts = claims.chunks(per_part).count() as u16;
        let heartbeat = advert.body.clone();
        for (part, claims) in claims.chunks(per_part).enumerate() {
            advert.sequence += 1;
            advert.body = Body::Claims { part: part as u16, parts, claims: claims.to_vec() };
            self.handle(Event::Datagram(advert.seal(&keys())));
        }
        advert.body = heartbeat;
        self.peers.push(advert);
    }

    /// The next heartbeat of the next peer.
    fn next_peer(&mut self) {
        self.turn = (self.turn + 1) % self.peers.len();
        let (turn, challenge) = (self.turn, self.challenge);
        let advert = &mut self.peers[turn];
        advert.sequence += 1;
        if let Body::Heartbeat { echoes } = &mut advert.body
            && let Some(last) = echoes.last_mut()
        {
            *last = challenge;
        }
        let datagram = advert.seal(&keys());
        self.handle(Event::Datagram(datagram));
    }

    fn seal(&self) -> f64 {
        time(9, 1000, || assert!(!self.peers[0].seal(&keys()).is_empty()))
    }

    /// All VIPs, each held by a peer, are decided because this node is ready, or not any more.
    fn decision(&mut self) -> f64 {
        let (mut ready, before) = (true, self.election.work().decisions);
        let (rounds, repeat) = (9, 10);
        let nanos = time(rounds, repeat, || {
            ready = !ready;
            self.handle(Event::Ready(ready));
            while self.election.next_deadline().is_some_and(|due| due < self.now) {
                self.handle(Event::Tick);
            }
        });
        let decided = self.election.work().decisions - before;
        nanos / (decided as f64 / (rounds as f64 * f64::from(repeat)))
    }

    /// A list whose terms have all changed, without the decisions that follow.
    fn claim(&mut self) -> f64 {
        let mut advert = self.peers[0].clone();
        let per_part = claims_per_part(advert.node.as_str().len());
        let mut spent = Vec::new();
        for term in 2..42 {
            let claims: Vec<Claim> =
                (0..per_part).map(|at| Claim { vip: vip(2 * at), term: Term(term), stepping_down: false }).collect();
            advert.sequence += 1_000;
            advert.digest = digest(claims.iter().copied());
            advert.body = Body::Claims { part: 0, parts: 1, claims };
            let datagram = advert.seal(&keys());
            let start = std::time::Instant::now();
            self.handle(Event::Datagram(datagram));
            spent.push(start.elapsed().as_nanos() as f64 / per_part as f64);
            self.handle(Event::Tick);
        }
        spent.sort_by(f64::total_cmp);
        spent[20]
    }

    /// A tick with its heartbeat, and how many peers it visited.
    fn beat(&mut self) -> (f64, f64) {
        let mut spent = Vec::new();
        let mut scanned = 0;
        for _ in 0..50 {
            self.now += Duration::from_millis(50);
            for _ in 0..self.peers.len() {
                self.next_peer();
            }
            let before = self.election.work().peers;
            let start = std::time::Instant::now();
            self.handle(Event::Tick);
            spent.push(start.elapsed().as_nanos() as f64);
            scanned = self.election.work().peers - before;
        }
        spent.sort_by(f64::total_cmp);
        (spent[25], scanned as f64)
    }

    fn handle(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.election.handle(event, self.now, &mut actions);
        for action in actions {
            if let Action::Send(bytes) = action {
                self.challenge = Advert::open(&bytes, 1, &keys()).expect("what it sends is valid").challenge;
            }
        }
    }
}
