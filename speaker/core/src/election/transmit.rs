//! What this node sends: a heartbeat per interval, its claim list when there is reason to.
//!
//! Read first: docs/election.md rule R2.

use alloc::vec::Vec;

use super::Election;
use super::peer;
use super::state::{Action, Phase};
use crate::time::{Duration, Instant};
use crate::wire::advert::{Advert, Body, Claim, Flags, claims_per_part};

#[derive(Debug, Default)]
pub(super) struct Transmit {
    sequence: u64,
    /// The list or the flags of a claim changed: it is sent at once and repeated.
    pub changed: bool,
    /// A peer misses a list; it may be ours.
    pub requested: bool,
    /// A peer came up: if it claims what this node holds, both must know now (I3).
    introduced: bool,
    /// A heartbeat came from a peer that is new here, or with the digest of a list that is not known: an answer now saves both
    /// sides an interval.
    pub answer: bool,
    repeats: u8,
    /// Of the list as it was sent last: adverts name no list that is not out yet.
    digest: u64,
    claims_at: Option<Instant>,
    /// This node's MAC address; how often peers have to receive it, and when they did last.
    mac: Option<[u8; 6]>,
    mac_left: u8,
    mac_at: Option<Instant>,
    answered_at: Option<Instant>,
}

/// A changed list is sent at once and with this many heartbeats.
const REPEATS: u8 = 2;

/// So many peers together take as long to answer one node as one of them may.
const PEERS_PER_PAUSE: u32 = 16;

/// Copies of a node advert that is needed now: a peer that misses it judges this node by another pace. One where there are many peers.
const NODE_COPIES: u8 = 3;
const REPEATED_UP_TO: usize = 32;
/// A node that is slower than this states its pace with each heartbeat: of those it sends few.
const SLOW: Duration = Duration::from_millis(50);

impl Transmit {
    pub fn set_mac(&mut self, mac: [u8; 6]) {
        if self.mac != Some(mac) {
            self.mac_left = NODE_COPIES;
        }
        self.mac = Some(mac);
    }

    /// A peer has come up: it receives the claims and the address of this node.
    pub fn introduce(&mut self) {
        self.introduced = true;
        self.introduce_node();
    }

    /// A speaker has restarted: it receives this node's address.
    pub fn introduce_node(&mut self) {
        self.mac_left = if self.mac.is_some() { NODE_COPIES } else { 0 };
    }
}

impl Election {
    /// This node's MAC address and pace: after a change, when a peer comes up, and now and then.
    pub(super) fn send_node_if_due(&mut self, beat: bool, now: Instant, actions: &mut Vec<Action>) {
        // Nothing is sent before the first tick.
        let Some(mac) = self.transmit.mac.filter(|_| self.last_tick > Instant::ZERO) else { return };
        let refresh = self.config.interval > SLOW
            || self.transmit.mac_at.is_none_or(|at| now.since(at) >= self.config.claims_refresh);
        if self.node_due().is_some_and(|due| due <= now) || beat && refresh {
            self.send(Body::Node { mac, pace: Some(self.config.pace()) }, actions);
            (self.transmit.mac_left, self.transmit.mac_at) = (self.transmit.mac_left.saturating_sub(1), Some(now));
            if self.peers.len() > REPEATED_UP_TO {
                self.transmit.mac_left = 0;
            }
        }
    }

    fn node_due(&self) -> Option<Instant> {
        let pause = self.answer_pause();
        (self.transmit.mac_left > 0).then(|| self.transmit.mac_at.map_or(Instant::ZERO, |at| at + pause))
    }

    pub(super) fn send_heartbeat(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let echoes = self.peers.echoes(&self.config, now);
        self.work.peers += self.peers.len() as u64;
        self.send(Body::Heartbeat { echoes }, actions);
    }

