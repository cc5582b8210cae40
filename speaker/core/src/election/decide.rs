//! What to hold: which VIPs this node keeps, lets go, and claims.
//!
//! Read first: docs/election.md rules R3 to R7. A VIP is decided when something it depends on has changed (`touched`) or when its
//! own timer has run out, once per turn of the loop: what a node decides is proportional to what changed, not to all VIPs times all
//! peers.

use alloc::vec::Vec;

use super::Election;
use super::claims::{Claimant, Outcome, contest};
use super::eligible::Eligible;
use super::failback::Failback;
use super::peer::{Held, Incarnation};
use super::pods::Late;
use super::state::{Action, LoseReason, Owner, Phase};
use crate::name::{NodeName, Term, Vip};
use crate::rank;
use crate::time::{Duration, Instant};
use crate::wire::advert::MAX_CLAIMS;

/// What this node knows and intends of one VIP; what it holds is in its claim list.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    /// Which nodes may hold it. `None`: it is not desired.
    pub eligible: Option<Eligible>,
    pub owner: Option<Owner>,
    /// Desired, and without an owner that keeps it.
    pub vacancy: Option<Vacancy>,
    /// The highest term received while it was desired.
    pub term: Term,
    /// Held, but not for long: since when a successor is sought.
    stepping_down_since: Option<Instant>,
    /// The kernel refused this node's entry: no claim before this time.
    pub barred_until: Option<Instant>,
    /// Held: what is intended for a heavier node.
    pub failback: Failback,
    /// Held: since when it has been offered to the node that an order names.
    pub ordered_since: Option<Instant>,
    /// Held: the nodes that should have claimed it first.
    pub late: Option<Late>,
    /// When it is to be decided again although nothing changed.
    wake: Option<Instant>,
}

/// A desired VIP without an owner, or with an owner that steps down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vacancy {
    since: Instant,
    why: Why,
    /// Nodes with pods come first, and none has been known since it began.
    lacks_pods: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// No node is known to have held it: nodes may receive it at different times.
    New,
    /// Its owner fell silent: all peers notice at about the same time.
    OwnerDied,
    /// Its owner steps down.
    SteppingDown,
}

/// What decides for all VIPs at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ability {
    phase: Phase,
    ready: bool,
    leaving: bool,
    carrier: bool,
    quorum: bool,
    /// The kernel takes the lease.
    renews: bool,
    pub saved_view: bool,
    /// It steps down from VIPs that peers with a confirmed view could hold.
    pub concedes: bool,
    drained: bool,
}

impl Ability {
    fn can_claim(self) -> bool {
        let may = matches!(self.phase, Phase::Member | Phase::Isolated);
        may && self.ready && !self.leaving && self.carrier && self.quorum && self.renews
    }
}

/// What becomes of a VIP that this node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tenure {
    Stays,
    /// It steps down and holds the VIP until a peer claims it.
    Offered,
    /// It steps down and, once a successor is there, holds the VIP for a leave timeout at most.
    Ends,
}

/// A peer's claim is the better one.
struct Lost;

