//! The traffic of each Service at each VIP: as many labels as are counted apart, and one for all others.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use ebpf_common::ServiceCounters;
use prometheus::{IntCounterVec, Opts, Registry};
use speaker_core::forwarding::Counted;

/// Name of a metric, its description, and what it counts.
type Metric = (&'static str, &'static str, fn(&ServiceCounters) -> u64);
const METRICS: [Metric; 5] = [
    ("sheave_service_packets_total", "Packets of clients that came in here for the Service.", |c| c.packets),
    ("sheave_service_bytes_total", "Bytes of these packets, IP header included.", |c| c.bytes),
    (
        "sheave_service_new_flows_total",
        "TCP only: SYNs of clients that came in here and led to a node. UDP flows are not counted: the packet path keeps no flows.",
        |c| c.new_flows,
    ),
    ("sheave_service_resets_total", "Resets in place of packets of clients that came in here.", |c| c.resets),
    (
        "sheave_service_second_chances_total",
        "Packets whose flow another node did not know, and that were forwarded here first.",
        |c| c.second_chances,
    ),
];
const LABELS: [&str; 3] = ["namespace", "name", "vip"];
/// The slot of Services beyond the limit, and its name. No Service is without a namespace.
const TOGETHER: u16 = 0;
const OTHERS: [&str; 3] = ["", "others", ""];

pub struct Traffic {
    metrics: Vec<IntCounterVec>,
    services: Mutex<BTreeMap<u16, Service>>,
}

struct Service {
    labels: [String; 3],
    /// The kernel's last values. A slot may have been another Service's before.
    kernel: ServiceCounters,
}

impl Traffic {
    pub fn new(registry: &Registry) -> Result<Self> {
        let metrics = METRICS.iter().map(|(name, help, _)| {
            let metric = IntCounterVec::new(Opts::new(*name, *help), &LABELS)?;
            registry.register(Box::new(metric.clone())).with_context(|| format!("register {name}"))?;
            Ok(metric)
        });
        Ok(Self { metrics: metrics.collect::<Result<_>>()?, services: Mutex::default() })
    }

    /// What is counted, by slot. `kernel`: the counters of a slot.
    pub fn follow(&self, names: BTreeMap<u16, Counted>, kernel: impl Fn(u16) -> Result<ServiceCounters>) -> Result<()> {
        let mut labels: BTreeMap<u16, [String; 3]> = names
            .into_iter()
            .map(|(slot, (service, vip))| {
                (slot, [service.namespace.to_string(), service.name.to_string(), vip.to_string()])
            })
            .collect();
        labels.insert(TOGETHER, OTHERS.map(str::to_owned));
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = services.extract_if(.., |slot, service| labels.get(slot) != Some(&service.labels));
        for (_, service) in gone {
            for metric in &self.metrics {
                // The error says that it had no label yet.
                let _ = metric.remove_label_values(&service.labels.each_ref().map(String::as_str));
            }
        }
        for (slot, labels) in labels {
            if services.contains_key(&slot) {
                continue;
            }
            let kernel = kernel(slot).with_context(|| format!("read the counters of {}/{}", labels[0], labels[1]))?;
            for metric in &self.metrics {
                // There from the beginning, so that its rise can be seen.
                metric.with_label_values(&labels.each_ref().map(String::as_str));
            }
            services.insert(slot, Service { labels, kernel });
        }
        Ok(())
    }

    pub fn count(&self, kernel: impl Fn(u16) -> Result<ServiceCounters>) -> Result<()> {
        for (slot, service) in self.services.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            let labels = service.labels.each_ref().map(String::as_str);
            let now = kernel(*slot).with_context(|| format!("read the counters of {}/{}", labels[0], labels[1]))?;
            let before = std::mem::replace(&mut service.kernel, now);
            for (metric, (_, _, of)) in self.metrics.iter().zip(METRICS) {
                metric.with_label_values(&labels).inc_by(of(&now).saturating_sub(of(&before)));
            }
        }
        Ok(())
    }
}

impl Traffic {
    /// What was counted of the Services of a namespace, at all their VIPs together.
    pub fn of_namespace(&self, namespace: &str) -> BTreeMap<String, ServiceCounters> {
        let mut counted: BTreeMap<String, ServiceCounters> = BTreeMap::new();
        for Service { labels, .. } in self.services.lock().unwrap_or_else(PoisonError::into_inner).values() {
            let [of, name, _] = labels;
            if of != namespace {
                continue;
            }
            let labels = labels.each_ref().map(String::as_str);
            let value =
                |metric: usize| self.metrics.get(metric).map_or(0, |metric| metric.with_label_values(&labels).get());
            let all = counted.entry(name.clone()).or_default();
            all.packets += value(0);
            all.bytes += value(1);
            all.new_flows += value(2);
            all.resets += value(3);
            all.second_chances += value(4);
        }
        counted
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use speaker_core::view::ObjectName;

    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);

    fn names(names: &[(u16, &str)]) -> BTreeMap<u16, Counted> {
        names.iter().map(|(slot, name)| (*slot, (ObjectName::new("ns", *name), VIP))).collect()
    }

    fn at(number: u64) -> ServiceCounters {
        ServiceCounters { packets: number, bytes: 10 * number, new_flows: 3, resets: 2, second_chances: 1 }
    }

    #[test]
    fn a_service_counts_from_its_first_slot_on_and_leaves_no_label() {
        let registry = Registry::new();
        let traffic = Traffic::new(&registry).unwrap();
        let series = || registry.gather().iter().map(|family| family.get_metric().len()).sum::<usize>();
        let value = |number: usize, labels: [&str; 3]| traffic.metrics[number].with_label_values(&labels).get();
        let of = |number: usize, name: &str| value(number, ["ns", name, "192.0.2.200"]);
        traffic.follow(names(&[(1, "a"), (2, "b")]), |_| Ok(ServiceCounters::default())).unwrap();
        traffic.count(|slot| Ok(at(slot.into()))).unwrap();
        assert_eq!([0, 1, 2, 3, 4].map(|number| of(number, "b")), [2, 20, 3, 2, 1]);
        assert_eq!((value(2, OTHERS), series()), (3, 3 * METRICS.len()));
        assert_eq!(traffic.of_namespace("ns")["b"], at(2));
        assert!(traffic.of_namespace("").keys().eq(["others"]));
        // Slot 1 is another Service's now.
        traffic.follow(names(&[(1, "c"), (2, "b")]), |_| Ok(at(7))).unwrap();
        traffic.count(|_| Ok(at(9))).unwrap();
        assert_eq!((of(0, "c"), of(0, "b"), series()), (2, 9, 3 * METRICS.len()));
        traffic.follow(names(&[]), |_| Ok(at(9))).unwrap();
        assert_eq!(series(), METRICS.len());
    }
}