    /// A heartbeat out of turn: it echoes the peers that this node receives and requests the lists that it misses. It renews no
    /// lease.
    pub(super) fn answer_if_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.answer_due().is_some_and(|due| due <= now) {
            self.transmit.answered_at = Some(now);
            self.transmit.answer = false;
            self.send_heartbeat(now, actions);
        }
    }

    /// Between answers: what all peers together send out of turn must not grow with the square of their number.
    fn answer_pause(&self) -> Duration {
        let crowd = 1 + self.peers.len() as u32 / PEERS_PER_PAUSE;
        (self.config.answer_pause() * crowd).min(self.config.interval)
    }

    fn answer_due(&self) -> Option<Instant> {
        let pause = self.answer_pause();
        self.transmit.answer.then(|| self.transmit.answered_at.map_or(Instant::ZERO, |at| at + pause))
    }

    fn introduction_due(&self) -> Option<Instant> {
        let wanted = self.transmit.introduced && !self.held.is_empty();
        wanted.then(|| self.list_due(self.list_pause()))
    }

    /// A list that changes again and again is sent as often as its length allows.
    fn change_due(&self) -> Option<Instant> {
        let pause = (self.config.answer_pause() * self.parts()).min(self.config.interval);
        self.transmit.changed.then(|| self.list_due(pause))
    }

    fn request_due(&self) -> Option<Instant> {
        let wanted = self.transmit.requested && !self.held.is_empty();
        wanted.then(|| self.list_due(self.list_pause()))
    }

    fn list_due(&self, pause: Duration) -> Instant {
        self.transmit.claims_at.map_or(Instant::ZERO, |at| at + pause)
    }

    /// Between lists for the sake of peers that miss them.
    fn list_pause(&self) -> Duration {
        (self.answer_pause() * self.parts()).min(self.config.interval)
    }

    fn parts(&self) -> u32 {
        self.held.len().div_ceil(claims_per_part(self.config.node.as_str().len())).max(1) as u32
    }

    /// When something is to be sent out of turn that could not be sent at once.
    pub(super) fn next_transmission(&self) -> Option<Instant> {
        let due = [self.answer_due(), self.introduction_due(), self.change_due(), self.request_due(), self.node_due()];
        due.into_iter().flatten().min()
    }

    /// At once after a change; repeated with the next heartbeats; on request; else now and then.
    pub(super) fn send_claims_if_due(&mut self, beat: bool, now: Instant, actions: &mut Vec<Action>) {
        let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        let refresh = !self.held.is_empty() && beat && self.list_due(self.config.claims_refresh) <= now;
        let due = if is_due(self.change_due()) || beat && self.transmit.changed {
            self.transmit.repeats = REPEATS;
            true
        } else if beat && self.transmit.repeats > 0 {
            self.transmit.repeats -= 1;
            true
        } else {
            is_due(self.request_due()) || is_due(self.introduction_due()) || refresh
        };
        if due {
            self.send_claims(actions);
            let transmit = &mut self.transmit;
            (transmit.changed, transmit.requested, transmit.introduced) = (false, false, false);
            transmit.claims_at = Some(now);
        }
    }

    fn send_claims(&mut self, actions: &mut Vec<Action>) {
        self.transmit.digest = peer::digest(&self.held);
        self.work.listed += self.held.len() as u64;
        let claims: Vec<Claim> = self
            .held
            .iter()
            .map(|(vip, held)| Claim { vip: *vip, term: held.term, stepping_down: held.stepping_down })
            .collect();
        let per_part = claims_per_part(self.config.node.as_str().len());
        let parts = claims.len().div_ceil(per_part).max(1) as u16;
        for part in 0..parts {
            let claims = claims.iter().skip(usize::from(part) * per_part).take(per_part).copied().collect();
            self.send(Body::Claims { part, parts, claims }, actions);
        }
    }

    fn send(&mut self, body: Body, actions: &mut Vec<Action>) {
        self.transmit.sequence += 1;
        let advert = Advert {
            node: self.config.node.clone(),
            cluster: self.config.cluster,
            epoch: self.config.epoch,
            sequence: self.transmit.sequence,
            flags: self.flags(),
            digest: self.transmit.digest,
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
            saved_view: self.saved_view,
            drained: self.drained,
        }
    }
}
