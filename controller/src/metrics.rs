//! What we count, registered once. Labels are the names of `sheave_api::Refusal` and of [`WriteError`].

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use sheave_api::Refusal;

use crate::error::WriteError;
use crate::index::Index;

/// All metrics of the controller.
pub struct Metrics {
    registry: Registry,
    pub allocations: IntCounter,
    pub releases: IntCounter,
    pub refusals: IntCounterVec,
    pub corrections: IntCounter,
    pub finalizers: IntCounterVec,
    pub write_errors: IntCounterVec,
    pub events_dropped: IntCounter,
    pub limits_reached: IntCounterVec,
    pub leader: IntGauge,
    pub kubernetes_too_old: IntGauge,
    waiting: IntGaugeVec,
    partly_served: IntGaugeVec,
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
        let by_reason = |name: &str, help: &str| -> Result<IntGaugeVec, prometheus::Error> {
            let gauges = IntGaugeVec::new(Opts::new(name, help), &["reason"])?;
            registry.register(Box::new(gauges.clone()))?;
            Ok(gauges)
        };
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
        let text = metrics.render().unwrap();
        for expected in [
            "sheave_controller_allocations_total 0",
            "sheave_controller_refusals_total{reason=\"PoolExhausted\"} 0",
            "sheave_controller_services_waiting{reason=\"NoPool\"} 0",
            "sheave_controller_services_partly_served{reason=\"ProtocolNotServed\"} 0",
            "sheave_controller_finalizers_total{change=\"added\"} 0",
            "sheave_controller_kubernetes_too_old 0",
            "sheave_controller_write_errors_total{kind=\"Conflict\"} 0",
            "sheave_controller_leader 0",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
    }
}
