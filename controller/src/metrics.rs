//! What we count, registered once. Labels are the names of `sheave_api::Refusal` and of [`WriteError`].

use std::collections::BTreeSet;

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use sheave_api::Refusal;

use crate::error::WriteError;
use crate::guards::Source;
use crate::index::{Index, Kind};
use crate::pauses::Flow;
use crate::whose::Evidence;

/// All metrics of the controller.
pub struct Metrics {
    registry: Registry,
    pub allocations: IntCounter,
    pub releases: IntCounter,
    pub refusals: IntCounterVec,
    pub corrections: IntCounter,
    pub finalizers: IntCounterVec,
    pub write_errors: IntCounterVec,
    pub requests_refused: IntCounterVec,
    pub events_dropped: IntCounter,
    pub limits_reached: IntCounterVec,
    pub leader: IntGauge,
    pub kubernetes_too_old: IntGauge,
    waiting: IntGaugeVec,
    partly_served: IntGaugeVec,
    excluded: IntGaugeVec,
    probe_answers: IntGaugeVec,
    grants_not_probed: IntCounter,
    probes_unanswered: IntCounter,
    other_owner: IntGaugeVec,
    left: IntGauge,
    unreadable: IntGaugeVec,
    denied: IntGaugeVec,
    granted: IntGauge,
    backlog: IntGauge,
    synced: IntGauge,
}

