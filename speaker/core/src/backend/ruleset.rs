//! The text of the nftables table: one transaction each (`nft -f -`).
//!
//! [`replace`] builds the table anew, whatever is there: at the start of a speaker and after a third-party change. [`update`]
//! contains only what differs between two plans, so that a pod's change costs a few lines in a cluster of thousands of services
//! and the counters run on. Neither touches a flow that conntrack knows: nat chains see first packets only.
//!
//! What reaches the text: parsed addresses, numbers, a checked interface name. No name from the API.
//!
//! A packet to a VIP passes three of our chains. `flow_lookup` (behind conntrack): is the flow known here? If not, the mark names
//! the next hop, and the packet is forwarded there. `prerouting` (nat): a new flow gets a pod. `forward` or `input`: the guard
//! refuses what is still addressed to the VIP. What this node's own clients send to a VIP passes others (`inside`).
//!
//! Read first: docs/backend.md; nft(8); kernel net/netfilter/nf_nat_core.c, `nf_nat_inet_fn`: the nat chains of a hook run in order of priority
//! until one has bound the flow's translation. `dnat to ip daddr` binds "none", so that no later chain (kube-proxy: -100) can
//! mark, masquerade or translate a packet to a VIP. Other chain types are not stopped by that: kube-proxy in nftables mode has
//! filter chains at -110 in input, forward and output (pkg/proxy/nftables, `filterForwardChain` and others), in iptables mode
//! at 0. The guard is before both.

pub mod adverts;
mod affinity;
mod flow_lookup;
mod inside;
pub mod members;
mod node_ports;
mod objects;
mod source_ranges;
mod via;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write;
use core::net::Ipv4Addr;

use ebpf_common::{FlowTuple, Mark, RESERVED_FLAG, ServiceKey};

use super::affinity::Records;
use super::udp_pin::Targets;
use super::{Guard, LocalPods, Plan};
use crate::view::{Protocol, ServiceAttributes};

use objects::Objects;

/// Name of the nftables table, family ip.
pub const TABLE: &str = "sheave";
/// A nat chain that does nothing, in a table of its own. The kernel follows and translates known flows only while rules of any table need
/// conntrack. Without this table, and on a node without kube-proxy, open flows would end when a third party deletes [`TABLE`].
pub const CONNTRACK_HOOK_TABLE: &str = "sheave-conntrack-hook";
/// The name of that table until November 2026. The transaction of [`replace`] deletes it, so an upgrade never leaves conntrack without a hook.
pub const OLD_CONNTRACK_HOOK_TABLE: &str = "sheave-keep";
/// Every table that a speaker of this or an earlier version makes.
pub const ALL_TABLES: [&str; 3] = [TABLE, CONNTRACK_HOOK_TABLE, OLD_CONNTRACK_HOOK_TABLE];

/// Brings the table to this plan, whatever is there. Counters start at 0, and no client is recorded.
pub fn replace(plan: &Plan) -> String {
    replace_with(plan, &Records::new())
}

