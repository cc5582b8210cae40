//! Tells the other nodes what this one holds, and keeps what they told.
//!
//! Read first: docs/decisions/0008. Every second a node says its word: which version of its holdings counts, and the digest of
//! its table. The rows themselves travel when they change, once more a second later, and when somebody asks, because it starts or
//! because parts were lost. What a node said last counts until it says something else or is removed from the cluster: its flows
//! outlive its speaker.

mod peer;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use peer::Peer;

use super::{Holdings, Word, Words};
use crate::forwarding::LONGEST_WAIT;
use crate::freshness::Freshness;
use crate::machine::Machine;
use crate::name::NodeName;
use crate::time::{Duration, Instant};
use crate::view::endpoints::Digests;
use crate::wire::holdings::{Datagram, Keyring, Piece, Reject, encode, piece_len};

/// One node's part in it.
#[derive(Debug)]
pub struct Exchange {
    config: Config,
    started: Instant,
    sequence: u64,
    own: Option<Own>,
    /// All other nodes of the cluster, once they are known.
    nodes: Option<BTreeSet<NodeName>>,
    peers: BTreeMap<NodeName, Peer>,
    freshness: Freshness,
    /// When its own view last changed.
    viewed: Option<Instant>,
    next_beat: Instant,
    /// When the rows travel next, unless they change before.
    next_list: Option<Instant>,
    last_list: Option<Instant>,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub node: NodeName,
    pub cluster: u64,
    /// Of this run of the speaker; higher than that of any run before.
    pub epoch: u64,
    pub keys: Keyring,
    /// Between words.
    pub interval: Duration,
    /// For how long tables may differ before it is an alarm, unless the views are the same and additions may wait (decision 15).
    pub differ: Duration,
    /// The digest of each node's pods (`Digests::pods`), as the speaker before this one saw them last.
    pub pods: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// What this node holds, by its present table. To be repeated every second, so that it counts as looked at.
    Local(Arc<Holdings>),
    /// What the API server says, once the packet path is as it says.
    View(Digests),
    Datagram(Vec<u8>),
    /// The incarnations that the election has verified and receives. To be repeated.
    Incarnations(BTreeMap<NodeName, u64>),
    /// Sign and verify with these from now on.
    Keys(Keyring),
    /// All other nodes of the cluster.
    Nodes(BTreeSet<NodeName>),
    /// This node was cut off: what the others said is old.
    Rejoin,
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Send(Vec<u8>),
    /// A node, maybe this one, holds something else than before: make the table again.
    Changed(NodeName),
    Rejected(Reject),
    /// The table of this node has differed from ours for longer than `Config::differ`.
    Differs {
        node: NodeName,
        since: Instant,
    },
    /// No longer.
    Agrees(NodeName),
    /// The view by which this node, maybe this one itself, goes is out of date.
    Stale(NodeName),
    /// No longer.
    Fresh(NodeName),
}

/// Nodes that are listened to at most.
pub const MAX_PEERS: usize = ebpf_common::MAX_NODES as usize - 1;
/// Between two sendings of the same rows.
const LIST_PAUSE: Duration = Duration::from_millis(200);
/// Whoever has not told all it holds by then keeps nobody waiting.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Own {
    word: Word,
    version: u64,
    list: Vec<u8>,
    partial: bool,
}

impl Exchange {
    /// Sends nothing before the first `Event::Tick`, which is due at once.
    pub fn new(mut config: Config, now: Instant) -> Self {
        let freshness = Freshness::new(core::mem::take(&mut config.pods), now);
        Self {
            config,
            started: now,
            sequence: 0,
            own: None,
            nodes: None,
            peers: BTreeMap::new(),
            freshness,
            viewed: None,
            next_beat: now,
            next_list: None,
            last_list: None,
        }
    }

    /// What each node said last, this one included.
    pub fn words(&self) -> Words {
        let own = self.own.iter().map(|own| (&self.config.node, own.word.clone()));
        let peers = self.peers.iter().filter_map(|(node, peer)| Some((node, peer.word.clone()?)));
        own.chain(peers).map(|(node, word)| (String::from(node.as_str()), word)).collect()
    }

