//! sessionAffinity ClientIP in nftables: a set of clients for each pod of a Service, and the chains that fill and ask them.
//!
//! A service port leads to a chain that asks the sets of its pods for the client; a stranger's pod is chosen by hash. Either way the pod's
//! chain enters the client, which renews its record, and translates. No flow takes a client from one set into another: it leaves a pod
//! with the pod's set, when the pod no longer serves here, or when its record expires.
//!
//! A port whose pods lack the client's pod, while that pod serves other ports of the Service here, chooses by hash and records
//! nothing: the client stays what it is to the other ports.
//!
//! No chain is a port's alone. A pod has one for the whole Service; the port on which it serves comes from a map, by the service port.
//! Ports with the same pods share the chain that chooses among these. So a Service of a thousand ports costs a thousand elements, and not
//! a chain for each port and pod.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::net::Ipv4Addr;

use ebpf_common::ServiceKey;

use super::objects::{Kind, Objects};
use super::{IS_SYN, PORT, PORT_TYPE, SERVICES, chain, elements, line, protocol};
use crate::backend::affinity::{ClientSet, Records, room};
use crate::backend::{Guard, LocalPods, Plan};
use crate::view::{Protocol, ServiceAttributes};

/// In which a packet whose mark names a next hop is asked for its client.
pub const KNOWN_CLIENT: &str = "known-client";

/// What the table has for these of the plan's service ports, as far as they have affinity.
pub fn add(objects: &mut Objects, plan: &Plan, concerns: impl Fn(&ServiceKey, &LocalPods) -> bool) {
    let mut services: BTreeMap<u64, Vec<(ServiceKey, &LocalPods)>> = BTreeMap::new();
    let ports = plan.services.iter().filter(|(_, local)| local.attributes.keeps_clients());
    for (key, local) in ports.filter(|(key, local)| concerns(key, local)) {
        services.entry(local.service).or_default().push((*key, local));
    }
    if services.is_empty() {
        return;
    }
    let set_type = set_type(room(plan.client_sets().len()));
    let services = services.into_iter().filter_map(|(hash, ports)| Service::new(hash, &ports));
    services.for_each(|service| service.add(objects, &set_type));
}

/// The sets with what is known of them. A set keeps the size with which it was made until the table is built anew.
pub fn sets(text: &mut String, plan: &Plan, records: &Records) {
    let sets = plan.client_sets();
    let room = room(sets.len());
    for (set, kept) in &sets {
        let clients = records.get(set).into_iter().flatten().take(room);
        // A shorter timeout than before counts from now on.
        let timeout = u64::from(kept.timeout.seconds());
        let clients: Vec<String> = clients
            .map(|(client, left)| (client, left.as_secs().min(timeout)))
            .filter(|(_, left)| *left > 0)
            .map(|(client, left)| format!("{client} timeout {timeout}s expires {left}s"))
            .collect();
        line(text, format_args!("\tset {} {{ {} {}}}", set.name(), set_type(room), elements(&clients)));
    }
}

/// The maps of all Services, and what asks for the client of a packet in search of a node.
pub fn maps(text: &mut String, objects: &Objects) {
    let ports = objects.elements(TARGET_PORTS);
    line(text, format_args!("\tmap {TARGET_PORTS} {{ {} {ports}}}", target_ports_type()));
    let known = objects.elements(KNOWN_CLIENTS);
    line(text, format_args!("\tmap {KNOWN_CLIENTS} {{ type {PORT_TYPE} : verdict; {known}}}"));
    line(text, format_args!("\tchain {KNOWN_CLIENT} {{"));
    // Of other services no SYN has a next hop; a datagram has one whatever its service.
    line(text, format_args!("\t\t{IS_SYN} {PORT} vmap @{KNOWN_CLIENTS}"));
    line(text, format_args!("\t\tmeta l4proto udp {PORT} vmap @{KNOWN_CLIENTS}"));
    line(text, format_args!("\t}}"));
}

