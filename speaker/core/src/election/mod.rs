//! Who holds which VIP: one heartbeat per node, a lease shorter than the dead interval, claims with terms.
//!
//! Read first: docs/election.md (phases, rules R1.., invariants I1..); RFC 9568 for what it grew from.
//! Files: `state` (configuration, events, actions) → `peer`, `peers` (what is heard) → `claims` (who wins a conflict) →
//! `decide` (what to hold) → `voice` (what is sent).

mod claims;
mod decide;
mod peer;
mod peers;
mod state;
mod voice;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use decide::Vacancy;
use peer::{Challenges, Claims};
use peers::Peers;
pub use state::{
    Action, Config, ConfigError, Eligible, Event, LoseReason, Owner, PartitionPolicy, PeerStatus, Phase, Status,
};
use voice::Voice;

use crate::machine::Machine;
use crate::name::{Term, Vip};
use crate::time::Instant;
use crate::wire::advert::{Advert, MAX_CLAIMS, Reject};

/// One node's part in the election of the owners of all VIPs.
#[derive(Debug)]
pub struct Election {
    config: Config,
    random: Random,
    challenges: Challenges,
    voice: Voice,
    peers: Peers,

    phase: Phase,
    joining_since: Instant,
    /// No peer has heard this node since it last was a member.
    alone: bool,
    /// When peers went down, lately: all at once means that it is this node that is cut off.
    lost: Vec<Instant>,
    ready: bool,
    carrier: bool,
    leaving: bool,
    handed_over: bool,
    all_taken: bool,

    last_tick: Instant,
    last_beat: Instant,
    next_beat: Instant,
    lease_until: Instant,

    desired: BTreeMap<Vip, Eligible>,
    held: Claims,
    /// Held, but not for long: since when a successor is sought.
    offered_since: BTreeMap<Vip, Instant>,
    /// Held, and claimed by a peer too.
    contested: BTreeSet<Vip>,
    vacancies: BTreeMap<Vip, Vacancy>,
    /// The highest term heard of each desired VIP.
    terms: BTreeMap<Vip, Term>,
    owners: BTreeMap<Vip, Owner>,
    could_claim: bool,
    dirty: bool,
    next_decision: Option<Instant>,
}

