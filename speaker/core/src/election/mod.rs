//! Who holds which VIP: one heartbeat per node, a lease shorter than the dead interval, claims with terms.
//!
//! Read first: docs/election.md (phases, rules R1.., invariants I1..); RFC 9568 for what it grew from.
//! Files: `state` (configuration, events, actions) → `eligible` (which nodes may hold a VIP) → `turn` (the loop that drives it) → `peer`, `peers` (what is received) → `claims`
//! (which claim wins a conflict) → `precedence` (who may claim before whom) → `failback` (who hands back), `order` (who hands over as ordered) → `decide` (what to hold) → `transmit` (what is sent).

mod claims;
mod decide;
mod eligible;
mod failback;
mod order;
mod peer;
mod peers;
mod pods;
mod precedence;
pub mod stall;
mod state;
mod transmit;
pub mod turn;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use decide::{Ability, Record};
pub use eligible::{Choice, Eligible, Order, Standing};
pub use peer::Loss;
use peer::{Challenges, Claims, Received};
use peers::{Lapsed, Peers, STALE};
pub use state::{
    Action, Config, ConfigError, Event, LoseReason, Owner, PartitionPolicy, PeerStatus, Phase, Status, Work,
};
use transmit::Transmit;

use crate::machine::Machine;
use crate::name::{NodeName, Vip};
use crate::rank;
use crate::time::{Duration, Instant};
use crate::wire::advert::{Advert, MAX_CLAIMS, Reject};

/// One node's part in the election of the owners of all VIPs.
#[derive(Debug)]
pub struct Election {
    config: Config,
    random: Random,
    challenges: Challenges,
    transmit: Transmit,
    peers: Peers,
    /// Of this node's name, for its rank.
    hash: u64,

    phase: Phase,
    joining_since: Instant,
    /// No peer has received this node since it last was a member.
    alone: bool,
    /// When peers went down, lately: all at once means that it is this node that is cut off.
    lost: Vec<Instant>,
    ready: bool,
    ready_since: Instant,
    carrier: bool,
    leaving: bool,
    /// No API server has confirmed the view, and since when a peer whose view is confirmed could hold VIPs.
    saved_view: bool,
    confirmed_peer: Option<Instant>,
    drained: bool,
    beyond: BTreeSet<NodeName>,
    handed_over: bool,
    all_taken: bool,

    last_tick: Instant,
    last_beat: Instant,
    next_beat: Instant,
    lease_until: Instant,
    /// The kernel refused the lease: no claim before this time.
    barred_until: Option<Instant>,

