//! Address probes: which hosts of the segment answer for addresses that a Service may get.
//!
//! Read first: RFC 5227 section 2.1.1 (the probe: an ARP request whose sender address is zero, from which nobody learns anything), and
//! docs/services.md, Addresses that a host uses. Two probes 100 ms apart for each address; the answers are reported 50 ms after the
//! last one. A router that answers for every address says nothing of a host (`probe/check.rs`).

mod check;
#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use crate::machine::Machine;
use crate::time::{Duration, Instant};
pub use check::Around;
use check::Check;

pub type Mac = [u8; 6];

/// Between the two probes of an address.
pub const INTERVAL: Duration = Duration::from_millis(100);
/// From the second probe to the report. A host on the link answers within a few milliseconds, and has had 150 for the first one.
pub const WAIT: Duration = Duration::from_millis(50);
/// An address that was probed so lately is not probed again for another request.
pub const RECENT: Duration = Duration::from_secs(1);
/// Probes that are sent at once, and the pause after them: 3,200 a second at most.
pub const BURST: usize = 32;
pub const PAUSE: Duration = Duration::from_millis(10);
/// Hosts that are reported of an address.
pub const MAX_ANSWERS: usize = 4;
/// Requests that are not answered yet. The oldest one makes room: a later one has what is missing.
pub const MAX_ROUNDS: usize = 8;
/// Addresses at a time; those beyond are in no report.
pub const MAX_TARGETS: usize = 256;
const PROBES: u8 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Request(Request),
    /// A frame of a host with this address.
    Answer {
        address: Ipv4Addr,
        mac: Mac,
    },
    Tick,
}

/// What is to be probed, and what is known of the segment now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub round: i64,
    pub addresses: Vec<Ipv4Addr>,
    pub around: Around,
    /// A random number.
    pub seed: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Frames of these hosts count from now on.
    Expect(BTreeSet<Ipv4Addr>),
    Probe(Ipv4Addr),
    Report(Report),
}

/// What was found, once per request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub round: i64,
    /// Each address with those that answered.
    pub results: BTreeMap<Ipv4Addr, BTreeSet<Mac>>,
    /// Those of the gateways of default routes.
    pub gateways: BTreeSet<Mac>,
    /// Those that answered for all random addresses.
    pub proxies: BTreeSet<Mac>,
}

/// Probes addresses on request.
#[derive(Clone, Debug, Default)]
pub struct Prober {
    targets: BTreeMap<Ipv4Addr, Target>,
    rounds: VecDeque<Round>,
    check: Option<Check>,
    /// No probe before.
    quiet_until: Instant,
}

#[derive(Clone, Debug)]
struct Target {
    began: Instant,
    sent: u8,
    /// The next probe, or the end of the wait for answers.
    next: Instant,
    macs: BTreeSet<Mac>,
}

#[derive(Clone, Debug)]
struct Round {
    number: i64,
    addresses: Vec<Ipv4Addr>,
}

impl Target {
    fn new(now: Instant) -> Self {
        Self { began: now, sent: 0, next: now, macs: BTreeSet::new() }
    }

    fn is_done(&self, now: Instant) -> bool {
        self.sent == PROBES && self.next <= now
    }
}

impl Prober {
    /// Whether a request waits for its report.
    pub fn is_busy(&self) -> bool {
        !self.rounds.is_empty()
    }

    /// A probe could not be sent: nothing is known of what was asked for, and no request is answered.
    pub fn fail(&mut self) {
        *self = Self { quiet_until: self.quiet_until, ..Self::default() };
    }

    fn request(&mut self, request: Request, now: Instant, actions: &mut Vec<Action>) {
        let Request { round, addresses, around, seed } = request;
        let pending: BTreeSet<Ipv4Addr> =
            self.rounds.iter().flat_map(|round| round.addresses.iter().copied()).collect();
        self.targets.retain(|address, target| pending.contains(address) || now.since(target.began) < RECENT);
        if self.check.as_ref().is_none_or(|check| check.is_over(&around, now)) {
            self.check = Some(Check::new(around, &addresses, seed, now));
        }
        let checked = self.check.iter().flat_map(Check::targets);
        for address in addresses.iter().copied().chain(checked) {
            let recent = self.targets.get(&address).is_some_and(|target| now.since(target.began) < RECENT);
            if !recent && (self.targets.len() < MAX_TARGETS || self.targets.contains_key(&address)) {
                self.targets.insert(address, Target::new(now));
            }
        }
        if self.rounds.len() >= MAX_ROUNDS {
            self.rounds.pop_front();
        }
        self.rounds.push_back(Round { number: round, addresses });
        actions.push(Action::Expect(self.targets.keys().copied().collect()));
        self.tick(now, actions);
    }

    fn answer(&mut self, address: Ipv4Addr, mac: Mac) {
        let Some(target) = self.targets.get_mut(&address) else { return };
        if target.macs.len() < MAX_ANSWERS {
            target.macs.insert(mac);
        }
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.quiet_until <= now {
            let due = self.targets.iter_mut().filter(|(_, target)| target.sent < PROBES && target.next <= now);
            for (address, target) in due.take(BURST) {
                target.sent += 1;
                target.next = now + if target.sent < PROBES { INTERVAL } else { WAIT };
                self.quiet_until = now + PAUSE;
                actions.push(Action::Probe(*address));
            }
        }
        self.report(now, actions);
    }

    /// The newest request all of whose addresses are done; those before it are over with it.
    fn report(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let done = |address: &Ipv4Addr| self.targets.get(address).is_none_or(|target| target.is_done(now));
        if !self.check.iter().filter(|check| !check.has_verdict()).flat_map(Check::targets).all(|target| done(&target))
        {
            return;
        }
        let Some(last) = self.rounds.iter().rposition(|round| round.addresses.iter().all(done)) else { return };
        let macs = |address: &Ipv4Addr| self.targets.get(address).map(|target| target.macs.clone());
        if let Some(check) = self.check.as_mut() {
            check.judge(macs);
        }
        let results = self.rounds[last].addresses.iter().filter_map(|address| Some((*address, macs(address)?)));
        let (gateways, proxies) = self.check.as_ref().map(Check::verdict).unwrap_or_default();
        actions.push(Action::Report(Report {
            round: self.rounds[last].number,
            results: results.collect(),
            gateways,
            proxies,
        }));
        self.rounds.drain(..=last);
    }
}

impl Machine for Prober {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Request(request) => self.request(request, now, actions),
            Event::Answer { address, mac } => self.answer(address, mac),
            Event::Tick => self.tick(now, actions),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.rounds.is_empty() {
            return None;
        }
        let unsent = self.targets.values().filter(|target| target.sent < PROBES);
        let unsent = unsent.map(|target| target.next.max(self.quiet_until)).min();
        unsent.into_iter().chain(self.rounds.iter().filter_map(|round| self.end(round))).min()
    }
}

impl Prober {
    /// When the answers to this request are complete, if all its probes were sent.
    fn end(&self, round: &Round) -> Option<Instant> {
        let waits = self.check.iter().filter(|check| !check.has_verdict()).flat_map(Check::targets);
        let targets = round.addresses.iter().copied().chain(waits).filter_map(|address| self.targets.get(&address));
        let mut end = Instant::ZERO;
        for target in targets {
            if target.sent < PROBES {
                return None;
            }
            end = end.max(target.next);
        }
        Some(end)
    }
}
