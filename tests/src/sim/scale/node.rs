//! A node whose work takes time: the election and the announcements in the daemon's loop, a processor of some speed, a socket
//! with a finite receive buffer.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use speaker_core::announce::{self, Announcer};
use speaker_core::election::stall::Stall;
use speaker_core::election::turn::{self, Surroundings, Turn};
use speaker_core::election::{Action, Config, Election, Event, LoseReason, Work};
use speaker_core::machine::Machine;
use speaker_core::name::{NodeName, Vip};
use speaker_core::time::Instant;
use speaker_core::wire::advert::{Advert, Flags, Packet};

use super::super::clock::Clock;
use super::super::costs::Costs;
use super::Loop;

/// Under way to a node: when it arrives, in which order it was sent, what it is.
type Arrival = Reverse<(Duration, u64, Rc<[u8]>)>;

pub struct Node {
    pub election: Election,
    announcer: Announcer,
    turn: Turn,
    pub around: Around,
}

/// What the loop sees and does; everything here takes time.
pub struct Around {
    clock: Clock,
    costs: Rc<Costs>,
    /// How many times slower than the machine of the measurement.
    slow: u32,
    buffer: usize,
    nodes: usize,
    pub running: bool,
    /// The true time as far as this node's processor has come.
    pub time: Duration,
    wire: BinaryHeap<Arrival>,
    socket: VecDeque<Rc<[u8]>>,
    announce: Vec<announce::Event>,
    /// Sent in this turn: when, what.
    pub sent: Vec<(Duration, Rc<[u8]>)>,
    pub own: BTreeSet<Vip>,
    /// In this turn.
    pub claimed: usize,
    pub released: Vec<Vip>,
    lease: Duration,
    last_beat: Duration,
    stall: Stall,
    /// When the wait was to end at the latest; `None`: it has not waited yet.
    deadline: Option<Instant>,
    pub seen: Seen,
    charged: Work,
    /// The latest of each sender.
    said: BTreeMap<NodeName, (Flags, u64)>,
}

/// What is counted of a node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub busy: Duration,
    pub longest_turn: Duration,
    pub frozen: u64,
    pub dropped: u64,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

/// What the kernel charges a datagram of an advert's size to the receive buffer: a buffer of 2 KiB and its head.
const CHARGED: usize = 2304;

impl Node {
    pub fn new(config: Config, clock: Clock, costs: Rc<Costs>, slow: u32, shape: &super::Shape) -> Self {
        let now = clock.read(Duration::ZERO);
        Self {
            election: Election::new(config, now),
            announcer: Announcer::new(announce::Config::default()),
            turn: Turn::default(),
            around: Around {
                clock,
                costs,
                slow,
                buffer: shape.buffer,
                nodes: shape.nodes,
                running: false,
                time: Duration::ZERO,
                wire: BinaryHeap::new(),
                socket: VecDeque::new(),
                announce: Vec::new(),
                sent: Vec::new(),
                own: BTreeSet::new(),
                claimed: 0,
                released: Vec::new(),
                lease: Duration::ZERO,
                last_beat: Duration::ZERO,
                stall: Stall::new(now, Duration::ZERO),
                deadline: None,
                seen: Seen::default(),
                charged: Work::default(),
                said: BTreeMap::new(),
            },
        }
    }

    /// The speaker starts, knowing what to serve.
    pub fn start(&mut self, config: Config, desired: Event, now: Duration) {
        let around = &mut self.around;
        (around.running, around.time, around.last_beat) = (true, now, now);
        around.stall = Stall::new(around.clock.read(now), around.seen.busy);
        self.election = Election::new(config, around.clock.read(now));
        around.charged = Work::default();
        for event in [desired, Event::Ready(true)] {
            turn::handle(&mut self.election, event, around);
        }
    }

    pub fn holds(&self, vip: Vip, now: Duration) -> bool {
        now < self.around.lease && self.around.own.contains(&vip)
    }

    /// When it has something to do.
    pub fn next(&self) -> Option<Duration> {
        if !self.around.running {
            return None;
        }
        let due = self.deadline().map(|at| self.around.clock.when(at));
        let arrival = self.around.wire.peek().map(|Reverse((at, ..))| *at);
        let pending = (!self.around.socket.is_empty()).then_some(self.around.time);
        let next = [due, arrival, pending].into_iter().flatten().min()?;
        Some(next.max(self.around.time))
    }

    fn deadline(&self) -> Option<Instant> {
        [self.election.next_deadline(), self.announcer.next_deadline()].into_iter().flatten().min()
    }

    /// One turn of its loop, after its wait.
    pub fn run(&mut self, now: Duration, kind: Loop, vips: usize) {
        self.around.time = now;
        self.around.wakes();
        match kind {
            Loop::Now => self.turn.run(&mut self.election, &mut self.around),
            Loop::Before => self.turn_before(vips),
        }
        for event in std::mem::take(&mut self.around.announce) {
            self.announce(event);
        }
        if self.announcer.next_deadline().is_some_and(|due| due <= self.around.clock.read(self.around.time)) {
            self.announce(announce::Event::Tick);
        }
        let took = self.around.time - now;
        self.around.seen.longest_turn = self.around.seen.longest_turn.max(took);
        let deadline = self.deadline();
        self.around.waits(deadline);
    }

