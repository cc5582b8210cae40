//! An owner that works hands a VIP over to the node that an administrator names, once.
//!
//! Read first: docs/election.md rule R16. The order names the owner and its term: it is void for any other owner, and once it is carried
//! out. Only the owner decides; the node that is named claims what it offers.

use alloc::vec::Vec;

use super::Election;
use super::eligible::Eligible;
use super::peer::{Held, Incarnation};
use crate::name::{NodeName, Term, Vip};
use crate::time::Instant;

impl Election {
    /// Whether this node, which owns the VIP with this term and works, offers it to a node that need not be better.
    pub(super) fn offers(&mut self, vip: Vip, term: Term, now: Instant) -> bool {
        self.offers_as_ordered(vip, term, now) || self.offers_back(vip, now) || self.offers_to_pods(vip, now)
    }

    /// For a leave timeout from when the node that is named can take it. An order is tried once; one that is withdrawn and given again is
    /// another one.
    fn offers_as_ordered(&mut self, vip: Vip, term: Term, now: Instant) -> bool {
        let Some(eligible) = self.eligible(vip) else { return false };
        let given = eligible.order().filter(|order| order.from == self.config.node && order.term == term);
        let able = given.is_some_and(|order| {
            let own = self.own_precedence(eligible);
            let takes = |(name, peer): (&NodeName, &Incarnation)| {
                let ready = peer.flags.ready && !peer.flags.leaving;
                *name == order.to && ready && own.is_some() && self.precedence(eligible, name, peer) >= own
            };
            self.peers.direct().any(takes)
        });
        let given = given.is_some();
        let Some(record) = self.vips.get_mut(&vip) else { return false };
        if !able {
            record.ordered_since = record.ordered_since.filter(|_| given);
            return false;
        }
        let end = *record.ordered_since.get_or_insert(now) + self.config.leave_timeout;
        if now < end {
            self.wake_at(vip, end);
        }
        now < end
    }

    /// Whether this claim is the one that is to be handed over to this node.
    pub(super) fn is_ordered_here(&self, eligible: &Eligible, owner: &NodeName, held: Held) -> bool {
        let order = eligible.order().filter(|order| order.to == self.config.node);
        order.is_some_and(|order| order.from == *owner && order.term == held.term)
    }

    /// Flags of a peer changed: VIPs that may be handed over to it.
    pub(super) fn touch_offers(&mut self) {
        let of = |vip: &Vip| self.vips.get(vip).and_then(|record| record.eligible.as_ref());
        let offered = |vip: &Vip| self.drained || of(vip).is_some_and(Eligible::may_be_offered);
        let held: Vec<Vip> = self.held.keys().filter(|vip| offered(vip)).copied().collect();
        self.touched.extend(held);
    }
}