    /// Since it started or rejoined this node has learned what the others hold: it has the word of all nodes, or has listened for an
    /// interval and has the word of all it heard. Nobody is waited for longer than five seconds.
    pub fn learned(&self, now: Instant) -> bool {
        let waited = now.since(self.started);
        let heard = |peer: &Peer| peer.heard >= self.started;
        let has_told = |node| self.peers.get(node).is_some_and(|peer| heard(peer) && peer.is_known());
        let all = self.nodes.as_ref().is_some_and(|nodes| nodes.iter().all(has_told));
        let listened = waited > self.config.interval + LIST_PAUSE;
        let all_heard = || self.peers.values().filter(|peer| heard(peer)).all(Peer::is_known);
        all || listened && all_heard() || waited >= PATIENCE
    }

    /// Since then this node has said what it holds: our program is there, and its chains.
    pub fn has_spoken(&self, node: &NodeName, since: Instant) -> bool {
        self.peers.get(node).is_some_and(|peer| peer.version != 0 && peer.heard >= since)
    }

    /// Some node that speaks has had another table than this one for two intervals.
    pub fn differs(&self, now: Instant) -> bool {
        self.peers.values().any(|peer| self.differs_for(peer, 2 * self.config.interval, now))
    }

    fn differs_for(&self, peer: &Peer, time: Duration, now: Instant) -> bool {
        now.since(peer.heard) <= 3 * self.config.interval && peer.differs.is_some_and(|since| now.since(since) >= time)
    }

    /// Nobody can tell whether the view of this node is out of date, or it is.
    pub fn in_doubt(&self, now: Instant) -> bool {
        self.freshness.in_doubt(&self.config.node, now)
    }

    fn set_view(&mut self, viewed: Digests, now: Instant, actions: &mut Vec<Action>) {
        self.freshness.sees(viewed.pods, now);
        if self.freshness.says(&self.config.node, viewed.view, now) {
            self.viewed = Some(now);
            self.compare_views(now);
            self.send_word(now, actions);
        }
        self.judge(now, actions);
    }

    fn set_local(&mut self, holdings: Arc<Holdings>, now: Instant, actions: &mut Vec<Action>) {
        let word = Word { holdings, confirmed: now, ..Word::default() };
        if let Some(own) = self.own.as_mut().filter(|own| own.word.holdings == word.holdings) {
            own.word = word;
            return;
        }
        let (list, partial) = encode(&word.holdings.services);
        let version = self.own.as_ref().map_or(1, |own| own.version + 1);
        self.own = Some(Own { word, version, list, partial });
        actions.push(Action::Changed(self.config.node.clone()));
        self.compare(now, actions);
        self.send_list(now, actions);
        self.next_list = Some(now + self.config.interval);
    }

    fn set_nodes(&mut self, nodes: BTreeSet<NodeName>, actions: &mut Vec<Action>) {
        let gone: Vec<NodeName> = self.peers.keys().filter(|node| !nodes.contains(node)).cloned().collect();
        for node in gone {
            let peer = self.peers.remove(&node);
            if peer.is_some_and(|peer| peer.word.is_some()) {
                actions.push(Action::Changed(node));
            }
        }
        actions.extend(self.freshness.retain(&self.config.node, &nodes).into_iter().map(Action::Fresh));
        self.nodes = Some(nodes);
    }

    fn receive(&mut self, bytes: &[u8], now: Instant, actions: &mut Vec<Action>) -> Result<(), Reject> {
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
        if datagram.asks {
            let earliest = self.last_list.map_or(now, |last| now.max(last + LIST_PAUSE));
            self.next_list = Some(self.next_list.map_or(earliest, |next| next.min(earliest)));
        }
        let view = datagram.view;
        let peer = self.peers.entry(node.clone()).or_insert_with(|| Peer::new(now));
        let changed = peer.take(datagram, now)?;
        self.freshness.says(&node, view, now);
        self.compare_views(now);
        if changed {
            actions.push(Action::Changed(node));
        }
        self.compare(now, actions);
        Ok(())
    }

