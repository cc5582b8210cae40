//! Which nodes can be alternates of a service port's rows, and why.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use ebpf_common::ServiceKey;

use super::alternates::{ByAddress, Cause, Lost};
use super::previous::PreviousRing;
use super::rings::Rings;
use super::{Ring, SETTLE, TrafficStates, Unreported};
use crate::reports::{Reported, Reports, Rows};
use crate::time::{Duration, Instant};
use crate::view::Protocol;

/// Nodes that may hold flows of any row of any service port, and those among them whose speaker is silent.
pub(super) struct AnyRow {
    pub unreported: Arc<BTreeSet<String>>,
    pub late: Arc<BTreeSet<String>>,
}

/// Which nodes can be alternates.
pub(super) struct Candidates<'a> {
    nodes: &'a BTreeMap<String, Ipv4Addr>,
    traffic_states: &'a TrafficStates,
    reports: &'a Reports,
    /// Reports with any rows, of nodes that answer: most nodes have no flows of rows that are not theirs.
    naming: Vec<(&'a String, &'a Reported)>,
    digest: u64,
    differed: Instant,
    now: Instant,
}

impl<'a> Candidates<'a> {
    pub fn new(
        nodes: &'a BTreeMap<String, Ipv4Addr>,
        traffic_states: &'a TrafficStates,
        reports: &'a Reports,
        digest: u64,
        differed: Instant,
        now: Instant,
    ) -> Self {
        let mut candidates = Self { nodes, traffic_states, reports, naming: Vec::new(), digest, differed, now };
        let names_rows = |reported: &Reported| !reported.report.services.is_empty() || !reported.superseded.is_empty();
        let naming =
            reports.iter().filter(|(node, reported)| names_rows(reported) && candidates.answers(node)).collect();
        candidates.naming = naming;
        candidates
    }

    /// Its kernel answers, as far as this node knows.
    fn answers(&self, node: &str) -> bool {
        self.nodes.contains_key(node) && self.traffic_states.keeps_flows(node)
    }

    /// Those of the nodes that answer. A report by our table names all rows of that table.
    pub fn unreported(&self, unreported: &mut Unreported) -> BTreeSet<String> {
        let Unreported { since, nodes } = unreported;
        let has_reported =
            |node: &String| self.reports.get(node).is_some_and(|reported| reported.is_complete(self.digest, *since));
        nodes.retain(|node| {
            self.nodes.contains_key(node) && self.now.since(*since) < REPORT_EXPIRY && !has_reported(node)
        });
        nodes.iter().filter(|node| self.answers(node)).cloned().collect()
    }

    /// Previous rings whose nodes have not all reported since. Rings that are not needed are not filled.
    pub fn previous(
        &self,
        ring: &Arc<Ring>,
        previous: &mut [PreviousRing],
        rings: &mut Rings<'_>,
    ) -> Vec<(ByAddress<Ring>, Vec<String>)> {
        self.previous_of(ring, previous, rings, |node| self.answers(node))
    }

    /// Rings of which these nodes may have flows.
    fn previous_of(
        &self,
        ring: &Arc<Ring>,
        previous: &mut [PreviousRing],
        rings: &mut Rings<'_>,
        counts: impl Fn(&str) -> bool,
    ) -> Vec<(ByAddress<Ring>, Vec<String>)> {
        let mut needed = Vec::new();
        for previous_ring in previous.iter_mut().filter(|previous_ring| previous_ring.members != ring.members) {
            let mut unreported = Vec::new();
            for node in previous_ring.members.serving() {
                if previous_ring.retired_by.contains(node) {
                    continue;
                }
                if self.reports.get(node).is_some_and(|reported| {
                    reported.is_complete(self.digest, previous_ring.ended.max(self.differed) + SETTLE)
                }) {
                    previous_ring.retired_by.insert(node.into());
                } else if counts(node) {
                    unreported.push(String::from(node));
                }
            }
            if !unreported.is_empty() {
                needed.push((ByAddress(rings.get(&previous_ring.members)), unreported));
            }
        }
        needed
    }

    /// The rows of lost nodes. A datagram of an unknown flow begins one: it must not go to a node that may be gone.
    pub fn lost(
        &self,
        key: &ServiceKey,
        ring: &Arc<Ring>,
        previous: &mut [PreviousRing],
        rings: &mut Rings<'_>,
    ) -> Lost {
        let is_lost = |node: &str| self.traffic_states.lost.contains(node) && self.nodes.contains_key(node);
        if self.traffic_states.lost.is_empty() || key.proto != Protocol::Tcp.number() {
            return Lost::default();
        }
        let reported = self.reports.iter().filter(|(node, _)| is_lost(node)).flat_map(|(node, reported)| {
            let rows = reported.report.services.get(key).into_iter().chain(reported.superseded_rows(key, self.digest));
            rows.map(|rows| (node.clone(), ByAddress(rows.clone())))
        });
        Lost { reporters: reported.collect(), previous: self.previous_of(ring, previous, rings, is_lost) }
    }

    pub fn cause(
        &self,
        key: &ServiceKey,
        ring: &Arc<Ring>,
        previous: Vec<(ByAddress<Ring>, Vec<String>)>,
        upcoming: Option<ByAddress<Ring>>,
        unreported: Arc<BTreeSet<String>>,
        any_row: &AnyRow,
    ) -> Cause {
        let (mut reporters, mut superseded) = (Vec::new(), Vec::new());
        for (node, reported) in &self.naming {
            let named = |rows: &Arc<Rows>| ((*node).clone(), ByAddress(rows.clone()));
            reporters.extend(reported.report.services.get(key).map(named));
            superseded.extend(reported.superseded_rows(key, self.digest).map(named));
        }
        let named = reporters
            .iter()
            .chain(&superseded)
            .map(|(node, _)| node)
            .chain(previous.iter().flat_map(|(_, nodes)| nodes));
        let named = named.chain(upcoming.iter().flat_map(|upcoming| &upcoming.0.nodes));
        let more = unreported.iter().filter(|_| !Arc::ptr_eq(&unreported, &any_row.unreported));
        let mut named = named.chain(more).filter(|node| self.is_late(node)).peekable();
        let mut late = any_row.late.clone();
        if named.peek().is_some() {
            Arc::make_mut(&mut late).extend(named.cloned());
        }
        let lost = Lost::default();
        Cause { ring: ByAddress(ring.clone()), previous, reporters, superseded, upcoming, unreported, late, lost }
    }

    pub fn is_late(&self, node: &str) -> bool {
        self.reports.get(node).is_none_or(|reported| self.now.since(reported.confirmed) > REPORT_LATE)
    }
}

/// A node that has not reported for so long has no speaker.
const REPORT_EXPIRY: Duration = Duration::from_secs(600);
/// A node whose last report is older comes last in the search.
const REPORT_LATE: Duration = Duration::from_secs(5);
