//! View, reports and states of nodes -> the table; the table and the rules in force -> writes for the workers; their completions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use ebpf_common::{ABI_VERSION, Config, ServiceKey};
use sheave_admin::memory;
use speaker_core::backend::ruleset::ACCEPT_MARK;
use speaker_core::backend::{Adverts, LocalPods, Plan, lag};
use speaker_core::eligibility;
use speaker_core::forwarding::diff::{MapState, diff};
use speaker_core::forwarding::{Service, Table, TrafficStates};
use speaker_core::health::leave_out;
use speaker_core::name::NodeName;
use speaker_core::reports::exchange;
use speaker_core::startup;
use speaker_core::view::endpoints::{Refusal, frontends};
use speaker_core::view::{ObjectName, View};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::super::startup_probe::{Sign, StartupProbe, Target};
use super::super::writer::{Job, Written};
use super::{Planned, State, Synced, Writing};
use crate::backend::worker::{InForce, Wanted};
use crate::io::clock;
use crate::state::PersistedState;

/// How long after the first full view this node waits for the reports of the others.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long after it the pods of a node that has booted have to give a sign of life, or to be called unready.
const PODS_PATIENCE: Duration = Duration::from_secs(10);
/// Services that a log line names.
const NAMED: usize = 10;
/// Writes of a change that leaves much memory free.
const LARGE: usize = 256;

impl State {
    /// Hands the newest state to the workers. While the maps are written there is nothing to hand over: what changes meanwhile is one
    /// change.
    pub(super) fn converge(&mut self) -> Result<()> {
        self.begin_scan();
        if self.writing.is_some() {
            return Ok(());
        }
        if self.retry.is_some_and(|retry| retry <= Instant::now()) {
            (self.retry, self.follow) = (None, true);
        }
        let Some(view) = self.view.clone().filter(|view| self.may_start(view)) else { return Ok(()) };
        self.signals.tick(clock::now());
        let traffic_states = self.traffic_states();
        let no_kube_proxy = self.sync.health.no_kube_proxy.load(Ordering::Relaxed);
        let mark = self.planned.plan.as_ref().is_some_and(|plan| plan.accept_mark != self.accept_mark());
        if self.dirty
            || mark
            || traffic_states != self.planned.traffic_states
            || no_kube_proxy != self.planned.no_kube_proxy
        {
            self.plan(&view, traffic_states, no_kube_proxy);
        }
        if self.follow { self.write(&view) } else { Ok(()) }
    }

    fn accept_mark(&self) -> u32 {
        let found = self.sync.health.accept_mark.load(Ordering::Relaxed);
        if found == 0 { ACCEPT_MARK } else { found }
    }

    /// Makes the table, and the plan that goes with it.
    fn plan(&mut self, view: &View, traffic_states: TrafficStates, no_kube_proxy: bool) {
        let now = clock::now();
        if self.report_socket.exchange.differs(now) {
            self.sync.planner.tables_differ(now);
        }
        let reports = self.report_socket.exchange.reports();
        let mut frontends = frontends(view);
        self.new_pods.startup.follow(&mut frontends.0, view.is_saved(), now);
        if let Some(members) = &mut self.sync.members {
            members.follow(&mut frontends.0, now);
        }
        let mut table = self.sync.planner.table_of(view, &frontends, &traffic_states, &reports, now);
        self.sync.metrics.batches_waiting.set(self.sync.planner.batches_waiting() as i64);
        self.bar_addresses(&mut table);
        let table = Arc::new(table);
        self.report(&table);
        let alternates = table.services.values().filter_map(|service| service.alternates.as_ref());
        self.sync.metrics.row_alternates_overflow.set(alternates.map(|all| i64::from(all.overflow)).sum());
        // Rules first: a ring must name no node whose rules lack the pod.
        let starting = self.new_pods.startup.admit(&mut frontends.0);
        if self.sync.members.is_some() {
            let own = &self.sync.node;
            leave_out(&mut frontends.0, |node| node == own || traffic_states.takes_new_flows(node));
        }
        self.name_crowded(&frontends.0, no_kube_proxy);
        let plan = Plan::of(view, &frontends.0, &self.sync.node, self.sync.uplink.clone());
        let plan = if no_kube_proxy { plan.without_kube_proxy(&frontends.0) } else { plan }.serving(&table.vips);
        let plan = self.removal_grace.complete(plan, now);
        let services = lag::pods(&plan);
        let startup = &self.new_pods.startup;
        let tcp = |key: &ServiceKey| i32::from(key.proto) == libc::IPPROTO_TCP;
        let waits = |pod: &(Ipv4Addr, u16)| startup.waits(startup::Target { address: pod.0, port: pod.1 });
        let ends =
            |(key, local): &(&ServiceKey, &LocalPods)| local.last_resort || tcp(key) && local.pods.iter().all(waits);
        let ending = plan.services.iter().filter(ends).map(|(key, _)| *key).collect();
        let (ports, cluster) = (self.sync.advert_ports.clone(), self.sync.cluster);
        let adverts = Adverts { ports, cluster, senders: self.senders(view) };
        let plan = if self.sync.members.is_some() { plan.counting(&frontends.0) } else { plan };
        let accept_mark = self.accept_mark();
        let plan = Plan { udp_silent: self.sync.udp_silent, accept_mark, adverts, starting, ..plan };
        let plan = self.udp_pins.complete(plan, now);
        self.sync.metrics.udp_flows_pinned.set(plan.udp_pins.len() as i64);
        self.planned = Planned {
            table,
            services,
            ending,
            traffic_states,
            no_kube_proxy,
            saved_view: view.is_saved(),
            plan: Some(plan),
        };
        self.note_lag();
        (self.dirty, self.follow) = (false, true);
    }

