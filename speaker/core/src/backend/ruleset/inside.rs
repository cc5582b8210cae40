//! Clients inside, where kube-proxy does not translate: processes of this node and its pods reach a VIP through the pods of the whole
//! cluster.
//!
//! Such a packet does not come in by the uplink, so no dispatcher sees it. It would leave by the uplink, for the VIP's owner; on the
//! owner's own node no node answers for the VIP. So each node translates for its own clients, as kube-proxy does. Our chains stand behind
//! kube-proxy's (dstnat, -100): what it translates they do not see.
//!
//! A port that no pod serves is refused at once, behind the translation of known flows, which go on.
//!
//! Masquerade is kube-proxy's too (pkg/proxy/nftables/proxier.go, `writeServiceToNFTables`): all clients where externalTrafficPolicy is
//! Cluster; else processes of the node, and pods that reach themselves. Other pods keep their address, and their node translates the
//! answers on the way back.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use ebpf_common::ServiceKey;

use super::objects::Objects;
use super::{PORT, PORT_TYPE, TABLE, elements, line, source_ranges, translate, tuple};
use crate::backend::{ClusterPods, Plan};
use crate::view::TrafficPolicy;

pub fn objects(text: &mut String, plan: &Plan) {
    for (key, pods) in &plan.inside {
        line(text, format_args!("\tchain {} {{ {}; }}", chain(key), rule(key, pods)));
    }
    let verdicts: Vec<String> = plan.inside.keys().map(|key| format!("{} : {}", tuple(key), verdict(key))).collect();
    line(text, format_args!("\tmap {INSIDE} {{ type {PORT_TYPE} : verdict; {}}}", elements(&verdicts)));
    for (set, of_type, members) in sets(plan) {
        let members: Vec<String> = members.into_iter().collect();
        line(text, format_args!("\tset {set} {{ type {of_type}; {}}}", elements(&members)));
    }
}

pub fn base_chains(text: &mut String, plan: &Plan) {
    let of_pods = format!("iifname != \"{}\" ", plan.uplink.as_str());
    for (hook, of_clients) in [("prerouting", of_pods.as_str()), ("output", "")] {
        line(text, format_args!("\tchain inside_{hook} {{"));
        line(text, format_args!("\t\ttype nat hook {hook} priority {BEHIND_KUBE_PROXY}; policy accept;"));
        for addresses in ADDRESSES {
            line(text, format_args!("\t\t{of_clients}ip daddr {addresses} {}", source_ranges::rule()));
            line(text, format_args!("\t\t{of_clients}ip daddr {addresses} {PORT} vmap @{INSIDE}"));
        }
        line(text, format_args!("\t}}"));
    }
    for (hook, of_clients) in [("forward", of_pods.as_str()), ("output", "")] {
        line(text, format_args!("\tchain inside_refuse_{hook} {{"));
        line(text, format_args!("\t\ttype filter hook {hook} priority {BEFORE_OTHERS}; policy accept;"));
        for addresses in ADDRESSES {
            let refused = format!("{of_clients}ip daddr {addresses} {PORT} @inside_refused");
            line(text, format_args!("\t\tmeta l4proto tcp {refused} reject with tcp reset"));
            line(text, format_args!("\t\tmeta l4proto udp {refused} reject with icmp type port-unreachable"));
        }
        line(text, format_args!("\t}}"));
    }
}

/// In a nat chain of postrouting. No packet comes in by the uplink with this node's address.
pub fn masquerade(plan: &Plan) -> Vec<String> {
    // nft wants to know that there are ports.
    let to_vip = "ct status dnat meta l4proto { tcp, udp } ct original ip daddr . meta l4proto . ct original proto-dst";
    let of_node = plan.address.map(|address| format!("{to_vip} @inside_ports ip saddr {address} masquerade"));
    let of_pods = format!("iifname != \"{}\" {to_vip}", plan.uplink.as_str());
    let rules = [
        format!("{of_pods} @inside_cluster masquerade"),
        format!("{of_pods} @inside_ports ip saddr . ip daddr @inside_self masquerade"),
    ];
    of_node.into_iter().chain(rules).collect()
}

pub fn update(text: &mut String, from: &Plan, to: &Plan) {
    let mut members = |verb: &str, these: &Plan, others: &Plan| {
        for ((set, _, these), (_, _, others)) in sets(these).into_iter().zip(sets(others)) {
            let list: Vec<&str> = these.difference(&others).map(String::as_str).collect();
            if !list.is_empty() {
                line(text, format_args!("{verb} element ip {TABLE} {set} {{ {} }}", list.join(", ")));
            }
        }
    };
    members("delete", from, to);
    members("add", to, from);
    let objects = |plan: &Plan, other: &Plan| {
        let mut objects = Objects::default();
        for (key, pods) in plan.inside.iter().filter(|(key, pods)| other.inside.get(key) != Some(pods)) {
            objects.chains.insert(chain(key), [rule(key, pods)].into());
            objects.lead(INSIDE, *key, verdict(key));
        }
        objects
    };
    objects(from, to).update(text, &objects(to, from));
}

/// Endpoints that masquerade whatever the policy is ([`super::via`]).
pub fn via(plan: &Plan) -> impl Iterator<Item = (&ServiceKey, &BTreeSet<(Ipv4Addr, u16)>)> {
    plan.inside.iter().map(|(key, pods)| (key, &pods.via))
}

fn sets(plan: &Plan) -> [(&'static str, &'static str, BTreeSet<String>); 4] {
    let is_local = |pods: &&ClusterPods| pods.attributes.traffic_policy == TrafficPolicy::Local;
    let local = plan.inside.values().filter(is_local).flat_map(|pods| &pods.pods);
    let cluster = plan.inside.iter().filter(|(_, pods)| !is_local(pods)).map(|(key, _)| tuple(key));
    [
        ("inside_ports", PORT_TYPE, plan.inside.keys().map(tuple).collect()),
        ("inside_cluster", PORT_TYPE, cluster.collect()),
        ("inside_refused", PORT_TYPE, plan.inside_refused.iter().map(tuple).collect()),
        ("inside_self", "ipv4_addr . ipv4_addr", local.map(|(pod, _)| format!("{pod} . {pod}")).collect()),
    ]
}

fn rule(key: &ServiceKey, pods: &ClusterPods) -> String {
    translate(key, &pods.attributes, &pods.pods)
}

fn verdict(key: &ServiceKey) -> String {
    format!("goto {}", chain(key))
}

fn chain(key: &ServiceKey) -> String {
    format!("inside-{}", super::chain(key))
}

/// Where each service port leads.
const INSIDE: &str = "inside";
/// First the few packets that may concern us.
const ADDRESSES: [&str; 2] = ["@vips", "@node_addresses"];
/// Another's policy of drop (priority 0) would answer nothing.
const BEFORE_OTHERS: i32 = -1;
/// kube-proxy's nat chains have -100 in both hooks.
const BEHIND_KUBE_PROXY: i32 = -90;
