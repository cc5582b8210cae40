//! What to hold: which VIPs this node keeps, lets go, and claims.
//!
//! Read first: docs/election.md rules R3 to R7. Everything here follows from what is known at `now`; it is done again whenever
//! that changes, and at `next_decision`.

use alloc::vec::Vec;

use super::Election;
use super::claims::{Claimant, Outcome, contest};
use super::peer::{Held, Incarnation};
use super::state::{Action, Eligible, LoseReason, Owner, Phase};
use crate::name::{NodeName, Term, Vip};
use crate::rank;
use crate::time::{Duration, Instant};
use crate::wire::advert::MAX_CLAIMS;

/// A desired VIP that has no owner, or one that asks for a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vacancy {
    since: Instant,
    why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Nobody is known to have held it: nodes may learn of it at different times.
    New,
    /// Its owner fell silent: everybody notices at about the same time.
    OwnerDied,
    /// Its owner asks for a successor.
    Offered,
}

/// A peer's claim is the better one.
struct Lost;

impl Election {
    pub(super) fn decide(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.dirty = false;
        self.next_decision = None;
        self.notice_ability(now);
        let held: Vec<Vip> = self.held.keys().copied().collect();
        for vip in held {
            self.decide_held(vip, now, actions);
        }
        let free: Vec<Vip> = self.desired.keys().filter(|vip| !self.held.contains_key(*vip)).copied().collect();
        for vip in free {
            self.decide_free(vip, now, actions);
        }
        self.owners_of_undesired(actions);
    }

    /// Vacancies count from the moment at which this node could do something about them: else one that becomes able late
    /// jumps the queue of ranks.
    fn notice_ability(&mut self, now: Instant) {
        let can_claim = self.can_claim(now);
        if can_claim && !self.could_claim {
            self.vacancies.values_mut().for_each(|vacancy| vacancy.since = vacancy.since.max(now));
        }
        self.could_claim = can_claim;
    }

    fn can_claim(&self, now: Instant) -> bool {
        let may = matches!(self.phase, Phase::Member | Phase::Isolated);
        may && self.ready && !self.leaving && self.carrier && self.has_quorum(now)
    }

    fn decide_held(&mut self, vip: Vip, now: Instant, actions: &mut Vec<Action>) {
        let Some(held) = self.held.get(&vip).copied() else { return };
        let Some(eligible) = self.desired.get(&vip) else {
            return self.release(vip, LoseReason::Undesired, actions);
        };
        if !self.carrier {
            return self.release(vip, LoseReason::NoCarrier, actions);
        }
        if self.phase != Phase::Joining && !self.has_quorum(now) {
            return self.release(vip, LoseReason::NoQuorum, actions);
        }
        let offered = self.leaving || !self.ready || !eligible.contains(&self.config.node);
        match self.contest_all(vip, held.term, offered, now, actions) {
            Err(Lost) if offered => return self.release(vip, LoseReason::HandedOver, actions),
            Err(Lost) => return self.release(vip, LoseReason::Conflict, actions),
            Ok(term) if term > held.term => self.hold(vip, term, actions),
            Ok(_) => {}
        }
        self.offer(vip, offered, now, actions);
    }

