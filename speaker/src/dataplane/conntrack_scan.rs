//! Scans conntrack and the clients of sessionAffinity from time to time: what this node reports.
//!
//! Reading the flows, and finding the rows of hundreds of thousands, is work of the blocking pool; both completions are events of the
//! dataplane loop.

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use ebpf_common::{FlowTuple, ServiceKey};
use speaker_core::backend::affinity::{ClientSet, Clients, Kept};
use speaker_core::backend::{Destinations, Flow, TcpState};
use speaker_core::forwarding::Table;
use speaker_core::forwarding::lookup::Change;
use speaker_core::health::Connections;
use speaker_core::reports::reporter::{Announcement, Reporter};
use speaker_core::time::Instant;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::backend::{clients, conntrack};
use crate::io::clock;

/// After a change of the table: flows go on being opened by dispatchers that lag.
const BUSY: Duration = Duration::from_secs(15);
/// Between scans while something changes, while this node has flows of others' rows, and at rest.
const OFTEN: Duration = Duration::from_secs(1);
const SOMETIMES: Duration = Duration::from_secs(5);
const RARELY: Duration = Duration::from_secs(30);
/// Scans take at most this part of the time: with 100,000 entries it lasts a tenth of a second.
const SHARE: u32 = 20;

/// Where flows to these are read. Given a change of the table, entries of closed connections are deleted first, except where the change leaves the primary.
pub type Source = Arc<dyn Fn(&Destinations, Option<&Change>) -> io::Result<Vec<Flow>> + Send + Sync>;

/// Where the clients of a set are read; `None`: there is no such set (any more).
pub type ClientSource = Arc<dyn Fn(&ClientSet) -> io::Result<Option<Clients>> + Send + Sync>;

/// Clients that the rules in this table have recorded.
pub fn nftables(table: &'static str) -> ClientSource {
    Arc::new(move |set| clients::read(table, set))
}

/// Flows of the kernel's conntrack.
pub fn conntrack() -> Source {
    Arc::new(|to, change| {
        if let Some(change) = change {
            conntrack::forget_closed(to, |flow| !change.leaves(flow))?;
        }
        conntrack::flows(to)
    })
}

/// A part of a scan that is done.
pub enum Done {
    Read(io::Result<Read>),
    Found(Found),
}

/// What the kernel had.
pub struct Read {
    pub flows: Vec<Flow>,
    /// Known clients, one for each service port that takes them ([`Reporter::announce_with`]).
    pub clients: Vec<FlowTuple>,
}

/// The flows of this node.
pub struct Found {
    pub announced: Announcement,
    /// How many open flows.
    pub flows: usize,
    /// By port of the VIP and pod, if they are wanted.
    pub connections: Option<Connections>,
}

/// Flows whose rows are to be found.
pub struct Flows {
    pub flows: Vec<Flow>,
    /// Open flows that conntrack does not have.
    pub missed: Vec<FlowTuple>,
    pub clients: Vec<FlowTuple>,
    pub table: Arc<Table>,
    pub differ: bool,
    /// The connections of each pod are counted.
    pub counted: bool,
}

/// When to scan, and the scan that is under way.
pub struct ConntrackScan {
    source: Source,
    clients: ClientSource,
    /// `None` while the blocking pool finds rows with it.
    reporter: Option<Reporter>,
    /// This node has flows of rows that are not its own.
    pub has_foreign_rows: bool,
    /// A status shows how many connections there are.
    pub is_shown: bool,
    changed: Instant,
    /// The table of the last change after which flows were read.
    table: Option<Arc<Table>>,
    /// When the last scan began; `None`: scan at once.
    scanned: Option<Instant>,
    took: Duration,
    running: Option<Running>,
}

enum Running {
    Read(JoinHandle<io::Result<Read>>),
    Find(JoinHandle<(Reporter, Found)>),
}

impl ConntrackScan {
    pub fn new(source: Source, clients: ClientSource, reporter: Reporter, now: Instant) -> Self {
        let (table, scanned, took, running) = (None, None, Duration::ZERO, None);
        let reporter = Some(reporter);
        let (has_foreign_rows, is_shown) = (false, false);
        Self { source, clients, reporter, has_foreign_rows, is_shown, changed: now, table, scanned, took, running }
    }

    /// The table is another one: this node reports at once.
    pub fn changed(&mut self, now: Instant) {
        self.changed = now;
        self.scanned = None;
    }

    /// `wary`: other nodes have other tables, or flows may be deleted by others.
    pub fn is_due(&self, often: bool, now: Instant) -> bool {
        if self.running.is_some() {
            return false;
        }
        let Some(scanned) = self.scanned else { return true };
        let pause = if often || now.since(self.changed) < BUSY {
            OFTEN
        } else if self.has_foreign_rows || self.is_shown {
            SOMETIMES
        } else {
            RARELY
        };
        now >= scanned + pause.max(self.took * SHARE)
    }

