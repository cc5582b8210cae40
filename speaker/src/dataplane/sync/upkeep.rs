//! What holds although nothing changed: the program on its link, the nftables table as we wrote it, the counters read.

use tracing::{debug, warn};

use super::State;
use crate::dataplane::attachment::Kept;

impl State {
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

    pub(super) async fn audit(&mut self) {
        match self.sync.backend.audit().await {
            Ok(false) => {}
            Ok(true) => {
                warn!("somebody else changed our nftables table: put right");
                self.sync.metrics.repairs.with_label_values(&["nftables"]).inc();
            }
            Err(error) => warn!(cause = error.label(), %error, "the nftables table was not checked"),
        }
    }

    pub(super) async fn count(&mut self) {
        self.sync.metrics.set_flows_forgotten(self.sync.backend.flows_forgotten());
        self.sync.metrics.second_chance.set(i64::from(self.sync.backend.second_chance()));
        match self.sync.backend.counters().await {
            Ok(counters) => {
                self.sync.metrics.set_guard(counters.iter().map(|(name, counter)| (*name, counter.packets)))
            }
            Err(error) => debug!(%error, "the guard's counters were not read"),
        }
    }
}