    /// The rules wanted, or those in force, have changed.
    fn note_lag(&mut self) {
        let InForce { services, failing, .. } = &self.in_force;
        self.new_pods.startup.rules(&lag::behind(&self.planned.services, services, *failing), clock::now());
    }

    /// The nft worker gets the newest plan. The maps follow the newest table as far as rules are in force for it.
    fn write(&mut self, view: &View) -> Result<()> {
        let held = self.held();
        let shown = self.shown(&held);
        let (want, left_out) = self.want(view, &shown);
        if let Some(plan) = self.planned.plan.take() {
            let plan = plan.with_peers(self.peers(&self.planned.table));
            self.rules.want(Wanted { plan, viewed: self.planned.table.viewed.clone() });
        }
        self.follow = false;
        // Before the first plan of this speaker is in force, what the kernel has is not known by names: it stays until then.
        if !held.is_empty() && self.in_force.viewed.is_none() && !self.in_force.failing {
            return Ok(());
        }
        let config = Config {
            hash_key: self.sync.hash_key,
            mac: self.sync.mac.0,
            flags: self.config_flags(),
            // Not in the view yet: 0, every VIP packet passes up the stack.
            self_slot: self.layout.node_slot(self.sync.node_ip).unwrap_or(0),
            abi: ABI_VERSION,
        };
        let job = Job { config: (config != self.config).then_some(config), ops: diff(&self.have, &want) };
        self.writer.write(job)?;
        let table = self.planned.table.clone();
        let saved_view = self.planned.saved_view;
        self.writing = Some(Writing { want, config, table, shown, saved_view, left_out, since: Instant::now() });
        self.retry = None;
        Ok(())
    }

    fn config_flags(&self) -> u16 {
        let udp_silent = if self.sync.udp_silent { Config::UDP_SILENT } else { 0 };
        let node_addresses = if self.planned.table.node_addresses.is_empty() { 0 } else { Config::NODE_ADDRESSES };
        udp_silent | node_addresses
    }

    /// Service ports whose ring names this node while its rules have no pod for them: their rows stay as they are. Not so where
    /// the rows in the maps name a node that is lost or, while the rules do not follow, a node that has no pod any more.
    fn held(&self) -> BTreeSet<ServiceKey> {
        let is_held = |(key, service): &(&ServiceKey, &Service)| {
            let waits = self.planned.services.contains_key(key)
                && !self.in_force.services.contains_key(key)
                && service.ring.nodes.contains(&self.sync.node);
            waits
                && match self.shown.services.get(key) {
                    Some(before) => before.ring.nodes.iter().all(|node| {
                        self.is_there(node) && (!self.in_force.failing || service.ring.nodes.contains(node))
                    }),
                    // A new one that no node served before. Its pods on other nodes do not wait for ever.
                    None => !self.in_force.failing,
                }
        };
        self.planned.table.services.iter().filter(is_held).map(|(key, _)| *key).collect()
    }

    fn is_there(&self, node: &str) -> bool {
        let Planned { table, traffic_states, .. } = &self.planned;
        table.nodes.contains_key(node) && traffic_states.takes_new_flows(node)
    }

    fn shown(&self, held: &BTreeSet<ServiceKey>) -> Arc<Table> {
        if held.is_empty() {
            return self.planned.table.clone();
        }
        let mut shown = Table::clone(&self.planned.table);
        for key in held {
            match self.shown.services.get(key) {
                Some(before) => shown.services.insert(*key, before.clone()),
                None => shown.services.remove(key),
            };
        }
        Arc::new(shown)
    }

