//! What the nodes have counted of the connections to each member, and the sums.
//!
//! A node counts what its kernel leads to a member ([`crate::backend::ruleset::members`]). The kernel's counters begin at 0 with each
//! table, so they are added up here, from the start of the speaker on. Each node reports its own totals; a report counts for [`EXPIRY`],
//! so that a sum is always of nodes that can be named.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use core::net::Ipv4Addr;

use super::{EXPIRY, MAX_NODES};
use crate::time::Instant;

/// By port of the addresses and member; none: 0.
pub type Totals = BTreeMap<(u16, Ipv4Addr), Total>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    pub connections: u64,
    /// Of clients, with their IP headers.
    pub bytes: u64,
    /// By the member.
    pub resets: u64,
}

impl Total {
    fn plus(self, other: Self) -> Self {
        self.combine(other, u64::saturating_add)
    }

    /// Since a reading before it. One that is lower begins at 0.
    fn since(self, before: Self) -> Self {
        self.combine(before, |now, before| now.checked_sub(before).unwrap_or(now))
    }

    fn combine(self, other: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            connections: of(self.connections, other.connections),
            bytes: of(self.bytes, other.bytes),
            resets: of(self.resets, other.resets),
        }
    }
}

/// This node's own: never lower than before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    totals: Totals,
    /// As the kernel had them at the last reading.
    kernel: Totals,
}

impl Counted {
    pub fn read(&mut self, kernel: &Totals) {
        for (place, now) in kernel {
            let before = self.kernel.insert(*place, *now).unwrap_or_default();
            let total = self.totals.entry(*place).or_default();
            *total = total.plus(now.since(before));
        }
    }

    /// The table is a new one, with counters for these.
    pub fn begin_anew(&mut self, places: &BTreeSet<(u16, Ipv4Addr)>) {
        self.kernel.clear();
        self.totals.retain(|place, _| places.contains(place));
    }

    pub fn totals(&self) -> &Totals {
        &self.totals
    }
}

/// Those of all nodes, as far as they are known.
#[derive(Debug, Default)]
pub struct Known {
    own: Option<Totals>,
    nodes: BTreeMap<String, Reported>,
}

#[derive(Debug)]
struct Reported {
    at: Instant,
    totals: BTreeMap<(u16, Ipv4Addr), (Total, Instant)>,
}

/// Of the nodes that count now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub totals: Totals,
    /// Other nodes that are in it.
    pub others: BTreeSet<String>,
    /// This node alone; `None`: it has not counted yet, and is not in the sum.
    pub own: Option<Totals>,
}

/// Ports and members that are kept of one node: as many as a file may have.
pub const MAX_PLACES: usize = 512;

impl Known {
    /// Whether that is news.
    pub fn set_own(&mut self, totals: Totals) -> bool {
        let is_news = self.own.as_ref() != Some(&totals);
        self.own = Some(totals);
        is_news
    }

    /// A datagram of another node: some of its totals, or all.
    pub fn reported(&mut self, node: &str, totals: Totals, now: Instant) {
        if self.nodes.len() >= MAX_NODES && !self.nodes.contains_key(node) {
            return;
        }
        let reported = self.nodes.entry(node.into()).or_insert_with(|| Reported { at: now, totals: BTreeMap::new() });
        reported.at = now;
        for (place, total) in totals {
            if reported.totals.len() < MAX_PLACES || reported.totals.contains_key(&place) {
                reported.totals.insert(place, (total, now));
            }
        }
        self.expire(now);
    }

    /// What is no longer reported is forgotten: the node's speaker began anew, the member was removed, or the node is silent.
    pub fn expire(&mut self, now: Instant) {
        self.nodes.retain(|_, reported| now.since(reported.at) < EXPIRY);
        for reported in self.nodes.values_mut() {
            reported.totals.retain(|_, (_, at)| now.since(*at) < EXPIRY);
        }
    }

