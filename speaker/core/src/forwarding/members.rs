//! View -> members of a ring: pods per node that take part, and which of these nodes get no rows.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;

use super::maglev::Members;
use crate::view::View;
use crate::view::endpoints::Pod;

/// Nodes that get no rows, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Availability {
    /// The kernel does not answer, or our program has given no sign since it does (not: the speaker is silent). Nothing may be sent
    /// there.
    pub down: BTreeSet<String>,
    /// The kernel answers, but its speaker has been silent for long. Its flows live: it may be an alternate.
    pub absent: BTreeSet<String>,
}

impl Availability {
    pub fn is_up(&self, node: &str) -> bool {
        !self.down.contains(node) && !self.absent.contains(node)
    }
}

/// Pods per node that take part, and which of these nodes are lost or not wanted.
///
/// Ready pods; if there are none, those that serve while they terminate (KEP-1669). The pods of a lost node stay members, so
/// that the loss moves no row but the node's own. That must hold as well when the API server, 40 s later, calls them unready:
/// so where a lost node has no ready pod its unready ones count. Only while another node serves: else the ring must run
/// empty, for clients to get their reset.
///
/// A node with the exclude label is treated as lost, so that the label as well moves no row but the node's own; unless no
/// other node has a ready pod: then the label counts for nothing.
pub(super) fn members(pods: &[Pod<'_>], view: &View, availability: &Availability) -> Members {
    let is_excluded = |pod: &Pod<'_>| view.nodes().get(pod.node).is_some_and(|node| node.excluded);
    let heeded = pods.iter().any(|pod| is_ready(pod) && availability.is_up(pod.node) && !is_excluded(pod));
    let is_lost = |pod: &Pod<'_>| !availability.is_up(pod.node);
    let has_rows = |pod: &Pod<'_>| !(is_lost(pod) || heeded && is_excluded(pod));
    let choose = |group: &dyn Fn(&Pod<'_>) -> bool| -> BTreeMap<&str, u32> {
        let chosen = count(pods.iter().filter(|pod| group(pod) && is_ready(pod)));
        if chosen.is_empty() { count(pods.iter().filter(|pod| group(pod) && is_last_resort(pod))) } else { chosen }
    };
    let mut counts = choose(&has_rows);
    if counts.is_empty() {
        counts = choose(&|_| true);
    } else {
        counts.extend(count(pods.iter().filter(|pod| is_lost(pod) && !pod.conditions.terminating)));
        counts.extend(count(pods.iter().filter(|pod| !has_rows(pod) && is_ready(pod))));
    }
    let rowless: BTreeSet<&str> = pods.iter().filter(|pod| !has_rows(pod)).map(|pod| pod.node).collect();
    Members::new(counts.into_iter().map(|(node, pods)| (String::from(node), pods, rowless.contains(node))))
}

fn is_ready(pod: &Pod<'_>) -> bool {
    pod.conditions.ready && !pod.conditions.terminating
}

fn is_last_resort(pod: &Pod<'_>) -> bool {
    pod.conditions.serving && pod.conditions.terminating
}

fn count<'a, 'b: 'a>(pods: impl Iterator<Item = &'a Pod<'b>>) -> BTreeMap<&'b str, u32> {
    let mut counts = BTreeMap::new();
    for pod in pods {
        *counts.entry(pod.node).or_insert(0) += 1;
    }
    counts
}
