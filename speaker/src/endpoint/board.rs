//! What this node knows of the endpoint, brought together: owners from the sink, members from the dataplane, peers from the election.
//! Each fact comes when it changes; what has changed is an event.
//!
//! Time is an argument. Nothing here waits: a lock is held while a few values are moved.

mod facts;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::jiff::Timestamp;
use sheave_api::NoOwner;
use sheave_endpoint::status::events::{Change, Events, KEPT, Ring};
use sheave_endpoint::status::{
    Address, Drained, File, HISTORY, Member, OwnerChange, Peer, Port, RefusedFile, Server, State, Status, Traffic,
};
use sheave_endpoint::{Check, Endpoint};
use speaker_core::health::Target;
use speaker_core::health::drains::{Drains, Wish, wish};
use speaker_core::health::totals::Sum;
use tokio::sync::watch;

pub use facts::{Place, Snapshot};

use crate::status::Ownership;

pub struct Board {
    node: String,
    inner: Mutex<Inner>,
    /// The sequence of the newest event.
    newest: watch::Sender<u64>,
}

struct Inner {
    endpoint: Endpoint,
    file: File,
    ring: Ring,
    owners: BTreeMap<Ipv4Addr, Owned>,
    snapshot: Snapshot,
    /// By member and target port: as of the newest snapshot.
    servers: BTreeMap<Target, Known>,
    peers: BTreeMap<String, Peer>,
}

#[derive(Default)]
struct Owned {
    owner: Option<String>,
    term: Option<u64>,
    since: Option<Timestamp>,
    reason: Option<String>,
    /// The newest first.
    history: Vec<OwnerChange>,
}

#[derive(Clone, Copy)]
struct Known {
    state: State,
    since: Timestamp,
}

/// What is not kept here.
pub struct Surroundings {
    pub version: String,
    pub not_ready: Vec<String>,
    pub notes: Vec<String>,
    /// By port of the addresses.
    pub traffic: BTreeMap<u16, Traffic>,
}

impl Board {
    /// `run`: numbers the events' run.
    pub fn new(node: String, endpoint: Endpoint, run: u64, at: Timestamp) -> Self {
        let inner = Inner {
            file: File { taken: at, refused: None },
            ring: Ring::new(run, KEPT),
            owners: endpoint.addresses.iter().map(|address| (*address, Owned::default())).collect(),
            endpoint,
            snapshot: Snapshot::default(),
            servers: BTreeMap::new(),
            peers: BTreeMap::new(),
        };
        Self { node, inner: Mutex::new(inner), newest: watch::channel(0).0 }
    }

    /// The file has changed and is served from now on.
    pub fn follow(&self, endpoint: Endpoint, at: Timestamp) {
        let mut inner = self.lock();
        inner.owners.retain(|address, _| endpoint.addresses.contains(address));
        for address in &endpoint.addresses {
            inner.owners.entry(*address).or_default();
        }
        inner.file = File { taken: at, refused: None };
        inner.endpoint = endpoint;
    }

    /// The file as it is now is refused; empty: it is the one that is served.
    pub fn refused(&self, because: Vec<String>, at: Timestamp) {
        self.lock().file.refused = (!because.is_empty()).then_some(RefusedFile { at, because });
    }

