//! Staleness of views: nodes compare digests of the view of the API server that they have applied.
//!
//! A node whose connection to the API server hangs goes on serving its last view, and cannot detect it: the watch is silent
//! either way. The other nodes can: their view differs, and the node does not follow. Such a node *lags*: it connects to the API
//! server anew. If that does not help it is *stale*: it gets no new flows (as if its speaker were silent, `readiness`) and keeps
//! those it has.
//!
//! A node whose own pods have changed since it last had the present view, and that applies no new view, sends new flows to pods
//! that are gone: its speaker may be dead, started without an API server, or cut off. It is stale after
//! [`Staleness::PODS_CHANGED`], or at once if it does not report, until it has the present view again. (Where the view changes
//! all the time two nodes may never have the same one; there a node that applies new views again and again counts as current.)
//!
//! A node that leaves the view of the majority for one that none of the majority ever had is *ahead*: the watches of most nodes hang,
//! as when the API server that they are connected to is gone. It is not stale, and the majority lags. For [`Staleness::AHEAD`]: by then
//! every watch has been renewed, so a node that still has another view lags.
//!
//! The view of more than half of the reporting nodes is the present one. A node that follows late is not stale: it must have kept
//! one other view all the time. For [`Staleness::LAGGING`], and it lags and connects to the API server anew; for
//! [`Staleness::STALE`], and it is stale: rows move only if that has not helped. Where no view has a majority (two nodes) all lag
//! and none is stale.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use crate::name::NodeName;
use crate::time::{Duration, Instant};

/// The views of the nodes, this one included.
#[derive(Debug, Default)]
pub struct Staleness {
    nodes: BTreeMap<NodeName, NodeView>,
    /// The digest of each node's pods as this node sees them, and since when.
    pods: BTreeMap<String, (u64, Instant)>,
}

#[derive(Debug)]
struct NodeView {
    view: u64,
    /// Since when it has this view.
    since: Instant,
    /// The views before it, the newest last.
    past: Vec<u64>,
    reported: Instant,
    /// Since when the node has another view than the majority.
    minority: Option<Instant>,
    /// Since when no majority is known to have its view.
    lagging: Option<Instant>,
    /// When a series of new views began, and when the last one came: no longer than `PODS_CHANGED` lies between two of them.
    changes: Option<(Instant, Instant)>,
    /// The digest of its pods when it last had the present view, or was first received.
    pods: u64,
    /// Its pods changed, and it has applied no new view since; or it was stale when it did.
    pods_changed: Option<Instant>,
    stale: bool,
}

impl Staleness {
    /// For how long a node has another view than the majority before it lags.
    pub const LAGGING: Duration = Duration::from_secs(2);
    /// For how long before it is stale and gets no new flows.
    pub const STALE: Duration = Duration::from_secs(10);
    /// For how long it may apply no new view while its own pods change.
    pub const PODS_CHANGED: Duration = Duration::from_secs(2);
    /// For how much longer the majority waits for the view of a node that is ahead: not all nodes connect anew to a busy API server.
    const PATIENCE: Duration = Duration::from_secs(3);
    /// For how long a view that the majority never had may be newer than theirs: longer than a watch lasts without an event of the API
    /// server, and the list that follows.
    pub const AHEAD: Duration = Duration::from_secs(80);
    /// Views of each node that are remembered.
    const PAST: usize = 16;
    /// A node that has not reported for so long does not count.
    const SILENT: Duration = Duration::from_secs(3);

    /// `pods`: as the speaker before this one had them last. They hold for nodes that report no more.
    pub fn new(pods: BTreeMap<String, u64>, now: Instant) -> Self {
        let known = pods.iter().filter_map(|(node, digest)| Some((NodeName::new(node)?, NodeView::new(*digest, now))));
        let mut staleness = Self { nodes: known.collect(), pods: BTreeMap::new() };
        staleness.set_pods(pods, now);
        staleness
    }

    /// The digest of each node's pods by the view of this node; nodes without any are left out.
    pub fn set_pods(&mut self, pods: BTreeMap<String, u64>, now: Instant) {
        let known = core::mem::take(&mut self.pods);
        let since = |node: &String, digest| {
            known.get(node).filter(|(same, _)| *same == digest).map_or(now, |(_, since)| *since)
        };
        self.pods = pods.into_iter().map(|(node, digest)| (node.clone(), (digest, since(&node, digest)))).collect();
    }

    /// A node has applied this view; 0: none yet. Whether that is news.
    pub fn applied(&mut self, node: &NodeName, view: u64, now: Instant) -> bool {
        if view == 0 {
            return false;
        }
        let (pods, _) = pods_of(&self.pods, node);
        let node_view = self.nodes.entry(node.clone()).or_insert_with(|| NodeView::new(pods, now));
        node_view.reported = now;
        let before = core::mem::replace(&mut node_view.view, view);
        let changes = before != view;
        if changes {
            node_view.since = now;
            node_view.remember(before);
            // It reaches the API server; whether it lags is open again. A stale node has to agree first.
            (node_view.minority, node_view.lagging) = (None, None);
            node_view.pods_changed = node_view.pods_changed.filter(|_| node_view.stale);
            let began = node_view
                .changes
                .filter(|(_, last)| now.since(*last) < Self::PODS_CHANGED)
                .map_or(now, |(began, _)| began);
            node_view.changes = Some((began, now));
        }
        changes
    }

    /// It reports the same view as before.
    pub fn reported(&mut self, node: &NodeName, now: Instant) {
        if let Some(node_view) = self.nodes.get_mut(node) {
            node_view.reported = now;
        }
    }