/// The same with clients that keep their pods.
pub fn replace_with(plan: &Plan, records: &Records) -> String {
    let mut text = delete();
    line(&mut text, format_args!("table ip {TABLE} {{"));
    for guard in Guard::ALL {
        line(&mut text, format_args!("\tcounter {} {{ }}", guard.label()));
    }
    let vips: Vec<String> = plan.vips.iter().map(Ipv4Addr::to_string).collect();
    line(&mut text, format_args!("\tset vips {{ type ipv4_addr; {}}}", elements(&vips)));
    node_ports::sets(&mut text, plan);
    affinity::sets(&mut text, plan, records);
    let mut objects = Objects::default();
    affinity::add(&mut objects, plan, |_, _| true);
    affinity::maps(&mut text, &objects);
    objects.define(&mut text);
    for (key, local) in plan.services.iter().filter(|(_, local)| !local.attributes.keeps_clients()) {
        let (rule, chain) = (translate(key, &local.attributes, &local.pods), chain(key));
        objects.lead(SERVICES, *key, format!("goto {chain}"));
        line(&mut text, format_args!("\tchain {chain} {{ {rule}; }}"));
    }
    let services = objects.elements(SERVICES);
    line(&mut text, format_args!("\tmap {SERVICES} {{ type {PORT_TYPE} : verdict; {services}}}"));
    source_ranges::sets(&mut text, plan);
    inside::objects(&mut text, plan);
    via::set(&mut text, plan);
    members::objects(&mut text, plan);
    let known: Vec<String> = plan.udp_pins.keys().map(flow).collect();
    line(&mut text, format_args!("\tset udp_pin {{ type {FLOW_TYPE}; {}}}", elements(&known)));
    let targets: Vec<String> = plan.udp_pins.iter().map(udp_pin_target).collect();
    let target_type = "ipv4_addr . inet_service";
    line(
        &mut text,
        format_args!("\tmap udp_pin_targets {{ type {FLOW_TYPE} : {target_type}; {}}}", elements(&targets)),
    );
    if plan.second_chance {
        peers(&mut text, &plan.peers);
    }
    flow_lookup::chains(&mut text, plan);
    base_chains(&mut text, plan);
    adverts::chains(&mut text, plan);
    members::chains(&mut text, plan);
    text.push_str("}\n");
    line(&mut text, format_args!("table ip {CONNTRACK_HOOK_TABLE} {{"));
    line(&mut text, format_args!("\tchain postrouting {{"));
    line(&mut text, format_args!("\t\ttype nat hook postrouting priority {CONNTRACK_HOOK_PRIORITY}; policy accept;"));
    // The chain keeps the translation, a rule that matches conntrack state keeps conntrack.
    line(&mut text, format_args!("\t\tct state new"));
    line(&mut text, format_args!("\t}}"));
    text.push_str("}\n");
    text
}

/// Removes all tables of this and earlier versions. A table that does not exist is no error.
pub fn delete() -> String {
    delete_tables(&ALL_TABLES)
}

pub(super) fn delete_tables(tables: &[&str]) -> String {
    // `delete` alone fails if there is none; `add` first makes it succeed always.
    tables.iter().map(|table| format!("add table ip {table}\ndelete table ip {table}\n")).collect()
}

/// Whether the plans differ in what all chains have: then [`replace`] leads from one to the other, and [`update`] does not.
pub fn needs_replace(from: &Plan, to: &Plan) -> bool {
    let of_all = |plan: &Plan| {
        (
            plan.uplink.clone(),
            plan.address,
            plan.second_chance,
            plan.udp_silent,
            plan.accept_mark,
            plan.adverts.ports.clone(),
            plan.adverts.cluster,
        )
    };
    of_all(from) != of_all(to) || from.counted != to.counted
}

/// Leads from one plan to another; `None` if there is nothing to do. Records of clients stay with their pods.
pub fn update(from: &Plan, to: &Plan) -> Option<String> {
    if needs_replace(from, to) {
        return Some(replace(to));
    }
    let mut text = String::new();
    source_ranges::update(&mut text, from, to);
    inside::update(&mut text, from, to);
    via::update(&mut text, from, to);
    adverts::update(&mut text, from, to);
    update_services(&mut text, from, to);
    node_ports::update(&mut text, from, to);
    update_udp_pins(&mut text, &from.udp_pins, &to.udp_pins);
    if to.second_chance {
        update_peers(&mut text, &from.peers, &to.peers);
    }
    (!text.is_empty()).then_some(text)
}

fn update_services(text: &mut String, from: &Plan, to: &Plan) {
    for vip in from.vips.difference(&to.vips) {
        line(text, format_args!("delete element ip {TABLE} vips {{ {vip} }}"));
    }
    let keys: BTreeSet<&ServiceKey> = from.services.keys().chain(to.services.keys()).collect();
    let changed = |key: &&ServiceKey| from.services.get(key) != to.services.get(key);
    let changed: BTreeSet<&ServiceKey> = keys.into_iter().filter(changed).collect();
    let pods = changed.iter().flat_map(|key| [from.services.get(key), to.services.get(key)]);
    let services: BTreeSet<u64> = pods.flatten().map(|local| local.service).collect();
    // With affinity ports share what their Service has.
    let concerns = |key: &ServiceKey, local: &LocalPods| {
        changed.contains(key) || local.attributes.keeps_clients() && services.contains(&local.service)
    };
    let objects = |plan: &Plan| {
        let mut objects = Objects::default();
        affinity::add(&mut objects, plan, concerns);
        let ports = plan.services.iter().filter(|(_, local)| !local.attributes.keeps_clients());
        for (key, local) in ports.filter(|(key, local)| concerns(key, local)) {
            objects.chains.insert(chain(key), [translate(key, &local.attributes, &local.pods)].into());
            objects.lead(SERVICES, *key, format!("goto {}", chain(key)));
        }
        objects
    };
    objects(from).update(text, &objects(to));
    for vip in to.vips.difference(&from.vips) {
        line(text, format_args!("add element ip {TABLE} vips {{ {vip} }}"));
    }
}

