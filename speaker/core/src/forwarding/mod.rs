//! View + traffic states of nodes -> the table every dispatcher agrees on; with flow reports -> the alternates of each row.
//!
//! For each VIP and service port a ring: Maglev over (node, ordinal 0..ready pods on it; members.rs has the rule if none is ready). The ring
//! chooses the node, the node chooses the pod. The same view, the same traffic states and the same hash key give the same table on every
//! node. Beside it the alternates of each row: nodes that may have flows which were opened under another ring. These may differ between
//! nodes.
//! Reading order: mod.rs -> members.rs -> batches.rs -> maglev.rs -> previous.rs -> alternates/ -> ids.rs -> slots.rs -> diff.rs. Read first:
//! docs/dataplane.md.
//!
//! ```text
//! let mut planner = Planner::new(hash_key, previous_rings);    // PreviousRings::new(window), or PreviousRings::restore(..) from disk
//! planner.was_away(own);                                       // at the start, and when a cut ends (then also exchange: Event::Rejoin)
//! if exchange.differs(now) { planner.tables_differ(now) }
//! let table = planner.table(&view, &traffic_states, &reports, now); // reports: exchange.reports()
//! let (want, exhausted) = layout.want(&table, &have, &macs, own, &served);   // served: service ports with pods on this node
//! // .. then, at once when table.digest is new, else every second, from conntrack:
//! let announced = reporter.announce(&table, flows, exchange.differs(), now);
//! exchange.handle(exchange::Event::Local(announced.report), now, &mut actions);
//! // Make the table again on Action::Changed, at planner.next_deadline(), and a second later as long as planner.awaits_reports().
//! // planner.previous_rings().save(now, boot) goes to disk when planner.previous_rings().generation() has changed.
//! ```

pub mod alternates;
mod batches;
mod candidates;
mod counted;
pub mod diff;
pub mod ids;
pub mod lookup;
pub mod maglev;
pub(crate) mod members;
mod numbers;
pub mod previous;
mod restricted;
mod rings;
mod saved;
mod slots;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use ebpf_common::{ServiceKey, siphash13};

use crate::attributes::AttributesDigest;
use crate::reports::Reports;
use crate::time::{Duration, Instant};
use crate::view::endpoints::{self, Digests, Frontend, Pod, Reason, Refusal, frontends};
use crate::view::{ObjectName, ServiceAttributes, View};
use alternates::{Alternates, ByAddress, Cache};
use batches::{Batches, Wanted};
pub use batches::{LONGEST as LONGEST_WAIT, QUIET};
use candidates::{AnyRow, Candidates};
pub use counted::Counted;
use maglev::Members;
use members::Chosen;
pub use members::{TrafficState, TrafficStates};
use numbers::Numbers;
use previous::PreviousRings;
pub use restricted::Restricted;
use rings::{Cached, Rings};

/// The content of the maps, in names; [`diff::MapState`] has it in slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Every node of the cluster and its address on the segment.
    pub nodes: BTreeMap<String, Ipv4Addr>,
    /// Nodes that take no new flows, whatever the service.
    pub existing_only: BTreeSet<String>,
    /// Nodes with the exclude label: of services that heed it they take none.
    pub excluded: BTreeSet<String>,
    pub vips: BTreeSet<Ipv4Addr>,
    /// Addresses of nodes that have service ports; all their other ports are the node's.
    pub node_addresses: BTreeSet<Ipv4Addr>,
    pub services: BTreeMap<ServiceKey, Service>,
    /// Services with source ranges. They hold at once, whatever else of a service port waits.
    pub restricted: BTreeMap<ObjectName, Restricted>,
    /// The service ports that are counted together.
    pub counted: BTreeMap<Counted, BTreeSet<ServiceKey>>,
    /// What had to be left out.
    pub refused: Vec<Refusal>,
    /// Of all service ports and rings (not of the alternates, nor of what a service had that names no pod any more): equal on nodes whose
    /// tables are.
    pub digest: u64,
    /// Of the view from which it was made; traffic states play no part in them.
    pub viewed: Digests,
}

