//! sessionAffinity ClientIP in nftables: a set of clients for each pod of a Service, and the chains that fill and ask them.
//!
//! A service port's chain asks the sets of its pods for the client; a stranger's pod is chosen by hash. Either way the pod's chain
//! enters the client, which renews its record, and translates. No flow takes a client from one set into another: it leaves a pod with
//! the pod's set, when the pod no longer serves here, or when its record expires.
//!
//! A port whose pods lack the client's pod, while that pod serves other ports of the Service here, chooses by hash and records
//! nothing: the client stays what it is to the other ports.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use ebpf_common::ServiceKey;

use super::{IS_SYN, PORT, PORT_TYPE, TABLE, chain, elements, line, pods_by_number, protocol, protocol_of, tuple};
use crate::backend::affinity::{ClientSet, MAX_CLIENTS, Records};
use crate::backend::{Guard, LocalPods, Plan};

/// In which a packet whose mark names a next hop is asked for its client.
pub const KNOWN_CLIENT: &str = "known-client";

/// A chain and its rules.
pub type Chain = (String, Vec<String>);

/// The pods of each Service with affinity, through whichever port.
pub struct Pods(BTreeMap<u64, BTreeSet<Ipv4Addr>>);

impl Pods {
    pub fn of(plan: &Plan) -> Self {
        let mut pods: BTreeMap<u64, BTreeSet<Ipv4Addr>> = BTreeMap::new();
        for local in plan.services.values().filter(|local| local.attributes.keeps_clients()) {
            pods.entry(local.service).or_default().extend(local.pods.iter().map(|(address, _)| *address));
        }
        Self(pods)
    }

    /// Of the Service, but not of this port of it.
    fn of_other_ports(&self, local: &LocalPods) -> impl Iterator<Item = Ipv4Addr> {
        let own: BTreeSet<Ipv4Addr> = local.pods.iter().map(|(address, _)| *address).collect();
        self.0.get(&local.service).into_iter().flatten().copied().filter(move |pod| !own.contains(pod))
    }
}

/// The chains of a service port with affinity, its own last: it leads to the others.
pub fn chains(key: &ServiceKey, local: &LocalPods, pods: &Pods) -> Vec<Chain> {
    let set = |pod: Ipv4Addr| ClientSet::of(local, pod).name();
    let protocol = protocol(key.proto);
    let choice = local.attributes.choice(protocol_of(key), local.pods.len());
    let mut chains = Vec::new();
    let mut rules = Vec::new();
    for (address, port) in &local.pods {
        let (set, pod_chain) = (set(*address), pod_chain(key, *address, *port));
        rules.push(format!("ip saddr @{set} goto {pod_chain}"));
        chains.push((
            pod_chain,
            [
                // A rule of its own: with a full set the rest of the rule would not be carried out.
                format!("update @{set} {{ ip saddr timeout {}s }}", local.attributes.affinity_timeout.seconds()),
                format!("ip saddr != @{set} counter name {}", Guard::Unrecorded.label()),
                format!("meta l4proto {protocol} dnat to {address}:{port}"),
            ]
            .into(),
        ));
    }
    let by_hash = format!("meta l4proto {protocol} dnat ip to {choice} map {{ {} }}", pods_by_number(&local.pods));
    rules.extend(pods.of_other_ports(local).map(|pod| format!("ip saddr @{} {by_hash}", set(pod))));
    let to_pods = local.pods.iter().enumerate();
    let to_pods: Vec<String> =
        to_pods.map(|(i, (address, port))| format!("{i} : goto {}", pod_chain(key, *address, *port))).collect();
    rules.push(format!("{choice} vmap {{ {} }}", to_pods.join(", ")));
    if !local.last_resort {
        let known = local.pods.iter().map(|(address, _)| format!("ip saddr @{} accept", set(*address))).collect();
        chains.push((known_chain(key), known));
    }
    chains.push((chain(key), rules));
    chains
}

/// The sets with what is known of them, and what asks for the client of a packet in search of a node.
pub fn sets(text: &mut String, plan: &Plan, records: &Records) {
    for (set, kept) in &plan.client_sets() {
        let clients = records.get(set).into_iter().flatten().take(MAX_CLIENTS);
        // A shorter timeout than before counts from now on.
        let timeout = u64::from(kept.timeout.seconds());
        let clients: Vec<String> = clients
            .map(|(client, left)| (client, left.as_secs().min(timeout)))
            .filter(|(_, left)| *left > 0)
            .map(|(client, left)| format!("{client} timeout {timeout}s expires {left}s"))
            .collect();
        line(text, format_args!("\tset {} {{ {} {}}}", set.name(), set_type(), elements(&clients)));
    }
    let known: Vec<String> = known(plan).map(|key| known_element(&key)).collect();
    line(text, format_args!("\tmap known_clients {{ type {PORT_TYPE} : verdict; {}}}", elements(&known)));
    line(text, format_args!("\tchain {KNOWN_CLIENT} {{"));
    // Of other services no SYN has a next hop; a datagram has one whatever its service.
    line(text, format_args!("\t\t{IS_SYN} {PORT} vmap @known_clients"));
    line(text, format_args!("\t\tmeta l4proto udp {PORT} vmap @known_clients"));
    line(text, format_args!("\t}}"));
}

/// Before the chains change: they name the sets. The chains that elements lead to must not go before the elements.
pub fn update_before(text: &mut String, from: &Plan, to: &Plan) {
    let before = from.client_sets();
    for set in to.client_sets().keys().filter(|set| !before.contains_key(set)) {
        line(text, format_args!("add set ip {TABLE} {} {{ {} }}", set.name(), set_type()));
    }
    let to: BTreeSet<ServiceKey> = known(to).collect();
    for key in known(from).filter(|key| !to.contains(key)) {
        line(text, format_args!("delete element ip {TABLE} known_clients {{ {} }}", tuple(&key)));
    }
}

/// When they have changed.
pub fn update_after(text: &mut String, from: &Plan, to: &Plan) {
    let before: BTreeSet<ServiceKey> = known(from).collect();
    for key in known(to).filter(|key| !before.contains(key)) {
        line(text, format_args!("add element ip {TABLE} known_clients {{ {} }}", known_element(&key)));
    }
    let after = to.client_sets();
    for set in from.client_sets().keys().filter(|set| !after.contains_key(set)) {
        line(text, format_args!("delete set ip {TABLE} {}", set.name()));
    }
}

/// Service ports that take clients which another node asks for.
fn known(plan: &Plan) -> impl Iterator<Item = ServiceKey> {
    let takes = |(_, local): &(&ServiceKey, &LocalPods)| local.attributes.keeps_clients() && !local.last_resort;
    plan.services.iter().filter(takes).map(|(key, _)| *key)
}

fn known_element(key: &ServiceKey) -> String {
    format!("{} : goto {}", tuple(key), known_chain(key))
}

fn known_chain(key: &ServiceKey) -> String {
    format!("known-{}", chain(key))
}

fn pod_chain(key: &ServiceKey, address: Ipv4Addr, port: u16) -> String {
    format!("{}-{address}-{port}", chain(key))
}

/// Each element has its own timeout: that of a set cannot be changed.
fn set_type() -> String {
    format!("type ipv4_addr; size {MAX_CLIENTS}; flags dynamic,timeout;")
}