fn update_peers(text: &mut String, from: &BTreeMap<u16, Ipv4Addr>, to: &BTreeMap<u16, Ipv4Addr>) {
    for slot in from.keys().filter(|slot| !to.contains_key(slot)) {
        line(text, format_args!("delete element ip {TABLE} peers {{ {} }}", slot_key(*slot)));
        line(text, format_args!("flush chain ip {TABLE} peer-{slot}"));
        line(text, format_args!("delete chain ip {TABLE} peer-{slot}"));
    }
    for (slot, address) in to {
        let known = from.get(slot);
        if known == Some(address) {
            continue;
        }
        let verb = if known.is_some() { "flush" } else { "add" };
        line(text, format_args!("{verb} chain ip {TABLE} peer-{slot}"));
        line(text, format_args!("add rule ip {TABLE} peer-{slot} {}", forward_to(*address)));
        if known.is_none() {
            line(text, format_args!("add element ip {TABLE} peers {{ {} : goto peer-{slot} }}", slot_key(*slot)));
        }
    }
}

fn update_udp_pins(text: &mut String, from: &Targets, to: &Targets) {
    let mut change = |verb: &str, set: &str, elements: Vec<String>| {
        if !elements.is_empty() {
            line(text, format_args!("{verb} element ip {TABLE} {set} {{ {} }}", elements.join(", ")));
        }
    };
    let differs = |flows: &Targets, others: &Targets| -> Vec<_> {
        flows.iter().filter(|(flow, pod)| others.get(flow) != Some(pod)).map(|(flow, pod)| (*flow, *pod)).collect()
    };
    let (gone, new) = (differs(from, to), differs(to, from));
    change("delete", "udp_pin", gone.iter().map(|(tuple, _)| flow(tuple)).collect());
    change("delete", "udp_pin_targets", gone.iter().map(|(tuple, _)| flow(tuple)).collect());
    change("add", "udp_pin", new.iter().map(|(tuple, _)| flow(tuple)).collect());
    change("add", "udp_pin_targets", new.iter().map(|(tuple, pod)| udp_pin_target((tuple, pod))).collect());
}

/// A chain for each node that packets can be handed to, and the map to find it by.
fn peers(text: &mut String, peers: &BTreeMap<u16, Ipv4Addr>) {
    for (slot, address) in peers {
        line(text, format_args!("\tchain peer-{slot} {{ {}; }}", forward_to(*address)));
    }
    let peers: Vec<String> = peers.keys().map(|slot| format!("{} : goto peer-{slot}", slot_key(*slot))).collect();
    line(text, format_args!("\tmap peers {{ type ether_addr : verdict; {}}}", elements(&peers)));
}

/// `dup` copies the packet as it is now, takes one off its time to live, and sends the copy past conntrack to this neighbour. The
/// packet itself ends here, before conntrack confirms an entry. No device is named: nft would want it to exist now, and the
/// routing table knows the way to a neighbour.
fn forward_to(address: Ipv4Addr) -> String {
    let [flag, _] = RESERVED_FLAG.to_be_bytes();
    let counter = Guard::Forwarded.label();
    format!("@nh,48,8 set @nh,48,8 | {flag:#x} dup to {address} counter name {counter} drop")
}

