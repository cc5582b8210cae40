//! The machine itself, as it is at commit f452a5a: every datagram that changes anything leads to a decision over all VIPs and
//! all peers.

use speaker_core::election::{Action, Config, Election, Eligible, Event};
use speaker_core::machine::Machine;
use speaker_core::name::{NodeName, Term, Vip};
use speaker_core::time::{Duration, Instant};
use speaker_core::wire::advert::{Advert, Body, Claim, Flags, Key, Keyring, claims_per_part, digest};

use crate::{cost, time};

const GRID: [(usize, usize); 9] =
    [(3, 200), (3, 1000), (3, 4096), (30, 1000), (30, 4096), (60, 1000), (100, 200), (100, 1000), (100, 4096)];

pub fn print() {
    let sealed = [3, 200].map(|nodes| World::new(nodes, 0).seal());
    linear("seal", sealed);
    linear("heartbeat", [heartbeat(3) - sealed[0], heartbeat(200) - sealed[1]]);
    linear("beat", [3, 200].map(|nodes| World::new(nodes, 0).beat()));
    // decision = per_vip * vips + per_vip_peer * vips * nodes, by least squares of the relative error.
    let points: Vec<(f64, f64, f64)> = GRID
        .iter()
        .map(|&(nodes, vips)| {
            let world = &mut World::new(nodes, vips);
            let nanos = world.decision() - heartbeat(nodes);
            println!("# one decision, {nodes} nodes, {vips} VIPs: {:.3} ms", nanos / 1e6);
            (vips as f64, (vips * nodes) as f64, nanos)
        })
        .collect();
    let sum = |of: fn(f64, f64) -> f64| points.iter().map(|(a, b, t)| of(a / t, b / t)).sum::<f64>();
    let (aa, ab, bb) = (sum(|a, _| a * a), sum(|a, b| a * b), sum(|_, b| b * b));
    let (a, b) = (sum(|a, _| a), sum(|_, b| b));
    let determinant = aa * bb - ab * ab;
    cost("decision_per_vip", (a * bb - b * ab) / determinant);
    cost("decision_per_vip_peer", (b * aa - a * ab) / determinant);
}

/// With three and with two hundred nodes.
fn linear(name: &str, [short, long]: [f64; 2]) {
    let per_peer = (long - short) / 197.0;
    cost(name, short - 3.0 * per_peer);
    cost(&format!("{name}_per_peer"), per_peer);
}

/// With the test's own signing of it.
fn heartbeat(nodes: usize) -> f64 {
    let mut world = World::new(nodes, 0);
    time(9, 200, || world.next_peer(false))
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

fn name(node: usize) -> NodeName {
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
            let claims: Vec<Claim> = held.map(|at| Claim { vip: vip(at), term: Term(1), offered: false }).collect();
            world.introduce(node, nodes, &claims);
        }
        world.handle(Event::Desired((0..vips).map(|at| (vip(at), Eligible::Everybody)).collect()));
        // The join ends.
        for _ in 0..30 {
            world.now += Duration::from_millis(50);
            for _ in 1..nodes {
                world.next_peer(false);
            }
            world.handle(Event::Tick);
        }
        world
    }

    fn introduce(&mut self, node: usize, nodes: usize, claims: &[Claim]) {
        let heard = (0..nodes as u32 - 2).map(|other| 1000 + other).chain([self.challenge]).collect();
        let mut advert = Advert {
            node: name(node),
            cluster: 1,
            epoch: 1,
            sequence: 1,
            flags: Flags { ready: true, ..Flags::default() },
            digest: digest(claims.iter().copied()),
            challenge: node as u32,
            body: Body::Heartbeat { heard },
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

    /// The next heartbeat of the next peer; one that changes its flags makes the machine decide.
    fn next_peer(&mut self, decisive: bool) {
        self.turn = (self.turn + 1) % self.peers.len();
        let (turn, challenge) = (self.turn, self.challenge);
        let advert = &mut self.peers[turn];
        advert.sequence += 1;
        if decisive {
            advert.flags.joining = !advert.flags.joining;
        }
        if let Body::Heartbeat { heard } = &mut advert.body
            && let Some(last) = heard.last_mut()
        {
            *last = challenge;
        }
        let datagram = advert.seal(&keys());
        self.handle(Event::Datagram(datagram));
    }

    fn seal(&self) -> f64 {
        time(9, 1000, || assert!(!self.peers[0].seal(&keys()).is_empty()))
    }

    fn decision(&mut self) -> f64 {
        time(9, 20, || self.next_peer(true))
    }

    /// A tick with its heartbeat.
    fn beat(&mut self) -> f64 {
        let mut spent = Vec::new();
        for _ in 0..50 {
            self.now += Duration::from_millis(50);
            for _ in 0..self.peers.len() {
                self.next_peer(false);
            }
            let start = std::time::Instant::now();
            self.handle(Event::Tick);
            spent.push(start.elapsed().as_nanos() as f64);
        }
        spent.sort_by(f64::total_cmp);
        spent[25]
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