    pub fn sum(&self) -> Sum {
        let others =
            self.nodes.values().flat_map(|reported| &reported.totals).map(|(place, (total, _))| (place, total));
        let mut totals = Totals::new();
        for (place, total) in self.own.iter().flatten().chain(others) {
            let sum = totals.entry(*place).or_default();
            *sum = sum.plus(*total);
        }
        Sum { totals, others: self.nodes.keys().cloned().collect(), own: self.own.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Duration;

    const A: (u16, Ipv4Addr) = (6443, Ipv4Addr::new(192, 0, 2, 11));
    const B: (u16, Ipv4Addr) = (6443, Ipv4Addr::new(192, 0, 2, 12));

    fn total(connections: u64) -> Total {
        Total { connections, bytes: 100 * connections, resets: 1 }
    }

    fn at(millis: u64) -> Instant {
        Instant::from_millis(10_000 + millis)
    }

    #[test]
    fn own_totals_rise_over_tables_and_never_fall() {
        let mut counted = Counted::default();
        counted.read(&[(A, total(5))].into());
        counted.read(&[(A, total(7)), (B, total(1))].into());
        assert_eq!(counted.totals(), &[(A, Total { resets: 1, ..total(7) }), (B, total(1))].into());
        // A dump that met a transaction lacks a counter.
        counted.read(&[(B, total(2))].into());
        counted.read(&[(A, total(7)), (B, total(2))].into());
        assert_eq!(counted.totals()[&A].connections, 7);
        // This speaker replaces the table: the next value may be higher than the last one.
        counted.begin_anew(&[A, B].into());
        counted.read(&[(A, total(9)), (B, total(0))].into());
        assert_eq!((counted.totals()[&A].connections, counted.totals()[&B].connections), (16, 2));
        // A third party does.
        counted.read(&[(A, total(3))].into());
        assert_eq!(counted.totals()[&A].connections, 19);
        // A member that is gone makes room.
        counted.begin_anew(&[B].into());
        assert!(counted.totals().keys().eq([&B]));
    }

    #[test]
    fn a_total_at_its_end_stays_there() {
        let mut counted = Counted::default();
        let most = Total { connections: u64::MAX, bytes: u64::MAX - 1, resets: 0 };
        counted.read(&[(A, most)].into());
        // The kernel's own counter wraps, which is a lower value.
        counted.read(&[(A, total(2))].into());
        assert_eq!(counted.totals()[&A], Total { connections: u64::MAX, bytes: u64::MAX, resets: 1 });
        let mut known = Known::default();
        known.set_own(counted.totals().clone());
        known.reported("b", counted.totals().clone(), at(0));
        assert_eq!(known.sum().totals[&A].connections, u64::MAX);
    }

    #[test]
    fn a_sum_is_of_the_nodes_that_report() {
        let mut known = Known::default();
        assert_eq!(known.sum(), Sum::default());
        known.reported("b", [(A, total(1)), (B, total(20))].into(), at(0));
        assert_eq!((known.sum().totals[&B], known.sum().own), (total(20), None));
        assert!(known.set_own([(A, total(300))].into()) && !known.set_own([(A, total(300))].into()));
        // A node that has counted nothing is in the sum. One of an earlier version sends none, and is not.
        known.reported("c", Totals::new(), at(0));
        let sum = known.sum();
        assert_eq!((sum.totals[&A].connections, sum.totals[&B].connections), (301, 20));
        assert!(sum.others.iter().eq(["b", "c"]) && sum.own.is_some());
        // In two datagrams.
        known.reported("b", [(A, total(2))].into(), at(2_000));
        known.reported("b", [(B, total(21))].into(), at(2_000));
        known.expire(at(4_000));
        let sum = known.sum();
        assert_eq!((sum.totals[&A].connections, sum.totals[&B].connections), (302, 21));
        assert!(sum.others.iter().eq(["b"]), "c is silent");
        known.expire(at(2_000) + EXPIRY);
        assert_eq!(known.sum().totals, [(A, total(300))].into());
    }

    /// Its speaker began anew: what it does not count again is gone with it.
    #[test]
    fn a_node_that_restarts_counts_from_0() {
        let mut known = Known::default();
        known.reported("b", [(A, total(50)), (B, total(60))].into(), at(0));
        for second in 1..=3 {
            known.reported("b", [(A, total(second))].into(), at(1_000 * second));
        }
        assert_eq!(known.sum().totals, [(A, total(3))].into());
    }

    #[test]
    fn what_others_report_is_bounded() {
        let mut known = Known::default();
        for node in 0..2 * MAX_NODES {
            let place = |port: u16| ((port, A.1), total(1));
            known.reported(&alloc::format!("n{node}"), (0..600).map(place).collect(), at(0));
        }
        assert_eq!((known.nodes.len(), known.sum().totals.len()), (MAX_NODES, MAX_PLACES));
        known.expire(at(0) + Duration::from_secs(3));
        assert!(known.nodes.is_empty());
    }
}
