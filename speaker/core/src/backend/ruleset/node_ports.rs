//! Ports of nodes' addresses in nftables: the two sets, and how a packet to one of them differs from one to a VIP.
//!
//! A VIP is on no host. A node's address is: from the same port flows of the node itself may have begun, or of a pod that it masquerades,
//! and their answers go on whatever we would make of them. What is no port of ours goes on too. The rest is as with a VIP, on the node
//! whose address it is and on the others, to which its dispatcher sends it.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use ebpf_common::Mark;

use super::flow_lookup::NEXT_HOP_MASK;
use super::{PORT, PORT_TYPE, PREFIX_MASK, TABLE, elements, line, mac, tuple};
use crate::backend::{Guard, Plan};

/// Packets to this node port that came in by the uplink.
pub fn to_port(plan: &Plan) -> String {
    format!("iifname \"{}\" {PORT} @node_ports", plan.uplink.as_str())
}

/// What our chain in prerouting has translated.
pub const OURS: &str =
    "ct status dnat meta l4proto { tcp, udp } ct original ip daddr . meta l4proto . ct original proto-dst @node_ports";

pub fn sets(text: &mut String, plan: &Plan) {
    for (set, of_type, members) in members(plan) {
        let members: Vec<String> = members.into_iter().collect();
        line(text, format_args!("\tset {set} {{ type {of_type}; {}}}", elements(&members)));
    }
}

pub fn update(text: &mut String, from: &Plan, to: &Plan) {
    for (verb, these, others) in [("delete", from, to), ("add", to, from)] {
        for ((set, _, these), (_, _, others)) in members(these).into_iter().zip(members(others)) {
            let list: Vec<&str> = these.difference(&others).map(String::as_str).collect();
            if !list.is_empty() {
                line(text, format_args!("{verb} element ip {TABLE} {set} {{ {} }}", list.join(", ")));
            }
        }
    }
}

/// As `flow_lookup`, from where packets to addresses of nodes come here.
pub fn flow_lookup(text: &mut String) {
    line(text, format_args!("\tchain node_flow_lookup {{"));
    // XDP marks an error that is about a port of ours, and no other.
    line(text, format_args!("\t\tmeta l4proto icmp {} accept", is_marked("!=")));
    line(text, format_args!("\t\tmeta l4proto != {{ icmp, tcp, udp }} accept"));
    line(text, format_args!("\t\tmeta l4proto {{ tcp, udp }} {PORT} != @node_ports accept"));
    line(text, format_args!("\t\tip ttl {} ip ttl set {}", Mark::GUARD_TTL, Mark::KNOWN_TTL));
    // An answer to a flow of this node, or of a pod that it masquerades.
    line(text, format_args!("\t\tct direction reply accept"));
    // A process had the port before the Service.
    line(text, format_args!("\t\tct state {{ established, related }} ct status & dnat == 0 accept"));
    // Known here as a flow of a pod, on another node, or nowhere: the client is not admitted any more.
    let is_denied = format!("ether saddr & {} == {}", mac(NEXT_HOP_MASK), mac(Mark::SOURCE_DENIED.mac()));
    line(text, format_args!("\t\t{is_denied} goto source_denied"));
    line(text, format_args!("\t\tgoto known_flows"));
    line(text, format_args!("\t}}"));
}

/// The client gets a reset, as from the packet path at other ports. Before the routing decision since Linux 5.9.
pub fn source_denied(text: &mut String) {
    let denied = Guard::Source.label();
    line(text, format_args!("\tchain source_denied {{"));
    line(text, format_args!("\t\tmeta l4proto tcp counter name {denied} reject with tcp reset"));
    line(text, format_args!("\t\tcounter name {denied} drop"));
    line(text, format_args!("\t}}"));
}

/// What is still addressed to a port, behind the translation. No host but the address's own may send it on: not even an error, which would
/// come back.
pub fn refuse(plan: &Plan, hook: &str) -> Vec<String> {
    let to_port = to_port(plan);
    match hook {
        // Known here, and not translated: of a process.
        "input" => [format!("{to_port} ct state {{ new, invalid, untracked }} goto guard")].into(),
        _ => {
            let errors = format!("iifname \"{}\" ip daddr @node_addresses meta l4proto icmp", plan.uplink.as_str());
            [format!("{to_port} goto guard"), format!("{errors} {} goto guard", is_marked("=="))].into()
        }
    }
}

fn is_marked(operator: &str) -> String {
    format!("ether saddr & {} {operator} {}", mac(PREFIX_MASK), mac(Mark::LOCAL.mac()))
}

fn members(plan: &Plan) -> [(&'static str, &'static str, BTreeSet<String>); 2] {
    let addresses = plan.node_ports.iter().map(|key| Ipv4Addr::from(key.addr).to_string()).collect();
    let ports = plan.node_ports.iter().map(tuple).collect();
    [("node_addresses", "ipv4_addr", addresses), ("node_ports", PORT_TYPE, ports)]
}
