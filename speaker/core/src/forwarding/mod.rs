//! View + nodes that are down -> the table every dispatcher agrees on.
//!
//! For each VIP and service port a ring: Maglev over (node, ordinal 0..ready pods on it). The ring chooses the node, the node
//! chooses the pod. The same view, the same set of lost nodes and the same hash key give the same table on every node.
//! Reading order: mod.rs -> maglev.rs -> ids.rs -> diff.rs. Read first: docs/dataplane.md.

pub mod diff;
pub mod ids;
pub mod maglev;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use ebpf_common::ServiceKey;

use crate::view::endpoints::{Pod, Refusal, frontends};
use crate::view::{Affinity, View};
use maglev::Members;

/// What the maps should say, in names; [`diff::MapState`] says it in slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Every node of the cluster and its address on the segment.
    pub nodes: BTreeMap<String, Ipv4Addr>,
    pub vips: BTreeSet<Ipv4Addr>,
    pub services: BTreeMap<ServiceKey, Service>,
    /// What had to be left out.
    pub refused: Vec<Refusal>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub affinity: Affinity,
    pub ring: Arc<Ring>,
}

/// Which node each row names. No rows: nobody serves the port, clients get a reset.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ring {
    pub members: Members,
    /// Node names in order; rows are indices into it.
    pub nodes: Vec<String>,
    pub rows: Vec<u16>,
}

/// Makes tables and remembers rings: a ring is filled again only if its members or their state changed, and services with the
/// same members share one.
#[derive(Debug)]
pub struct Planner {
    hash_key: [u64; 2],
    rings: BTreeMap<Members, Arc<Ring>>,
}

impl Planner {
    /// The key is the cluster's (`Config::hash_key`): with another key every row moves.
    pub fn new(hash_key: [u64; 2]) -> Self {
        Self { hash_key, rings: BTreeMap::new() }
    }

    /// `down`: nodes whose kernel does not answer (not: whose speaker is silent). Empty when this node is cut off itself.
    pub fn table(&mut self, view: &View, down: &BTreeSet<String>) -> Table {
        let (frontends, refused) = frontends(view);
        let mut rings = BTreeMap::new();
        let mut services = BTreeMap::new();
        for (key, frontend) in frontends {
            let members = members(&frontend.pods, down);
            let ring = rings.entry(members).or_insert_with_key(|members| self.ring(members)).clone();
            services.insert(key, Service { affinity: frontend.affinity, ring });
        }
        self.rings = rings;
        let nodes = view.nodes().iter().map(|(name, node)| (name.clone(), node.address)).collect();
        Table { nodes, vips: view.vips().keys().copied().collect(), services, refused }
    }

    fn ring(&self, members: &Members) -> Arc<Ring> {
        match self.rings.get(members) {
            Some(ring) => ring.clone(),
            None => Arc::new(maglev::fill(members, &self.hash_key)),
        }
    }
}

/// Pods per node that take part, and which of these nodes are lost.
///
/// Ready pods; if there are none, those that serve while they terminate (KEP-1669). The pods of a lost node stay members, so
/// that the loss moves no row but the node's own. That must hold as well when the API server, 40 s later, calls them unready:
/// so where a lost node has no ready pod its unready ones count. Only while another node serves: else the ring must run
/// empty, for clients to get their reset.
fn members(pods: &[Pod<'_>], down: &BTreeSet<String>) -> Members {
    let is_down = |pod: &Pod<'_>| down.contains(pod.node);
    let ready = |pod: &Pod<'_>| pod.conditions.ready && !pod.conditions.terminating;
    let last_resort = |pod: &Pod<'_>| pod.conditions.serving && pod.conditions.terminating;
    let choose = |group: &dyn Fn(&Pod<'_>) -> bool| -> BTreeMap<&str, u32> {
        let chosen = count(pods.iter().filter(|pod| group(pod) && ready(pod)));
        if chosen.is_empty() { count(pods.iter().filter(|pod| group(pod) && last_resort(pod))) } else { chosen }
    };
    let mut counts = choose(&|pod| !is_down(pod));
    if counts.is_empty() {
        counts = choose(&|_| true);
    } else {
        let mut lost = count(pods.iter().filter(|pod| is_down(pod) && !pod.conditions.terminating));
        for (node, ready) in count(pods.iter().filter(|pod| is_down(pod) && ready(pod))) {
            lost.insert(node, ready);
        }
        counts.extend(lost);
    }
    Members::new(counts.into_iter().map(|(node, pods)| (String::from(node), pods, down.contains(node))))
}

fn count<'a, 'b: 'a>(pods: impl Iterator<Item = &'a Pod<'b>>) -> BTreeMap<&'b str, u32> {
    let mut counts = BTreeMap::new();
    for pod in pods {
        *counts.entry(pod.node).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests;