    pub fn ownership(&self, vip: Ipv4Addr, ownership: &Ownership, at: Timestamp) {
        let (owner, term, reason) = match ownership {
            Ownership::Owned { term, .. } => (Some(self.node.clone()), Some(*term), None),
            Ownership::Elsewhere { owner, term, .. } => (Some(owner.clone()), Some(*term), None),
            Ownership::Yielded { .. } => (None, None, Some(NoOwner::AddressConflict.as_str().to_owned())),
            Ownership::Unowned(reason) | Ownership::Refused(reason) => (None, None, Some(reason.as_str().to_owned())),
            // It may still have an owner, which says so when it lets go.
            Ownership::Vacant(reason) => match self.lock().owners.get(&vip) {
                Some(Owned { owner: None, .. }) | None => (None, None, Some(reason.as_str().to_owned())),
                Some(_) => return,
            },
            Ownership::Lost { .. } => (None, None, Some(NoOwner::OwnerLost.as_str().to_owned())),
        };
        self.change(|inner| {
            // The last word of an address that the file has no more.
            let Some(owned) = inner.owners.get_mut(&vip) else { return };
            owned.term = term;
            let same = owned.owner == owner && owned.reason == reason && owned.since.is_some();
            if same {
                return;
            }
            let from = std::mem::replace(&mut owned.owner, owner.clone());
            (owned.since, owned.reason) = (Some(at), reason.clone());
            owned.history.insert(0, OwnerChange { at, owner: owner.clone(), reason: reason.clone() });
            owned.history.truncate(HISTORY);
            inner.ring.push(at, Change::OwnerChanged { address: vip, from, to: owner, term, reason });
        });
    }

    pub fn members(&self, snapshot: Snapshot, at: Timestamp) {
        self.change(|inner| {
            let states = snapshot.states();
            inner.servers.retain(|target, _| states.contains_key(target));
            for (target, (state, reason)) in states {
                let before = inner.servers.get(&target).map(|known| known.state);
                // Its first check has failed, and the table does not follow yet.
                let is_new = state == State::Serving && matches!(before, None | Some(State::Unknown));
                let state = if is_new && snapshot.fails(target) { State::Unknown } else { state };
                if before == Some(state) {
                    continue;
                }
                inner.servers.insert(target, Known { state, since: at });
                if let (Some(from), Some(member)) = (before, name(&inner.endpoint, target.address)) {
                    let change = Change::MemberChanged { member, port: target.port, from, to: state, reason };
                    inner.ring.push(at, change);
                }
            }
            for member in &inner.endpoint.members {
                let wishes = [&inner.snapshot.drains, &snapshot.drains].map(|drains| wish(drains, member.address));
                let name = || member.name.clone();
                match wishes {
                    [before, now] if before == now => {}
                    [_, Wish::Serve] => inner.ring.push(at, Change::DrainEnded { member: name() }),
                    [_, now] => {
                        let by_force = now == Wish::DrainByForce;
                        inner.ring.push(at, Change::DrainBegan { member: name(), by_force });
                    }
                }
            }
            inner.snapshot = snapshot;
        });
    }

    /// The drains of the disk are no news.
    pub fn begin_with(&self, drains: &Drains) {
        self.lock().snapshot.drains = drains.clone();
    }

    /// Every peer that the election knows.
    pub fn peers(&self, peers: Vec<Peer>, at: Timestamp) {
        self.change(|inner| {
            let peers: BTreeMap<String, Peer> = peers.into_iter().map(|peer| (peer.node.clone(), peer)).collect();
            for (node, peer) in &peers {
                if inner.peers.get(node).is_some_and(|before| before.alive != peer.alive) {
                    inner.ring.push(at, Change::PeerChanged { node: node.clone(), alive: peer.alive });
                }
            }
            inner.peers = peers;
        });
    }

    pub fn events(&self, run: u64, after: u64) -> Events {
        self.lock().ring.after(run, after)
    }

