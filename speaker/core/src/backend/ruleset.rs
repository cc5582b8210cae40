//! The text of the nftables table: one transaction each (`nft -f -`).
//!
//! [`replace`] builds the table anew, whatever is there: at the start of a speaker and after a foreign hand. [`update`] says
//! only what differs between two plans, so that a pod's coming and going costs a few lines in a cluster of thousands of
//! services and the counters run on. Neither touches a flow that conntrack knows: nat chains see first packets only.
//!
//! What reaches the text: parsed addresses, port numbers, a checked interface name. No name that anybody gave to an object.
//!
//! Read first: nft(8); kernel net/netfilter/nf_nat_core.c, `nf_nat_inet_fn`: the nat chains of a hook run in order of priority
//! until one has bound the flow's translation. `dnat to ip daddr` binds "none", so that no later chain (kube-proxy: -100) can
//! mark, masquerade or translate a packet to a VIP. Other chain types are not stopped by that: kube-proxy in nftables mode has
//! filter chains at -110 in input, forward and output (pkg/proxy/nftables, `filterForwardChain` and others), in iptables mode
//! at 0. The guard is before both.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write;
use core::net::Ipv4Addr;

use ebpf_common::ServiceKey;

use super::{Guard, LocalPods, Plan, Uplink};
use crate::view::Affinity;

/// Name of the nftables table, family ip.
pub const TABLE: &str = "sheave";

/// Brings the table to this plan, whatever is there. Counters start at 0.
pub fn replace(plan: &Plan) -> String {
    let mut text = String::new();
    // `delete` alone fails if there is none; `add` first makes it succeed always.
    line(&mut text, format_args!("add table ip {TABLE}"));
    line(&mut text, format_args!("delete table ip {TABLE}"));
    line(&mut text, format_args!("table ip {TABLE} {{"));
    for guard in Guard::ALL {
        line(&mut text, format_args!("\tcounter {} {{ }}", guard.label()));
    }
    let vips: Vec<String> = plan.vips.iter().map(Ipv4Addr::to_string).collect();
    line(&mut text, format_args!("\tset vips {{ type ipv4_addr; {}}}", elements(&vips)));
    for (key, local) in &plan.services {
        line(&mut text, format_args!("\tchain {} {{ {}; }}", chain(key), translate(key, local)));
    }
    let services: Vec<String> =
        plan.services.keys().map(|key| format!("{} : goto {}", tuple(key), chain(key))).collect();
    let services_type = "type ipv4_addr . inet_proto . inet_service : verdict";
    line(&mut text, format_args!("\tmap services {{ {services_type}; {}}}", elements(&services)));
    base_chains(&mut text, &plan.uplink);
    text.push_str("}\n");
    text
}

/// Leads from one plan to another; `None` if there is nothing to do. A change of the uplink wants [`replace`].
pub fn update(from: &Plan, to: &Plan) -> Option<String> {
    if from.uplink != to.uplink {
        return Some(replace(to));
    }
    let mut text = String::new();
    let gone = from.services.keys().filter(|key| !to.services.contains_key(key));
    for key in gone {
        line(&mut text, format_args!("delete element ip {TABLE} services {{ {} }}", tuple(key)));
        line(&mut text, format_args!("flush chain ip {TABLE} {}", chain(key)));
        line(&mut text, format_args!("delete chain ip {TABLE} {}", chain(key)));
    }
    for vip in from.vips.difference(&to.vips) {
        line(&mut text, format_args!("delete element ip {TABLE} vips {{ {vip} }}"));
    }
    for (key, local) in &to.services {
        let known = from.services.get(key);
        if known == Some(local) {
            continue;
        }
        let chain = chain(key);
        match known {
            Some(_) => line(&mut text, format_args!("flush chain ip {TABLE} {chain}")),
            None => line(&mut text, format_args!("add chain ip {TABLE} {chain}")),
        }
        line(&mut text, format_args!("add rule ip {TABLE} {chain} {}", translate(key, local)));
        if known.is_none() {
            line(&mut text, format_args!("add element ip {TABLE} services {{ {} : goto {chain} }}", tuple(key)));
        }
    }
    for vip in to.vips.difference(&from.vips) {
        line(&mut text, format_args!("add element ip {TABLE} vips {{ {vip} }}"));
    }
    (!text.is_empty()).then_some(text)
}

