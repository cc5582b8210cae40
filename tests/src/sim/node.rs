//! One node: the election, the driver's loop around it, and a kernel that answers by OWN and the lease.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use speaker_core::election::{Action, Config, Election, Eligible, Event};
use speaker_core::machine::Machine;
use speaker_core::name::{NodeName, Term, Vip};
use speaker_core::time::Instant;
use speaker_core::wire::advert::{Key, Keyring};

use super::clock::Clock;

#[derive(Debug)]
pub struct Node {
    pub name: NodeName,
    pub clock: Clock,
    pub state: State,
    /// Since when it is not running.
    pub stopped_at: Duration,
    pub carrier: bool,
    pub ready: bool,
    /// The daemon keeps it on disk.
    pub drained: bool,
    /// Of the speaker that runs, or did last.
    pub config: Config,
    pub election: Election,
    pub own: BTreeMap<Vip, Term>,
    lease: Instant,
    /// Came while the speaker was frozen.
    inbox: Vec<Vec<u8>>,
    /// Decided before the speaker was frozen, not yet carried out.
    unfinished: Vec<Action>,
    /// The next batch of actions is to be cut short in this way.
    pub freeze_in_the_middle: bool,
    /// What the daemon keeps on disk.
    pub last_epoch: u64,
    /// A clock in nanoseconds gives none twice, whatever becomes of it.
    pub epochs: BTreeSet<u64>,
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    Frozen,
    Crashed,
}

/// What the outside sees of a batch of actions.
#[derive(Debug)]
pub enum Effect {
    Send(Vec<u8>),
    Acquired(Vip, Term),
    Released(Vip),
    Other(Action),
}

/// Datagrams that a socket buffer holds; what comes later is lost, as in the kernel.
const INBOX_MAX: usize = 200;

impl Node {
    /// Not started yet.
    pub fn new(index: usize, clock: Clock, config: &Config, epoch: u64, now: Duration) -> Self {
        let name = name(index);
        let seed = config.seed.wrapping_add(index as u64);
        let start = Config { node: name.clone(), epoch, seed, ..config.clone() };
        let now = clock.read(now);
        Self {
            name,
            clock,
            state: State::Crashed,
            stopped_at: Duration::ZERO,
            carrier: true,
            ready: false,
            drained: false,
            election: Election::new(start.clone(), now),
            config: start,
            own: BTreeMap::new(),
            lease: Instant::ZERO,
            inbox: Vec::new(),
            unfinished: Vec::new(),
            freeze_in_the_middle: false,
            last_epoch: epoch,
            epochs: [epoch].into(),
            seed,
        }
    }

    pub fn holds(&self, vip: Vip, now: Duration) -> bool {
        self.clock.read(now) < self.lease && self.own.contains_key(&vip)
    }

    pub fn lease_ends(&self) -> Duration {
        self.clock.when(self.lease)
    }

    pub fn deadline(&self) -> Option<Duration> {
        if self.state != State::Running {
            return None;
        }
        self.election.next_deadline().map(|at| self.clock.when(at))
    }

    /// A datagram arrives at the socket.
    pub fn arrive(&mut self, datagram: Vec<u8>, now: Duration) -> Vec<Effect> {
        match self.state {
            _ if !self.carrier => Vec::new(),
            State::Running => self.handle(Event::Datagram(datagram), now),
            State::Frozen => {
                if self.inbox.len() < INBOX_MAX {
                    self.inbox.push(datagram);
                }
                Vec::new()
            }
            State::Crashed => Vec::new(),
        }
    }

    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        let (tick, local) = (event == Event::Tick, self.clock.read(now));
        let mut actions = Vec::new();
        self.election.handle(event, local, &mut actions);
        assert!(!tick || self.election.next_deadline().is_none_or(|next| next > local), "a busy loop");
        if self.freeze_in_the_middle && !actions.is_empty() {
            self.freeze_in_the_middle = false;
            self.fall_asleep(now);
            self.unfinished = actions.split_off(actions.len() / 2);
        }
        self.carry_out(actions)
    }

    fn carry_out(&mut self, actions: Vec<Action>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for action in actions {
            match action {
                Action::Send(datagram) => effects.push(Effect::Send(datagram)),
                Action::RenewLease { until } => self.lease = until,
                Action::Acquire { vip, term } => {
                    self.own.insert(vip, term);
                    effects.push(Effect::Acquired(vip, term));
                }
                Action::Release { vip, .. } => {
                    self.own.remove(&vip);
                    effects.push(Effect::Released(vip));
                }
                other => effects.push(Effect::Other(other)),
            }
        }
        effects
    }

    pub fn fall_asleep(&mut self, now: Duration) {
        (self.state, self.stopped_at) = (State::Frozen, now);
    }

    /// What was decided is done, what came is delivered, then the tick: the driver's loop.
    pub fn thaw(&mut self, now: Duration) -> Vec<Effect> {
        self.state = State::Running;
        let unfinished = std::mem::take(&mut self.unfinished);
        let mut effects = self.carry_out(unfinished);
        effects.extend(self.handle(Event::Woke { stalled: now - self.stopped_at }, now));
        for datagram in std::mem::take(&mut self.inbox) {
            effects.extend(self.handle(Event::Datagram(datagram), now));
        }
        // What the link did meanwhile is pending too.
        effects.extend(self.handle(Event::Carrier(self.carrier), now));
        effects.extend(self.handle(Event::Tick, now));
        effects
    }

    /// The kernel goes on answering until the lease is over.
    pub fn crash(&mut self, now: Duration) {
        (self.state, self.stopped_at) = (State::Crashed, now);
        self.inbox.clear();
        self.unfinished.clear();
        self.freeze_in_the_middle = false;
    }

    /// A new speaker on this node; the daemon empties OWN first.
    pub fn restart(&mut self, config: &Config, epoch: u64, now: Duration) {
        self.seed = self.seed.wrapping_mul(31).wrapping_add(1);
        let start = Config { node: self.name.clone(), epoch, seed: self.seed, ..config.clone() };
        self.election = Election::new(start.clone(), self.clock.read(now));
        self.config = start;
        self.own.clear();
        self.state = State::Running;
        self.last_epoch = epoch;
        self.ready = false;
    }
}

pub fn name(index: usize) -> NodeName {
    NodeName::new(&format!("node-{index}")).expect("a valid name")
}

pub fn vip(index: usize) -> Vip {
    Vip([192, 0, 2, index as u8 + 1].into())
}

pub fn desired(vips: usize) -> BTreeMap<Vip, Eligible> {
    (0..vips).map(|index| (vip(index), Eligible::All)).collect()
}

pub fn config(seed: u64) -> Config {
    let keys = Keyring { current: Key { id: 1, secret: [7; 32] }, other: None };
    Config::new(name(0), 1, 1, keys, seed)
}