    /// Changes when there is an event.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    pub fn address_of(&self, member: &str) -> Option<Ipv4Addr> {
        self.lock().endpoint.members.iter().find(|known| known.name == member).map(|member| member.address)
    }

    pub fn is_member(&self, address: Ipv4Addr) -> bool {
        name(&self.lock().endpoint, address).is_some()
    }

    pub fn names(&self) -> Vec<String> {
        self.lock().endpoint.members.iter().map(|member| member.name.clone()).collect()
    }

    pub fn status(&self, surroundings: Surroundings, at: Timestamp) -> Status {
        let Surroundings { version, not_ready, notes, traffic } = surroundings;
        let inner = self.lock();
        let addresses = inner.owners.iter().map(|(address, owned)| Address {
            address: *address,
            owner: owned.owner.clone(),
            term: owned.term,
            since: owned.since,
            reason: owned.reason.clone(),
            history: owned.history.clone(),
        });
        let members = inner.endpoint.members.iter().map(|member| Member {
            name: member.name.clone(),
            address: member.address,
            speaker: member.speaker,
            drained: drained(&inner.snapshot.drains, member.address),
        });
        let ports = inner.endpoint.ports.iter().map(|port| Port {
            listen: port.listen,
            target: port.target,
            check: if port.check == Check::Https { "https" } else { "tls" }.to_owned(),
            traffic: traffic.get(&port.listen).copied(),
            members: self.servers(&inner, port.listen, port.target),
        });
        let counts = |node: &String| {
            let Sum { others, own, .. } = &inner.snapshot.totals;
            if *node == self.node { own.is_some() } else { others.contains(node) }
        };
        let speakers = inner.endpoint.members.iter().filter(|member| member.speaker).map(|member| member.name.clone());
        let (counted_by, not_counted_by) = speakers.partition(counts);
        Status {
            node: self.node.clone(),
            version,
            at,
            not_ready,
            notes,
            file: Some(inner.file.clone()),
            addresses: addresses.collect(),
            members: members.collect(),
            ports: ports.collect(),
            counted_by,
            not_counted_by,
            peers: self.peers_of(&inner),
        }
    }

    /// Also those that were never heard of.
    fn peers_of(&self, inner: &Inner) -> Vec<Peer> {
        let others = inner.endpoint.members.iter().filter(|member| member.speaker && member.name != self.node);
        let unheard = |name: &String| Peer { node: name.clone(), alive: false, lost: 0, of: 0 };
        others.map(|member| inner.peers.get(&member.name).cloned().unwrap_or_else(|| unheard(&member.name))).collect()
    }

    fn servers(&self, inner: &Inner, listen: u16, target: u16) -> Vec<Server> {
        let weights = inner.snapshot.weights(listen, target);
        let states = inner.snapshot.states();
        let server = |member: &sheave_endpoint::Member| {
            let target = Target { address: member.address, port: target };
            let known = inner.servers.get(&target)?;
            let place = inner.snapshot.place(target)?;
            let http_status = place.http_status();
            let [total, counted_here] = inner.snapshot.totals_of(listen, member.address);
            Some(Server {
                member: member.name.clone(),
                state: known.state,
                reason: states.get(&target)?.1.clone(),
                http_status,
                since: known.since,
                check_millis: place.checked.map(|checked| u64::try_from(checked.took.as_millis()).unwrap_or(u64::MAX)),
                connections: inner.snapshot.connections_to(listen, member.address),
                total,
                counted_here,
                weight: weights.as_ref().map(|weights| weights.get(&member.address).copied().unwrap_or(0)),
                via: if member.speaker { Vec::new() } else { inner.snapshot.nodes_of(target) },
            })
        };
        inner.endpoint.members.iter().filter_map(server).collect()
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let last = {
            let mut inner = self.lock();
            change(&mut inner);
            inner.ring.last()
        };
        self.newest.send_if_modified(|newest| std::mem::replace(newest, last) != last);
    }

    /// A panic while it was held may have lost a fact; the next one of its kind replaces it.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(endpoint: &Endpoint, address: Ipv4Addr) -> Option<String> {
    endpoint.members.iter().find(|member| member.address == address).map(|member| member.name.clone())
}

fn drained(drains: &Drains, member: Ipv4Addr) -> Option<Drained> {
    let drain = drains.get(&member).filter(|drain| drain.wish != Wish::Serve)?;
    let since = i64::try_from(drain.at).ok().and_then(|at| Timestamp::from_millisecond(at).ok()).unwrap_or_default();
    Some(Drained { since, by_force: drain.wish == Wish::DrainByForce })
}

#[cfg(test)]
mod tests;
