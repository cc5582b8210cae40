//! Packets of clients that a Service does not admit, by Service: as many labels as there are Services with source ranges.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use prometheus::IntCounterVec;
use speaker_core::view::ObjectName;
use tracing::info;

/// Between two log lines of one Service.
const PACE: Duration = Duration::from_secs(60);

pub struct Denied {
    metric: IntCounterVec,
    services: Mutex<BTreeMap<u16, Service>>,
}

struct Service {
    name: ObjectName,
    /// The kernel's last value. A slot may have been another Service's before.
    kernel: u64,
    /// Not in a log line yet.
    unlogged: u64,
    logged: Option<Instant>,
}

impl Denied {
    /// The labels are namespace and name.
    pub fn new(metric: IntCounterVec) -> Self {
        Self { metric, services: Mutex::default() }
    }

    /// The Services with source ranges, by slot. `kernel`: packets of a slot.
    pub fn follow(&self, names: BTreeMap<u16, ObjectName>, kernel: impl Fn(u16) -> Result<u64>) -> Result<()> {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = services.extract_if(.., |slot, service| names.get(slot) != Some(&service.name));
        for (_, Service { name, .. }) in gone {
            // The error says that it had no label yet.
            let _ = self.metric.remove_label_values(&[&name.namespace, &name.name]);
        }
        for (slot, name) in names {
            if services.contains_key(&slot) {
                continue;
            }
            let kernel = kernel(slot).with_context(|| format!("read the denied packets of {name}"))?;
            // There from the beginning, so that its rise can be seen.
            self.metric.with_label_values(&[&name.namespace, &name.name]);
            services.insert(slot, Service { name, kernel, unlogged: 0, logged: None });
        }
        Ok(())
    }

    pub fn count(&self, kernel: impl Fn(u16) -> Result<u64>, now: Instant) -> Result<()> {
        for (slot, service) in self.services.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            let ObjectName { namespace, name } = &service.name;
            let packets = kernel(*slot).with_context(|| format!("read the denied packets of {}", service.name))?;
            let more = packets.saturating_sub(std::mem::replace(&mut service.kernel, packets));
            self.metric.with_label_values(&[namespace, name]).inc_by(more);
            service.unlogged += more;
            if service.unlogged > 0 && service.logged.is_none_or(|logged| now.duration_since(logged) >= PACE) {
                info!(%namespace, %name, packets = service.unlogged, "packets of clients outside the Service's source ranges denied");
                (service.unlogged, service.logged) = (0, Some(now));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Opts;

    use super::*;

    #[test]
    fn a_service_counts_from_its_first_slot_on_and_leaves_no_label() {
        let metric = IntCounterVec::new(Opts::new("denied", "."), &["namespace", "name"]).unwrap();
        let denied = Denied::new(metric.clone());
        let names =
            |names: &[(u16, &str)]| names.iter().map(|(slot, name)| (*slot, ObjectName::new("ns", *name))).collect();
        let value = |name: &str| metric.with_label_values(&["ns", name]).get();
        let labels =
            || prometheus::core::Collector::collect(&metric).iter().map(|m| m.get_metric().len()).sum::<usize>();
        let now = Instant::now();
        denied.follow(names(&[(1, "a"), (2, "b")]), |_| Ok(100)).unwrap();
        denied.count(|slot| Ok(100 + u64::from(slot)), now).unwrap();
        assert_eq!((value("a"), value("b"), labels()), (1, 2, 2));
        // Slot 1 is another Service's now.
        denied.follow(names(&[(1, "c"), (2, "b")]), |_| Ok(101)).unwrap();
        denied.count(|_| Ok(110), now).unwrap();
        assert_eq!((labels(), value("c"), value("b")), (2, 9, 10));
        denied.follow(names(&[]), |_| Ok(0)).unwrap();
        assert_eq!(labels(), 0);
    }
}