    /// The term to go on with, or `Err` if the VIP is lost to a peer (R5).
    fn contest_all(
        &mut self,
        vip: Vip,
        term: Term,
        offered: bool,
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> Result<Term, Lost> {
        let node = self.config.node.clone();
        let mut own = Claimant { node: &node, term, alone: self.alone, gives_up: offered };
        let mut contested = false;
        for (name, peer, claim) in self.peers.claims(vip) {
            contested = true;
            let rival = claimant(name, peer, claim);
            let highest = self.terms.entry(vip).or_default();
            *highest = claim.term.max(*highest);
            match contest(vip, own, rival, peer.is_deaf(&self.config, now)) {
                Outcome::Keep => {}
                Outcome::Raise => own.term = own.term.max(claim.term.next()),
                Outcome::Yield => return Err(Lost),
            }
        }
        if contested && self.contested.insert(vip) {
            // The loser has to hear of us; if it does not hear us, R7 ends it.
            self.voice.changed = true;
        } else if !contested && self.contested.remove(&vip) {
            // It may have announced itself after we did.
            actions.push(Action::Announce { vip });
        }
        Ok(own.term)
    }

    /// R4: make before break, but not for ever.
    fn offer(&mut self, vip: Vip, offered: bool, now: Instant, actions: &mut Vec<Action>) {
        if let Some(held) = self.held.get_mut(&vip)
            && held.offered != offered
        {
            held.offered = offered;
            self.voice.changed = true;
        }
        if !offered {
            self.offered_since.remove(&vip);
            return;
        }
        let successor = self.has_successor(vip);
        if !successor && self.ready && !self.leaving {
            // Excluded, but it works: better than nobody. The offer stands, the time for it begins when somebody can take it.
            self.offered_since.remove(&vip);
            return;
        }
        let since = *self.offered_since.entry(vip).or_insert(now);
        let end = since + self.config.leave_timeout;
        if now >= end || self.leaving && !successor {
            self.release(vip, LoseReason::NoSuccessor, actions);
        } else {
            self.wake_at(end);
        }
    }

    fn has_successor(&self, vip: Vip) -> bool {
        let eligible = self.desired.get(&vip);
        self.peers.up().any(|(name, peer)| {
            (peer.flags.ready || peer.flags.joining)
                && !peer.flags.leaving
                && eligible.is_some_and(|e| e.contains(name))
        })
    }

    fn decide_free(&mut self, vip: Vip, now: Instant, actions: &mut Vec<Action>) {
        let claims = self.peers.claims(vip).map(|(name, peer, held)| (claimant(name, peer, held), peer.gives_up(held)));
        let best = claims.max_by_key(|(claimant, _)| claimant.order(vip));
        let owner = best.map(|(best, _)| Owner { node: best.node.clone(), term: best.term });
        let vacancy = match best {
            Some((_, false)) => None,
            Some((_, true)) => Some(Vacancy { since: now, why: Why::Offered }),
            None => self.why_vacant(vip, now),
        };
        if let Some(owner) = &owner {
            let highest = self.terms.entry(vip).or_default();
            *highest = owner.term.max(*highest);
        }
        let haunted = self.peers.haunted_until(vip, now).is_some();
        if owner.is_some() || !haunted {
            self.set_owner(vip, owner, actions);
        }
        let Some(vacancy) = vacancy else {
            self.vacancies.remove(&vip);
            return;
        };
        let known = self.vacancies.entry(vip).or_insert(vacancy);
        if known.why != vacancy.why && (known.why == Why::Offered || vacancy.why == Why::Offered) {
            *known = vacancy;
        }
        let vacancy = *known;
        self.decide_vacant(vip, vacancy, now, actions);
    }

    fn why_vacant(&self, vip: Vip, now: Instant) -> Option<Vacancy> {
        if let Some(until) = self.peers.haunted_until(vip, now) {
            return Some(Vacancy { since: until, why: Why::OwnerDied });
        }
        let died =
            self.owners.get(&vip).is_some_and(|owner| owner.node != self.config.node && !self.peers.is_up(&owner.node));
        Some(Vacancy { since: now, why: if died { Why::OwnerDied } else { Why::New } })
    }

    /// R3: the best-ranked claims, the others later, each if nobody has by then.
    fn decide_vacant(&mut self, vip: Vip, vacancy: Vacancy, now: Instant, actions: &mut Vec<Action>) {
        let eligible = self.desired.get(&vip).is_some_and(|eligible| eligible.contains(&self.config.node));
        if !self.can_claim(now) || !eligible || self.held.len() >= MAX_CLAIMS {
            return;
        }
        let mut due = vacancy.since + self.delay(vip, vacancy.why);
        if let Some(until) = self.peers.doubtful_until(vip, &self.config, now) {
            due = due.max(until);
        }
        // Somebody's list is on its way; it may have this VIP.
        if self.peers.misses_claims() && now < due + self.config.dead() {
            due = due.max(now + self.config.interval);
        }
        if now < due {
            return self.wake_at(due);
        }
        let highest = self.terms.get(&vip).copied().max(self.peers.highest_term(vip)).unwrap_or_default();
        self.hold(vip, highest.next(), actions);
        actions.push(Action::Announce { vip });
    }

    fn delay(&self, vip: Vip, why: Why) -> Duration {
        let rank = self.rank(vip, why);
        match why {
            Why::New if rank > 0 => self.config.dead() + self.config.rank_skew * rank,
            _ => self.config.rank_skew * rank,
        }
    }

    /// Among those who can claim, and those who will be able to in a moment.
    fn rank(&self, vip: Vip, why: Why) -> u32 {
        let eligible = self.desired.get(&vip);
        let able = self.peers.up().filter(|(name, peer)| {
            let soon = peer.flags.ready || why == Why::New && peer.flags.joining;
            soon && !peer.flags.leaving && eligible.is_some_and(|e: &Eligible| e.contains(name))
        });
        let others = able.filter(|(_, peer)| !peer.claims.get(&vip).is_some_and(|held| held.offered));
        rank::rank(vip, &self.config.node, others.map(|(name, _)| name))
    }

    /// Takes a VIP, or goes on with a higher term.
    fn hold(&mut self, vip: Vip, term: Term, actions: &mut Vec<Action>) {
        self.held.insert(vip, Held { term, offered: false });
        self.terms.insert(vip, term);
        self.vacancies.remove(&vip);
        self.voice.changed = true;
        actions.push(Action::Acquire { vip, term });
        let node = self.config.node.clone();
        self.set_owner(vip, Some(Owner { node, term }), actions);
    }

    fn release(&mut self, vip: Vip, reason: LoseReason, actions: &mut Vec<Action>) {
        if self.held.remove(&vip).is_none() {
            return;
        }
        self.all_taken &= matches!(reason, LoseReason::HandedOver | LoseReason::Conflict | LoseReason::Undesired);
        self.offered_since.remove(&vip);
        self.contested.remove(&vip);
        self.voice.changed = true;
        actions.push(Action::Release { vip, reason });
    }

    pub(super) fn release_all(&mut self, reason: LoseReason, actions: &mut Vec<Action>) {
        let held: Vec<Vip> = self.held.keys().copied().collect();
        for vip in held {
            self.release(vip, reason, actions);
        }
        self.dirty = true;
    }

    fn set_owner(&mut self, vip: Vip, owner: Option<Owner>, actions: &mut Vec<Action>) {
        if self.owners.get(&vip) == owner.as_ref() {
            return;
        }
        match &owner {
            Some(owner) => self.owners.insert(vip, owner.clone()),
            None => self.owners.remove(&vip),
        };
        actions.push(Action::OwnerChanged { vip, owner });
    }

    fn owners_of_undesired(&mut self, actions: &mut Vec<Action>) {
        let gone: Vec<Vip> = self.owners.keys().filter(|vip| !self.desired.contains_key(*vip)).copied().collect();
        for vip in gone {
            self.set_owner(vip, None, actions);
        }
    }

    fn wake_at(&mut self, at: Instant) {
        self.next_decision = Some(self.next_decision.map_or(at, |known| known.min(at)));
    }
}

fn claimant<'a>(node: &'a NodeName, peer: &Incarnation, held: Held) -> Claimant<'a> {
    Claimant { node, term: held.term, alone: peer.flags.alone, gives_up: peer.gives_up(held) }
}
