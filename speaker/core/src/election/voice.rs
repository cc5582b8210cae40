//! What this node says: a heartbeat per interval, its claim list when there is reason to.
//!
//! Read first: docs/election.md rule R2.

use alloc::vec::Vec;

use super::Election;
use super::peer;
use super::state::{Action, Phase};
use crate::time::Instant;
use crate::wire::advert::{Advert, Body, Claim, Flags, claims_per_part};

#[derive(Debug, Default)]
pub(super) struct Voice {
    sequence: u64,
    /// The list, or what the flags say of it, changed: it is sent at once and repeated.
    pub changed: bool,
    /// A peer misses a list; it may be ours.
    pub requested: bool,
    /// A peer came up: if it claims what this node holds, both must know now (I3).
    pub introduced: bool,
    /// A heartbeat came from one who is new here, or with the digest of a list that is not known: who answers now saves both
    /// sides an interval.
    pub answer: bool,
    repeats: u8,
    claims_at: Option<Instant>,
    answered_at: Option<Instant>,
}

/// A changed list is sent at once and with this many heartbeats.
const REPEATS: u8 = 2;

impl Election {
    pub(super) fn send_heartbeat(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let heard = self.peers.heard(&self.config, now);
        self.send(Body::Heartbeat { heard }, peer::digest(&self.held), actions);
    }

    /// A heartbeat out of turn: it names whom this node hears and asks for the lists that it misses. It renews no lease.
    pub(super) fn answer_if_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.answer_due().is_some_and(|due| due <= now) {
            self.voice.answered_at = Some(now);
            self.voice.answer = false;
            self.send_heartbeat(now, actions);
        }
    }

    fn answer_due(&self) -> Option<Instant> {
        let pause = self.config.word_pause();
        self.voice.answer.then(|| self.voice.answered_at.map_or(Instant::ZERO, |at| at + pause))
    }

    fn introduction_due(&self) -> Option<Instant> {
        let pause = self.config.word_pause();
        let wanted = self.voice.introduced && !self.held.is_empty();
        wanted.then(|| self.voice.claims_at.map_or(Instant::ZERO, |at| at + pause))
    }

    /// When something is to be said out of turn that could not be said at once.
    pub(super) fn next_word(&self) -> Option<Instant> {
        [self.answer_due(), self.introduction_due()].into_iter().flatten().min()
    }

    /// At once after a change; repeated with the next heartbeats; when asked, with a pause by its length; else now and then.
    pub(super) fn send_claims_if_due(&mut self, beat: bool, now: Instant, actions: &mut Vec<Action>) {
        let introduced = self.introduction_due().is_some_and(|due| due <= now);
        let parts = self.held.len().div_ceil(claims_per_part(self.config.node.as_str().len())) as u32;
        let request_pause = (self.config.word_pause() * parts).min(self.config.interval);
        let voice = &mut self.voice;
        let pause = voice.claims_at.map(|at| now.since(at));
        let due = if voice.changed {
            voice.repeats = REPEATS;
            true
        } else if beat && voice.repeats > 0 {
            voice.repeats -= 1;
            true
        } else {
            let nothing = self.held.is_empty();
            let asked = voice.requested && pause.is_none_or(|pause| pause >= request_pause);
            !nothing && (asked || introduced || beat && pause.is_none_or(|pause| pause >= self.config.claims_refresh))
        };
        if due {
            self.send_claims(actions);
            self.voice.changed = false;
            self.voice.requested = false;
            self.voice.introduced = false;
            self.voice.claims_at = Some(now);
        }
    }

    fn send_claims(&mut self, actions: &mut Vec<Action>) {
        let digest = peer::digest(&self.held);
        let claims: Vec<Claim> =
            self.held.iter().map(|(vip, held)| Claim { vip: *vip, term: held.term, offered: held.offered }).collect();
        let per_part = claims_per_part(self.config.node.as_str().len());
        let parts = claims.len().div_ceil(per_part).max(1) as u16;
        for part in 0..parts {
            let claims = claims.iter().skip(usize::from(part) * per_part).take(per_part).copied().collect();
            self.send(Body::Claims { part, parts, claims }, digest, actions);
        }
    }

    fn send(&mut self, body: Body, digest: u64, actions: &mut Vec<Action>) {
        self.voice.sequence += 1;
        let advert = Advert {
            node: self.config.node.clone(),
            cluster: self.config.cluster,
            epoch: self.config.epoch,
            sequence: self.voice.sequence,
            flags: self.flags(),
            digest,
            challenge: self.challenges.current,
            body,
        };
        actions.push(Action::Send(advert.seal(&self.config.keys)));
    }

    fn flags(&self) -> Flags {
        Flags {
            ready: self.ready,
            leaving: self.leaving,
            need_claims: self.peers.misses_claims(),
            joining: self.phase == Phase::Joining,
            alone: self.alone,
        }
    }
}