    fn announce(&mut self, event: announce::Event) {
        let now = self.around.clock.read(self.around.time);
        let mut actions = Vec::new();
        self.announcer.handle(event, now, &mut actions);
        let each = self.around.costs.announce();
        self.around.spend(each * actions.len() as u32);
    }

    /// The loop of commit f452a5a: up to 1,024 datagrams, each decided for all VIPs at once if it changed anything, then the tick;
    /// a heartbeat that is late by the loop's own work is a freeze. The election inside is today's, which decides less: where it has
    /// decided anything, what the whole decision of f452a5a took is added.
    fn turn_before(&mut self, vips: usize) {
        let whole = self.around.costs.whole_decision(vips, self.around.nodes);
        for _ in 0..1024 {
            let Some(datagram) = self.around.receive() else { break };
            self.freeze_by_own_work();
            let before = self.election.work();
            let news = self.around.is_news(&datagram);
            turn::handle(&mut self.election, Event::Datagram(datagram), &mut self.around);
            if news || self.election.work().listed != before.listed {
                self.around.spend(whole);
                // It is ready already: this makes it decide, nothing else.
                turn::handle(&mut self.election, Event::Ready(true), &mut self.around);
            }
        }
        self.freeze_by_own_work();
        if self.election.next_deadline().is_some_and(|due| due <= self.around.now()) {
            let before = self.election.work();
            turn::handle(&mut self.election, Event::Tick, &mut self.around);
            if self.election.work().decisions != before.decisions {
                self.around.spend(whole);
            }
        }
    }

    fn freeze_by_own_work(&mut self) {
        let stalled = self.around.time - self.around.last_beat;
        turn::handle(&mut self.election, Event::Woke { stalled }, &mut self.around);
    }
}

impl Around {
    pub fn arrive(&mut self, at: Duration, order: u64, datagram: Rc<[u8]>) {
        self.wire.push(Reverse((at, order, datagram)));
    }

    fn spend(&mut self, time: Duration) {
        self.time += time * self.slow;
        self.seen.busy += time * self.slow;
    }

    fn waits(&mut self, deadline: Option<Instant>) {
        let now = self.clock.read(self.time);
        self.stall.work_ends(now, self.seen.busy);
        self.deadline = deadline.map(|at| at.max(now));
    }

    fn wakes(&mut self) {
        let now = self.clock.read(self.time);
        self.stall.work_begins(now, self.deadline.unwrap_or(now), self.seen.busy);
    }

    /// What has arrived by now waits in the socket, as far as there is room.
    fn admit(&mut self) {
        while let Some(Reverse((_, _, datagram))) =
            self.wire.peek().filter(|Reverse((at, ..))| *at <= self.time).cloned()
        {
            self.wire.pop();
            if (self.socket.len() + 1) * CHARGED > self.buffer {
                self.seen.dropped += 1;
            } else {
                self.seen.received_bytes += datagram.len() as u64;
                self.socket.push_back(datagram);
            }
        }
    }

    /// Flags or digest of the sender differ from those that it sent last: f452a5a decided then.
    fn is_news(&mut self, datagram: &[u8]) -> bool {
        let Ok(packet) = Packet::new(datagram) else { return false };
        let Ok(advert) = Advert::parse(&packet) else { return false };
        let said = (advert.flags, advert.digest);
        self.said.insert(advert.node, said) != Some(said)
    }
}

impl Surroundings for Around {
    fn now(&mut self) -> Instant {
        self.clock.read(self.time)
    }

    /// Nothing keeps a simulated thread from running but its own work, which must not count.
    fn stalled(&mut self) -> Duration {
        let now = self.clock.read(self.time);
        self.stall.since_heartbeat(now, self.seen.busy)
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        self.admit();
        let datagram = self.socket.pop_front()?;
        let cost = self.costs.receive(datagram.len());
        self.spend(cost);
        Some(datagram.to_vec())
    }

    fn handled(&mut self, election: &Election) {
        let done = election.work();
        let cost = self.costs.work(self.charged, done, self.nodes);
        self.charged = done;
        self.spend(cost);
    }

    fn act(&mut self, action: Action, _: Instant) -> Option<Event> {
        match action {
            Action::Send(datagram) => {
                let cost = self.costs.send(datagram.len());
                self.spend(cost);
                self.seen.sent_bytes += datagram.len() as u64;
                self.sent.push((self.time, datagram.into()));
            }
            Action::RenewLease { until } => {
                let cost = self.costs.lease();
                self.spend(cost);
                self.lease = self.clock.when(until);
                self.last_beat = self.time;
                self.stall.heartbeat_sent();
            }
            Action::Acquire { vip, .. } => {
                let cost = self.costs.map_write();
                self.spend(cost);
                self.own.insert(vip);
                self.claimed += 1;
            }
            Action::Release { vip, reason } => {
                let cost = self.costs.map_write();
                self.spend(cost);
                self.own.remove(&vip);
                self.released.push(vip);
                self.seen.frozen += u64::from(reason == LoseReason::Frozen);
                self.announce.push(announce::Event::Stop(vip));
            }
            Action::Received { .. } => {
                let cost = self.costs.received(self.nodes);
                self.spend(cost);
            }
            Action::Announce { vip } => self.announce.push(announce::Event::Announce(vip)),
            _ => {}
        }
        None
    }
}
