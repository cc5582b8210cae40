//! Clients of the API server endpoint, and what can happen to it.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! # use sheave_tests::{endpoint::{faults, Clients}, lab::{Lab, ha::Ha}};
//! # let ha = Ha::of(&Lab::attach("ha")?)?;
//! faults::start_all(&ha)?;
//! let mut clients = Clients::start(&ha, 100)?;
//! let killed = faults::kill_api_server(&ha, &mut clients, "node2")?;
//! println!("{} failed, the last {:?} ms after", killed.seen.fresh.failures(), killed.seen.fresh.last_failed_ms);
//! # Ok(())
//! # }
//! ```
//! Read: [`session`] (a connection) → [`fresh`], [`watches`], [`kubectl`], [`streams`] (clients) → [`report`] (how they count) →
//! [`cold`], [`kubelets`], [`faults`], [`further`], [`upkeep`], [`daemonset`] → [`judge`] (what is promised).
//! A connection is counted by its start; it has failed if it was refused, reset, or has no TLS handshake after 4 s.

pub mod cold;
pub mod daemonset;
pub mod faults;
pub mod fresh;
pub mod further;
pub mod judge;
pub mod kubectl;
pub mod kubelets;
pub mod place;
pub mod report;
pub mod session;
pub mod streams;
pub mod upkeep;
pub mod watches;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::lab::ha::Ha;
use crate::lab::wait_for;
use crate::traffic::clock;
use fresh::Log;
use kubectl::{Kubectl, Runs};
use place::Place;
use report::{Watches, Window};
use session::{Access, ON_NODE, PATIENCE, USER_AGENT};
use watches::Opened;

/// One client on the segment with connections, watches and kubectl, and one on each node.
pub struct Clients {
    ha: Ha,
    pub access: Arc<Access>,
    on_nodes: Arc<Access>,
    /// Dropped first: its threads run programs.
    kubectl: Kubectl,
    pub place: Place,
    pub fresh: Arc<Log>,
    watches: Opened,
    count: usize,
    nodes: BTreeMap<String, (Place, Arc<Log>)>,
}

/// What all of them saw in a time.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    pub fresh: Window,
    pub kubectl: Runs,
    pub watches: Watches,
    /// How watches ended.
    pub ends: BTreeMap<String, usize>,
    /// On each node that has power.
    pub nodes: BTreeMap<String, Window>,
}

impl Clients {
    /// Returns when all watches are open: the endpoint has to be served.
    pub fn start(ha: &Ha, watches: usize) -> Result<Self> {
        let access = Access::of(ha, USER_AGENT)?;
        let on_nodes = Access::of(ha, ON_NODE)?;
        let place = Place::new(&ha.netns("client"))?;
        let fresh = fresh::start(&place, &access, ha.address(), EVERY, Some(CHANGES));
        let kubectl = Kubectl::start(ha)?;
        let (ha, opened) = (ha.clone(), Opened::default());
        let mut clients = Self {
            ha,
            access,
            on_nodes,
            kubectl,
            place,
            fresh,
            watches: opened,
            count: watches,
            nodes: BTreeMap::new(),
        };
        for node in clients.ha.nodes() {
            clients.start_on(&node)?;
        }
        clients.fill()?;
        Ok(clients)
    }

    /// All watches are open again.
    pub fn fill(&self) -> Result<()> {
        self.watches.fill(&self.place, &self.access, self.ha.address(), self.count)
    }

    /// The client on a node, which has power.
    pub fn start_on(&mut self, node: &str) -> Result<()> {
        let place = Place::new(&self.ha.netns(node))?;
        let log = fresh::start(&place, &self.on_nodes, self.ha.address(), ON_NODES_EVERY, None);
        self.nodes.insert(node.to_owned(), (place, log));
        Ok(())
    }

    /// Ends the client on a node, which loses power.
    pub fn end_on(&mut self, node: &str) {
        self.nodes.remove(node);
    }

    /// The watches are those that were open when the time began.
    pub fn seen(&self, from_ns: u64, until_ns: u64) -> Seen {
        let mut ends = BTreeMap::new();
        for end in self.watches.ends(from_ns) {
            *ends.entry(end).or_default() += 1;
        }
        let nodes = self.nodes.iter().map(|(node, (_, log))| (node.clone(), log.window(from_ns, until_ns)));
        Seen {
            fresh: self.fresh.window(from_ns, until_ns),
            kubectl: self.kubectl.seen(from_ns, until_ns),
            watches: self.watches.seen(from_ns),
            ends,
            nodes: nodes.collect(),
        }
    }

    /// Measures for a time, from then on.
    pub fn measure(&self, from_ns: u64, time: Duration) -> Result<Seen> {
        let until_ns = from_ns + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        clock::sleep_until(until_ns);
        // What began last has its 4 s, and a busy machine some more.
        let logs = || self.nodes.values().map(|(_, log)| log).chain([&self.fresh]);
        wait_for("the last connections to end", 3 * PATIENCE, || {
            Ok(logs().all(|log| log.is_settled(until_ns)).then_some(()))
        })?;
        wait_for("the last kubectl to end", 3 * kubectl::ENDS_WITHIN, || {
            Ok(self.kubectl.is_settled(until_ns).then_some(()))
        })?;
        Ok(self.seen(from_ns, until_ns))
    }
}

/// 20 a second.
const EVERY: Duration = Duration::from_millis(50);
const ON_NODES_EVERY: Duration = Duration::from_millis(250);
/// Every tenth request changes what the watches see: twice a second.
const CHANGES: u32 = 10;
/// What the watches see; made by [`faults::start_all`].
const OBJECT: &str = "endpoint-clients";
const CHANGED: &str = "/api/v1/namespaces/default/configmaps/endpoint-clients";
const WATCH: &str = "/api/v1/namespaces/default/configmaps?watch=1&fieldSelector=metadata.name%3Dendpoint-clients";