impl Election {
    pub(super) fn decide(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.notice_ability(now);
        while let Some((at, vip)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, vip));
            self.touched.insert(vip);
        }
        while let Some(vip) = self.touched.pop_first() {
            self.work.decisions += 1;
            self.decide_one(vip, now, actions);
        }
    }

    fn decide_one(&mut self, vip: Vip, now: Instant, actions: &mut Vec<Action>) {
        let Some(record) = self.vips.get_mut(&vip) else { return };
        if let Some(at) = record.wake.take() {
            self.timers.remove(&(at, vip));
        }
        let desired = record.eligible.is_some();
        if self.held.contains_key(&vip) {
            self.decide_held(vip, now, actions);
        }
        if self.held.contains_key(&vip) {
            return;
        }
        // Released just now: decided below.
        self.touched.remove(&vip);
        if desired {
            self.decide_free(vip, now, actions);
        } else {
            self.set_owner(vip, None, actions);
            self.open.remove(&vip);
            self.vips.remove(&vip);
        }
    }

    /// What concerns all VIPs. Vacancies count from the moment at which this node could claim them: else a node that becomes able
    /// late jumps the queue of ranks.
    fn notice_ability(&mut self, now: Instant) {
        let ability = Ability {
            phase: self.phase,
            ready: self.ready,
            leaving: self.leaving,
            carrier: self.carrier,
            quorum: self.has_quorum(now),
            renews: self.barred_until.is_none_or(|until| now >= until),
            saved_view: self.saved_view,
            concedes: self.concedes(now),
            drained: self.drained,
        };
        let before = core::mem::replace(&mut self.ability, ability);
        if ability.can_claim() && (!before.can_claim() || before.saved_view && !ability.saved_view) {
            for vip in &self.open {
                if let Some(vacancy) = self.vips.get_mut(vip).and_then(|record| record.vacancy.as_mut()) {
                    vacancy.since = vacancy.since.max(now);
                }
            }
        }
        if ability != before {
            self.touched.extend(self.vips.keys());
        }
        let misses = self.peers.misses_claims();
        self.work.peers += self.peers.len() as u64;
        if core::mem::replace(&mut self.misses_claims, misses) && !misses {
            self.touch_open();
        }
    }

    /// VIPs whose decision depends on which peers could claim: the vacant ones, and those from which this node steps down.
    pub(super) fn touch_open(&mut self) {
        self.touched.extend(&self.open);
    }

    fn decide_held(&mut self, vip: Vip, now: Instant, actions: &mut Vec<Action>) {
        let Some(held) = self.held.get(&vip).copied() else { return };
        let Some(eligible) = self.vips.get(&vip).and_then(|record| record.eligible.as_ref()) else {
            return self.release(vip, LoseReason::Undesired, actions);
        };
        if !self.carrier {
            return self.release(vip, LoseReason::NoCarrier, actions);
        }
        if self.phase != Phase::Joining && !self.ability.quorum {
            return self.release(vip, LoseReason::NoQuorum, actions);
        }
        let second_choice = !eligible.contains(&self.config.node);
        let must = self.leaving || !self.ready || second_choice || self.ability.concedes && self.is_preceded(vip);
        let tenure = match must {
            true => Tenure::Ends,
            false if self.drains(vip) || self.offers(vip, held.term, now) => Tenure::Offered,
            false => Tenure::Stays,
        };
        let stepping_down = tenure != Tenure::Stays;
        match self.contest_all(vip, held.term, stepping_down, now, actions) {
            Err(Lost) if stepping_down => return self.release(vip, LoseReason::HandedOver, actions),
            Err(Lost) => return self.release(vip, LoseReason::Conflict, actions),
            Ok(term) if term > held.term => self.hold(vip, term, actions),
            Ok(_) => {}
        }
        self.set_tenure(vip, tenure, now, actions);
    }

    /// The term to go on with, or `Err` if the VIP is lost to a peer (R5).
    fn contest_all(
        &mut self,
        vip: Vip,
        term: Term,
        stepping_down: bool,
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> Result<Term, Lost> {
        let node = self.config.node.clone();
        let mut own = Claimant { node: &node, term, alone: self.alone, steps_down: stepping_down };
        let mut contested = false;
        for (name, peer, claim) in self.peers.claims(vip) {
            contested = true;
            let rival = claimant(name, peer, claim);
            if let Some(record) = self.vips.get_mut(&vip) {
                record.term = record.term.max(claim.term);
            }
            match contest(vip, own, rival, peer.is_one_way(&self.config, now)) {
                Outcome::Keep => {}
                Outcome::Raise => own.term = own.term.max(claim.term.next()),
                Outcome::Yield => return Err(Lost),
            }
        }
        if contested && self.contested.insert(vip) {
            // The loser has to receive our list; if it does not, R7 ends the conflict.
            self.transmit.changed = true;
        } else if !contested && self.contested.remove(&vip) {
            // It may have announced itself after we did.
            actions.push(Action::Announce { vip });
        }
        Ok(own.term)
    }

    /// R4: make before break, but not for ever.
    fn set_tenure(&mut self, vip: Vip, tenure: Tenure, now: Instant, actions: &mut Vec<Action>) {
        let stepping_down = tenure != Tenure::Stays;
        if let Some(held) = self.held.get_mut(&vip)
            && held.stepping_down != stepping_down
        {
            held.stepping_down = stepping_down;
            self.transmit.changed = true;
        }
        if !stepping_down {
            self.open.remove(&vip);
            return self.set_stepping_down_since(vip, None);
        }
        self.open.insert(vip);
        if tenure == Tenure::Offered {
            return self.set_stepping_down_since(vip, None);
        }
        let successor = self.has_successor(vip);
        let may_keep = self.eligible(vip).is_some_and(|eligible| eligible.choice(&self.config.node).is_some());
        if !successor && self.ready && !self.leaving && may_keep {
            // Excluded, but it works: better than no owner. The offer stands, the time for it begins when a successor can take it.
            return self.set_stepping_down_since(vip, None);
        }
        let since = self.vips.get(&vip).and_then(|record| record.stepping_down_since).unwrap_or(now);
        self.set_stepping_down_since(vip, Some(since));
        let end = since + self.config.leave_timeout;
        if now >= end || self.leaving && !successor {
            let conceded = self.ability.concedes && self.ready && !self.leaving;
            self.release(vip, if conceded { LoseReason::SavedView } else { LoseReason::NoSuccessor }, actions);
        } else {
            self.wake_at(vip, end);
        }
    }

    fn set_stepping_down_since(&mut self, vip: Vip, since: Option<Instant>) {
        if let Some(record) = self.vips.get_mut(&vip) {
            record.stepping_down_since = since;
        }
    }

    pub(super) fn eligible(&self, vip: Vip) -> Option<&Eligible> {
        self.vips.get(&vip)?.eligible.as_ref()
    }

    fn decide_free(&mut self, vip: Vip, now: Instant, actions: &mut Vec<Action>) {
        let claims =
            self.peers.claims(vip).map(|(name, peer, held)| (claimant(name, peer, held), peer.steps_down(held)));
        let best = claims.max_by(|(one, _), (other, _)| one.order(*other, vip));
        let owner = best.map(|(best, _)| Owner { node: best.node.clone(), term: best.term });
        let answered_until = self.peers.answered_until(vip, now);
        let vacancy = match best {
            Some((_, false)) => None,
            Some((_, true)) => Some(Vacancy { since: now, why: Why::SteppingDown, lacks_pods: false }),
            None => Some(self.why_vacant(vip, answered_until, now)),
        };
        if owner.is_some() || answered_until.is_none() {
            self.set_owner(vip, owner.clone(), actions);
        }
        let lacks_pods = self.lacks_pods(vip);
        let Some(record) = self.vips.get_mut(&vip) else { return };
        if let Some(owner) = &owner {
            record.term = record.term.max(owner.term);
        }
        let Some(vacancy) = vacancy else {
            record.vacancy = None;
            self.open.remove(&vip);
            return;
        };
        let known = record.vacancy.get_or_insert(vacancy);
        if known.why != vacancy.why && (known.why == Why::SteppingDown || vacancy.why == Why::SteppingDown) {
            *known = vacancy;
        }
        // The first pods come into the views of the nodes one after the other, as the VIP did.
        if known.lacks_pods && !lacks_pods {
            *known = Vacancy { since: now, lacks_pods, ..*known };
        }
        let vacancy = *known;
        self.open.insert(vip);
        self.decide_vacant(vip, vacancy, now, actions);
    }

    fn lacks_pods(&self, vip: Vip) -> bool {
        self.eligible(vip).is_some_and(Eligible::lacks_pods)
    }

    fn why_vacant(&self, vip: Vip, answered_until: Option<Instant>, now: Instant) -> Vacancy {
        if let Some(until) = answered_until {
            return Vacancy { since: until, why: Why::OwnerDied, lacks_pods: false };
        }
        let owner = self.vips.get(&vip).and_then(|record| record.owner.as_ref());
        if owner.is_some_and(|owner| owner.node != self.config.node && !self.peers.is_up(&owner.node)) {
            return Vacancy { since: now, why: Why::OwnerDied, lacks_pods: false };
        }
        Vacancy { since: now, why: Why::New, lacks_pods: self.lacks_pods(vip) }
    }

    /// R3: the best-ranked claims, the others later, each if no peer has by then.
    fn decide_vacant(&mut self, vip: Vip, vacancy: Vacancy, now: Instant, actions: &mut Vec<Action>) {
        if !self.ability.can_claim() || self.is_preceded(vip) || self.held.len() >= MAX_CLAIMS {
            return;
        }
        if self.peers.claims(vip).any(|claim| !self.yields_to_this_node(vip, claim, now)) {
            return;
        }
        let ordered = self.eligible(vip).is_some_and(|eligible| {
            self.peers.claims(vip).any(|(owner, _, held)| self.is_ordered_here(eligible, owner, held))
        });
        let mut due = if ordered { vacancy.since } else { self.due(vip, vacancy, now) };
        if let Some(until) = self.peers.unverified_until(vip, &self.config, now) {
            due = due.max(until);
        }
        // A claim list is on its way; it may have this VIP.
        if self.misses_claims && now < due + self.config.dead() {
            due = due.max(now + self.config.interval);
        }
        if let Some(until) = self.vips.get(&vip).and_then(|record| record.barred_until) {
            due = due.max(until);
        }
        if now < due {
            return self.wake_at(vip, due);
        }
        let known = self.vips.get(&vip).map(|record| record.term);
        let highest = known.max(self.peers.highest_term(vip)).unwrap_or_default();
        let late = self.late(vip, highest, now);
        self.hold(vip, highest.next(), actions);
        if let Some(record) = self.vips.get_mut(&vip).filter(|_| late.is_some()) {
            record.late = late;
            self.touched.insert(vip);
        }
        actions.push(Action::Announce { vip });
    }

    /// When this node claims by its rank, or a moment before that at which it has to look again: ranks are counted only as far as
    /// time has come.
    fn due(&mut self, vip: Vip, vacancy: Vacancy, now: Instant) -> Instant {
        let Vacancy { since, why, .. } = vacancy;
        let lacks_pods = self.lacks_pods(vip);
        let skew = self.config.rank_skew;
        // Watches deliver at different times: of a new VIP the others leave the first in rank a dead interval. Where nodes with pods come
        // first, and the pods of a new Service are not in the view yet, there is no first: a busy control plane takes longer for them.
        let head = match why {
            Why::New if lacks_pods => self.config.pods_wait,
            Why::New => self.config.dead(),
            Why::OwnerDied | Why::SteppingDown => Duration::ZERO,
        };
        let waited = now.since(since).saturating_sub(head);
        let limit = (waited.as_nanos() / skew.as_nanos().max(1)).saturating_add(1);
        let before = self.outranked(vip, why, u32::try_from(limit).unwrap_or(u32::MAX));
        if before == 0 && !lacks_pods { since } else { since + head + skew * before }
    }

    /// How many nodes come before this one, up to `limit`, among those that can claim or will be able to in a moment.
    fn outranked(&mut self, vip: Vip, why: Why, limit: u32) -> u32 {
        let node = &self.config.node;
        let eligible = self.vips.get(&vip).and_then(|record| record.eligible.as_ref());
        let has_pod = |name: &NodeName| eligible.is_some_and(|eligible| eligible.has_pod(name));
        let weight = |name: &NodeName| eligible.map(|eligible| eligible.weight(name)).unwrap_or_default();
        let own = (weight(node), has_pod(node), rank::weight_of_hash(vip, self.hash), node);
        let precedence = eligible.and_then(|eligible| self.own_precedence(eligible));
        let competes = |name: &NodeName, peer: &Incarnation| {
            precedence.is_some() && eligible.and_then(|e| self.precedence(e, name, peer)) == precedence
        };
        let (mut before, mut compared) = (0, 0);
        for (name, peer, hash) in self.peers.ranked() {
            let soon = peer.flags.ready || why == Why::New && peer.flags.joining;
            if !soon || peer.flags.leaving || !competes(name, peer) {
                continue;
            }
            compared += 1;
            let steps_down = || peer.claims.get(&vip).is_some_and(|held| held.stepping_down);
            let rank = (weight(name), has_pod(name), rank::weight_of_hash(vip, hash), name);
            if rank > own && !steps_down() {
                before += 1;
                if before >= limit {
                    break;
                }
            }
        }
        self.work.compared += compared;
        before
    }

    /// Takes a VIP, or goes on with a higher term.
    fn hold(&mut self, vip: Vip, term: Term, actions: &mut Vec<Action>) {
        self.held.insert(vip, Held { term, stepping_down: false });
        if let Some(record) = self.vips.get_mut(&vip) {
            (record.term, record.vacancy, record.barred_until) = (term, None, None);
            (record.failback, record.ordered_since, record.late) = (Failback::default(), None, None);
            // A heavier node may be ready already.
            if record.eligible.as_ref().is_some_and(Eligible::may_be_offered) {
                self.touched.insert(vip);
            }
        }
        self.open.remove(&vip);
        self.transmit.changed = true;
        actions.push(Action::Acquire { vip, term });
        let node = self.config.node.clone();
        self.set_owner(vip, Some(Owner { node, term }), actions);
    }

    pub(super) fn release(&mut self, vip: Vip, reason: LoseReason, actions: &mut Vec<Action>) {
        if self.held.remove(&vip).is_none() {
            return;
        }
        self.all_taken &= matches!(reason, LoseReason::HandedOver | LoseReason::Conflict | LoseReason::Undesired);
        self.set_stepping_down_since(vip, None);
        self.open.remove(&vip);
        self.contested.remove(&vip);
        self.touched.insert(vip);
        self.transmit.changed = true;
        actions.push(Action::Release { vip, reason });
    }

    pub(super) fn release_all(&mut self, reason: LoseReason, actions: &mut Vec<Action>) {
        let held: Vec<Vip> = self.held.keys().copied().collect();
        for vip in held {
            self.release(vip, reason, actions);
        }
    }

    fn set_owner(&mut self, vip: Vip, owner: Option<Owner>, actions: &mut Vec<Action>) {
        let Some(record) = self.vips.get_mut(&vip) else { return };
        if record.owner != owner {
            record.owner = owner.clone();
            actions.push(Action::OwnerChanged { vip, owner });
        }
    }

    pub(super) fn wake_at(&mut self, vip: Vip, at: Instant) {
        let Some(record) = self.vips.get_mut(&vip) else { return };
        if let Some(known) = record.wake {
            if known <= at {
                return;
            }
            self.timers.remove(&(known, vip));
        }
        record.wake = Some(at);
        self.timers.insert((at, vip));
    }
}

fn claimant<'a>(node: &'a NodeName, peer: &Incarnation, held: Held) -> Claimant<'a> {
    Claimant { node, term: held.term, alone: peer.flags.alone, steps_down: peer.steps_down(held) }
}