impl Election {
    /// Sends nothing before the first `Event::Tick`, which is due at once.
    ///
    /// # Panics
    /// If [`Config::check`] does.
    pub fn new(config: Config, now: Instant) -> Self {
        if let Err(error) = config.check() {
            panic!("election: {error}");
        }
        let mut random = Random(config.seed ^ config.epoch.rotate_left(32));
        let challenges = Challenges { current: random.next(), previous: random.next() };
        Self {
            config,
            random,
            challenges,
            voice: Voice::default(),
            peers: Peers::default(),
            phase: Phase::Joining,
            joining_since: now,
            alone: true,
            lost: Vec::new(),
            ready: false,
            carrier: true,
            leaving: false,
            handed_over: false,
            all_taken: true,
            last_tick: Instant::ZERO,
            last_beat: now,
            next_beat: now,
            lease_until: Instant::ZERO,
            desired: BTreeMap::new(),
            held: Claims::new(),
            offered_since: BTreeMap::new(),
            contested: BTreeSet::new(),
            vacancies: BTreeMap::new(),
            terms: BTreeMap::new(),
            owners: BTreeMap::new(),
            could_claim: false,
            dirty: false,
            next_decision: None,
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The owner of a desired VIP as this node knows it.
    pub fn owner(&self, vip: Vip) -> Option<&Owner> {
        self.owners.get(&vip)
    }

    /// For metrics and `sheave status`.
    pub fn status(&self, now: Instant) -> Status {
        let peers = self.peers.all().filter_map(|(name, peer)| peer.status(name, &self.config, now));
        Status {
            phase: self.phase,
            ready: self.ready,
            alone: self.alone,
            lease_until: self.lease_until,
            held: self.held.iter().map(|(vip, held)| (*vip, held.term)).collect(),
            owners: self.owners.clone(),
            peers: peers.collect(),
        }
    }

    fn receive(&mut self, datagram: &[u8], now: Instant, actions: &mut Vec<Action>) -> Result<(), Reject> {
        let advert = Advert::open(datagram, self.config.cluster, &self.config.keys)?;
        if advert.node == self.config.node {
            return Err(Reject::OwnEcho);
        }
        let (node, ready, wants_claims) = (advert.node.clone(), advert.flags.takes_flows(), advert.flags.need_claims);
        let received = self.peers.receive(advert, self.challenges, &self.config, now)?;
        self.voice.requested |= wants_claims;
        self.dirty |= received.decisive;
        if received.replaced {
            self.new_challenge();
        }
        if received.verified {
            actions.push(Action::Heard { node: node.clone(), ready });
        }
        self.voice.answer |= received.answer;
        if received.came_up {
            self.voice.introduced = true;
            actions.push(Action::PeerUp { node });
            if self.alone && matches!(self.phase, Phase::Member | Phase::Isolated) && self.carrier {
                self.join(now, actions);
            }
        }
        Ok(())
    }

    fn set_desired(&mut self, desired: BTreeMap<Vip, Eligible>) {
        self.desired = desired.into_iter().take(MAX_CLAIMS).collect();
        self.vacancies.retain(|vip, _| self.desired.contains_key(vip));
        self.terms.retain(|vip, _| self.desired.contains_key(vip));
        self.dirty = true;
    }

    fn set_carrier(&mut self, carrier: bool, now: Instant, actions: &mut Vec<Action>) {
        if core::mem::replace(&mut self.carrier, carrier) == carrier {
            return;
        }
        self.dirty = true;
        match (carrier, self.phase) {
            (_, Phase::Leaving) => {}
            (true, _) => self.join(now, actions),
            (false, _) => self.enter(Phase::Isolated, actions),
        }
    }

    /// R9: a heartbeat that is later than the dead interval means that this node was frozen: others may have its VIPs by now,
    /// and what lies in its socket is old.
    fn notice_freeze(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if now.since(self.last_beat) < self.config.dead() {
            return;
        }
        self.last_beat = now;
        self.next_beat = now;
        self.release_all(LoseReason::Frozen, actions);
        self.peers.forgive_silence(now);
        self.lost.clear();
        if self.carrier && !self.leaving {
            self.join(now, actions);
        }
    }

    /// R8: listen until the view is full. The new challenge tells what is said from now on from what lay around.
    fn join(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.joining_since = now;
        self.new_challenge();
        self.enter(Phase::Joining, actions);
    }

    fn new_challenge(&mut self) {
        self.challenges = Challenges { current: self.random.next(), previous: self.challenges.current };
    }

    fn enter(&mut self, phase: Phase, actions: &mut Vec<Action>) {
        if self.phase != phase {
            self.phase = phase;
            self.dirty = true;
            actions.push(Action::Phase(phase));
        }
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.last_tick = now;
        let (down, laid) = self.peers.expire(&self.config, now);
        self.dirty |= laid || !down.is_empty();
        self.lost.extend(down.iter().map(|_| now));
        self.lost.retain(|at| now.since(*at) <= self.config.dead());
        actions.extend(down.into_iter().map(|node| Action::PeerDown { node }));
        self.advance(now, actions);
        // A conflict may hang on what a rival hears, and that changes with time alone (R7).
        self.dirty |= !self.contested.is_empty();
    }

    /// Changes of phase that time and peers bring about.
    fn advance(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let mutual = self.peers.mutual(&self.config, now).next().is_some();
        if !mutual && !self.alone {
            self.alone = true;
            self.voice.changed |= !self.held.is_empty();
            self.dirty = true;
        }
        let quorum = self.has_quorum(now);
        match self.phase {
            Phase::Joining if self.has_joined(now) => {
                self.voice.changed |= self.alone == mutual && !self.held.is_empty();
                self.alone = !mutual;
                self.enter(if quorum { Phase::Member } else { Phase::Isolated }, actions);
            }
            Phase::Member if !quorum => self.enter(Phase::Isolated, actions),
            Phase::Member if self.lost.len() > 1 && self.peers.direct().next().is_none() => {
                self.enter(Phase::Isolated, actions);
            }
            Phase::Member if self.alone && mutual => self.join(now, actions),
            Phase::Isolated if self.carrier && quorum && mutual => self.join(now, actions),
            _ => {}
        }
    }

    fn has_joined(&self, now: Instant) -> bool {
        let listened = now.since(self.joining_since);
        listened >= self.config.join_timeout
            || listened >= self.config.dead() && self.peers.view_is_full(self.challenges.current, &self.config, now)
    }

    fn has_quorum(&self, now: Instant) -> bool {
        let PartitionPolicy::Quorum { members } = &self.config.partition else { return true };
        let heard = self.peers.mutual(&self.config, now).filter(|node| members.contains(*node)).count();
        let own = usize::from(members.contains(&self.config.node));
        2 * (heard + own) > members.len()
    }

    fn beat(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.send_heartbeat(now, actions);
        // I1: only here, beside a heartbeat, and counted from before it was sent.
        self.lease_until = now + self.config.lease;
        actions.push(Action::RenewLease { until: self.lease_until });
        self.last_beat = now;
        let next = self.next_beat + self.config.interval;
        self.next_beat = if next > now { next } else { now + self.config.interval };
    }
}

impl Machine for Election {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        self.notice_freeze(now, actions);
        let mut beat = false;
        match event {
            Event::Datagram(datagram) => {
                if let Err(reason) = self.receive(&datagram, now, actions) {
                    actions.push(Action::Rejected { reason });
                }
            }
            Event::Desired(desired) => self.set_desired(desired),
            Event::Ready(ready) => {
                self.voice.changed |= self.ready != ready;
                self.dirty |= self.ready != ready;
                self.ready = ready;
            }
            Event::Carrier(carrier) => self.set_carrier(carrier, now, actions),
            Event::Keys(keys) => self.config.keys = keys,
            Event::Leave => {
                self.voice.changed |= !self.leaving;
                (self.leaving, self.all_taken) = (true, true);
                self.enter(Phase::Leaving, actions);
            }
            // Only here is everything heard that came, so only here may silence be judged (contract of `Machine`).
            Event::Tick => {
                self.tick(now, actions);
                beat = now >= self.next_beat;
            }
        }
        if self.dirty || self.next_decision.is_some_and(|at| at <= now) {
            self.decide(now, actions);
        }
        self.send_claims_if_due(beat, now, actions);
        self.answer_if_due(now, actions);
        if beat {
            self.beat(now, actions);
        }
        if self.leaving && self.held.is_empty() && !self.handed_over {
            self.handed_over = true;
            actions.push(Action::HandedOver { all_taken: self.all_taken });
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let joined = (self.phase == Phase::Joining).then(|| self.joining_since + self.config.dead());
        let joined = joined.filter(|at| *at > self.last_tick);
        let expiry = self.peers.next_expiry(&self.config, self.last_tick);
        [Some(self.next_beat), joined, expiry, self.next_decision, self.next_word()].into_iter().flatten().min()
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): good enough to be different each time; unguessable only as far as the seed is.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 32) as u32
    }
}

#[cfg(test)]
mod tests;