/// The ports of a Service.
struct Service<'a> {
    hash: u64,
    attributes: &'a ServiceAttributes,
    protocols: BTreeSet<&'static str>,
    /// On which port a pod serves a service port: one map for all pods that agree.
    target_ports: Vec<BTreeMap<ServiceKey, u16>>,
    /// With the number of the map that is theirs.
    pods: BTreeMap<Pod, usize>,
    groups: BTreeMap<Group, Vec<ServiceKey>>,
}

/// An endpoint. Pods on the host's network may serve one service port at one address, on several ports: their number there, from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pod {
    address: Ipv4Addr,
    nth: usize,
}

/// What service ports have in common that share their chains.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    pods: Vec<Pod>,
    last_resort: bool,
}

impl<'a> Service<'a> {
    fn new(hash: u64, ports: &[(ServiceKey, &'a LocalPods)]) -> Option<Self> {
        // They differ while nft refuses some of the Service's ports.
        let attributes = ports.iter().map(|(_, local)| &local.attributes);
        let attributes = attributes.max_by_key(|attributes| attributes.affinity_timeout.seconds())?;
        let (mut pods, mut groups) = (BTreeMap::new(), BTreeMap::new());
        for (key, local) in ports {
            let mut group = Group { pods: Vec::new(), last_resort: local.last_resort };
            for (address, port) in &local.pods {
                let nth = group.pods.iter().rev().take_while(|pod| pod.address == *address).count();
                let pod = Pod { address: *address, nth };
                group.pods.push(pod);
                pods.entry(pod).or_insert_with(Vec::new).push((*key, *port));
            }
            groups.entry(group).or_insert_with(Vec::new).push(*key);
        }
        let mut target_ports: Vec<BTreeMap<ServiceKey, u16>> = Vec::new();
        let pods = pods.into_iter().map(|(pod, ports)| {
            let agrees = |map: &BTreeMap<ServiceKey, u16>| {
                ports.iter().all(|(key, port)| map.get(key).is_none_or(|known| known == port))
            };
            let which = target_ports.iter().position(agrees);
            match which.and_then(|which| target_ports.get_mut(which)) {
                Some(map) => map.extend(ports),
                None => target_ports.push(ports.into_iter().collect()),
            }
            (pod, which.unwrap_or(target_ports.len() - 1))
        });
        let pods = pods.collect();
        let protocols = ports.iter().map(|(key, _)| protocol(key.proto)).collect();
        Some(Self { hash, attributes, protocols, target_ports, pods, groups })
    }

    fn add(&self, objects: &mut Objects, set_type: &str) {
        for (which, ports) in self.target_ports.iter().enumerate() {
            let map = self.map(which);
            ports.iter().for_each(|(key, port)| objects.lead(&map, *key, format!("{port}")));
            if which > 0 {
                objects.own.insert(map, (Kind::Map, target_ports_type()));
            }
        }
        for (pod, which) in &self.pods {
            let set = self.set(pod);
            let mut rules = Vec::from([
                // A rule of its own: with a full set the rest of the rule would not be carried out.
                format!("update @{set} {{ ip saddr timeout {}s }}", self.attributes.affinity_timeout.seconds()),
                format!("ip saddr != @{set} counter name {}", Guard::Unrecorded.label()),
            ]);
            rules.extend(self.translate(pod, *which));
            objects.chains.insert(self.pod_chain(pod), rules);
            objects.own.insert(set, (Kind::Set, set_type.into()));
        }
        let largest = self.groups.values().max_by_key(|keys| (keys.len(), Reverse(keys.first().copied())));
        for (group, keys) in &self.groups {
            let Some(first) = keys.first() else { continue };
            // That of the most ports keeps its name when one comes or goes.
            let name = if largest == Some(keys) { format!("service-{:016x}", self.hash) } else { chain(first) };
            self.add_group(objects, &name, group);
            for key in keys {
                objects.lead(SERVICES, *key, format!("goto {name}"));
                if !group.last_resort {
                    objects.lead(KNOWN_CLIENTS, *key, format!("goto {}", known(&name)));
                }
            }
        }
    }

    fn add_group(&self, objects: &mut Objects, name: &str, group: &Group) {
        let own = || group.pods.iter().filter(|pod| pod.nth == 0);
        let asks = |pod: &Pod, verdict: &str| format!("ip saddr @{} {verdict}", self.set(pod));
        let mut rules: Vec<String> = own().map(|pod| asks(pod, &format!("goto {}", self.pod_chain(pod)))).collect();
        let addresses: BTreeSet<Ipv4Addr> = own().map(|pod| pod.address).collect();
        let others = self.pods.keys().filter(|pod| pod.nth == 0 && !addresses.contains(&pod.address));
        let by_hash = unrecorded(name);
        let of_other_ports: Vec<String> = others.map(|pod| asks(pod, &format!("goto {by_hash}"))).collect();
        if !of_other_ports.is_empty() {
            rules.extend(of_other_ports);
            for (pod, which) in group.pods.iter().filter_map(|pod| self.pods.get_key_value(pod)) {
                objects.chains.insert(unrecorded(&self.pod_chain(pod)), self.translate(pod, *which).collect());
            }
            let choice = self.choice(group, |pod| unrecorded(&self.pod_chain(pod)));
            objects.chains.insert(by_hash, choice);
        }
        rules.extend(self.choice(group, |pod| self.pod_chain(pod)));
        objects.chains.insert(name.into(), rules);
        if !group.last_resort {
            objects.chains.insert(known(name), own().map(|pod| asks(pod, "accept")).collect());
        }
    }

    /// nft wants to know that there are ports: hence a rule for each protocol.
    fn translate(&self, pod: &Pod, which: usize) -> impl Iterator<Item = String> {
        let to = format!("dnat to {} : {PORT} map @{}", pod.address, self.map(which));
        self.protocols.iter().map(move |protocol| format!("meta l4proto {protocol} {to}"))
    }

    /// By the hash of a client's address. Of few pods by a rule for each: a map without a name costs the kernel a look at every set of the
    /// table when it is made, a rule nothing.
    fn choice(&self, group: &Group, chain: impl Fn(&Pod) -> String) -> Vec<String> {
        let hash = self.attributes.choice(Protocol::Tcp, group.pods.len());
        let pods = group.pods.iter().enumerate();
        if group.pods.len() > FEW {
            let chains: Vec<String> = pods.map(|(i, pod)| format!("{i} : goto {}", chain(pod))).collect();
            return [format!("{hash} vmap {{ {} }}", chains.join(", "))].into();
        }
        let rule = |(i, pod): (usize, &Pod)| {
            let goto = format!("goto {}", chain(pod));
            if i + 1 == group.pods.len() { goto } else { format!("{hash} == {i} {goto}") }
        };
        pods.map(rule).collect()
    }

    fn map(&self, which: usize) -> String {
        if which == 0 { TARGET_PORTS.into() } else { format!("{TARGET_PORTS}_{:016x}_{which}", self.hash) }
    }

    fn set(&self, pod: &Pod) -> String {
        ClientSet { service: self.hash, pod: pod.address }.name()
    }

    fn pod_chain(&self, pod: &Pod) -> String {
        let Pod { address, nth } = pod;
        let nth = if *nth == 0 { String::new() } else { format!("-{nth}") };
        format!("pod-{:016x}-{address}{nth}", self.hash)
    }
}

/// Asks whether a client is of one of the pods.
fn known(name: &str) -> String {
    format!("known-{name}")
}

/// The same choice or translation, for a client that stays another pod's.
fn unrecorded(name: &str) -> String {
    format!("unrecorded-{name}")
}

/// Each element has its own timeout: that of a set cannot be changed.
fn set_type(room: usize) -> String {
    format!("type ipv4_addr; size {room}; flags dynamic,timeout;")
}

fn target_ports_type() -> String {
    format!("type {PORT_TYPE} : inet_service;")
}

/// Pods of one service port here, among which rules choose.
const FEW: usize = 4;
const KNOWN_CLIENTS: &str = "known_clients";
/// Of all Services: where a Service's pods do not agree, more maps are its own.
const TARGET_PORTS: &str = "target_ports";

#[cfg(test)]
mod tests;
