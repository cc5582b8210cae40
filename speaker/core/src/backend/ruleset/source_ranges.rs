//! Source ranges in nftables: a set and a chain for each list of ranges, and a map that leads service ports to them.
//!
//! The map judges new flows, before kube-proxy's chains and before our own choice of a pod, once more after the node where the packet
//! came in: that node's view may lag, and its program may be detached.
//!
//! A list stands there once, however many service ports have it, and is named by its content. So it never changes: a changed list is
//! another one, and costs as much as itself and its ports.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use ebpf_common::{MAX_SOURCE_RANGES, ServiceKey};

use super::{PORT, PORT_TYPE, TABLE, elements, line, tuple};
use crate::attributes::SourceRanges;
use crate::backend::{Guard, Plan};

/// The first rule of a new flow to a VIP.
pub fn rule() -> String {
    format!("{PORT} vmap @restricted")
}

pub fn sets(text: &mut String, plan: &Plan) {
    let Restricted { ports, lists } = Restricted::of(plan);
    for (name, ranges) in &lists {
        line(text, format_args!("\tset {} {}", set(*name), set_of(ranges)));
        line(text, format_args!("\tchain {} {{ {}; }}", chain(*name), admit(*name)));
    }
    let ports: Vec<String> = ports.iter().map(to_chain).collect();
    line(text, format_args!("\tmap restricted {{ type {PORT_TYPE} : verdict; {}}}", elements(&ports)));
}

/// What service ports are led to stands before they are, and goes after them.
pub fn update(text: &mut String, from: &Plan, to: &Plan) {
    let (from, to) = (Restricted::of(from), Restricted::of(to));
    for (name, ranges) in to.lists.iter().filter(|(name, _)| !from.lists.contains_key(name)) {
        line(text, format_args!("add set ip {TABLE} {} {}", set(*name), set_of(ranges)));
        line(text, format_args!("add chain ip {TABLE} {}", chain(*name)));
        line(text, format_args!("add rule ip {TABLE} {} {}", chain(*name), admit(*name)));
    }
    let mut change = |verb: &str, elements: Vec<String>| {
        if !elements.is_empty() {
            line(text, format_args!("{verb} element ip {TABLE} restricted {{ {} }}", elements.join(", ")));
        }
    };
    change("delete", without(&from.ports, &to.ports).map(|(key, _)| tuple(key)).collect());
    change("add", without(&to.ports, &from.ports).map(to_chain).collect());
    for name in from.lists.keys().filter(|name| !to.lists.contains_key(name)) {
        line(text, format_args!("flush chain ip {TABLE} {}", chain(*name)));
        line(text, format_args!("delete chain ip {TABLE} {}", chain(*name)));
        line(text, format_args!("delete set ip {TABLE} {}", set(*name)));
    }
}

struct Restricted {
    /// Each with the name of its list.
    ports: BTreeMap<ServiceKey, u128>,
    lists: BTreeMap<u128, SourceRanges>,
}

impl Restricted {
    fn of(plan: &Plan) -> Self {
        // In its grace period a service port has earlier attributes: one list for each port all the same.
        let local = plan.services.iter().map(|(key, local)| (key, &local.attributes));
        let inside = plan.inside.iter().map(|(key, pods)| (key, &pods.attributes));
        // The ports of a Service share one list in memory: it is read once.
        let mut names = BTreeMap::new();
        let (mut ports, mut lists) = (BTreeMap::new(), BTreeMap::new());
        for (key, attributes) in local.chain(inside) {
            let Some(ranges) = &attributes.source_ranges else {
                ports.remove(key);
                continue;
            };
            let name = *names.entry(ranges.address()).or_insert_with(|| ranges.name());
            ports.insert(*key, name);
            lists.insert(name, ranges.clone());
        }
        Self { ports, lists }.limited(MAX_SOURCE_RANGES as usize)
    }

    /// Beyond the limit the longest lists are left out: their service ports admit no client. The packet path has the same limit, and has
    /// reported it: it counts the ranges of every Service of the cluster.
    fn limited(mut self, limit: usize) -> Self {
        let used: BTreeSet<u128> = self.ports.values().copied().collect();
        self.lists.retain(|name, _| used.contains(name));
        let mut by_length: Vec<(usize, u128)> = self.lists.iter().map(|(name, list)| (list.len(), *name)).collect();
        by_length.sort_unstable();
        let mut total = 0;
        let no_client = SourceRanges::default();
        for (_, left_out) in by_length.into_iter().skip_while(|(length, _)| {
            total += length;
            total <= limit
        }) {
            self.lists.remove(&left_out);
            self.ports.values_mut().filter(|name| **name == left_out).for_each(|name| *name = no_client.name());
            self.lists.insert(no_client.name(), no_client.clone());
        }
        self
    }
}

fn without<'a>(
    ports: &'a BTreeMap<ServiceKey, u128>,
    others: &BTreeMap<ServiceKey, u128>,
) -> impl Iterator<Item = (&'a ServiceKey, &'a u128)> {
    ports.iter().filter(|(key, name)| others.get(key) != Some(*name))
}

fn to_chain((key, name): (&ServiceKey, &u128)) -> String {
    format!("{} : jump {}", tuple(key), chain(*name))
}

fn set_of(ranges: &SourceRanges) -> String {
    let ranges: Vec<String> = ranges.iter().map(|range| range.to_string()).collect();
    format!("{{ type ipv4_addr; flags interval; {}}}", elements(&ranges))
}

fn admit(name: u128) -> String {
    format!("ip saddr != @{} counter name {} drop", set(name), Guard::Source.label())
}

fn set(name: u128) -> String {
    format!("ranges-{name:032x}")
}

fn chain(name: u128) -> String {
    format!("admit-{name:032x}")
}

#[cfg(test)]
mod tests;
