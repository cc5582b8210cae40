//! Which way flow reports take to each other node, and whose do not come.
//!
//! Read first: docs/election.md section Unicast, and `unicast` for the same of adverts. A node gets reports by unicast too
//! - while the election sends it adverts so: no multicast of either arrives there, or none of its;
//! - while its speaker runs, which its adverts show, and no report of it has come by multicast for [`SILENT`];
//! - while it asks for them, because it receives no report of this node by multicast.
//!
//! The reports of a node whose adverts arrive are *missing* if none has come either way for [`MISSING`]: the port is filtered, or its
//! packet path's loop stands still. Where adverts do not arrive either, that is the fault, and has a name of its own.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::Action;
use crate::name::NodeName;
use crate::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(super) struct Ways {
    nodes: BTreeMap<NodeName, Way>,
    /// Those that the election sends adverts to by unicast; some may not be in the view here yet.
    adverts: BTreeSet<NodeName>,
}

#[derive(Debug)]
struct Way {
    /// The last report by multicast, and the last one at all; not before its speaker was known to run.
    multicast: Instant,
    any: Instant,
    /// It asked for unicast.
    asked: Option<Instant>,
    /// Its adverts arrived.
    runs: Option<Instant>,
    /// The election sends it adverts by unicast.
    adverts: bool,
    /// As was said last.
    unicast: bool,
    missing: bool,
}

/// Three summaries.
const SILENT: Duration = Duration::from_secs(3);
/// Five requests.
const HOLD: Duration = Duration::from_secs(5);
/// As long as adverts may be.
pub(super) const MISSING: Duration = Duration::from_secs(10);
/// The election states every second whose adverts arrive.
const RUNS: Duration = Duration::from_secs(3);

impl Way {
    fn new(now: Instant) -> Self {
        Self { multicast: now, any: now, asked: None, runs: None, adverts: false, unicast: false, missing: false }
    }

    fn runs(&self, now: Instant) -> bool {
        self.runs.is_some_and(|at| now.since(at) < RUNS)
    }

    fn silent(&self, now: Instant) -> bool {
        self.runs(now) && now.since(self.multicast) >= SILENT
    }

    fn by_unicast(&self, now: Instant) -> bool {
        let asked = self.asked.is_some_and(|at| now.since(at) < HOLD);
        self.adverts || self.silent(now) || asked
    }
}

impl Ways {
    pub fn set_nodes(&mut self, nodes: &BTreeSet<NodeName>, now: Instant, actions: &mut Vec<Action>) {
        let gone = self.nodes.extract_if(.., |node, _| !nodes.contains(node));
        actions.extend(gone.filter(|(_, way)| way.missing).map(|(node, _)| Action::NotMissing(node)));
        for node in nodes {
            let adverts = self.adverts.contains(node);
            self.nodes.entry(node.clone()).or_insert_with(|| Way { adverts, ..Way::new(now) });
        }
    }

    pub fn set_adverts(&mut self, nodes: BTreeSet<NodeName>) {
        for (node, way) in &mut self.nodes {
            way.adverts = nodes.contains(node);
        }
        self.adverts = nodes;
    }

    /// Its adverts arrive.
    pub fn runs(&mut self, node: &NodeName, now: Instant) {
        let Some(way) = self.nodes.get_mut(node) else { return };
        if !way.runs(now) {
            (way.multicast, way.any) = (now, now);
        }
        way.runs = Some(now);
    }

    /// A report of this node was taken.
    pub fn received(&mut self, node: &NodeName, multicast: bool, asks: bool, now: Instant, actions: &mut Vec<Action>) {
        let Some(way) = self.nodes.get_mut(node) else { return };
        way.any = now;
        if multicast {
            way.multicast = now;
        }
        if asks {
            way.asked = Some(now);
        }
        if core::mem::take(&mut way.missing) {
            actions.push(Action::NotMissing(node.clone()));
        }
    }

    /// To be called every second.
    pub fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for (node, way) in &mut self.nodes {
            let unicast = way.by_unicast(now);
            if core::mem::replace(&mut way.unicast, unicast) != unicast {
                actions.push(Action::Unicast(node.clone(), unicast));
            }
            let missing = way.runs(now) && now.since(way.any) >= MISSING;
            if core::mem::replace(&mut way.missing, missing) != missing {
                let action = if missing { Action::Missing } else { Action::NotMissing };
                actions.push(action(node.clone()));
            }
        }
    }

    pub fn targets(&self, now: Instant) -> impl Iterator<Item = &NodeName> {
        self.nodes.iter().filter(move |(_, way)| way.by_unicast(now)).map(|(node, _)| node)
    }

    pub fn by_unicast(&self, node: &NodeName, now: Instant) -> bool {
        self.nodes.get(node).is_some_and(|way| way.by_unicast(now))
    }

    /// No report of this node comes by multicast: it is asked for unicast.
    pub fn asks(&self, node: &NodeName, now: Instant) -> bool {
        self.nodes.get(node).is_some_and(|way| way.silent(now))
    }

    /// Nodes that get reports by unicast too, and nodes whose reports are missing.
    pub fn counts(&self) -> (usize, usize) {
        let count = |counts: fn(&Way) -> bool| self.nodes.values().filter(|way| counts(way)).count();
        (count(|way| way.unicast), count(|way| way.missing))
    }
}