fn base_chains(text: &mut String, plan: &Plan) {
    let to_vip = format!("iifname \"{}\" ip daddr @vips", plan.uplink.as_str());
    line(text, format_args!("\tchain prerouting {{"));
    line(text, format_args!("\t\ttype nat hook prerouting priority {NAT_PRIORITY}; policy accept;"));
    for to_us in [&to_vip, &node_ports::to_port(plan)] {
        line(text, format_args!("\t\t{to_us} {}", source_ranges::rule()));
        // A TCP flow begins with a SYN: conntrack would pick up any other segment too (nf_conntrack_tcp_loose) and make it a pod's.
        line(text, format_args!("\t\t{to_us} {NOT_SYN} dnat to ip daddr"));
        line(text, format_args!("\t\t{to_us} meta l4proto udp dnat ip to {FLOW} map @udp_pin_targets"));
        line(text, format_args!("\t\t{to_us} {PORT} vmap @{SERVICES}"));
        line(text, format_args!("\t\t{to_us} dnat to ip daddr"));
    }
    line(text, format_args!("\t}}"));

    line(text, format_args!("\tchain guard {{"));
    let drop = |guard: Guard| format!("counter name {} drop", guard.label());
    let (local, prefix_mask) = (mac(Mark::LOCAL.mac()), mac(PREFIX_MASK));
    line(text, format_args!("\t\tether saddr & {prefix_mask} != {local} {}", drop(Guard::Unmarked)));
    let reset = Guard::Reset.label();
    // Before the next rule: conntrack calls it invalid because it does not know the flow.
    line(text, format_args!("\t\t{IS_FIN} counter name {reset} reject with tcp reset"));
    line(text, format_args!("\t\tct state invalid {}", drop(Guard::Invalid)));
    // A reset would tell the client that nobody serves, which neither table says.
    let is_local = format!("ether saddr & {} == {local}", mac(flow_lookup::NEXT_HOP_MASK));
    let has_slot = format!("ether saddr & {} != {}", mac(SLOT_MASK), mac([0; 6]));
    line(text, format_args!("\t\t{is_local} {has_slot} {IS_SYN} {}", drop(Guard::Behind)));
    // RFC 9293 section 3.5.2, RFC 1122 section 3.2.2.1. Neither answers a reset, an ICMP error or what is damaged.
    line(text, format_args!("\t\tmeta l4proto tcp counter name {reset} reject with tcp reset"));
    let udp = match plan.udp_silent {
        true => drop(Guard::Silent),
        false => format!("counter name {} reject with icmp port-unreachable", Guard::Unreachable.label()),
    };
    line(text, format_args!("\t\tmeta l4proto udp {udp}"));
    line(text, format_args!("\t\t{}", drop(Guard::Other)));
    line(text, format_args!("\t}}"));

    // Of clients inside kube-proxy has translated, and its mark says that it masquerades them. Known in postrouting since Linux 5.7.
    let ours = [OURS, node_ports::OURS].map(|ours| format!("iifname \"{}\" {ours}", plan.uplink.as_str()));
    // Forward: the VIP is on no interface. Input: if a third party has added it to one.
    for hook in ["forward", "input"] {
        line(text, format_args!("\tchain {hook} {{"));
        line(text, format_args!("\t\ttype filter hook {hook} priority {GUARD_PRIORITY}; policy accept;"));
        line(text, format_args!("\t\t{to_vip} goto guard"));
        node_ports::refuse(plan, hook).iter().for_each(|rule| line(text, format_args!("\t\t{rule}")));
        for ours in ours.iter().filter(|_| hook == "forward") {
            line(text, format_args!("\t\tct state new {ours} meta mark set meta mark | {:#x}", plan.accept_mark));
        }
        line(text, format_args!("\t}}"));
    }
    // A nat chain: it sees first packets only, and costs all others nothing.
    line(text, format_args!("\tchain clear_accept_mark {{"));
    line(text, format_args!("\t\ttype nat hook postrouting priority {CLEAR_MARK_PRIORITY}; policy accept;"));
    for ours in &ours {
        line(text, format_args!("\t\t{ours} meta mark set meta mark & {:#x}", !plan.accept_mark));
    }
    line(text, format_args!("\t\t{}", via::rule()));
    inside::masquerade(plan).iter().for_each(|rule| line(text, format_args!("\t\t{rule}")));
    line(text, format_args!("\t}}"));
    inside::base_chains(text, plan);
}