fn base_chains(text: &mut String, uplink: &Uplink) {
    let to_vip = format!("iifname \"{}\" ip daddr @vips", uplink.as_str());
    line(text, format_args!("\tchain prerouting {{"));
    line(text, format_args!("\t\ttype nat hook prerouting priority {NAT_PRIORITY}; policy accept;"));
    line(text, format_args!("\t\t{to_vip} ip daddr . meta l4proto . th dport vmap @services"));
    line(text, format_args!("\t\t{to_vip} dnat to ip daddr"));
    line(text, format_args!("\t}}"));

    line(text, format_args!("\tchain guard {{"));
    let drop = |guard: Guard| format!("counter name {} drop", guard.label());
    line(text, format_args!("\t\tct state invalid {}", drop(Guard::Invalid)));
    // RFC 9293 section 3.5.2, RFC 1122 section 3.2.2.1. Neither answers a reset or an ICMP error.
    let reset = Guard::Reset.label();
    line(text, format_args!("\t\tmeta l4proto tcp counter name {reset} reject with tcp reset"));
    let unreachable = Guard::Unreachable.label();
    line(text, format_args!("\t\tmeta l4proto udp counter name {unreachable} reject with icmp port-unreachable"));
    line(text, format_args!("\t\t{}", drop(Guard::Other)));
    line(text, format_args!("\t}}"));

    // Forward: the VIP is on no interface. Input: should somebody have put it on one all the same.
    for hook in ["forward", "input"] {
        line(text, format_args!("\tchain {hook} {{"));
        line(text, format_args!("\t\ttype filter hook {hook} priority {GUARD_PRIORITY}; policy accept;"));
        line(text, format_args!("\t\t{to_vip} goto guard"));
        line(text, format_args!("\t}}"));
    }
}

/// The rule of one service port. `meta l4proto` comes first because nft wants to know that there are ports.
fn translate(key: &ServiceKey, local: &LocalPods) -> String {
    let protocol = protocol(key.proto);
    if let [(address, port)] = local.pods[..] {
        return format!("meta l4proto {protocol} dnat to {address}:{port}");
    }
    let n = local.pods.len();
    let choice = match local.affinity {
        Affinity::None => format!("numgen random mod {n}"),
        Affinity::ClientIp => format!("jhash ip saddr mod {n} seed {AFFINITY_SEED:#x}"),
    };
    let pods = local.pods.iter().enumerate();
    let pods: Vec<String> = pods.map(|(i, (address, port))| format!("{i} : {address} . {port}")).collect();
    format!("meta l4proto {protocol} dnat ip to {choice} map {{ {} }}", pods.join(", "))
}

/// Name of a service's chain. nft takes letters, digits and `/\_.-` after a letter.
fn chain(key: &ServiceKey) -> String {
    format!("{}-{}-{}", protocol(key.proto), Ipv4Addr::from(key.addr), u16::from_be_bytes(key.port))
}

fn tuple(key: &ServiceKey) -> String {
    format!("{} . {} . {}", Ipv4Addr::from(key.addr), protocol(key.proto), u16::from_be_bytes(key.port))
}

fn protocol(number: u8) -> &'static str {
    if number == 17 { "udp" } else { "tcp" }
}

/// nft refuses an empty list.
fn elements(list: &[String]) -> String {
    if list.is_empty() { String::new() } else { format!("elements = {{ {} }}; ", list.join(", ")) }
}

fn line(text: &mut String, arguments: core::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = text.write_fmt(arguments);
    text.push('\n');
}

/// Before kube-proxy's nat chains (dstnat, -100).
const NAT_PRIORITY: i32 = -110;
/// Before kube-proxy's filter chains (-110 in nftables mode), so that it is us who answer and count. After conntrack
/// (-200).
const GUARD_PRIORITY: i32 = -120;
/// Fixed, so that a client stays with its pod when the table is built anew.
const AFFINITY_SEED: u32 = 0x5368_6561;
