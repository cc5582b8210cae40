//! Sends the flow reports of this node, and keeps those of the others.
//!
//! Read first: docs/decisions/0008. Every second a node sends a summary: the version of its report, and the digest of its table.
//! The rows travel when they change, once more a second later, and on request: of a node that starts, or that lost parts. The
//! last report of a node counts until the next one, or until the node leaves the cluster: its flows outlive its speaker. All of it goes
//! to the group, and by unicast to nodes that the group does not reach (ways.rs, sending.rs beside this file).

mod peer;
mod sending;
mod ways;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use peer::Peer;
use sending::Copies;
use ways::Ways;

use super::{Report, Reported, Reports};
use crate::forwarding::LONGEST_WAIT;
use crate::health;
use crate::health::totals::Totals;
use crate::machine::Machine;
use crate::name::NodeName;
use crate::staleness::Staleness;
use crate::startup::Starts;
use crate::time::{Duration, Instant};
use crate::view::endpoints::Digests;
use crate::wire::report::{Datagram, Keyring, Reject, encode};

/// One node's part in it.
#[derive(Debug)]
pub struct Exchange {
    config: Config,
    started: Instant,
    sequence: u64,
    own: Option<Own>,
    /// The new pods of this node.
    starts: Starts,
    /// The members that this node checks; `None`: it checks none.
    health: Option<health::Report>,
    /// What this node has counted of members; `None`: nothing is counted.
    totals: Option<Totals>,
    /// All other nodes of the cluster, once they are known.
    nodes: Option<BTreeSet<NodeName>>,
    peers: BTreeMap<NodeName, Peer>,
    staleness: Staleness,
    /// When its own view last changed.
    viewed: Option<Instant>,
    next_beat: Instant,
    /// When the rows travel next, unless they change before.
    next_list: Option<Instant>,
    last_list: Option<Instant>,
    ways: Ways,
    copies: Copies,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub node: NodeName,
    pub cluster: u64,
    /// Of this run of the speaker; higher than that of any run before.
    pub epoch: u64,
    pub keys: Keyring,
    /// Between summaries.
    pub interval: Duration,
    /// For how long tables may differ before it is an alarm, unless the views are the same and additions may wait (decision 15).
    pub differ: Duration,
    /// The digest of each node's pods (`Digests::pods`), as the speaker before this one saw them last.
    pub pods: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The report of this node, by its present table. To be repeated every second, as confirmation.
    Local(Arc<Report>),
    /// The digests of the view, once the packet path has applied it.
    Applied(Digests),
    /// The new pods of this node, as many as fit ([`Startup::starts`](crate::startup::Startup::starts)). To be repeated.
    Starts(Starts),
    /// What this node has checked. To be repeated.
    Health(health::Report),
    /// What this node has counted of members.
    Totals(Totals),
    Datagram {
        bytes: Vec<u8>,
        /// It came to the group, not to this node alone.
        multicast: bool,
    },
    /// Nodes that the election sends its adverts to by unicast too.
    Unicast(BTreeSet<NodeName>),
    /// The incarnations that the election has verified and receives. To be repeated.
    Incarnations(BTreeMap<NodeName, u64>),
    /// Sign and verify with these from now on.
    Keys(Keyring),
    /// All other nodes of the cluster.
    Nodes(BTreeSet<NodeName>),
    /// This node was cut off: the reports of the others are old.
    Rejoin,
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// To the group.
    Send(Vec<u8>),
    /// To one node.
    SendTo(NodeName, Vec<u8>),
    /// Whether this node gets reports by unicast too, from now on.
    Unicast(NodeName, bool),
    /// Its adverts arrive, and for long none of its reports has.
    Missing(NodeName),
    /// No longer.
    NotMissing(NodeName),
    /// The report of a node, maybe this one, has changed: make the table again.
    Changed(NodeName),
    /// The new pods of another node.
    Starts {
        node: NodeName,
        starts: Starts,
    },
    /// What another node has checked.
    Health {
        node: NodeName,
        report: health::Report,
    },
    /// What another node has counted of members: some of it.
    Totals {
        node: NodeName,
        totals: Totals,
    },
    Rejected(Reject),
    /// The table of this node has differed from ours for longer than `Config::differ`.
    Differs {
        node: NodeName,
        since: Instant,
    },
    /// No longer.
    Agrees(NodeName),
    /// The view that this node, maybe this one itself, has applied is out of date.
    Stale(NodeName),
    /// No longer.
    UpToDate(NodeName),
}

