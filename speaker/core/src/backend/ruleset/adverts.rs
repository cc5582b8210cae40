//! The ports of adverts and flow reports, closed to all but nodes.
//!
//! What a stranger sends is refused by its HMAC in any case. Here it is dropped before it costs a socket's queue, and an administrator sees it
//! counted. A node is known by its address, or by the MAC address that it has stated under its signature: for a moment after its IP address
//! has changed the view has the former one.
//!
//! Of another cluster's nodes a few heartbeats a second pass: the driver must know that they are there (`crate::conflict`). It refuses them
//! before it looks at their HMAC.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use super::{TABLE, elements, line, mac};
use crate::backend::{Adverts, Guard, Plan, Senders};

pub fn chains(text: &mut String, plan: &Plan) {
    let Adverts { ports, senders, .. } = &plan.adverts;
    if ports.is_empty() {
        return;
    }
    let (addresses, macs) = members(senders.as_ref());
    line(text, format_args!("\tset nodes {{ type ipv4_addr; {}}}", elements(&Vec::from_iter(addresses))));
    line(text, format_args!("\tset node_macs {{ type ether_addr; {}}}", elements(&Vec::from_iter(macs))));
    line(
        text,
        format_args!(
            "\tset {OTHER_CLUSTERS} {{ type ipv4_addr; size {MAX_OTHERS}; flags dynamic,timeout; timeout {FORGOTTEN_S}s; }}"
        ),
    );
    line(
        text,
        format_args!("\tchain senders {{ {}}}", rules(plan).map(|rule| format!("{rule}; ")).collect::<String>()),
    );
    line(text, format_args!("\tchain adverts {{"));
    line(text, format_args!("\t\ttype filter hook input priority {PRIORITY}; policy accept;"));
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    line(text, format_args!("\t\tudp dport {{ {} }} goto senders", ports.join(", ")));
    line(text, format_args!("\t}}"));
}

pub fn update(text: &mut String, from: &Plan, to: &Plan) {
    if to.adverts.ports.is_empty() {
        return;
    }
    let (before, after) = (from.adverts.senders.as_ref(), to.adverts.senders.as_ref());
    if before.is_some() && after.is_none() {
        line(text, format_args!("flush chain ip {TABLE} senders"));
    }
    let ((addresses_before, macs_before), (addresses, macs)) = (members(before), members(after));
    for (set, before, after) in [("nodes", addresses_before, addresses), ("node_macs", macs_before, macs)] {
        for (verb, these, others) in [("add", &after, &before), ("delete", &before, &after)] {
            let list: Vec<&str> = these.difference(others).map(String::as_str).collect();
            if !list.is_empty() {
                line(text, format_args!("{verb} element ip {TABLE} {set} {{ {} }}", list.join(", ")));
            }
        }
    }
    if before.is_none() && after.is_some() {
        rules(to).for_each(|rule| line(text, format_args!("add rule ip {TABLE} senders {rule}")));
    }
}

/// None while it is not known who the nodes are.
fn rules(plan: &Plan) -> impl Iterator<Item = String> {
    let uplink = plan.uplink.as_str();
    let closed = [
        "iifname \"lo\" accept".into(),
        "ip saddr @nodes accept".into(),
        format!("iifname \"{uplink}\" ether saddr @node_macs accept"),
        // The set is full: the rule does not match.
        format!(
            "iifname \"{uplink}\" @th,64,48 {HEARTBEAT} @th,128,64 != {:#018x} update @{OTHER_CLUSTERS} \
             {{ ip saddr limit rate {PER_SECOND}/second burst 1 packets }} accept",
            plan.adverts.cluster
        ),
        format!("counter name {} drop", Guard::Stranger.label()),
    ];
    closed.into_iter().filter(|_| plan.adverts.senders.is_some())
}

fn members(senders: Option<&Senders>) -> (BTreeSet<String>, BTreeSet<String>) {
    let addresses = senders.into_iter().flat_map(|senders| &senders.addresses).map(Ipv4Addr::to_string).collect();
    (addresses, senders.into_iter().flat_map(|senders| &senders.macs).map(|bytes| mac(*bytes)).collect())
}

/// Senders of heartbeats of other clusters, as packets fill it.
pub const OTHER_CLUSTERS: &str = "other_clusters";
/// `SHVE`, version, kind ([`crate::wire::advert`]); behind the header of UDP. The cluster follows.
const HEARTBEAT: &str = "0x534856450101";
/// From each, several in the time after which the driver takes it for a new one.
const PER_SECOND: u8 = 4;
const MAX_OTHERS: u16 = 256;
const FORGOTTEN_S: u8 = 10;
/// Before all other filters of this hook (raw).
const PRIORITY: i32 = -300;
