//! What holds although the view did not change: the program on its link, and what conntrack and time say.

use anyhow::Result;
use speaker_core::backend::{Endpoints, Flow, Spared};
use speaker_core::holdings::exchange;
use speaker_core::time::Instant;
use tracing::warn;

use super::State;
use crate::dataplane::attachment::Kept;
use crate::dataplane::flows::{Done, Flows, Found};
use crate::io::clock;

impl State {
    /// Begins the next look at conntrack when its time has come.
    pub(super) fn begin_look(&mut self) {
        if !self.started {
            return;
        }
        let now = clock::now();
        if self.spared.is_due(now) {
            // Doubt has begun: which flows are to be spared is to be known before somebody forgets them. Or it has ended.
            self.look.changed(now);
            self.dirty = true;
        }
        if self.look.is_due(self.talk.exchange.differs(now) || self.spared.doubt.holds(now), now) {
            self.look.begin(self.table.vips.clone(), now);
        }
    }

    pub(super) fn looked(&mut self, done: Done) -> Result<()> {
        match done {
            Done::Read(Ok(flows)) => {
                self.read(flows);
                Ok(())
            }
            Done::Read(Err(error)) => {
                warn!(%error, "conntrack was not read: what this node holds is told as it was");
                Ok(())
            }
            Done::Found(found) => self.found(found),
        }
    }

    /// Flows as conntrack had them a moment ago.
    fn read(&mut self, flows: Vec<Flow>) {
        let now = clock::now();
        self.spare(&flows, now);
        let missed = self.spared.missed(now).collect();
        let differ = self.talk.exchange.differs(now);
        self.look.find(Flows { flows, missed, table: self.table.clone(), differ }, now);
    }

    /// What this node holds is told to the others.
    fn found(&mut self, Found { said, flows }: Found) -> Result<()> {
        self.sync.metrics.flows.set(flows as i64);
        self.sync.metrics.flows_expired.set(i64::try_from(said.expired).unwrap_or(i64::MAX));
        self.look.holding = !said.holdings.services.is_empty();
        self.exchange(Some(exchange::Event::Local(said.holdings)))
    }

    /// While there is doubt of what Kubernetes says of this node's pods.
    fn spare(&mut self, flows: &[Flow], now: Instant) {
        let Some(view) = self.view.as_ref().filter(|_| self.spared.doubt.holds(now)) else { return };
        let endpoints = Endpoints::new(view, &self.sync.node).doubted(true);
        let news = self.spared.looked(flows, &endpoints, now);
        // Once, when the table fills, and not at every look.
        if news.any && news.left_out > 0 {
            let limit = Spared::MAX;
            self.sync.metrics.limits_reached.with_label_values(&["spared_flows"]).inc();
            warn!(left_out = news.left_out, limit, "more UDP flows than can be spared: kube-proxy may end some");
        }
        self.dirty |= news.any;
    }

    pub(super) fn keep_attached(&mut self) {
        if !self.started {
            return;
        }
        let kept = self.sync.attachment.keep();
        if kept != Kept::Same {
            self.sync.metrics.repairs.with_label_values(&["xdp_link"]).inc();
            self.tell();
        }
    }
}