/// Nodes whose reports are kept at most.
pub const MAX_PEERS: usize = ebpf_common::MAX_NODES as usize - 1;
/// Between two sendings of the same rows.
const LIST_PAUSE: Duration = Duration::from_millis(200);
/// A node that has not sent its whole report by then is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Own {
    reported: Reported,
    version: u64,
    list: Vec<u8>,
    partial: bool,
}

impl Exchange {
    /// Sends nothing before the first `Event::Tick`, which is due at once.
    pub fn new(mut config: Config, now: Instant) -> Self {
        let staleness = Staleness::new(core::mem::take(&mut config.pods), now);
        Self {
            config,
            started: now,
            sequence: 0,
            own: None,
            starts: Starts::new(),
            health: None,
            totals: None,
            nodes: None,
            peers: BTreeMap::new(),
            staleness,
            viewed: None,
            next_beat: now,
            next_list: None,
            last_list: None,
            ways: Ways::default(),
            copies: Copies::default(),
        }
    }

    /// The last report of each node, this one included.
    pub fn reports(&self) -> Reports {
        let own = self.own.iter().map(|own| (&self.config.node, own.reported.clone()));
        let peers = self.peers.iter().filter_map(|(node, peer)| Some((node, peer.reported.clone()?)));
        own.chain(peers).map(|(node, reported)| (String::from(node.as_str()), reported)).collect()
    }

    /// Since it started or rejoined this node has the reports of all nodes, or has listened for an interval and has the reports
    /// of all nodes that it received. It waits for no node longer than five seconds.
    pub fn all_reported(&self, now: Instant) -> bool {
        let waited = now.since(self.started);
        let received = |peer: &Peer| peer.received >= self.started;
        let has_reported = |node| self.peers.get(node).is_some_and(|peer| received(peer) && peer.is_known());
        let all = self.nodes.as_ref().is_some_and(|nodes| nodes.iter().all(has_reported));
        let listened = waited > self.config.interval + LIST_PAUSE;
        let peers_known = || self.peers.values().filter(|peer| received(peer)).all(Peer::is_known);
        all || listened && peers_known() || waited >= PATIENCE
    }

    /// The node has reported since then: its program and its chains are there.
    pub fn has_reported(&self, node: &NodeName, since: Instant) -> bool {
        self.peers.get(node).is_some_and(|peer| peer.version != 0 && peer.received >= since)
    }

    /// A node that reports has had another table than this one for two intervals.
    pub fn differs(&self, now: Instant) -> bool {
        self.peers.values().any(|peer| self.differs_for(peer, 2 * self.config.interval, now))
    }

    fn differs_for(&self, peer: &Peer, time: Duration, now: Instant) -> bool {
        now.since(peer.received) <= 3 * self.config.interval
            && peer.differs.is_some_and(|since| now.since(since) >= time)
    }

    /// The view of this node lags, or no majority confirms it.
    pub fn is_lagging(&self, now: Instant) -> bool {
        self.staleness.is_lagging(&self.config.node, now)
    }

    fn set_applied(&mut self, viewed: Digests, now: Instant, actions: &mut Vec<Action>) {
        self.staleness.set_pods(viewed.pods, now);
        if self.staleness.applied(&self.config.node, viewed.view, now) {
            self.viewed = Some(now);
            self.compare_views(now);
            self.send_summary(now, actions);
        }
        self.judge(now, actions);
    }