impl Table {
    /// The service ports at addresses of nodes.
    pub fn node_ports(&self) -> BTreeSet<ServiceKey> {
        let keys = self.services.keys().filter(|key| self.is_node_port(key));
        keys.copied().collect()
    }

    pub fn is_node_port(&self, key: &ServiceKey) -> bool {
        self.node_addresses.contains(&key.addr.into())
    }

    /// This node does not serve the VIP; the digest stays, since it is that of the view.
    pub fn bar(&mut self, vip: Ipv4Addr, reason: Reason) {
        self.vips.remove(&vip);
        self.services.retain(|key, _| key.addr != vip.octets());
        self.restricted.retain(|_, restricted| restricted.bar(vip));
        self.counted.retain(|(_, counted), _| *counted != vip);
        let (service, subject) = (ObjectName::new("", ""), format!("{vip}"));
        self.refused.push(Refusal { vip, service, reason, subject });
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub attributes: ServiceAttributes,
    /// No pod is ready: new flows are refused.
    pub no_new_flows: bool,
    /// Nodes with the exclude label take new flows as others do.
    pub excluded_take: bool,
    pub ring: Arc<Ring>,
    /// `None`: only the primaries have flows.
    pub alternates: Option<Arc<Alternates>>,
}

/// Which node each row names. No rows: there is no pod, clients get a reset.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ring {
    pub members: Arc<Members>,
    /// Node names in order; rows are indices into it.
    pub nodes: Vec<String>,
    pub rows: Numbers,
    /// Of members and hash key.
    pub digest: u64,
}

impl Ring {
    /// The node of a row.
    pub fn primary(&self, row: u32) -> Option<&str> {
        let node = self.rows.get(row as usize)?;
        self.nodes.get(usize::from(node)).map(String::as_str)
    }
}

/// Makes tables and keeps rings: a ring is filled again only if its members or their state changed, and services with the same
/// members share one. So with the alternates.
#[derive(Debug)]
pub struct Planner {
    hash_key: [u64; 2],
    rings: Cached,
    previous_rings: PreviousRings,
    batches: Batches,
    alternates: Cache,
    away: Option<String>,
    unreported: Unreported,
    rows_moved: RowsMoved,
    awaits_reports: bool,
    differed: Instant,
}

/// Nodes without a complete report since then: by which rings they opened their flows is not known.
#[derive(Debug, Default)]
struct Unreported {
    since: Instant,
    nodes: BTreeSet<String>,
}

/// How long after a change flows may still be opened at the previous primary (by dispatchers that lag). A report of that node
/// counts as complete only from then on.
pub const SETTLE: Duration = Duration::from_secs(10);

impl Planner {
    /// The key is the cluster's (`Config::hash_key`): with another key every row moves.
    pub fn new(hash_key: [u64; 2], previous_rings: PreviousRings) -> Self {
        Self {
            hash_key,
            rings: Cached::new(),
            previous_rings,
            batches: Batches::default(),
            alternates: Cache::default(),
            away: None,
            unreported: Unreported::default(),
            rows_moved: RowsMoved::default(),
            awaits_reports: false,
            differed: Instant::ZERO,
        }
    }

    /// The next table takes into account that this node has been away: others may have served its rows meanwhile.
    pub fn was_away(&mut self, own: &str) {
        self.away = Some(own.into());
    }

    /// A node has another table now. Flows that it opens there by an older ring are reported when its scan finds them, a moment
    /// later: until all have agreed for a while no report counts as complete.
    pub fn tables_differ(&mut self, now: Instant) {
        self.differed = now;
    }

    /// Some nodes are alternates only because their reports are missing: make the table again soon.
    pub fn awaits_reports(&self) -> bool {
        self.awaits_reports
    }

