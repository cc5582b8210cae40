//! What holds although the view did not change: the program on its link, conntrack, and what depends on time.

use std::collections::BTreeMap;

use anyhow::Result;
use ebpf_common::ServiceKey;
use speaker_core::backend::{self, Destinations, Endpoints, Flow, UdpPins};
use speaker_core::reports::exchange;
use speaker_core::time::Instant;
use speaker_core::view::endpoints::Frontend;
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

    /// Service ports with more pods than a chain has: one log line when there are more.
    pub(super) fn name_crowded(&mut self, frontends: &BTreeMap<ServiceKey, Frontend<'_>>, no_kube_proxy: bool) {
        let crowded = backend::crowded(frontends, &self.sync.node, no_kube_proxy);
        self.sync.metrics.reached.stand("rules", (!crowded.is_empty()).then_some(PODS_PER_PORT));
        let before = std::mem::replace(&mut self.crowded, crowded);
        let named = |key: &ServiceKey| {
            frontends.get(key).map(|one| format!("{}:{}", one.service, u16::from_be_bytes(key.port)))
        };
        let more: Vec<String> = self.crowded.difference(&before).filter_map(named).collect();
        if !more.is_empty() {
            let (allowed, count, ports) = (backend::MAX_PODS, more.len(), more.iter().take(NAMED).collect::<Vec<_>>());
            warn!(limit = PODS_PER_PORT, allowed, count, ?ports, "limit reached; the pods beyond it get no new flows");
            self.sync.metrics.limits_reached.with_label_values(&[PODS_PER_PORT]).inc();
        }
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

/// More pods of a service port than a chain has. Field of the log and metric label.
const PODS_PER_PORT: &str = "pods_per_port";
/// Service ports that a log line names.
const NAMED: usize = 5;