    fn set_local(&mut self, report: Arc<Report>, now: Instant, actions: &mut Vec<Action>) {
        let reported = Reported { report, confirmed: now, ..Reported::default() };
        if let Some(own) = self.own.as_mut().filter(|own| own.reported.report == reported.report) {
            own.reported = reported;
            return;
        }
        let (list, partial) = encode(&reported.report.services);
        let version = self.own.as_ref().map_or(1, |own| own.version + 1);
        self.own = Some(Own { reported, version, list, partial });
        actions.push(Action::Changed(self.config.node.clone()));
        self.compare(now, actions);
        self.send_list(now, actions);
        self.copy_to_all(now);
        self.next_list = Some(now + self.config.interval);
    }

    fn set_nodes(&mut self, nodes: BTreeSet<NodeName>, now: Instant, actions: &mut Vec<Action>) {
        self.ways.set_nodes(&nodes, now, actions);
        let gone: Vec<NodeName> = self.peers.keys().filter(|node| !nodes.contains(node)).cloned().collect();
        for node in gone {
            let peer = self.peers.remove(&node);
            if peer.is_some_and(|peer| peer.reported.is_some()) {
                actions.push(Action::Changed(node));
            }
        }
        actions.extend(self.staleness.retain(&self.config.node, &nodes).into_iter().map(Action::UpToDate));
        self.nodes = Some(nodes);
    }

    /// How many other nodes get reports by unicast too, and of how many none arrives.
    pub fn ways(&self) -> (usize, usize) {
        self.ways.counts()
    }

    fn receive(
        &mut self,
        bytes: &[u8],
        multicast: bool,
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> Result<(), Reject> {
        let datagram = Datagram::open(bytes, self.config.cluster, &self.config.keys)?;
        if datagram.node == self.config.node {
            return Err(Reject::OwnEcho);
        }
        if self.nodes.as_ref().is_some_and(|nodes| !nodes.contains(&datagram.node)) {
            return Err(Reject::UnknownNode);
        }
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&datagram.node) {
            return Err(Reject::TooManyPeers);
        }
        let node = datagram.node.clone();
        let (requests, asks) = (datagram.requests, datagram.asks);
        if requests && !multicast && self.ways.by_unicast(&node, now) {
            self.copy_to(node.clone(), now);
        } else if requests {
            let earliest = self.last_list.map_or(now, |last| now.max(last + LIST_PAUSE));
            self.next_list = Some(self.next_list.map_or(earliest, |next| next.min(earliest)));
        }
        let view = datagram.view;
        let (starts, health) = (datagram.starts.clone(), datagram.health.clone());
        let totals = datagram.totals.clone();
        let peer = self.peers.entry(node.clone()).or_insert_with(|| Peer::new(now));
        let changed = peer.take(datagram, now)?;
        self.ways.received(&node, multicast, asks, now, actions);
        self.staleness.applied(&node, view, now);
        self.compare_views(now);
        if changed {
            actions.push(Action::Changed(node.clone()));
        }
        if let Some(starts) = starts {
            actions.push(Action::Starts { node: node.clone(), starts });
        }
        if let Some(report) = health {
            actions.push(Action::Health { node: node.clone(), report });
        }
        if let Some(totals) = totals {
            actions.push(Action::Totals { node, totals });
        }
        self.compare(now, actions);
        Ok(())
    }

    fn verify(&mut self, epochs: &BTreeMap<NodeName, u64>, now: Instant) {
        for (node, epoch) in epochs {
            self.ways.runs(node, now);
            if let Some(peer) = self.peers.get_mut(node) {
                peer.verify(*epoch);
            }
        }
    }