    /// When the next batch of additions is to be applied: make the table again then.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.batches.next_deadline()
    }

    /// Service ports whose added pods have no rows yet.
    pub fn batches_waiting(&self) -> usize {
        self.batches.waiting()
    }

    pub fn previous_rings(&self) -> &PreviousRings {
        &self.previous_rings
    }

    /// `reports`: of all nodes, this one included.
    pub fn table(&mut self, view: &View, traffic_states: &TrafficStates, reports: &Reports, now: Instant) -> Table {
        self.table_of(view, &frontends(view), traffic_states, reports, now)
    }

    /// The same, of the frontends of the view.
    pub fn table_of(
        &mut self,
        view: &View,
        (frontends, refused): &(BTreeMap<ServiceKey, Frontend<'_>>, Vec<Refusal>),
        traffic_states: &TrafficStates,
        reports: &Reports,
        now: Instant,
    ) -> Table {
        let viewed = endpoints::digests(view, frontends);
        let mut services = BTreeMap::new();
        let mut rings = Rings { hash_key: self.hash_key, known: &self.rings, used: Cached::new() };
        if self.away.is_some() {
            // What is held back was decided by an old view.
            self.batches.clear();
        }
        let excluded = members::excluded(view);
        let mut last: Option<(&[Pod<'_>], bool, Placed)> = None;
        for (key, frontend) in frontends {
            // The ports of one Service have the same pods.
            let ignores_label = view.ignores_exclude_label(key.addr.into());
            let placed = match &last {
                Some((pods, ignored, placed))
                    if *ignored == ignores_label && endpoints::same_places(pods, &frontend.pods) =>
                {
                    placed.clone()
                }
                _ => {
                    let Chosen { members, no_new_flows, excluded_take } =
                        members::members(&frontend.pods, ignores_label, view, traffic_states);
                    (Arc::new(members), no_new_flows, excluded_take && !excluded.is_empty())
                }
            };
            last = Some((&frontend.pods, ignores_label, placed.clone()));
            let (members, no_new_flows, excluded_take) = placed;
            // A node that was away applies the view as it is: its peers may have applied all of it.
            let current = self.previous_rings.current(key).filter(|_| self.away.is_none());
            let wanted = Wanted { ended: self.previous_rings.ended(key, &members), members, current };
            let ring = rings.get(&self.batches.next(key, wanted, &self.hash_key, now));
            let attributes = frontend.attributes.clone();
            services.insert(*key, Service { attributes, no_new_flows, excluded_take, ring, alternates: None });
        }
        let digest = follow(&mut self.batches, &mut services, &mut rings, reports, now);
        for (key, service) in services.iter_mut().filter(|(_, service)| service.ring.rows.is_empty()) {
            let last = self.previous_rings.last(key).and_then(|last| members::last(last, view, traffic_states));
            if let Some(Chosen { members, no_new_flows, .. }) = last {
                (service.ring, service.no_new_flows) = (rings.get(&Arc::new(members)), no_new_flows);
            }
        }
        let members = services.iter().map(|(key, service)| (*key, service.ring.members.clone())).collect();
        self.previous_rings.record(now, &members);
        self.batches.retain(now, |key| services.contains_key(key));
        let nodes: BTreeMap<_, _> = view.nodes().iter().map(|(name, node)| (name.clone(), node.address)).collect();
        if let Some(own) = self.away.take() {
            self.previous_rings.was_away(&own, now);
            self.unreported =
                Unreported { since: now, nodes: nodes.keys().filter(|node| **node != own).cloned().collect() };
        }
        self.rows_moved.record(&services, &nodes, now);
        let candidates = Candidates::new(&nodes, traffic_states, reports, digest, self.differed, now);
        let mut cache = Cache::default();
        let unreported = Arc::new(candidates.unreported(&mut self.unreported));
        let late = Arc::new(unreported.iter().filter(|node| candidates.is_late(node)).cloned().collect());
        let any_row = AnyRow { unreported, late };
        self.awaits_reports = !any_row.unreported.is_empty();
        for (key, service) in &mut services {
            let previous = candidates.previous(&service.ring, self.previous_rings.previous_mut(key), &mut rings);
            let mut unreported = any_row.unreported.clone();
            if let Some(rows_moved) = self.rows_moved.unreported.get_mut(key) {
                Arc::make_mut(&mut unreported).append(&mut candidates.unreported(rows_moved));
            }
            self.awaits_reports |= !previous.is_empty() || !unreported.is_empty();
            let upcoming = self.batches.upcoming(key).map(|members| ByAddress(rings.get(members)));
            let mut cause = candidates.cause(key, &service.ring, previous, upcoming, unreported, &any_row);
            cause.lost = candidates.lost(key, &service.ring, self.previous_rings.previous_mut(key), &mut rings);
            if cause.has_larger_rings() {
                service.ring = rings.split(&service.ring);
                cause.ring = ByAddress(service.ring.clone());
            }
            service.alternates = self.alternates.get(cause, &mut cache);
        }
        self.rows_moved.unreported.retain(|_, unreported| !unreported.nodes.is_empty());
        self.rings = rings.used;
        self.alternates = cache;
        let vips = view.served_vips();
        let node_addresses = view.divided_node_addresses().0.into_iter().map(|(address, _)| address).collect();
        let (restricted, counted) = (Restricted::of(frontends), counted::counted(frontends));
        let existing_only = members::existing_only(view, traffic_states);
        Table {
            nodes,
            existing_only,
            excluded,
            vips,
            node_addresses,
            services,
            restricted,
            counted,
            refused: refused.clone(),
            digest,
            viewed,
        }
    }
}

/// Service ports whose attributes give every flow another row: any node may have flows of it until it has reported.
#[derive(Debug, Default)]
struct RowsMoved {
    attributes: BTreeMap<ServiceKey, ServiceAttributes>,
    unreported: BTreeMap<ServiceKey, Unreported>,
}

impl RowsMoved {
    fn record(&mut self, services: &BTreeMap<ServiceKey, Service>, nodes: &BTreeMap<String, Ipv4Addr>, now: Instant) {
        for (key, service) in services {
            if self.attributes.get(key).is_some_and(|before| service.attributes.moves_rows(before)) {
                let unreported = Unreported { since: now + SETTLE, nodes: nodes.keys().cloned().collect() };
                self.unreported.insert(*key, unreported);
            }
        }
        self.attributes = services.iter().map(|(key, service)| (*key, service.attributes.clone())).collect();
        self.unreported.retain(|key, _| services.contains_key(key));
    }
}

/// The members of a ring, whether the service port takes no new flows, and whether excluded nodes take those that it takes.
type Placed = (Arc<Members>, bool, bool);

/// Applies what waits and a peer has applied already. Returns the digest of the table.
fn follow(
    batches: &mut Batches,
    services: &mut BTreeMap<ServiceKey, Service>,
    rings: &mut Rings<'_>,
    reports: &Reports,
    now: Instant,
) -> u64 {
    let ours = digest(services, &BTreeMap::new());
    let theirs: BTreeSet<u64> =
        reports.values().map(|reported| reported.report.digest).filter(|theirs| *theirs != ours).collect();
    if batches.is_empty() || theirs.is_empty() {
        return ours;
    }
    let applied = batches.follow(|rings| theirs.contains(&digest(services, rings)), now);
    for (key, members) in applied {
        if let Some(service) = services.get_mut(&key) {
            service.ring = rings.get(&members);
        }
    }
    digest(services, &BTreeMap::new())
}

/// `others`: digests of rings in place of those that services have.
fn digest(services: &BTreeMap<ServiceKey, Service>, others: &BTreeMap<ServiceKey, u64>) -> u64 {
    services.iter().fold(0, |digest, (key, service)| {
        let ring = others.get(key).copied().unwrap_or(service.ring.digest);
        let ServiceKey { addr, port, proto, pad: _ } = *key;
        let port = u64::from(u16::from_be_bytes(port));
        let key = u64::from(u32::from_be_bytes(addr)) | port << 32 | u64::from(proto) << 48;
        let no_new_flows = u64::from(service.no_new_flows) << 57;
        let AttributesDigest { affinity, more } = service.attributes.digest();
        // Bit 58: rows by the client's address and the VIP alone; before 2026-12 also by the port, and the same ring meant other rows.
        let affinity = u64::from(affinity) << 56 | u64::from(affinity) << 58;
        let digest = siphash13(&[digest, 0], key | affinity | no_new_flows, ring);
        more.map_or(digest, |more| siphash13(&[digest, 1], more, 0))
    })
}

#[cfg(test)]
mod tests;
