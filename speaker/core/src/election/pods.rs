//! An owner without a pod hands a new VIP over to a node with one that could not claim it in time.
//!
//! Read first: docs/election.md rule R17. A node claims what its tables have. One whose tables are behind (it takes a thousand ports away)
//! leaves a new VIP to nodes without a pod, although the view names it. It gets the VIP once its tables have followed, with the owner
//! answering until then; whatever pods do later moves nothing.

use alloc::collections::BTreeSet;
use alloc::sync::Arc;

use super::Election;
use super::eligible::Eligible;
use super::peer::{Held, Incarnation};
use crate::name::{NodeName, Term, Vip};
use crate::time::{Duration, Instant};

/// How long the owner of a new VIP waits for tables that are behind.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Nodes that had a pod and could claim when this node, without one, claimed a new VIP.
#[derive(Clone, Debug)]
pub(super) struct Late {
    nodes: Arc<BTreeSet<NodeName>>,
    until: Instant,
}

impl Election {
    /// The nodes with pods that should have claimed the VIP, of which no term is known: no node is known to have held it.
    pub(super) fn late(&self, vip: Vip, known: Term, now: Instant) -> Option<Late> {
        let Eligible::WithPods { nodes, .. } = self.eligible(vip)? else { return None };
        let is_new = known == Term::default();
        if !is_new || nodes.contains(&self.config.node) || !self.any_able(vip, |name| nodes.contains(name)) {
            return None;
        }
        Some(Late { nodes: nodes.clone(), until: now + PATIENCE })
    }

    /// Whether this node, which owns the VIP, offers it to a node that had a pod when it claimed.
    pub(super) fn offers_to_pods(&mut self, vip: Vip, now: Instant) -> bool {
        let Some(record) = self.vips.get(&vip) else { return false };
        let (Some(late), Some(eligible)) = (&record.late, &record.eligible) else { return false };
        let until = late.until;
        let has_pod = !eligible.has_pod(&self.config.node) && late.nodes.iter().any(|node| eligible.has_pod(node));
        let offers = has_pod && now < until;
        if offers {
            self.wake_at(vip, until);
        } else if let Some(record) = self.vips.get_mut(&vip) {
            record.late = None;
        }
        offers
    }

    /// Whether a VIP that its owner offers is meant for this node because it has a pod. Not if the kernel refused it here, and not if
    /// the offer is meant for another node.
    pub(super) fn takes_for_pod(&self, vip: Vip, eligible: &Eligible, owner: &NodeName, held: Held) -> bool {
        let barred = self.vips.get(&vip).is_some_and(|record| record.barred_until.is_some());
        let (node, weight) = (&self.config.node, |node: &NodeName| eligible.weight(node));
        let ordered = eligible.order().is_some_and(|order| order.from == *owner && order.term == held.term);
        let has_pod = eligible.has_pod(node) && !eligible.has_pod(owner) && weight(node) >= weight(owner);
        has_pod && !barred && !ordered && !self.any_able(vip, |name| name != owner && weight(name) > weight(node))
    }

    /// Whether there is such a peer that comes no later than this node.
    fn any_able(&self, vip: Vip, is: impl Fn(&NodeName) -> bool) -> bool {
        let Some(eligible) = self.eligible(vip) else { return false };
        let own = self.own_precedence(eligible);
        let able = |name: &NodeName, peer: &Incarnation| {
            let ready = (peer.flags.ready || peer.flags.joining) && !peer.flags.leaving;
            ready && self.precedence(eligible, name, peer) >= own && is(name)
        };
        self.peers.up().any(|(name, peer)| able(name, peer))
    }
}