    /// Since when each node's table differs from ours; and which nodes agree again.
    fn compare(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(own) = &self.own else { return };
        for (node, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.version != 0) {
            // The table of a silent node is unknown; its reports before the silence raise no alarm.
            let reports = now.since(peer.received) <= 3 * self.config.interval;
            if peer.digest == own.reported.report.digest || !reports {
                peer.differs = None;
                if let Some(reported) =
                    peer.reported.as_mut().filter(|reported| reported.report.digest == own.reported.report.digest)
                {
                    reported.superseded = Arc::default();
                }
                if core::mem::take(&mut peer.alarmed) {
                    actions.push(Action::Agrees(node.clone()));
                }
            } else {
                peer.differs.get_or_insert(now);
            }
        }
    }

    fn compare_views(&mut self, now: Instant) {
        let own = self.staleness.view(&self.config.node);
        for (node, peer) in &mut self.peers {
            let differs = self.staleness.view(node) != own;
            peer.views_differ = peer.views_differ.or(Some(now)).filter(|_| differs);
        }
    }

    /// Views agree, or have not differed for long: each node may have applied other additions, until the last ones cannot wait any more.
    fn may_wait(&self, peer: &Peer, now: Instant) -> bool {
        let lately = |since: Instant, time| now.since(since) < time;
        let agree = peer.views_differ.is_none_or(|since| lately(since, self.config.differ));
        agree && self.viewed.is_some_and(|since| lately(since, LONGEST_WAIT + self.config.differ))
    }

    fn raise_alarms(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let differing: Vec<NodeName> = self
            .peers
            .iter()
            .filter(|(_, peer)| !peer.alarmed && self.differs_for(peer, self.config.differ, now))
            .filter(|(_, peer)| !self.may_wait(peer, now))
            .map(|(node, _)| node.clone())
            .collect();
        for node in differing {
            if let Some(peer) = self.peers.get_mut(&node)
                && let Some(since) = peer.differs
            {
                peer.alarmed = true;
                actions.push(Action::Differs { node, since });
            }
        }
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.next_list.is_some_and(|due| due <= now) {
            self.next_list = None;
            self.send_list(now, actions);
        }
        self.send_copies(now, actions);
        if self.next_beat <= now {
            self.next_beat = now + self.config.interval;
            self.ways.tick(now, actions);
            self.send_summary(now, actions);
            if !self.starts.is_empty() {
                self.send_starts(now, actions);
            }
            self.send_health(now, actions);
            self.send_totals(now, actions);
            self.raise_alarms(now, actions);
            self.judge(now, actions);
        }
    }

    fn judge(&mut self, now: Instant, actions: &mut Vec<Action>) {
        // Its own view counts as long as it runs.
        self.staleness.reported(&self.config.node, now);
        let (stale, up_to_date) = self.staleness.judge(&self.config.node, now);
        actions.extend(stale.into_iter().map(Action::Stale));
        actions.extend(up_to_date.into_iter().map(Action::UpToDate));
    }
}

impl Machine for Exchange {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Local(report) => self.set_local(report, now, actions),
            Event::Applied(view) => self.set_applied(view, now, actions),
            Event::Starts(starts) => self.set_starts(starts, now, actions),
            Event::Health(report) => self.set_health(report, now, actions),
            Event::Totals(totals) => self.totals = Some(totals),
            Event::Datagram { bytes, multicast } => {
                if let Err(reject) = self.receive(&bytes, multicast, now, actions) {
                    actions.push(Action::Rejected(reject));
                }
            }
            Event::Incarnations(epochs) => self.verify(&epochs, now),
            Event::Keys(keys) => self.config.keys = keys,
            Event::Nodes(nodes) => self.set_nodes(nodes, now, actions),
            Event::Unicast(nodes) => self.ways.set_adverts(nodes),
            Event::Rejoin => (self.started, self.next_beat) = (now, now),
            Event::Tick => self.tick(now, actions),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        [self.next_list, self.copies.due()].into_iter().flatten().chain([self.next_beat]).min()
    }
}

#[cfg(test)]
mod tests;
