//! Who may claim a VIP before whom: nodes that the administrator prefers, and nodes whose view an API server has confirmed.
//!
//! Read first: docs/election.md rules R4 and R14. A node that starts without an API server serves the view on its disk. The VIPs of that view
//! may have been taken back long ago, and the address may be another machine's. A peer that reaches the API server has the present view.

use alloc::vec::Vec;
use core::cmp::Ordering;

use super::Election;
use super::eligible::{Choice, Eligible};
use super::peer::{Held, Incarnation};
use super::state::Action;
use crate::name::{NodeName, Vip};
use crate::time::Instant;

/// A node claims a vacant VIP while no peer of higher precedence can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Precedence {
    confirmed: bool,
    choice: Choice,
}

impl Precedence {
    const HIGHEST: Self = Self { confirmed: true, choice: Choice::First };
}

impl Election {
    pub(super) fn set_saved_view(&mut self, saved: bool, actions: &mut Vec<Action>) {
        self.transmit.changed |= self.saved_view != saved;
        self.saved_view = saved;
        let lapsed = self.peers.set_open(saved);
        self.lapsed(lapsed, actions);
    }

    /// A peer that has a confirmed view has been able to hold VIPs for a while, and this node has none yet.
    pub(super) fn concedes(&mut self, now: Instant) -> bool {
        let confirmed = |peer: &Incarnation| could_hold(peer) && !peer.flags.saved_view;
        let peer = self.saved_view && self.peers.up().any(|(_, peer)| confirmed(peer));
        self.confirmed_peer = self.confirmed_peer.or(Some(now)).filter(|_| peer);
        self.confirmed_peer.is_some_and(|since| now.since(since) >= self.config.concede)
    }

    /// When [`Self::concedes`] becomes true.
    pub(super) fn concedes_at(&self) -> Option<Instant> {
        self.confirmed_peer.filter(|_| !self.ability.concedes).map(|since| since + self.config.concede)
    }

    /// This node must not claim the VIP, or must leave it to a peer that could hold it.
    pub(super) fn is_preceded(&self, vip: Vip) -> bool {
        let Some(eligible) = self.eligible(vip) else { return true };
        match self.own_precedence(eligible) {
            None => true,
            Some(Precedence::HIGHEST) => false,
            own => self.peers.up().any(|(name, peer)| could_hold(peer) && self.precedence(eligible, name, peer) > own),
        }
    }

    /// A peer will claim the VIP if this node steps down from it.
    pub(super) fn has_successor(&self, vip: Vip) -> bool {
        let Some(eligible) = self.eligible(vip) else { return false };
        if self.ready && !self.leaving && self.own_precedence(eligible).is_some() {
            return self.is_preceded(vip);
        }
        let may = |name: &NodeName| eligible.contains(name) || eligible.falls_back_to(name);
        self.peers.up().any(|(name, peer)| could_hold(peer) && may(name))
    }

    /// This node is drained, and a peer that comes before it could take the VIP now: the owner offers it for as long as that is true.
    pub(super) fn drains(&self, vip: Vip) -> bool {
        let Some(eligible) = self.eligible(vip).filter(|_| self.drained) else { return false };
        let own = self.own_precedence(eligible);
        let better = |name: &NodeName, peer: &Incarnation| self.precedence(eligible, name, peer) > own;
        self.peers.up().any(|(name, peer)| peer.flags.ready && !peer.flags.leaving && better(name, peer))
    }

    /// A peer that claims the VIP and steps down cannot go on holding it, or comes after this node, or was ordered to hand it over to this
    /// node, or has it in the place of this node: else it seeks another one.
    pub(super) fn yields_to_this_node(
        &self,
        vip: Vip,
        (owner, peer, held): (&NodeName, &Incarnation, Held),
        now: Instant,
    ) -> bool {
        let Some(eligible) = self.eligible(vip) else { return false };
        if !peer.flags.ready || peer.flags.leaving {
            return true;
        }
        match self.own_precedence(eligible).cmp(&self.precedence(eligible, owner, peer)) {
            Ordering::Greater => true,
            Ordering::Less => false,
            Ordering::Equal if self.is_ordered_here(eligible, owner, held) => true,
            Ordering::Equal => {
                let heavier = eligible.weight(&self.config.node) > eligible.weight(owner);
                heavier && self.takes_offers(eligible, now) || self.takes_for_pod(vip, eligible, owner, held)
            }
        }
    }

    pub(super) fn own_precedence(&self, eligible: &Eligible) -> Option<Precedence> {
        let choice = claims_as(eligible.choice(&self.config.node), self.drained)?;
        Some(Precedence { confirmed: !self.saved_view, choice })
    }

    /// Nodes that a saved view does not have are newer than it.
    pub(super) fn precedence(&self, eligible: &Eligible, node: &NodeName, peer: &Incarnation) -> Option<Precedence> {
        let newer = || self.saved_view && !self.peers.is_member(node);
        let choice = if newer() { Some(Choice::First) } else { eligible.choice(node) };
        let choice = claims_as(choice, peer.flags.drained)?;
        Some(Precedence { confirmed: !peer.flags.saved_view, choice })
    }
}

/// `None`: it claims nothing. A drained node is the last choice, whatever else it is to the VIP.
fn claims_as(choice: Option<Choice>, drained: bool) -> Option<Choice> {
    let choice = choice.filter(|choice| *choice > Choice::Keeps)?;
    Some(if drained { Choice::Last } else { choice })
}

/// The peer can hold VIPs now, or will in a moment.
fn could_hold(peer: &Incarnation) -> bool {
    (peer.flags.ready || peer.flags.joining) && !peer.flags.leaving
}