    /// After a change rows may have come here whose flows meet entries of closed connections: those are deleted first. `table`: in
    /// force.
    pub fn begin(&mut self, to: Destinations, sets: BTreeMap<ClientSet, Kept>, table: &Arc<Table>, now: Instant) {
        let changed = self.scanned.replace(now).is_none();
        let change = self.reporter.as_ref().filter(|_| changed).map(|reporter| {
            let before = self.table.replace(table.clone());
            reporter.change(before, table.clone())
        });
        let (source, clients) = (self.source.clone(), self.clients.clone());
        self.running = Some(Running::Read(spawn_blocking(move || {
            let clients = known_clients(&clients, &sets)?;
            Ok(Read { flows: source(&to, change.as_ref())?, clients })
        })));
    }

    /// The flows of the scan that has just been read.
    pub fn find(&mut self, flows: Flows, now: Instant) {
        let Some(mut reporter) = self.reporter.take() else { return };
        let find = move || {
            let Flows { flows, missed, clients, table, differ, counted } = flows;
            let open = || flows.iter().filter(|flow| !flow.is_closed()).map(|flow| flow.tuple);
            let announced = reporter.announce_with(&table, open().chain(missed), clients, differ, now);
            let connections = counted.then(|| connections(&flows));
            (reporter, Found { announced, flows: open().count(), connections })
        };
        self.running = Some(Running::Find(spawn_blocking(find)));
    }

    /// The part that is under way; never, if there is none. An error: the thread that found rows has ended, and its state is lost. May be
    /// dropped while it waits.
    pub async fn done(&mut self) -> Result<Done> {
        let done = match &mut self.running {
            None => pending().await,
            Some(Running::Read(running)) => {
                Done::Read(running.await.unwrap_or_else(|error| Err(io::Error::other(error))))
            }
            Some(Running::Find(running)) => {
                let (reporter, found) = running.await.context("rows of this node's flows")?;
                self.reporter = Some(reporter);
                Done::Found(found)
            }
        };
        self.running = None;
        if let Some(scanned) = self.scanned {
            self.took = clock::now().since(scanned);
        }
        Ok(done)
    }
}

/// Open TCP connections: both ends have agreed, and none has ended.
fn connections(flows: &[Flow]) -> Connections {
    let mut connections = Connections::new();
    for flow in flows.iter().filter(|flow| flow.tcp == Some(TcpState::Established)) {
        let count = connections.entry((u16::from_be_bytes(flow.tuple.dst_port), flow.pod.0)).or_insert(0_u32);
        *count = count.saturating_add(1);
    }
    connections
}

fn known_clients(source: &ClientSource, sets: &BTreeMap<ClientSet, Kept>) -> io::Result<Vec<FlowTuple>> {
    let mut known = Vec::new();
    for (set, Kept { ports, .. }) in sets.iter().filter(|(_, kept)| !kept.ports.is_empty()) {
        let clients = source(set)?.unwrap_or_default();
        let to = |port: &ServiceKey| FlowTuple {
            dst: port.addr,
            dst_port: port.port,
            proto: port.proto,
            ..FlowTuple::default()
        };
        for port in ports.iter().map(to) {
            known.extend(clients.keys().map(|client| FlowTuple { src: client.octets(), ..port }));
        }
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn connections_are_those_that_are_established() {
        let flow = |port: u16, pod: u8, tcp| {
            let tuple = FlowTuple { dst_port: port.to_be_bytes(), ..FlowTuple::default() };
            Flow { tuple, pod: ([192, 0, 2, pod].into(), 6443), tcp, assured: true }
        };
        let established = Some(TcpState::Established);
        let flows = [
            flow(443, 1, established),
            flow(443, 1, established),
            flow(443, 2, established),
            flow(8443, 1, established),
            flow(443, 1, Some(TcpState::FinWait)),
            flow(443, 1, Some(TcpState::SynSent)),
            flow(443, 1, None),
        ];
        let [one, two] = [1, 2].map(|last| Ipv4Addr::new(192, 0, 2, last));
        assert_eq!(connections(&flows), [((443, one), 2), ((443, two), 1), ((8443, one), 1)].into());
    }

    #[test]
    fn often_after_a_change_and_rarely_at_rest() {
        let at = |seconds: u64| Instant::from_millis(1000 * seconds);
        let reporter = Reporter::new("n1", [1, 2], Duration::from_secs(3600));
        let mut scan = ConntrackScan::new(conntrack(), nftables("sheave"), reporter, at(0));
        assert!(scan.is_due(false, at(0)));
        scan.scanned = Some(at(0));
        assert!(!scan.is_due(false, at(0)) && scan.is_due(false, at(1)));
        scan.scanned = Some(at(100));
        assert!(!scan.is_due(false, at(129)) && scan.is_due(false, at(130)));
        assert!(scan.is_due(true, at(101)));
        scan.has_foreign_rows = true;
        assert!(!scan.is_due(false, at(104)) && scan.is_due(false, at(105)));
        scan.took = Duration::from_millis(500);
        assert!(!scan.is_due(true, at(109)) && scan.is_due(true, at(110)));
        scan.changed(at(101));
        assert!(scan.is_due(false, at(101)));
    }
}
