//! Source ranges in nftables: two sets and one rule for all Services.
//!
//! The rule judges new flows, before kube-proxy's chains and before our own choice of a pod, once more after the node where the packet
//! came in: that node's view may lag, and its program may be detached. The set with the ranges concatenates service port and range
//! (`nft_set_pipapo`, Linux 5.6).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{PORT, PORT_TYPE, TABLE, elements, line, tuple};
use crate::backend::{Guard, Plan};

/// The first rule of a new flow to a VIP.
pub fn rule() -> String {
    format!("{PORT} @restricted {PORT} . ip saddr != @admitted counter name {} drop", Guard::Source.label())
}

pub fn sets(text: &mut String, plan: &Plan) {
    let list = |elements: &BTreeSet<String>| elements.iter().cloned().collect::<Vec<_>>();
    let Restricted { ports, admitted } = Restricted::of(plan);
    line(text, format_args!("\tset restricted {{ type {PORT_TYPE}; {}}}", elements(&list(&ports))));
    let with_interval = format!("type {PORT_TYPE} . ipv4_addr; flags interval");
    line(text, format_args!("\tset admitted {{ {with_interval}; {}}}", elements(&list(&admitted))));
}

/// What goes stands before what comes: a wider range may replace those in it.
pub fn update(text: &mut String, from: &Plan, to: &Plan) {
    let (from, to) = (Restricted::of(from), Restricted::of(to));
    let mut change = |verb: &str, set: &str, elements: Vec<&str>| {
        if !elements.is_empty() {
            line(text, format_args!("{verb} element ip {TABLE} {set} {{ {} }}", elements.join(", ")));
        }
    };
    change("delete", "admitted", without(&from.admitted, &to.admitted));
    change("add", "admitted", without(&to.admitted, &from.admitted));
    change("delete", "restricted", without(&from.ports, &to.ports));
    change("add", "restricted", without(&to.ports, &from.ports));
}

/// Elements of the sets.
struct Restricted {
    ports: BTreeSet<String>,
    /// Never two that overlap: the kernel refuses such a set.
    admitted: BTreeSet<String>,
}

impl Restricted {
    fn of(plan: &Plan) -> Self {
        let (mut ports, mut admitted) = (BTreeSet::new(), BTreeSet::new());
        // In its grace period a service port has earlier attributes: one list for each port all the same.
        let local = plan.services.iter().map(|(key, local)| (key, &local.attributes));
        let inside = plan.inside.iter().map(|(key, pods)| (key, &pods.attributes));
        for (key, attributes) in local.chain(inside).collect::<BTreeMap<_, _>>() {
            let Some(ranges) = &attributes.source_ranges else { continue };
            let port = tuple(key);
            admitted.extend(ranges.iter().map(|range| format!("{port} . {range}")));
            ports.insert(port);
        }
        Self { ports, admitted }
    }
}

fn without<'a>(elements: &'a BTreeSet<String>, others: &'a BTreeSet<String>) -> Vec<&'a str> {
    elements.difference(others).map(String::as_str).collect()
}
