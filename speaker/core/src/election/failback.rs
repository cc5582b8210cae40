//! An owner that works hands over to a node that the administrator gave more weight, once that one has been ready for long enough.
//!
//! Read first: docs/election.md rule R15. Only the owner decides, by its own clock: others claim what it offers.

use super::Election;
use super::eligible::Eligible;
use super::peer::Incarnation;
use crate::name::{NodeName, Vip};
use crate::time::{Duration, Instant};

/// What an owner intends.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Failback {
    /// It has offered the VIP since.
    since: Option<Instant>,
    /// No offer before this time: none claimed it last time.
    not_before: Option<Instant>,
}

impl Election {
    /// Whether this node, which owns the VIP, offers it to a heavier one.
    pub(super) fn offers_back(&mut self, vip: Vip, now: Instant) -> bool {
        let Some((after, due)) = self.failback_due(vip) else {
            self.set_failback(vip, Failback::default());
            return false;
        };
        let Failback { since, not_before } = self.vips.get(&vip).map(|record| record.failback).unwrap_or_default();
        let due = not_before.map_or(due, |at| at.max(due));
        if since.is_none() && now < due {
            self.wake_at(vip, due);
            return false;
        }
        let since = since.unwrap_or(now);
        let end = since + self.config.leave_timeout;
        if now < end {
            self.set_failback(vip, Failback { since: Some(since), not_before: None });
            self.wake_at(vip, end);
            return true;
        }
        let next = now + after;
        self.set_failback(vip, Failback { since: None, not_before: Some(next) });
        self.wake_at(vip, next);
        false
    }

    /// The time that a node must have been ready for, and when the first heavier one will have been.
    fn failback_due(&self, vip: Vip) -> Option<(Duration, Instant)> {
        let eligible = self.eligible(vip)?;
        let after = eligible.failback()?;
        let own = eligible.weight(&self.config.node);
        let heavier = |name: &NodeName, peer: &Incarnation| {
            let able = peer.flags.ready && !peer.flags.leaving && !peer.flags.saved_view && !peer.flags.drained;
            able && eligible.contains(name) && eligible.weight(name) > own
        };
        let ready = self.peers.direct().filter(|(name, peer)| heavier(name, peer)).map(|(_, peer)| peer.ready_since);
        Some((after, ready.min()? + after))
    }

    /// Whether this node has been ready for long enough to take a VIP that its owner offers.
    pub(super) fn takes_offers(&self, eligible: &Eligible, now: Instant) -> bool {
        eligible.failback().is_some_and(|after| now.since(self.ready_since) >= after)
    }

    fn set_failback(&mut self, vip: Vip, failback: Failback) {
        if let Some(record) = self.vips.get_mut(&vip) {
            record.failback = failback;
        }
    }
}