    /// And whether something of it is left out.
    fn want(&mut self, view: &View, table: &Table) -> (MapState, bool) {
        let served = self.served(table);
        let nodes = view.nodes().iter();
        let mut macs: BTreeMap<String, [u8; 6]> =
            nodes.filter_map(|(name, node)| Some((name.clone(), self.macs.get(&node.address)?.0))).collect();
        macs.insert(self.sync.node.clone(), self.sync.mac.0);
        let mut peers = self.in_force.peers.clone();
        // The rules name the others alone.
        peers.extend(self.slot(self.sync.node_ip).map(|slot| (slot, self.sync.node_ip)));
        self.layout.set_peers(peers);
        let (want, exhausted) = self.layout.want(table, &self.have, &macs, &self.sync.node, &served);
        self.sync.metrics.reached.stand("maps", exhausted.iter().map(|error| error.what));
        for error in &exhausted {
            warn!(%error, "limit of the maps reached; the rest is left out");
            self.sync.metrics.limits_reached.with_label_values(&[error.what]).inc();
        }
        let beyond = self.layout.beyond_restricted();
        if self.beyond_restricted != *beyond {
            self.beyond_restricted.clone_from(beyond);
            let services: Vec<String> = beyond.iter().take(NAMED).map(ObjectName::to_string).collect();
            if !beyond.is_empty() {
                let count = beyond.len();
                warn!(count, first = ?services, "Services with source ranges beyond the limit admit no client");
            }
        }
        (want, !exhausted.is_empty())
    }

    /// Service ports whose new flows may stay here, whatever ring brought them. While other nodes have ready pods, those that end
    /// here may have closed already, and those that have not started refuse.
    fn served(&self, table: &Table) -> BTreeSet<ServiceKey> {
        let Planned { services, ending, .. } = &self.planned;
        let names_this_node = |service: &Service| service.ring.nodes.contains(&self.sync.node);
        let takes = |key: &&ServiceKey| !ending.contains(key) || table.services.get(key).is_some_and(names_this_node);
        services.keys().filter(|key| self.in_force.services.contains_key(*key)).filter(takes).copied().collect()
    }

    /// Next hops of packets, by the slot in the mark.
    fn peers(&self, table: &Table) -> BTreeMap<u16, Ipv4Addr> {
        let others = table.nodes.values().filter(|address| **address != self.sync.node_ip);
        others.filter_map(|address| Some((self.slot(*address)?, *address))).collect()
    }

    fn slot(&self, address: Ipv4Addr) -> Option<u16> {
        u16::try_from(self.layout.node_slot(address)?).ok()
    }

    /// The nft worker is done with something.
    pub(super) fn in_force(&mut self, rules: InForce) -> Result<()> {
        let same = InForce { viewed: self.in_force.viewed.clone(), ..rules.clone() } == self.in_force;
        self.in_force = rules;
        self.note_lag();
        // Until the maps have followed, the view is not.
        self.follow |= !same || !self.started;
        self.report_applied_view()
    }

    /// The map writer is done.
    pub(super) fn written(&mut self, written: Written) -> Result<()> {
        let Some(Writing { want, config, table, shown, saved_view, left_out, since }) = self.writing.take() else {
            return Ok(());
        };
        let Written { job, config: configured, ops, result } = written;
        if configured {
            self.config = config;
        }
        if let Err(error) = result {
            for op in job.ops.iter().take(ops) {
                self.have.apply(op);
            }
            self.retry = Some(Instant::now() + self.backoff.failed());
            self.sync.metrics.sync_errors.inc();
            if !self.sync.health.maps_failing.swap(true, Ordering::Relaxed) {
                error!(reason = "maps_failing", error = format!("{error:#}"), "BPF map update failed; retrying");
            }
            return Ok(());
        }
        self.backoff.succeeded();
        if self.sync.health.maps_failing.swap(false, Ordering::Relaxed) {
            info!("BPF map updates succeed again");
        }
        // The same contents, and the rings shared with the planner instead of held twice.
        self.have = want;
        // There may be room now for what was left out. A write that changes nothing ends it.
        self.follow |= left_out && !job.ops.is_empty();
        if self.table.digest != table.digest {
            self.scan.changed(clock::now());
        }
        (self.table, self.shown, self.saved_view) = (table, shown, saved_view);
        if let Some(members) = &mut self.sync.members {
            members.follow_table(&self.shown);
        }
        self.sync.metrics.follow_denied(self.layout.restricted());
        self.sync.metrics.follow_traffic(self.layout.counted());
        if job.ops.len() >= LARGE {
            memory::give_back();
        }
        debug!(writes = job.ops.len(), took = ?since.elapsed(), "BPF maps follow the view");
        self.sync.metrics.syncs.inc();
        self.start()?;
        self.persist();
        self.notify_election();
        self.report_applied_view()
    }

