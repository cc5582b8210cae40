//! The two signals of a peer: its kernel answers ARP (liveness), its speaker is received (readiness). The dataplane follows both.

use speaker_core::machine::Machine;
use speaker_core::time::Instant;
use speaker_core::{liveness, readiness, resolve, unicast};
use tracing::{info, warn};

use super::State;
use crate::dataplane::inbox::Message;

impl State {
    pub(super) fn on_liveness(&mut self, event: liveness::Event, now: Instant) {
        let mut actions = Vec::new();
        self.driver.liveness.handle(event, now, &mut actions);
        for action in actions {
            match action {
                liveness::Action::Probe(node) => self.probe(&node),
                liveness::Action::Search(node) => self.search(&node),
                liveness::Action::NodeDown(node) => {
                    warn!(%node, "node down: its kernel does not answer; its rows move to other nodes");
                    self.down.insert(node.clone());
                    self.notify_unavailable();
                    self.on_resolve(resolve::Event::Down(node.clone()), now);
                    self.on_unicast(unicast::Event::Down(node.clone()), now);
                    self.on_readiness(readiness::Event::Down(node), now);
                }
                liveness::Action::NodeUp(node) => {
                    info!(%node, "node up: its kernel answers");
                    self.down.remove(&node);
                    self.notify_unavailable();
                    self.on_unicast(unicast::Event::Up(node.clone()), now);
                    self.on_resolve(resolve::Event::Up(node), now);
                }
                liveness::Action::CutOff => warn!("cut off: no other node answers; the last rows stay in force"),
                liveness::Action::Restored => {
                    info!("no longer cut off: other nodes answer");
                    self.notify(Message::WasAway);
                }
            }
        }
    }

    pub(super) fn on_readiness(&mut self, event: readiness::Event, now: Instant) {
        let mut actions = Vec::new();
        self.driver.readiness.handle(event, now, &mut actions);
        for action in &actions {
            match action {
                readiness::Action::Silent(node) => {
                    info!(%node, "peer readiness: silent; node gets no new flows");
                    self.unknown.remove(node);
                    self.silent.insert(node.clone());
                }
                readiness::Action::Unknown(node) => {
                    info!(%node, "peer readiness: unknown; node gets no packets until its speaker is ready");
                    self.silent.remove(node);
                    self.unknown.insert(node.clone());
                }
                readiness::Action::Ready(node) => {
                    info!(%node, "peer readiness: ready");
                    self.silent.remove(node);
                    self.unknown.remove(node);
                }
            }
        }
        if !actions.is_empty() {
            self.notify_unavailable();
        }
    }

    pub(super) fn notify_unavailable(&self) {
        // A node that was taken out of the cluster is no alarm.
        let down = self.down.intersection(&self.members);
        self.driver.metrics.nodes_down.set(down.count() as i64);
        let silent = self.silent.union(&self.unknown).filter(|node| !self.down.contains(*node));
        self.driver.metrics.nodes_silent.set(silent.filter(|node| self.members.contains(*node)).count() as i64);
        let (down, silent, unknown) = (self.down.clone(), self.silent.clone(), self.unknown.clone());
        self.notify(Message::Unavailable { down, silent, unknown });
    }
}
