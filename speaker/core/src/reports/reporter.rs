//! The report of this node: its table, the flows of conntrack and the clients of sessionAffinity -> the rows to report.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;

use ebpf_common::{FlowTuple, ServiceKey};

use super::{Report, Rows};
use crate::forwarding::lookup::Change;
use crate::forwarding::{SETTLE, Service, Table};
use crate::time::{Duration, Instant};

/// Turns flows into reports. Keeps since when this node has had flows of a row that is not its own.
#[derive(Debug)]
pub struct Reporter {
    own: String,
    hash_key: [u64; 2],
    window: Duration,
    services: BTreeMap<ServiceKey, ReportedRows>,
    /// Of every service port: the digest of its ring, and since when.
    rings: BTreeMap<ServiceKey, (u64, Instant)>,
    last: Arc<Report>,
}

/// Of one service port.
#[derive(Debug)]
struct ReportedRows {
    /// The number of rows of its ring.
    of: u32,
    since: BTreeMap<u32, Instant>,
    /// When rows were last removed from the report.
    trimmed: Instant,
}

/// What to report, and how many flows no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The same allocation as before if nothing changed.
    pub report: Arc<Report>,
    /// Flows whose rows this node lost longer ago than the drain window: it reports them no longer.
    pub expired: u64,
}

impl Reporter {
    /// `window`: for how long this node reports rows that it has lost (`--drain-window-s`).
    pub fn new(own: &str, hash_key: [u64; 2], window: Duration) -> Self {
        let (services, rings) = (BTreeMap::new(), BTreeMap::new());
        Self { own: own.into(), hash_key, window, services, rings, last: Arc::default() }
    }

    /// `flows`: the flows to VIPs that end on this node, as the client sent them, without closed ones. `differ`: a node has
    /// another table; then this node also reports rows of which it is the primary, since by the other table it may not be. The
    /// same for a while after the ring of a service port changed: pods that come up one by one make a ring each, and by the next
    /// one this node may have lost the row before its scan and report.
    pub fn announce(
        &mut self,
        table: &Table,
        flows: impl IntoIterator<Item = FlowTuple>,
        differ: bool,
        now: Instant,
    ) -> Announcement {
        self.announce_with(table, flows, [], differ, now)
    }

    /// `clients`: those that this node has a record of, one for each service port that takes them, without a port of their own. Their
    /// next connection is to find this node as the next segment of a flow does.
    pub fn announce_with(
        &mut self,
        table: &Table,
        flows: impl IntoIterator<Item = FlowTuple>,
        clients: impl IntoIterator<Item = FlowTuple>,
        differ: bool,
        now: Instant,
    ) -> Announcement {
        self.note_rings(table, now);
        let mut found: BTreeMap<ServiceKey, Found> = BTreeMap::new();
        let open = flows.into_iter().map(|flow| (flow, 1)).chain(clients.into_iter().map(|client| (client, 0)));
        for (flow, flows) in open {
            let key = ServiceKey { addr: flow.dst, port: flow.dst_port, proto: flow.proto, pad: 0 };
            let found_row = table.service_of(&flow).and_then(|service| service.row_of(flow, &self.hash_key));
            let Some((row, primary)) = found_row else { continue };
            let found = found.entry(key).or_default();
            if primary == Some(&self.own) {
                let changed = self.rings.get(&key).is_some_and(|(_, since)| now.since(*since) < SETTLE);
                found.own.extend((differ || changed).then_some(row));
            } else {
                *found.others.entry(row).or_default() += flows;
            }
        }
        self.services.retain(|key, _| found.contains_key(key));
        let mut expired = 0;
        let mut services = BTreeMap::new();
        for (key, found) in found {
            let of = table.services[&key].ring.rows.len() as u32;
            let held = self.services.entry(key).or_insert_with(|| ReportedRows::new(of, now));
            expired += held.update(of, &found.others, self.window, now);
            let reported =
                held.since.iter().filter(|(_, since)| now.since(**since) <= self.window).map(|(row, _)| *row);
            let rows = Rows::new(of, reported.chain(found.own));
            let rows = held.keep_if_subset(self.last.services.get(&key), rows, now);
            if !rows.is_empty() {
                services.insert(key, rows);
            }
        }
        let report = Report { digest: table.digest, partial: false, services };
        if *self.last != report {
            self.last = Arc::new(report);
        }
        Announcement { report: self.last.clone(), expired }
    }

    fn note_rings(&mut self, table: &Table, now: Instant) {
        let ring = |(key, service): (&ServiceKey, &Service)| {
            let digest = service.ring.digest;
            let known = self.rings.get(key).filter(|(known, _)| *known == digest);
            (*key, known.copied().unwrap_or((digest, now)))
        };
        self.rings = table.services.iter().map(ring).collect();
    }

    /// From one table to the next, for this node.
    pub fn change(&self, before: Option<Arc<Table>>, now: Arc<Table>) -> Change {
        Change { own: self.own.clone(), hash_key: self.hash_key, before, now }
    }
}

/// Rows with flows, as they are found.
#[derive(Default)]
struct Found {
    own: BTreeSet<u32>,
    /// Rows of other primaries, and how many flows this node has there.
    others: BTreeMap<u32, u64>,
}

impl ReportedRows {
    fn new(of: u32, now: Instant) -> Self {
        Self { of, since: BTreeMap::new(), trimmed: now }
    }

    /// Returns the number of flows beyond the window. In a ring of another size the rows are others: their time starts again.
    fn update(&mut self, of: u32, flows: &BTreeMap<u32, u64>, window: Duration, now: Instant) -> u64 {
        if core::mem::replace(&mut self.of, of) != of {
            self.since.clear();
        }
        self.since.retain(|row, _| flows.contains_key(row));
        let expired = flows.iter().filter(|(row, _)| {
            let since = self.since.entry(**row).or_insert(now);
            now.since(*since) > window
        });
        expired.map(|(_, flows)| flows).sum()
    }

    /// While flows end one by one, nodes need not write their rings anew each time: a row that is reported too long costs a
    /// packet of an unknown flow one more hop.
    fn keep_if_subset(&mut self, last: Option<&Arc<Rows>>, rows: Rows, now: Instant) -> Arc<Rows> {
        let Some(last) = last.filter(|last| last.of() == rows.of()) else { return Arc::new(rows) };
        if **last == rows {
            return last.clone();
        }
        let is_subset = rows.iter().all(|row| last.contains(row));
        if is_subset && now.since(self.trimmed) < TRIM {
            return last.clone();
        }
        self.trimmed = now;
        Arc::new(rows)
    }
}

/// Between removals of rows from the report of a service port.
const TRIM: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