/// The rule of one service port. `meta l4proto` comes first because nft wants to know that there are ports.
fn translate(key: &ServiceKey, attributes: &ServiceAttributes, pods: &[(Ipv4Addr, u16)]) -> String {
    let protocol = protocol(key.proto);
    if let [(address, port)] = pods[..] {
        return format!("meta l4proto {protocol} dnat to {address}:{port}");
    }
    let choice = attributes.choice(protocol_of(key), pods.len());
    format!("meta l4proto {protocol} dnat ip to {choice} map {{ {} }}", pods_by_number(pods))
}

fn pods_by_number(pods: &[(Ipv4Addr, u16)]) -> String {
    let pods = pods.iter().enumerate();
    let pods: Vec<String> = pods.map(|(i, (address, port))| format!("{i} : {address} . {port}")).collect();
    pods.join(", ")
}

/// Name of a service's chain. nft takes letters, digits and `/\_.-` after a letter.
fn chain(key: &ServiceKey) -> String {
    format!("{}-{}-{}", protocol(key.proto), Ipv4Addr::from(key.addr), u16::from_be_bytes(key.port))
}

fn tuple(key: &ServiceKey) -> String {
    format!("{} . {} . {}", Ipv4Addr::from(key.addr), protocol(key.proto), u16::from_be_bytes(key.port))
}

/// A UDP flow's key, as in [`FLOW`].
fn flow(tuple: &FlowTuple) -> String {
    let port = u16::from_be_bytes;
    let (from, to) = (Ipv4Addr::from(tuple.src), Ipv4Addr::from(tuple.dst));
    format!("{from} . {} . {to} . {}", port(tuple.src_port), port(tuple.dst_port))
}

fn udp_pin_target((tuple, (address, port)): (&FlowTuple, &(Ipv4Addr, u16))) -> String {
    format!("{} : {address} . {port}", flow(tuple))
}

/// A peer's key in the map: its slot, where a mark has it.
fn slot_key(slot: u16) -> String {
    let [high, low] = slot.to_be_bytes();
    mac([0, 0, 0, 0, high, low])
}

fn mac(bytes: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = bytes;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

fn protocol_of(key: &ServiceKey) -> Protocol {
    if key.proto == Protocol::Udp.number() { Protocol::Udp } else { Protocol::Tcp }
}

pub(super) fn protocol(number: u8) -> &'static str {
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

/// The parts of a mark: its prefix, the next hop, the slot.
const PREFIX_MASK: [u8; 6] = [0xff, 0xff, 0xff, 0, 0, 0];
const SLOT_MASK: [u8; 6] = [0, 0, 0, 0, 0xff, 0xff];

/// Where each service port leads.
const SERVICES: &str = "services";
const PORT: &str = "ip daddr . meta l4proto . th dport";
const PORT_TYPE: &str = "ipv4_addr . inet_proto . inet_service";
const FLOW: &str = "ip saddr . udp sport . ip daddr . udp dport";
const FLOW_TYPE: &str = "ipv4_addr . inet_service . ipv4_addr . inet_service";

const IS_SYN: &str = "tcp flags & (fin | syn | rst | ack) == syn";
const NOT_SYN: &str = "tcp flags & (fin | syn | rst | ack) != syn";
const IS_FIN: &str = "tcp flags & (fin | syn | rst) == fin";

/// What our chain in prerouting has translated.
const OURS: &str = "ct status dnat ct original ip daddr @vips";
/// Docker and ufw set the policy of iptables' FORWARD to drop. What kube-proxy in iptables mode forwards itself carries this mark, which its
/// chain KUBE-FORWARD accepts (`--iptables-masquerade-bit`, by default this one). Where no one asks for the mark it changes nothing.
pub const ACCEPT_MARK: u32 = 1 << 14;
/// Behind FORWARD (filter, 0), and before the nat chains (srcnat, 100) that masquerade what carries the mark.
const CLEAR_MARK_PRIORITY: i32 = 90;
/// Before kube-proxy's nat chains (dstnat, -100).
const NAT_PRIORITY: i32 = -110;
/// Before kube-proxy's filter chains (-110 in nftables mode), so that our guard answers and counts. After conntrack (-200).
const GUARD_PRIORITY: i32 = -120;
/// Behind all nat chains (srcnat, 100): it translates nothing.
const CONNTRACK_HOOK_PRIORITY: i32 = 110;