    vips: BTreeMap<Vip, Record>,
    held: Claims,
    /// Held, and claimed by a peer too.
    contested: BTreeSet<Vip>,
    /// Vacant, or held while stepping down.
    open: BTreeSet<Vip>,
    /// To be decided in this turn.
    touched: BTreeSet<Vip>,
    timers: BTreeSet<(Instant, Vip)>,
    ability: Ability,
    /// A received peer has a claim list that this node does not know.
    misses_claims: bool,
    work: Work,
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
            random,
            challenges,
            transmit: Transmit::default(),
            peers: Peers::default(),
            hash: rank::hash_name(&config.node),
            config,
            phase: Phase::Joining,
            joining_since: now,
            alone: true,
            lost: Vec::new(),
            ready: false,
            ready_since: now,
            carrier: true,
            leaving: false,
            saved_view: false,
            confirmed_peer: None,
            drained: false,
            beyond: BTreeSet::new(),
            handed_over: false,
            all_taken: true,
            last_tick: Instant::ZERO,
            last_beat: now,
            next_beat: now,
            lease_until: Instant::ZERO,
            barred_until: None,
            vips: BTreeMap::new(),
            held: Claims::new(),
            contested: BTreeSet::new(),
            open: BTreeSet::new(),
            touched: BTreeSet::new(),
            timers: BTreeSet::new(),
            ability: Ability::default(),
            misses_claims: false,
            work: Work::default(),
        }
    }

    pub fn node(&self) -> &NodeName {
        &self.config.node
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The owner of a desired VIP as this node knows it.
    pub fn owner(&self, vip: Vip) -> Option<&Owner> {
        self.vips.get(&vip)?.owner.as_ref()
    }

    /// The silence after which the slowest of this node and its peers is dead.
    pub fn slowest_dead(&self) -> Duration {
        self.peers.slowest_dead().max(self.config.dead())
    }

    /// What was done since the start.
    pub fn work(&self) -> Work {
        self.work
    }

    /// When the next heartbeat is due. [`Event::Beat`] sends it before what is pending on the socket.
    pub fn next_beat(&self) -> Instant {
        self.next_beat
    }

    /// For metrics and `sheave status`.
    pub fn status(&self, now: Instant) -> Status {
        Status {
            phase: self.phase,
            ready: self.ready,
            alone: self.alone,
            lease_until: self.lease_until,
            held: self.held.iter().map(|(vip, held)| (*vip, held.term)).collect(),
            owners: self.vips.iter().filter_map(|(vip, record)| Some((*vip, record.owner.clone()?))).collect(),
            peers: self.peers(now).collect(),
        }
    }

    pub fn peers(&self, now: Instant) -> impl Iterator<Item = PeerStatus> {
        self.peers.all().filter_map(move |(name, peer)| peer.status(name, &self.config, now))
    }

    fn receive(&mut self, datagram: &[u8], now: Instant, actions: &mut Vec<Action>) -> Result<(), Reject> {
        let advert = Advert::open(datagram, self.config.cluster, &self.config.keys)?;
        if advert.node == self.config.node {
            return Err(Reject::OwnEcho);
        }
        if self.beyond.contains(&advert.node) {
            return Err(Reject::TooManyPeers);
        }
        let (node, epoch) = (advert.node.clone(), advert.epoch);
        let (ready, wants_claims) = (advert.flags.takes_flows(), advert.flags.need_claims);
        let received = self.peers.receive(advert, self.challenges, &self.config, now)?;
        self.transmit.requested |= wants_claims;
        self.work.listed += received.vips.len() as u64;
        self.touched.extend(received.vips);
        if received.flags {
            self.touch_open();
            self.touch_offers();
        }
        if received.replaced {
            self.new_challenge();
            self.transmit.introduce_node();
        }
        if received.verified {
            let Received { receives_us, pace, .. } = received;
            actions.push(Action::Received { node: node.clone(), epoch, ready, receives_us, pace });
        }
        if let Some(mac) = received.mac {
            actions.push(Action::Address { node: node.clone(), mac });
        }
        self.transmit.answer |= received.answer;
        if received.came_up {
            self.transmit.introduce();
            actions.push(Action::PeerUp { node });
            if self.alone && matches!(self.phase, Phase::Member | Phase::Isolated) && self.carrier {
                self.join(now, actions);
            }
        }
        Ok(())
    }

    fn set_desired(&mut self, desired: BTreeMap<Vip, Eligible>) {
        for (vip, record) in &mut self.vips {
            if !desired.contains_key(vip) && record.eligible.take().is_some() {
                self.touched.insert(*vip);
            }
        }
        for (vip, eligible) in desired.into_iter().take(MAX_CLAIMS) {
            let record = self.vips.entry(vip).or_default();
            if record.eligible.as_ref() != Some(&eligible) {
                record.eligible = Some(eligible);
                self.touched.insert(vip);
            }
        }
    }

    /// The other nodes of the view. What a node that has left it claims no longer counts, whatever it still sends.
    fn set_nodes(&mut self, nodes: BTreeSet<NodeName>, actions: &mut Vec<Action>) {
        let lapsed = self.peers.set_members(nodes);
        self.lapsed(lapsed, actions);
    }

    fn lapsed(&mut self, lapsed: Lapsed, actions: &mut Vec<Action>) {
        let Lapsed { down, vips } = lapsed;
        self.touched.extend(vips);
        if !down.is_empty() {
            self.touch_open();
        }
        actions.extend(down.into_iter().map(|(node, left)| Action::PeerDown { node, left }));
    }

    /// The kernel refused this node's entry: the next node in rank may succeed.
    fn not_acquired(&mut self, vip: Vip, now: Instant, actions: &mut Vec<Action>) {
        self.release(vip, LoseReason::MapWriteFailed, actions);
        if let Some(record) = self.vips.get_mut(&vip) {
            record.barred_until = Some(now + self.config.retry);
        }
    }

    /// The kernel refused the lease: it soon answers for no VIP of this node, and another node may succeed.
    fn not_renewed(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.release_all(LoseReason::MapWriteFailed, actions);
        self.barred_until = Some(now + self.config.retry);
    }

    fn set_carrier(&mut self, carrier: bool, now: Instant, actions: &mut Vec<Action>) {
        if core::mem::replace(&mut self.carrier, carrier) == carrier {
            return;
        }
        match (carrier, self.phase) {
            (_, Phase::Leaving) => {}
            (true, _) => self.join(now, actions),
            (false, _) => self.enter(Phase::Isolated, actions),
        }
    }

    /// R9: a node that was kept from running for longer than the dead interval has lost what it held, and what lies in its socket is
    /// old. A node that was late by its own work has not: it reads what is pending before its next heartbeat, and R5 settles the rest.
    fn woke(&mut self, stalled: Duration, now: Instant, actions: &mut Vec<Action>) {
        let (late, dead) = (now.since(self.last_beat), self.config.dead());
        if late < dead || stalled < dead / 2 && late < dead * 8 {
            return;
        }
        self.last_beat = now;
        self.next_beat = now;
        self.release_all(LoseReason::Frozen, actions);
        self.peers.end_silence(now);
        self.lost.clear();
        if self.carrier && !self.leaving {
            self.join(now, actions);
        }
    }

    /// R8: listen until the view is full. The new challenge separates adverts from now on from old ones.
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
            actions.push(Action::Phase(phase));
        }
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.last_tick = now;
        let lapsed = self.peers.expire(&self.config, now);
        self.work.peers += self.peers.len() as u64;
        self.lost.extend(lapsed.down.iter().map(|_| now));
        let dead = self.slowest_dead();
        self.lost.retain(|at| now.since(*at) <= dead);
        self.lapsed(lapsed, actions);
        self.advance(now, actions);
        // Peers answer a new challenge at once, whatever their pace.
        if self.phase == Phase::Member && self.peers.asks(now) {
            self.new_challenge();
            self.transmit.answer = true;
        }
        // A conflict may hang on what a rival receives, and that changes with time alone (R7).
        self.touched.extend(&self.contested);
    }

    /// Changes of phase that time and peers bring about.
    fn advance(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let mutual = !self.peers.is_unheard() && self.peers.mutual(&self.config, now).next().is_some();
        if !mutual && !self.alone {
            self.alone = true;
            self.transmit.changed |= !self.held.is_empty();
        }
        let quorum = self.has_quorum(now);
        match self.phase {
            Phase::Joining if self.has_joined(now) => {
                self.transmit.changed |= self.alone == mutual && !self.held.is_empty();
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
        // Every peer, of whatever pace, has been heard by then.
        listened >= self.config.join_timeout.max(self.slowest_dead())
            || listened >= self.listens() && self.peers.view_is_full(self.challenges.current, &self.config, now)
    }

    /// For so long at least, when it joins. No peer refuses it then for the sake of a speaker with a higher epoch that was here before.
    fn listens(&self) -> Duration {
        self.config.dead().max(STALE)
    }

    fn has_quorum(&self, now: Instant) -> bool {
        let PartitionPolicy::Quorum { members } = &self.config.partition else { return true };
        let connected = self.peers.mutual(&self.config, now).filter(|node| members.contains(*node)).count();
        let own = usize::from(members.contains(&self.config.node));
        2 * (connected + own) > members.len()
    }

    fn beat(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.work.beats += 1;
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
        let mut beat = false;
        let decides = !matches!(event, Event::Beat);
        match event {
            Event::Woke { stalled } => return self.woke(stalled, now, actions),
            // Not decided yet: what else is pending may change it again.
            Event::Datagram(datagram) => {
                self.work.datagrams += 1;
                if let Err(reason) = self.receive(&datagram, now, actions) {
                    actions.push(Action::Rejected { reason });
                }
                return;
            }
            // After its lease a node reads what is pending first: its VIPs may have been claimed.
            Event::Beat => {
                beat = now >= self.next_beat
                    && (now < self.lease_until || self.held.is_empty() && self.last_tick > Instant::ZERO);
                if !beat {
                    return;
                }
            }
            Event::Desired(desired) => self.set_desired(desired),
            Event::Nodes(nodes) => self.set_nodes(nodes, actions),
            Event::BeyondLimit(nodes) => self.beyond = nodes,
            Event::SavedView(saved) => self.set_saved_view(saved, actions),
            Event::Drained(drained) => {
                self.transmit.changed |= self.drained != drained;
                self.drained = drained;
            }
            Event::Ready(ready) => {
                self.transmit.changed |= self.ready != ready;
                if ready && !self.ready {
                    self.ready_since = now;
                }
                self.ready = ready;
            }
            Event::Carrier(carrier) => self.set_carrier(carrier, now, actions),
            Event::NotAcquired(vip) => self.not_acquired(vip, now, actions),
            Event::NotRenewed => self.not_renewed(now, actions),
            Event::Keys(keys) => self.config.keys = keys,
            Event::OwnMac(mac) => self.transmit.set_mac(mac),
            Event::Leave => {
                self.transmit.changed |= !self.leaving;
                (self.leaving, self.all_taken) = (true, true);
                self.enter(Phase::Leaving, actions);
            }
            // Only here is everything received that came, so only here may silence be judged (contract of `Machine`).
            Event::Tick => {
                self.tick(now, actions);
                beat = now >= self.next_beat;
            }
        }
        if decides {
            self.decide(now, actions);
        }
        self.send_node_if_due(beat, now, actions);
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
        let joined = (self.phase == Phase::Joining).then(|| self.joining_since + self.listens());
        let joined = joined.filter(|at| *at > self.last_tick);
        let touched = (!self.touched.is_empty()).then_some(self.last_tick);
        let timer = self.timers.first().map(|(at, _)| *at);
        let asks = self.peers.ask_at().filter(|_| self.phase == Phase::Member);
        let own = [Some(self.next_beat), joined, touched, timer, self.concedes_at(), asks];
        let theirs = [self.peers.next_expiry(), self.next_transmission()];
        own.into_iter().chain(theirs).flatten().min()
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
