//! Endpoints of no node in nftables: a set and a rule that put this node's address in place of the client's.
//!
//! The rule stands in a nat chain of postrouting, so that it judges first packets only; conntrack translates the others and their
//! answers. The kernel drops its own ICMP redirects for translated flows (net/netfilter/nf_nat_core.c,
//! `nf_nat_icmp_reply_translation`), so no client is told to send to the endpoint itself.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use ebpf_common::ServiceKey;

use super::{TABLE, elements, inside, line, protocol};
use crate::backend::Plan;

/// What our chains have translated to such an endpoint.
pub fn rule() -> String {
    format!("ct status dnat {FLOW} @via masquerade")
}

pub fn set(text: &mut String, plan: &Plan) {
    let list: Vec<String> = members(plan).into_iter().collect();
    line(text, format_args!("\tset via {{ type {TYPE}; {}}}", elements(&list)));
}

pub fn update(text: &mut String, from: &Plan, to: &Plan) {
    let (from, to) = (members(from), members(to));
    for (verb, these, others) in [("delete", &from, &to), ("add", &to, &from)] {
        let list: Vec<&str> = these.difference(others).map(String::as_str).collect();
        if !list.is_empty() {
            line(text, format_args!("{verb} element ip {TABLE} via {{ {} }}", list.join(", ")));
        }
    }
}

fn members(plan: &Plan) -> BTreeSet<String> {
    let of_service = |(key, via): (&ServiceKey, &BTreeSet<(Ipv4Addr, u16)>)| {
        let (vip, protocol) = (Ipv4Addr::from(key.addr), protocol(key.proto));
        let element = |(address, port): &(Ipv4Addr, u16)| format!("{vip} . {protocol} . {address} . {port}");
        via.iter().map(element).collect::<Vec<_>>()
    };
    let local = plan.services.iter().map(|(key, local)| (key, &local.via));
    local.chain(inside::via(plan)).flat_map(of_service).collect()
}

const FLOW: &str = "ct original ip daddr . meta l4proto . ip daddr . th dport";
const TYPE: &str = "ipv4_addr . inet_proto . ipv4_addr . inet_service";