impl Metrics {
    /// Registers everything; every label value exists from the start, so that "never" reads as 0.
    pub fn register() -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("sheave_controller".to_string()), None)?;
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let counters = |name: &str, help: &str, label: &str, values: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            values.iter().for_each(|value| drop(counters.with_label_values(&[value])));
            Ok::<_, prometheus::Error>(counters)
        };
        let refusal_names = Refusal::ALL.map(Refusal::as_str);
        let gauges = |name: &str, help: &str, label: &str| -> Result<IntGaugeVec, prometheus::Error> {
            let gauges = IntGaugeVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(gauges.clone()))?;
            Ok(gauges)
        };
        let by_reason = |name: &str, help: &str| gauges(name, help, "reason");
        Ok(Metrics {
            allocations: counter("allocations_total", "Addresses granted by this replica")?,
            releases: counter("releases_total", "Addresses taken back by this replica")?,
            refusals: counters("refusals_total", "Refusals reported to users, by reason", "reason", &refusal_names)?,
            corrections: counter("corrections_total", "Third-party changes of Service statuses that were repaired")?,
            finalizers: counters(
                "finalizers_total",
                "Finalizers of Services that this replica has added or removed",
                "change",
                &["added", "removed"],
            )?,
            write_errors: counters("write_errors_total", "Failed writes, by kind", "kind", &WriteError::KINDS)?,
            requests_refused: counters(
                "requests_refused_total",
                "Requests that the API server refused because it is overloaded (429, or 503 with Retry-After)",
                "requests",
                &Flow::ALL.map(Flow::as_str),
            )?,
            events_dropped: counter("events_dropped_total", "Events that could not be written")?,
            limits_reached: counters(
                "limits_reached_total",
                "Things ended or left out because a limit was reached",
                "limit",
                &["admin_connections"],
            )?,
            leader: gauge("leader", "1 if this replica leads")?,
            kubernetes_too_old: gauge(
                "kubernetes_too_old",
                "1 if the API server is older than Sheave is made for, or does not say a version that can be read",
            )?,
            granted: gauge("addresses_granted", "Entries of the ledger")?,
            backlog: gauge("queue_depth", "Objects to be planned, and writes under way")?,
            synced: gauge("synced", "1 once a full list of everything was seen")?,
            waiting: by_reason("services_waiting", "Services without the address they want, by reason")?,
            partly_served: by_reason("services_partly_served", "Services of which a part is not served, by reason")?,
            excluded: by_reason("addresses_excluded", "Addresses of pools that no Service may have, by reason")?,
            probe_answers: gauges(
                "probe_answers",
                "Addresses that something has answered for when they were probed, by what the answer means",
                "verdict",
            )?,
            grants_not_probed: counter(
                "grants_not_probed_total",
                "Addresses chosen without a probe because no speaker of their segment answered in time",
            )?,
            probes_unanswered: counter(
                "probes_unanswered_total",
                "Requests to probe addresses that a speaker did not answer in time",
            )?,
            other_owner: gauges(
                "other_owner",
                "1 if this sign of another owner of Services without a class is there",
                "owner",
            )?,
            left: gauge("services_left", "Services without a class that are left to another owner")?,
            denied: gauges(
                "rights_missing",
                "1 if this replica may not read these objects: it grants nothing and does not lead",
                "kind",
            )?,
            unreadable: gauges("objects_unreadable", "Objects that cannot be read and are skipped, by kind", "kind")?,
            registry,
        })
    }

    /// Copies figures that the index knows.
    pub fn observe(&self, index: &Index) {
        self.granted.set(i64::try_from(index.granted()).unwrap_or(i64::MAX));
        self.backlog.set(i64::try_from(index.backlog()).unwrap_or(i64::MAX));
        self.synced.set(index.is_synced().into());
        for (reason, count) in index.waiting() {
            self.waiting.with_label_values(&[reason.as_str()]).set(count);
        }
        for (reason, count) in index.partly_served() {
            self.partly_served.with_label_values(&[reason.as_str()]).set(count);
        }
        self.left.set(i64::try_from(index.left.len()).unwrap_or(i64::MAX));
    }

    /// What takes longer, so not after every fact.
    pub fn observe_surroundings(&self, index: &Index) {
        for (kind, count) in index.unreadable() {
            self.unreadable.with_label_values(&[kind.as_str()]).set(count);
        }
        let denied: BTreeSet<&str> = index.denied().map(|(kind, _)| kind).collect();
        let kinds = Kind::ALL.map(Kind::as_str).into_iter().chain(Source::ALL.map(Source::as_str));
        kinds.for_each(|kind| self.denied.with_label_values(&[kind]).set(denied.contains(kind).into()));
        let signs: BTreeSet<Evidence> = index.other_owners().collect();
        for sign in Evidence::all() {
            self.other_owner.with_label_values(&[sign.owner()]).set(signs.contains(&sign).into());
        }
        for (verdict, count) in index.probes.counts() {
            self.probe_answers.with_label_values(&[verdict.as_str()]).set(count);
        }
        let (not_probed, unanswered) = index.probes.totals();
        self.grants_not_probed.inc_by(not_probed.saturating_sub(self.grants_not_probed.get()));
        self.probes_unanswered.inc_by(unanswered.saturating_sub(self.probes_unanswered.get()));
        let excluded = index.guarded();
        for reason in Refusal::ALL.into_iter().filter(|reason| reason.guards()) {
            let count = excluded.get(&reason).copied().unwrap_or_default();
            self.excluded.with_label_values(&[reason.as_str()]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_exists_from_the_start() {
        let metrics = Metrics::register().unwrap();
        metrics.observe(&Index::default());
        metrics.observe_surroundings(&Index::default());
        let text = metrics.render().unwrap();
        for expected in [
            "sheave_controller_allocations_total 0",
            "sheave_controller_refusals_total{reason=\"PoolExhausted\"} 0",
            "sheave_controller_services_waiting{reason=\"NoPool\"} 0",
            "sheave_controller_services_partly_served{reason=\"ProtocolNotServed\"} 0",
            "sheave_controller_finalizers_total{change=\"added\"} 0",
            "sheave_controller_kubernetes_too_old 0",
            "sheave_controller_write_errors_total{kind=\"Conflict\"} 0",
            "sheave_controller_requests_refused_total{requests=\"writes\"} 0",
            "sheave_controller_leader 0",
            "sheave_controller_addresses_excluded{reason=\"AddressOfNode\"} 0",
            "sheave_controller_other_owner{owner=\"metallb.io\"} 0",
            "sheave_controller_services_left 0",
            "sheave_controller_objects_unreadable{kind=\"VirtualIPs\"} 0",
            "sheave_controller_rights_missing{kind=\"Nodes\"} 0",
            "sheave_controller_probe_answers{verdict=\"AnsweredByHost\"} 0",
            "sheave_controller_grants_not_probed_total 0",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
    }
}
