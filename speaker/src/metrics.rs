//! Prometheus metrics. Names and labels are those of the enums in `speaker-core` and `ebpf-common`.

mod denied;
mod limits;
mod traffic;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use ebpf_common::ServiceCounters;
use prometheus::core::Collector;
use prometheus::{Encoder, Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use speaker_core::forwarding::Counted;
use speaker_core::view::ObjectName;
use tracing::{info, warn};

use denied::Denied;
use limits::Reached;
use traffic::Traffic;

use crate::dataplane::Counters;
use crate::health::HealthFlags;

pub struct Metrics {
    registry: Registry,
    pub adverts_sent: IntCounter,
    pub adverts_received: IntCounter,
    pub adverts_rejected: IntCounterVec,
    pub send_errors: IntCounterVec,
    pub transitions: IntCounter,
    pub peers: IntGauge,
    pub nodes_down: IntGauge,
    pub nodes_silent: IntGauge,
    pub isolated: IntGauge,
    pub drained: IntGauge,
    pub peers_by_unicast: IntGauge,
    pub adverts_missing: IntGauge,
    pub reports_by_unicast: IntGauge,
    pub reports_missing: IntGauge,
    pub arp_contradicts_advert: IntCounterVec,
    pub address_conflicts: IntGauge,
    pub peers_unverified: IntGauge,
    pub keys_accepted: IntGauge,
    pub keys_rotating: IntGauge,
    pub keys_lacking: IntGauge,
    pub keys_identity_differs: IntGauge,
    pub rights_missing: IntGaugeVec,
    pub objects_unreadable: IntGaugeVec,
    pub sync_errors: IntCounter,
    pub syncs: IntCounter,
    pub repairs: IntCounterVec,
    pub nft_errors: IntCounterVec,
    pub nft_failing: IntGauge,
    pub state_errors: IntCounterVec,
    pub state_unsaved: IntGauge,
    pub table_differs: IntGauge,
    pub batches_waiting: IntGauge,
    pub nodes_stale: IntGauge,
    pub flows: IntGauge,
    pub flows_expired: IntGauge,
    pub conntrack_entries: IntGauge,
    pub conntrack_limit: IntGauge,
    pub conntrack_dropped: IntCounter,
    pub second_chance: IntGauge,
    flows_forgotten: IntCounter,
    pub flows_in_removal_grace: IntGauge,
    pub udp_flows_pinned: IntGauge,
    pub row_alternates_overflow: IntGauge,
    pub startup_refused: IntGauge,
    pub limits_reached: IntCounterVec,
    /// Which of them are reached now.
    pub reached: Reached,
    pub forward_policy_drop: IntGauge,
    pub speaker_state_errors: IntCounterVec,
    pub speaker_state_writes: IntCounter,
    pub netlink_rereads: IntCounterVec,
    pub address_probes: IntCounter,
    pub address_probe_errors: IntCounterVec,
    datagrams_dropped: IntCounterVec,
    owned: IntGaugeVec,
    lease_remaining: Gauge,
    ready: IntGauge,
    frames: IntCounterVec,
    guard: IntCounterVec,
    denied: Denied,
    traffic: Traffic,
    /// Read at each scrape.
    /// `None`: this speaker has no packet path.
    counters: Option<Counters>,
    drops: Mutex<Vec<(&'static str, Arc<AtomicU64>)>>,
}

impl Metrics {
    pub fn new(kernel: impl Into<Option<Counters>>) -> Result<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| register(&registry, IntCounter::new(name, help)?);
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help)?);
        let counters = |name: &str, help: &str, label: &str| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), &[label])?)
        };
        Ok(Self {
            adverts_sent: counter("sheave_adverts_sent_total", "Heartbeats and claim lists sent.")?,
            adverts_received: counter("sheave_adverts_received_total", "Datagrams received on the heartbeat port.")?,
            adverts_rejected: counters(
                "sheave_adverts_rejected_total",
                "Datagrams without effect, by reason.",
                "reason",
            )?,
            send_errors: counters(
                "sheave_send_errors_total",
                "Frames, datagrams and map writes that the kernel refused.",
                "kind",
            )?,
            transitions: counter("sheave_vip_transitions_total", "VIPs won and lost by this node.")?,
            peers: gauge("sheave_peers_alive", "Speakers whose heartbeats arrive, without this one.")?,
            nodes_down: gauge("sheave_nodes_down", "Nodes whose kernel gives no sign of life.")?,
            nodes_silent: gauge(
                "sheave_nodes_silent",
                "Nodes that answer, without a ready speaker: they get no new flows.",
            )?,
            isolated: gauge(
                "sheave_isolated",
                "1 while this node's election is cut off: its link is down, or no peer is received any more (phase isolated).",
            )?,
            drained: gauge(
                "sheave_drained",
                "1 while an administrator wants this node to own VIPs only while no other node can.",
            )?,
            peers_by_unicast: gauge(
                "sheave_peers_by_unicast",
                "Nodes that get adverts by unicast too, because multicast does not arrive.",
            )?,
            adverts_missing: gauge(
                "sheave_adverts_missing",
                "Nodes whose program answers and whose adverts do not arrive.",
            )?,
            reports_by_unicast: gauge(
                "sheave_reports_by_unicast",
                "Nodes that get flow reports by unicast too, because multicast does not arrive.",
            )?,
            reports_missing: gauge(
                "sheave_reports_missing",
                "Nodes whose adverts arrive and whose flow reports do not.",
            )?,
            arp_contradicts_advert: counters(
                "sheave_arp_contradicts_advert_total",
                "ARP frames with another MAC address of a node than its signed advert.",
                "node",
            )?,
            address_conflicts: gauge(
                "sheave_address_conflicts",
                "VIPs of this node that another host of the segment announces as well.",
            )?,
            peers_unverified: gauge(
                "sheave_peers_unverified",
                "Nodes of the cluster whose adverts cannot be verified: they have other keys, or another cluster id.",
            )?,
            keys_accepted: gauge("sheave_keys_accepted", "Signing keys that are accepted: two during a rotation.")?,
            keys_rotating: gauge(
                "sheave_keys_rotating",
                "1 while this node signs with another key than the Secret's current one.",
            )?,
            keys_lacking: gauge(
                "sheave_keys_peers_lacking",
                "Peers without the Secret's current key: no node signs with it until they have it.",
            )?,
            keys_identity_differs: gauge(
                "sheave_keys_identity_differs",
                "1 while the Secret has another cluster id or flow key than this node.",
            )?,
            rights_missing: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "sheave_rights_missing",
                        "1 for each kind of objects that the API server does not let this speaker read: the last ones known are served.",
                    ),
                    &["kind"],
                )?,
            )?,
            objects_unreadable: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "sheave_objects_unreadable",
                        "Objects that cannot be read, by kind: what was read of them last is served.",
                    ),
                    &["kind"],
                )?,
            )?,
            sync_errors: counter("sheave_dataplane_sync_errors_total", "Changes of the packet path that failed.")?,
            syncs: counter("sheave_dataplane_syncs_total", "Changes of the packet path that were made.")?,
            repairs: counters("sheave_dataplane_repairs_total", "Third-party changes that were repaired.", "what")?,
            nft_errors: counters(
                "sheave_nft_errors_total",
                "Transactions and audits of nftables that failed or took long, by reason.",
                "reason",
            )?,
            nft_failing: gauge(
                "sheave_nft_failing",
                "1 while the newest rules are refused by nftables, or take long: the rules before them stay in force.",
            )?,
            state_errors: counters(
                "sheave_state_errors_total",
                "Writes to the state directory that failed, by file.",
                "file",
            )?,
            state_unsaved: gauge("sheave_state_unsaved", "1 while the newest state is not on disk.")?,
            table_differs: gauge(
                "sheave_table_differs",
                "Nodes whose forwarding table digest has differed from this one's for seconds.",
            )?,
            batches_waiting: gauge(
                "sheave_batches_waiting",
                "Service ports whose added pods wait for others before rows move: seconds.",
            )?,
            nodes_stale: gauge(
                "sheave_nodes_stale",
                "Nodes, maybe this one, whose view of the cluster is stale: they get no new flows.",
            )?,
            flows: gauge("sheave_flows", "Open flows from VIPs to pods of this node.")?,
            flows_expired: gauge(
                "sheave_flows_expired",
                "Open flows of rows that this node lost longer ago than the drain window: no longer reported.",
            )?,
            conntrack_entries: gauge("sheave_conntrack_entries", "Entries of the node's conntrack table.")?,
            conntrack_limit: gauge(
                "sheave_conntrack_limit",
                "As many it takes (net.netfilter.nf_conntrack_max); 0: no limit.",
            )?,
            conntrack_dropped: counter(
                "sheave_conntrack_dropped_total",
                "First packets of flows, also to what is no VIP, that the kernel dropped because the table was full.",
            )?,
            second_chance: gauge(
                "sheave_second_chance",
                "1 if this kernel can forward packets of unknown flows (CONFIG_NFT_DUP_IPV4).",
            )?,
            flows_forgotten: counter(
                "sheave_flows_forgotten_total",
                "Conntrack entries that were deleted because their pod is gone.",
            )?,
            flows_in_removal_grace: gauge(
                "sheave_tcp_flows_in_removal_grace",
                "TCP flows that stay with pods that no EndpointSlice lists any more and that still answer.",
            )?,
            udp_flows_pinned: gauge(
                "sheave_udp_flows_pinned",
                "UDP flows pinned to a pod of this node while the node's status in Kubernetes is uncertain.",
            )?,
            row_alternates_overflow: gauge(
                "sheave_row_alternates_overflow",
                "Rows without an alternate's place for some node that may have flows of them: there are more than three.",
            )?,
            startup_refused: gauge(
                "sheave_startup_refused",
                "Ports of ready pods of this node that have refused connections for 10 s or more since the pod became ready.",
            )?,
            limits_reached: counters(
                "sheave_limits_reached_total",
                "Objects left out because a limit was reached.",
                "limit",
            )?,

            reached: Reached::default(),
            forward_policy_drop: gauge(
                "sheave_forward_policy_drop",
                "Chains of others that drop packets to pods unless a rule of theirs accepts them.",
            )?,
            speaker_state_errors: counters(
                "sheave_speaker_state_errors_total",
                "Attempts to read or write this node's SpeakerState that failed, by reason.",
                "reason",
            )?,
            speaker_state_writes: counter(
                "sheave_speaker_state_writes_total",
                "Times this node's SpeakerState was written.",
            )?,
            address_probes: counter(
                "sheave_address_probes_total",
                "ARP probes of addresses that Services may get, on request of the controller.",
            )?,
            address_probe_errors: counters(
                "sheave_address_probe_errors_total",
                "Requests of the controller to probe addresses that were not answered, by reason.",
                "reason",
            )?,
            netlink_rereads: counters(
                "sheave_netlink_rereads_total",
                "Times links, addresses and neighbours were read again because changes were lost.",
                "cause",
            )?,
            datagrams_dropped: counters(
                "sheave_datagrams_dropped_total",
                "Datagrams that the kernel dropped at a socket: from outside this segment's group and nodes, or no room.",
                "socket",
            )?,
            owned: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new("sheave_vip_owned_term", "Term of each VIP that this node owns."),
                    &["vip"],
                )?,
            )?,
            lease_remaining: register(
                &registry,
                Gauge::new(
                    "sheave_lease_remaining_seconds",
                    "Time until the kernel stops answering ARP for owned VIPs.",
                )?,
            )?,
            ready: gauge("sheave_ready", "1 if this node may own VIPs.")?,
            frames: counters("sheave_frames_total", "Frames in the packet path, by verdict.", "verdict")?,
            guard: counters(
                "sheave_guard_packets_total",
                "Packets of unknown flows in the nftables chains, by fate.",
                "guard",
            )?,
            denied: Denied::new(register(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "sheave_denied_packets_total",
                        "Packets of clients outside the Service's source ranges that came in here, dropped or answered with a reset.",
                    ),
                    &["namespace", "name"],
                )?,
            )?),
            traffic: Traffic::new(&registry)?,
            registry,
            counters: kernel.into(),
            drops: Mutex::default(),
        })
    }

    /// Since this speaker started.
    pub fn set_flows_forgotten(&self, flows: u64) {
        raise(&self.flows_forgotten, flows);
    }

    /// Packets that the guard saw since this speaker started.
    pub fn set_guard<'a>(&self, counters: impl Iterator<Item = (&'a str, u64)>) {
        for (name, packets) in counters {
            raise(&self.guard.with_label_values(&[name]), packets);
        }
    }

    /// A datagram without effect. The first of each reason is logged.
    pub fn count_rejected(&self, reason: &str, what: &str) {
        let rejected = self.adverts_rejected.with_label_values(&[reason]);
        if rejected.get() == 0 {
            info!(reason, what, "datagram refused; further ones are only counted (sheave_adverts_rejected_total)");
        }
        rejected.inc();
    }

    /// Of every limit that is reached now, in order.
    pub fn names_of_limits_reached(&self, now: Instant) -> Vec<String> {
        let families = self.limits_reached.collect();
        let counters = families.iter().flat_map(|family| family.get_metric());
        let counted =
            counters.filter_map(|one| Some((one.get_label().first()?.value(), one.get_counter().get_value())));
        self.reached.names(counted, now)
    }

    /// Services with source ranges, by their slot in the maps.
    pub fn follow_denied(&self, services: BTreeMap<u16, ObjectName>) {
        if let Err(error) = self.denied.follow(services, |slot| self.counters()?.denied(slot)) {
            warn!(error = format!("{error:#}"), "denied packets of a Service not counted");
        }
    }

    /// Services and VIPs that are counted, by their slot in the maps.
    pub fn follow_traffic(&self, services: BTreeMap<u16, Counted>) {
        if let Err(error) = self.traffic.follow(services, |slot| self.counters()?.service(slot)) {
            warn!(error = format!("{error:#}"), "traffic of a Service not counted");
        }
    }

    /// What came in here for the Services of a namespace, since this speaker started.
    pub fn traffic_in(&self, namespace: &str) -> Result<BTreeMap<String, ServiceCounters>> {
        self.traffic.count(|slot| self.counters()?.service(slot))?;
        Ok(self.traffic.of_namespace(namespace))
    }

    /// Also without a scrape: for the log.
    pub fn count_denied(&self) -> Result<()> {
        self.denied.count(|slot| self.counters()?.denied(slot), Instant::now())
    }

    fn counters(&self) -> Result<&Counters> {
        self.counters.as_ref().context("this speaker has no packet path")
    }

    /// The kernel's counter of a socket.
    pub fn watch_drops(&self, socket: &'static str, drops: Arc<AtomicU64>) {
        self.drops.lock().unwrap_or_else(PoisonError::into_inner).push((socket, drops));
    }

    pub fn render(&self, health: &HealthFlags) -> Result<Vec<u8>> {
        let read = self.counters.as_ref().map(Counters::read).transpose();
        for (verdict, frames) in read.context("read the packet path's counters")?.unwrap_or_default() {
            raise(&self.frames.with_label_values(&[verdict.label()]), frames);
        }
        self.count_denied()?;
        self.traffic.count(|slot| self.counters()?.service(slot))?;
        for (socket, drops) in self.drops.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            raise(&self.datagrams_dropped.with_label_values(&[socket]), drops.load(Ordering::Relaxed));
        }
        self.owned.reset();
        for (vip, term) in health.owned() {
            self.owned.with_label_values(&[vip.to_string().as_str()]).set(i64::try_from(term).unwrap_or(i64::MAX));
        }
        self.lease_remaining.set(health.lease_remaining().as_secs_f64());
        let serves = health.synced.load(Ordering::Relaxed) || health.stands_by.load(Ordering::Relaxed);
        self.ready.set(i64::from(serves && health.not_ready().is_empty()));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).context("encode metrics")?;
        Ok(text)
    }
}

/// The kernel counts, the metric follows; a counter that began anew (maps of another version) starts from there.
fn raise(metric: &IntCounter, value: u64) {
    match value.checked_sub(metric.get()) {
        Some(difference) => metric.inc_by(difference),
        None => {
            metric.reset();
            metric.inc_by(value);
        }
    }
}

fn register<M: prometheus::core::Collector + Clone + 'static>(registry: &Registry, metric: M) -> Result<M> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
