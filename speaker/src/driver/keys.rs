//! Adverts on their way to the election: which keys they are signed with, and whose cannot be verified.
//!
//! The machines `rotation` and `unverified` of `speaker-core`, on the election's thread: they need every advert that it verifies
//! or refuses, and their actions take effect before the next one.

use std::sync::atomic::Ordering;

use speaker_core::election;
use speaker_core::machine::Machine;
use speaker_core::name::NodeName;
use speaker_core::rotation;
use speaker_core::time::Instant;
use speaker_core::unverified;
use speaker_core::wire::advert::{Reject, Signer};
use speaker_core::wire::pace::Pace;
use tracing::{info, warn};

use super::{Incoming, Notice, State};
use crate::dataplane::inbox::Message;

impl State {
    /// Only while two keys are accepted does it matter which one a peer uses.
    pub(super) fn signer(&self, bytes: &[u8]) -> Option<(Signer, u8)> {
        self.driver.rotation.has_two_keys().then(|| self.driver.rotation.ring().signer(bytes)).flatten()
    }

    /// An advert of this node was verified.
    pub(super) fn verified(&mut self, node: &NodeName, pace: Option<Pace>, now: Instant) {
        if let Some((signer, other_hint)) = self.incoming.signed {
            let dead = pace.map(Pace::dead);
            self.on_rotation(rotation::Event::Received { node: node.clone(), signer, other_hint, dead }, now);
        }
        if self.driver.unverified.is_news(node, now) {
            self.on_unverified(unverified::Event::Verified { node: node.clone(), pace }, now);
        }
    }

    pub(super) fn rejected(&mut self, reason: Reject, now: Instant) {
        if let Some(node) = self.by_address.get(&self.incoming.source).cloned() {
            let Incoming { ready, pace, .. } = self.incoming;
            self.on_unverified(unverified::Event::Rejected { node, reason, ready, pace }, now);
        }
    }

    pub(super) fn on_rotation(&mut self, event: rotation::Event, now: Instant) {
        let mut actions = Vec::new();
        self.driver.rotation.handle(event, now, &mut actions);
        for action in actions {
            match action {
                rotation::Action::Keys(ring) => {
                    info!(signing = ring.current.id, other = ring.other.as_ref().map(|key| key.id), "signing keys");
                    self.follow_up.push(election::Event::Keys(ring.clone()));
                    self.notify(Message::Keys(ring.clone()));
                    self.notify_app(Notice::Keys(ring));
                    self.show_keys();
                }
                rotation::Action::Lacking(nodes) => {
                    self.driver.metrics.keys_lacking.set(nodes.len() as i64);
                    if nodes.is_empty() {
                        info!("all peers have the current signing key");
                    } else {
                        let nodes: Vec<&str> = nodes.iter().map(NodeName::as_str).collect();
                        info!(?nodes, "peers lack the current signing key; signing with the previous one");
                    }
                }
            }
        }
    }

    pub(super) fn show_keys(&self) {
        let (rotation, metrics) = (&self.driver.rotation, &self.driver.metrics);
        metrics.keys_accepted.set(if rotation.has_two_keys() { 2 } else { 1 });
        metrics.keys_rotating.set(i64::from(rotation.is_under_way()));
    }

    pub(super) fn on_unverified(&mut self, event: unverified::Event, now: Instant) {
        use unverified::Action;
        let mut actions = Vec::new();
        self.driver.unverified.handle(event, now, &mut actions);
        if actions.is_empty() {
            return;
        }
        let count = self.driver.unverified.count();
        self.driver.health.unverified.store(count as u64, Ordering::Relaxed);
        self.driver.metrics.peers_unverified.set(count as i64);
        for action in actions {
            match action {
                Action::Unverified { node, reason } => {
                    warn!(%node, reason = reason.label(), "peers_unverified: adverts from the node's address fail verification");
                }
                Action::Resolved(node) => info!(%node, "adverts from the node's address no longer fail verification"),
                Action::Hold(hold) => {
                    if hold {
                        warn!(
                            "held back: this node is new and cannot verify its peers; it owns no VIP (docs/election.md, Keys)"
                        );
                        self.notify_app(Notice::HeldBack);
                    }
                    self.driver.health.held_back.store(hold, Ordering::Relaxed);
                    self.follow_up.push(self.readiness());
                }
                Action::Yield(yields) => {
                    self.yields = yields;
                    self.driver.health.outnumbered.store(yields, Ordering::Relaxed);
                    if yields {
                        warn!(
                            "peers_unverified: the nodes that cannot be verified are the larger side; this node owns no VIP"
                        );
                    } else {
                        info!(
                            "the unverified side is no longer larger, or ten minutes are over; this node may own VIPs again"
                        );
                    }
                    self.follow_up.push(self.readiness());
                }
                Action::Confirmed => self.notify_app(Notice::IdentityConfirmed),
            }
        }
    }

    /// The packet path can serve, no evidence is against this node's identity, it is not on the smaller side of a cluster with two
    /// keys, and the election has a place for it.
    ///
    /// Not that adverts arrive (`adverts_missing`): a node that receives none cannot know whether all others are cut off likewise. If they
    /// are, each would release its VIPs and none would serve; while two nodes answer for a VIP, both dispatch to the same pods (R10).
    pub(super) fn readiness(&self) -> election::Event {
        let held_back = self.driver.health.held_back.load(Ordering::Relaxed);
        election::Event::Ready(self.ready && !self.yields && !held_back && !self.beyond_limit)
    }
}