    /// The other nodes of the cluster. Returns stale nodes that are none of them.
    pub fn retain(&mut self, own: &NodeName, nodes: &BTreeSet<NodeName>) -> Vec<NodeName> {
        let gone = self.nodes.extract_if(.., |node, _| node != own && !nodes.contains(node));
        gone.filter(|(_, node_view)| node_view.stale).map(|(node, _)| node).collect()
    }

    /// The view that this node has applied; 0: none yet.
    pub fn view(&self, node: &NodeName) -> u64 {
        self.nodes.get(node).map_or(0, |node_view| node_view.view)
    }

    /// To be called at least once a second, and after every `set_pods`, by the node of this name. Returns nodes that became
    /// stale, and nodes that are stale no more.
    pub fn judge(&mut self, own: &NodeName, now: Instant) -> (Vec<NodeName>, Vec<NodeName>) {
        // A node that receives no report may itself have been stopped.
        let receives = self.nodes.iter().any(|(node, node_view)| node != own && node_view.reports(now));
        let (present, own) = (self.majority(now), self.view(own));
        let ahead = present.map(|view| self.ahead(view, now)).unwrap_or_default();
        let (mut stale, mut up_to_date) = (Vec::new(), Vec::new());
        for (node, node_view) in &mut self.nodes {
            match present {
                _ if !node_view.reports(now) || ahead.contains(node) => {
                    (node_view.minority, node_view.lagging) = (None, None)
                }
                Some(view) if view == node_view.view => {
                    node_view.minority = None;
                    node_view.lagging = node_view.lagging.or(Some(now + Self::PATIENCE)).filter(|_| !ahead.is_empty());
                }
                Some(_) => {
                    node_view.minority.get_or_insert(now);
                    node_view.lagging.get_or_insert(now);
                }
                // No majority; the last judgment holds.
                None => _ = node_view.lagging.get_or_insert(now),
            }
            let (pods, since) = pods_of(&self.pods, node);
            let agrees = node_view.view == own || node_view.reports(now) && Some(node_view.view) == present;
            if agrees || node_view.follows(now) && now.since(since) >= Self::PODS_CHANGED {
                (node_view.pods, node_view.pods_changed) = (pods, None);
            } else if node_view.pods == pods {
                node_view.pods_changed = None;
            } else {
                node_view.pods_changed.get_or_insert(now);
            }
            let minority = node_view.minority.is_some_and(|since| now.since(since) >= Self::STALE);
            let at_once = node_view.stale || receives && !node_view.reports(now);
            let pods_changed =
                node_view.pods_changed.is_some_and(|since| at_once || now.since(since) >= Self::PODS_CHANGED);
            let is_stale = minority || pods_changed;
            if core::mem::replace(&mut node_view.stale, is_stale) != is_stale {
                if is_stale { &mut stale } else { &mut up_to_date }.push(node.clone());
            }
        }
        (stale, up_to_date)
    }

    /// By the last judgement the view of this node is not known to be the present one, and has not been for a while.
    pub fn is_lagging(&self, node: &NodeName, now: Instant) -> bool {
        let lagging = self.nodes.get(node).and_then(|node_view| node_view.lagging);
        lagging.is_some_and(|since| now.since(since) >= Self::LAGGING)
    }

    /// Nodes that left the view of the majority, after the whole majority had applied it, for one that none of the majority has had.
    fn ahead(&self, present: u64, now: Instant) -> BTreeSet<NodeName> {
        let reporting = || self.nodes.iter().filter(|(_, node_view)| node_view.reports(now));
        let follow = || reporting().filter(|(_, node_view)| node_view.view == present).map(|(_, node_view)| node_view);
        let known: BTreeSet<u64> = follow().flat_map(|node_view| &node_view.past).copied().collect();
        let complete_since = follow().map(|node_view| node_view.since).max().unwrap_or(now);
        let left = |node_view: &NodeView| {
            node_view.view != present && node_view.past.contains(&present) && node_view.since > complete_since
        };
        let changes =
            |node_view: &NodeView| !known.contains(&node_view.view) && now.since(node_view.since) < Self::AHEAD;
        reporting()
            .filter(|(_, node_view)| left(node_view) && changes(node_view))
            .map(|(node, _)| node.clone())
            .collect()
    }

    /// The view of more than half of the reporting nodes.
    fn majority(&self, now: Instant) -> Option<u64> {
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        for node_view in self.nodes.values().filter(|node_view| node_view.reports(now)) {
            *counts.entry(node_view.view).or_default() += 1;
        }
        let all: usize = counts.values().sum();
        counts.into_iter().find(|(_, count)| 2 * count > all).map(|(view, _)| view)
    }
}

fn pods_of(pods: &BTreeMap<String, (u64, Instant)>, node: &NodeName) -> (u64, Instant) {
    pods.get(node.as_str()).copied().unwrap_or((0, Instant::ZERO))
}

impl NodeView {
    fn new(pods: u64, now: Instant) -> Self {
        Self {
            view: 0,
            since: now,
            past: Vec::new(),
            reported: now,
            minority: None,
            lagging: None,
            changes: None,
            pods,
            pods_changed: None,
            stale: false,
        }
    }

    fn remember(&mut self, view: u64) {
        self.past.retain(|known| *known != view && *known != self.view);
        if view != 0 {
            self.past.push(view);
        }
        if self.past.len() > Staleness::PAST {
            self.past.remove(0);
        }
    }

    /// It has applied new views again and again for `PODS_CHANGED`, up to now.
    fn follows(&self, now: Instant) -> bool {
        self.changes.is_some_and(|(began, last)| {
            now.since(began) >= Staleness::PODS_CHANGED && now.since(last) < Staleness::PODS_CHANGED
        })
    }

    fn reports(&self, now: Instant) -> bool {
        self.view != 0 && now.since(self.reported) <= Staleness::SILENT
    }
}

#[cfg(test)]
mod tests;