    fn verify(&mut self, epochs: &BTreeMap<NodeName, u64>) {
        for (node, epoch) in epochs {
            if let Some(peer) = self.peers.get_mut(node) {
                peer.verify(*epoch);
            }
        }
    }

    /// Whose table is another than ours, since when; and who has come to agree.
    fn compare(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(own) = &self.own else { return };
        for (node, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.version != 0) {
            // Nobody knows what a silent node goes by; what it said before its silence is not held against it.
            let speaks = now.since(peer.heard) <= 3 * self.config.interval;
            if peer.digest == own.word.holdings.digest || !speaks {
                peer.differs = None;
                if let Some(word) = peer.word.as_mut().filter(|word| word.holdings.digest == own.word.holdings.digest) {
                    word.earlier = Arc::default();
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
        let own = self.freshness.view(&self.config.node);
        for (node, peer) in &mut self.peers {
            let differs = self.freshness.view(node) != own;
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
        if self.next_beat <= now {
            self.next_beat = now + self.config.interval;
            self.send_word(now, actions);
            self.raise_alarms(now, actions);
            self.judge(now, actions);
        }
    }

    fn judge(&mut self, now: Instant, actions: &mut Vec<Action>) {
        // Its own view counts as long as it runs.
        self.freshness.speaks(&self.config.node, now);
        let (stale, fresh) = self.freshness.judge(&self.config.node, now);
        actions.extend(stale.into_iter().map(Action::Stale));
        actions.extend(fresh.into_iter().map(Action::Fresh));
    }

    /// All rows; a word, if there are none.
    fn send_list(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.last_list = Some(now);
        let Some(own) = self.own.as_ref().filter(|own| !own.list.is_empty()) else {
            return self.send_word(now, actions);
        };
        let pieces: Vec<Vec<u8>> = own.list.chunks(self.piece_len()).map(Vec::from).collect();
        for (part, bytes) in (0..).zip(pieces) {
            self.send(Some(Piece { part, bytes }), now, actions);
        }
    }

    fn send_word(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.send(None, now, actions);
    }

    fn send(&mut self, piece: Option<Piece>, now: Instant, actions: &mut Vec<Action>) {
        self.sequence += 1;
        let own = self.own.as_ref();
        let age = own.map_or(Duration::ZERO, |own| now.since(own.word.confirmed));
        let datagram = Datagram {
            node: self.config.node.clone(),
            cluster: self.config.cluster,
            epoch: self.config.epoch,
            sequence: self.sequence,
            asks: !self.peers.values().all(Peer::is_known) || !self.learned(now),
            partial: own.is_some_and(|own| own.partial),
            version: own.map_or(0, |own| own.version),
            digest: own.map_or(0, |own| own.word.holdings.digest),
            view: self.freshness.view(&self.config.node),
            age_millis: u32::try_from(age.as_millis()).unwrap_or(u32::MAX),
            parts: own.map_or(0, |own| own.list.len().div_ceil(self.piece_len()) as u16),
            piece,
        };
        actions.push(Action::Send(datagram.seal(&self.config.keys)));
    }

    fn piece_len(&self) -> usize {
        piece_len(self.config.node.as_str().len())
    }
}

impl Machine for Exchange {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Local(holdings) => self.set_local(holdings, now, actions),
            Event::View(view) => self.set_view(view, now, actions),
            Event::Datagram(bytes) => {
                if let Err(reject) = self.receive(&bytes, now, actions) {
                    actions.push(Action::Rejected(reject));
                }
            }
            Event::Incarnations(epochs) => self.verify(&epochs),
            Event::Keys(keys) => self.config.keys = keys,
            Event::Nodes(nodes) => self.set_nodes(nodes, actions),
            Event::Rejoin => (self.started, self.next_beat) = (now, now),
            Event::Tick => self.tick(now, actions),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        Some(self.next_list.map_or(self.next_beat, |list| list.min(self.next_beat)))
    }
}

#[cfg(test)]
mod tests;