    /// The maps and the rules follow the view. An uplink that cannot be attached to at the start ends the process with the error.
    fn start(&mut self) -> Result<()> {
        if self.started || self.follow || self.in_force.viewed.is_none() {
            return Ok(());
        }
        self.sync.attachment.begin()?;
        self.sync.startup_probe = StartupProbe::Off;
        self.started = true;
        self.sync.health.synced.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Reports which view the packet path follows.
    fn report_applied_view(&mut self) -> Result<()> {
        let settled = self.started && !self.follow && self.writing.is_none() && self.retry.is_none();
        match self.in_force.viewed.clone().filter(|_| settled) {
            Some(viewed) => self.exchange(Some(exchange::Event::Applied(viewed))),
            None => Ok(()),
        }
    }

    /// The first table moves rows in one step from the state of the kernel to the present one, so it waits until this node knows
    /// the others and their reports. Meanwhile the kernel goes on as it was left.
    fn may_start(&mut self, view: &View) -> bool {
        let Some(viewed) = self.viewed else { return false };
        if self.started {
            return true;
        }
        let peers_known = self.all_take_new_flows(view) && self.report_socket.exchange.all_reported(clock::now());
        // Probed in any case: probes take time.
        let services = Plan::new(view, &self.sync.node, self.sync.uplink.clone()).services;
        let targets = services.into_iter().flat_map(|(key, local)| {
            let tcp = i32::from(key.proto) == libc::IPPROTO_TCP;
            local.pods.into_iter().map(move |(address, port)| Target { address, port, tcp })
        });
        let missing = self.sync.startup_probe.missing(targets);
        let waited = viewed.elapsed();
        let may_start = (peers_known || waited >= PATIENCE) && (missing.is_empty() || waited >= PODS_PATIENCE);
        if may_start && !missing.is_empty() {
            let is_gone = |(pod, sign): &(&Target, &Sign)| pod.tcp && **sign == Sign::Unreachable;
            let gone = missing.iter().filter(is_gone);
            let not_there: BTreeSet<_> =
                gone.map(|(pod, _)| startup::Target { address: pod.address, port: pod.port }).collect();
            warn!(
                pods = ?missing,
                not_there = not_there.len(),
                "startup probe unanswered; pods get new flows nevertheless, those that are not there while no other accepts"
            );
            self.new_pods.startup.not_there(not_there);
        }
        may_start
    }

    fn traffic_states(&self) -> TrafficStates {
        self.signals.traffic_states(|node, since| self.report_socket.exchange.has_reported(node, since))
    }

    fn all_take_new_flows(&self, view: &View) -> bool {
        let traffic_states = self.traffic_states();
        view.members().all(|(node, _)| traffic_states.takes_new_flows(node))
    }

    /// For the speaker after this one.
    fn persist(&mut self) {
        let Some(view) = &self.view else { return };
        let is_ready = |node: &&String| NodeName::new(node).is_some_and(|node| self.signals.is_ready(&node));
        let ready: BTreeSet<String> = view.nodes().keys().filter(is_ready).cloned().collect();
        let previous_rings = self.sync.planner.previous_rings();
        let state = (previous_rings.generation(), ready);
        if self.saved.as_ref() == Some(&state) {
            return;
        }
        let previous_rings = previous_rings.save(&clock::boot_id(), clock::now());
        self.sync.saver.forwarding(PersistedState { previous_rings, ready: state.1.clone() });
        self.saved = Some(state);
    }

    /// Notifies the election of what it may do, when that changed.
    pub(super) fn notify_election(&mut self) {
        let attached = self.sync.attachment.is_attached();
        self.sync.health.attached.store(attached, Ordering::Relaxed);
        let Some(view) = self.view.as_ref().filter(|_| self.started) else { return };
        // An owner whose packet path is detached is not ready, and hands over; the election gets its carrier by itself.
        let mut desired = eligibility::desired(&self.shown, view);
        if let Some(members) = &self.sync.members {
            eligibility::put_second(&mut desired, members.given_up(), view);
        }
        // A node whose object was deleted hands over, and serves the flows that it has.
        let ready = attached && view.is_member(&self.sync.node);
        let barred = |refusal: &&Refusal| refusal.reason.bars_vip();
        let barred = self.shown.refused.iter().filter(barred).map(|refusal| (refusal.vip, refusal.reason)).collect();
        let unowned = eligibility::unowned(&self.shown, &desired);
        let synced = Synced { desired, saved_view: self.saved_view, ready, barred, unowned };
        if self.notified.as_ref() != Some(&synced) {
            (self.sync.on_synced)(synced.clone());
            self.notified = Some(synced);
        }
    }

    fn report(&mut self, table: &Table) {
        if table.refused.len() != self.refused {
            for refusal in &table.refused {
                warn!(vip = %refusal.vip, reason = refusal.reason.label(), "VIP or endpoint refused; left out of the table");
            }
            self.refused = table.refused.len();
        }
    }
}
