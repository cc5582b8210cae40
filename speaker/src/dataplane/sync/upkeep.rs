//! What holds although the view did not change: the program on its link, conntrack, and what depends on time.

use anyhow::Result;
use speaker_core::backend::{Destinations, Endpoints, Flow, UdpPins};
use speaker_core::reports::exchange;
use speaker_core::time::Instant;
use tracing::warn;

use super::State;
use crate::dataplane::attachment::LinkCheck;
use crate::dataplane::conntrack_scan::{Done, Flows, Found, Read};
use crate::io::clock;

impl State {
    /// What depends on time alone.
    pub(super) fn on_turn(&mut self) {
        self.dirty |= self.sync.planner.awaits_reports() || self.removal_grace.is_due(clock::now());
        if self.sync.attachment.read_first() {
            self.dirty = true;
            self.sync.health.set_of_host_speaker(self.sync.attachment.of_first().clone());
        }
        self.name_refusing();
        if let Err(error) = self.sync.metrics.count_denied() {
            warn!(error = format!("{error:#}"), "denied packets not counted; retrying");
        }
    }

    /// Begins the next scan of conntrack when its time has come.
    pub(super) fn begin_scan(&mut self) {
        if !self.started {
            return;
        }
        let now = clock::now();
        if self.udp_pins.is_due(now) {
            // Uncertainty has begun: flows are pinned before kube-proxy deletes their entries. Or it has ended.
            self.scan.changed(now);
            self.dirty = true;
        }
        if self.scan.is_due(self.report_socket.exchange.differs(now) || self.udp_pins.uncertainty.holds(now), now) {
            let to = Destinations { vips: self.table.vips.clone(), node_ports: self.table.node_ports() };
            self.scan.begin(to, self.in_force.client_sets.clone(), &self.table, now);
        }
    }

    pub(super) fn on_scan(&mut self, done: Done) -> Result<()> {
        match done {
            Done::Read(Ok(read)) => {
                self.read(read);
                Ok(())
            }
            Done::Read(Err(error)) => {
                warn!(%error, "scan of conntrack and clients failed; the last flow report is repeated");
                Ok(())
            }
            Done::Found(found) => self.found(found),
        }
    }

    /// Flows and clients as the kernel had them a moment ago.
    fn read(&mut self, Read { flows, clients }: Read) {
        let now = clock::now();
        self.pin_udp_flows(&flows, now);
        let missed = self.udp_pins.missed(now).collect();
        let differ = self.report_socket.exchange.differs(now);
        let (table, counted) = (self.table.clone(), self.sync.members.is_some());
        self.scan.is_shown = counted;
        self.scan.find(Flows { flows, missed, clients, table, differ, counted }, now);
    }

    /// This node reports its flows.
    fn found(&mut self, Found { announced, flows, connections }: Found) -> Result<()> {
        if let (Some(members), Some(connections)) = (&mut self.sync.members, connections) {
            members.count(connections);
        }
        self.sync.metrics.flows.set(flows as i64);
        self.sync.metrics.flows_expired.set(i64::try_from(announced.expired).unwrap_or(i64::MAX));
        self.scan.has_foreign_rows = !announced.report.services.is_empty();
        self.exchange(Some(exchange::Event::Local(announced.report)))
    }

    /// While the status of this node's pods is uncertain.
    fn pin_udp_flows(&mut self, flows: &[Flow], now: Instant) {
        let Some(view) = self.view.as_ref().filter(|_| self.udp_pins.uncertainty.holds(now)) else { return };
        let endpoints = Endpoints::new(view, &self.sync.node).uncertain(true);
        let news = self.udp_pins.on_scan(flows, &endpoints, now);
        // Once, when the table fills, and not at every look.
        if news.any && news.left_out > 0 {
            let limit = UdpPins::MAX;
            self.sync.metrics.limits_reached.with_label_values(&["udp_pins"]).inc();
            warn!(left_out = news.left_out, limit, "limit of pinned UDP flows reached; kube-proxy may end the others");
        }
        self.dirty |= news.any;
    }

    pub(super) fn check_attachment(&mut self) {
        if !self.started {
            return;
        }
        let check = self.sync.attachment.check();
        if check != LinkCheck::Attached {
            self.sync.metrics.repairs.with_label_values(&["xdp_link"]).inc();
            self.notify_election();
        }
    }
}
