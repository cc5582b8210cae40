//! All peers: which are up, which are verified, what they claim.
//!
//! Read first: docs/election.md sections Freshness and Peers.

mod silence;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::peer::{Challenges, Change, Claims, Held, Incarnation, Received};
use super::state::{Config, PeerStatus};
use crate::name::{NodeName, Term, Vip};
use crate::rank;
use crate::time::{Duration, Instant};
use crate::wire::advert::{Advert, Body, MAX_ECHOES, Reject};
use silence::Silence;

/// Unverified incarnations of one peer that are kept at a time.
const MAX_CANDIDATES: usize = 4;

/// For so long after an advert of an incarnation, whatever its pace, those with a lower epoch are refused. No node joins sooner than that.
pub(super) const STALE: Duration = Duration::from_millis(160);

/// Peers that are kept at most: as many as a heartbeat can name.
pub(super) const MAX_PEERS: usize = MAX_ECHOES;

#[derive(Debug, Default)]
pub(super) struct Peers {
    peers: BTreeMap<NodeName, Peer>,
    /// The peers of which any incarnation claims a VIP: a decision reads these only.
    claimants: BTreeMap<Vip, Vec<NodeName>>,
    /// The nodes of the view. `None` until the first one.
    members: Option<BTreeSet<NodeName>>,
    /// The view is a saved one, and there may be newer nodes; else adverts of nodes that it does not have have no effect.
    open: bool,
    silence: Silence,
}

#[derive(Debug)]
pub(super) struct Peer {
    /// The incarnation that has proved to be alive in this node's own time.
    pub current: Option<Incarnation>,
    /// Incarnations that have not yet: the next one, or recordings. Heartbeats echo them, so that they can; their claims delay
    /// this node's, nothing more.
    candidates: Vec<Incarnation>,
    /// Incarnations that were replaced: their kernels may answer until then.
    expired: Vec<Expired>,
    pub up: bool,
    /// Silent here, but received by a peer: taken to be up for as long as that lasts (rule R6).
    vouched: bool,
    /// Of its name, for its rank.
    pub hash: u64,
}

#[derive(Debug)]
struct Expired {
    until: Instant,
    claims: Claims,
}

/// What the passing of time did.
#[derive(Debug, Default)]
pub(super) struct Lapsed {
    /// And whether their speakers had said that they end.
    pub down: Vec<(NodeName, bool)>,
    /// VIPs to be decided anew.
    pub vips: Vec<Vip>,
}

impl Peers {
    pub fn receive(
        &mut self,
        advert: Advert,
        own: Challenges,
        config: &Config,
        now: Instant,
    ) -> Result<Received, Reject> {
        if !self.open && !self.is_member(&advert.node) {
            return Err(Reject::UnknownNode);
        }
        self.make_room(&advert.node, config, now)?;
        let node = advert.node.clone();
        let received = self.receive_from(advert, own, config, now)?;
        self.index(&node, &received.vips);
        if received.verified {
            let current = self.peers.get(&node).and_then(|peer| peer.current.as_ref());
            let silent = current.map_or_else(|| now + config.dead(), |current| current.silent_at(config));
            self.heard(silent, config, now);
        }
        Ok(received)
    }

    /// The nodes of the view. Adverts of others have no effect from now on, and what they claimed no longer counts; except while the view
    /// is a saved one.
    pub fn set_members(&mut self, members: BTreeSet<NodeName>) -> Lapsed {
        self.members = Some(members);
        self.remove_strangers()
    }

    pub fn set_open(&mut self, open: bool) -> Lapsed {
        self.open = open;
        self.remove_strangers()
    }

    /// Of the view; before there is one, every node may be.
    pub fn is_member(&self, node: &NodeName) -> bool {
        self.members.as_ref().is_none_or(|members| members.contains(node))
    }

    fn remove_strangers(&mut self) -> Lapsed {
        let strangers = self.peers.keys().filter(|name| !self.open && !self.is_member(name));
        let gone: Vec<NodeName> = strangers.cloned().collect();
        let mut lapsed = Lapsed::default();
        for name in gone {
            let Some(peer) = self.remove(&name) else { continue };
            lapsed.vips.extend(peer.mentioned());
            if peer.up {
                let left = peer.current.is_some_and(|current| current.flags.leaving);
                lapsed.down.push((name, left));
            }
        }
        lapsed
    }

    fn remove(&mut self, name: &NodeName) -> Option<Peer> {
        let peer = self.peers.remove(name)?;
        let vips: Vec<Vip> = peer.mentioned().collect();
        self.index(name, &vips);
        Some(peer)
    }

    /// Keeps `claimants` true after these VIPs may have changed for a peer.
    fn index(&mut self, name: &NodeName, vips: &[Vip]) {
        for vip in vips {
            let claims = self.peers.get(name).is_some_and(|peer| peer.mentions(*vip));
            let known = self.claimants.entry(*vip).or_default();
            let at = known.iter().position(|claimant| claimant == name);
            match (at, claims) {
                (None, true) => known.push(name.clone()),
                (Some(at), false) => drop(known.remove(at)),
                _ => {}
            }
            if known.is_empty() {
                self.claimants.remove(vip);
            }
        }
    }

    fn receive_from(
        &mut self,
        advert: Advert,
        own: Challenges,
        config: &Config,
        now: Instant,
    ) -> Result<Received, Reject> {
        let peer = self.peers.entry(advert.node.clone()).or_insert_with(|| Peer::new(&advert.node));
        if let Some(current) = &mut peer.current
            && current.epoch == advert.epoch
        {
            let silent = !current.is_fresh(config, now);
            let heartbeat = matches!(advert.body, Body::Heartbeat { .. });
            let change = current.take(advert, own, now)?;
            let came_up = change.newest && !peer.up;
            if change.newest {
                (peer.up, peer.vouched) = (true, false);
            }
            if came_up && silent {
                (current.first_received, current.ready_since) = (now, now);
            }
            let Change { newest, flags, mut vips, challenged, mac } = change;
            if came_up || flags {
                vips.extend(current.claims.keys());
            }
            return Ok(Received {
                verified: newest,
                came_up,
                replaced: false,
                flags: flags || came_up,
                vips,
                answer: challenged || heartbeat && newest && (came_up || !current.claims_known()),
                mac,
                receives_us: current.receives_us(config, now),
                pace: current.pace,
            });
        }
        peer.receive_unknown(advert, own, config, now)
    }

    /// A peer that has been silent for a while gives way to a new one.
    fn make_room(&mut self, node: &NodeName, config: &Config, now: Instant) -> Result<(), Reject> {
        if self.peers.len() < MAX_PEERS || self.peers.contains_key(node) {
            return Ok(());
        }
        let gone = |peer: &Peer| !peer.up && !peer.candidates.iter().any(|candidate| candidate.is_fresh(config, now));
        let oldest = self.peers.iter().filter(|(_, peer)| gone(peer)).min_by_key(|(_, peer)| peer.last_received());
        let name = oldest.map(|(name, _)| name.clone()).ok_or(Reject::TooManyPeers)?;
        self.remove(&name);
        Ok(())
    }

    /// Declares silent peers down, unless another peer receives them (rule R6), and ends the claims of expired incarnations.
    pub fn expire(&mut self, config: &Config, now: Instant) -> Lapsed {
        let mut lapsed = Lapsed { down: Vec::new(), vips: self.end_expired(now) };
        if self.group_silence(config, now).is_none_or(|until| now >= until) {
            self.declare_down(config, now, &mut lapsed);
        }
        self.survey(config, now);
        lapsed
    }

    fn end_expired(&mut self, now: Instant) -> Vec<Vip> {
        let mut ended: Vec<(NodeName, Vec<Vip>)> = Vec::new();
        for (name, peer) in self.peers.iter_mut().filter(|(_, peer)| !peer.expired.is_empty()) {
            let over = peer.expired.extract_if(.., |expired| now >= expired.until);
            ended.push((name.clone(), over.flat_map(|expired| expired.claims.into_keys()).collect()));
        }
        ended.iter().for_each(|(name, vips)| self.index(name, vips));
        ended.into_iter().flat_map(|(_, vips)| vips).collect()
    }

    fn declare_down(&mut self, config: &Config, now: Instant, lapsed: &mut Lapsed) {
        let up = self.peers.iter().filter(|(_, peer)| peer.up);
        let up = up.filter_map(|(name, peer)| Some((name, peer.current.as_ref()?, peer.vouched)));
        let silent: Vec<(NodeName, u32, bool, Duration)> = up
            .filter(|(_, current, _)| !current.is_fresh(config, now))
            .map(|(name, current, vouched)| {
                (name.clone(), current.challenge, vouched, current.testimony(vouched, config))
            })
            .collect();
        for (name, challenge, vouched, most) in silent {
            // Once vouched for, a peer is not given up for one lost heartbeat of its witness.
            let witnessed = self.direct().any(|(_, witness)| {
                let window = if vouched { witness.dead(config) } else { witness.next_beat(config) };
                witness.is_fresh(config, now) && witness.echoes_challenge(challenge, now - window.min(most))
            });
            let Some(peer) = self.peers.get_mut(&name) else { continue };
            (peer.vouched, peer.up) = (witnessed, witnessed);
            let Some(current) = peer.current.as_ref().filter(|_| !witnessed) else { continue };
            lapsed.vips.extend(current.claims.keys());
            lapsed.down.push((name, current.flags.leaving));
            self.silence.went_down(current.last_received + current.overdue(config));
        }
    }

    /// Up, also by the echoes of other peers.
    pub fn up(&self) -> impl Iterator<Item = (&NodeName, &Incarnation)> {
        self.peers.iter().filter(|(_, peer)| peer.up).filter_map(|(name, peer)| Some((name, peer.current.as_ref()?)))
    }

    /// [`Self::up`], each with the hash of its name.
    pub fn ranked(&self) -> impl Iterator<Item = (&NodeName, &Incarnation, u64)> {
        let up = self.peers.iter().filter(|(_, peer)| peer.up);
        up.filter_map(|(name, peer)| Some((name, peer.current.as_ref()?, peer.hash)))
    }

    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Up and received by this node itself.
    pub fn direct(&self) -> impl Iterator<Item = (&NodeName, &Incarnation)> {
        let direct = self.peers.iter().filter(|(_, peer)| peer.up && !peer.vouched);
        direct.filter_map(|(name, peer)| Some((name, peer.current.as_ref()?)))
    }

    /// Received, and they receive this node.
    pub fn mutual(&self, config: &Config, now: Instant) -> impl Iterator<Item = &NodeName> {
        self.direct().filter(move |(_, peer)| peer.receives_us(config, now)).map(|(name, _)| name)
    }

    pub fn all(&self) -> impl Iterator<Item = (&NodeName, &Peer)> {
        self.peers.iter()
    }

    pub fn is_up(&self, node: &NodeName) -> bool {
        self.peers.get(node).is_some_and(|peer| peer.up)
    }

    /// The challenges to name in a heartbeat.
    pub fn echoes(&self, config: &Config, now: Instant) -> Vec<u32> {
        let incarnations = self.peers.values().flat_map(Peer::incarnations);
        let echoes = incarnations.filter(|peer| now < peer.last_received + peer.echo_window(config));
        echoes.map(|peer| peer.challenge).take(MAX_ECHOES).collect()
    }

    /// A received peer has a claim list that this node does not know.
    pub fn misses_claims(&self) -> bool {
        self.direct().any(|(_, peer)| !peer.claims_known())
    }

    /// All received peers have proved so since `challenge`, and have sent their claims.
    pub fn view_is_full(&self, challenge: u32, config: &Config, now: Instant) -> bool {
        let mut candidates = self.peers.values().flat_map(|peer| &peer.candidates);
        self.direct().all(|(_, peer)| peer.has_answered(challenge) && peer.claims_known())
            && !candidates.any(|candidate| candidate.is_fresh(config, now))
    }

    fn claimants(&self, vip: Vip) -> impl Iterator<Item = (&NodeName, &Peer)> {
        let names = self.claimants.get(&vip).into_iter().flatten();
        names.filter_map(|name| Some((name, self.peers.get(name)?)))
    }

    /// The claims on a VIP of peers that are up.
    pub fn claims(&self, vip: Vip) -> impl Iterator<Item = (&NodeName, &Incarnation, Held)> {
        self.claimants(vip).filter(|(_, peer)| peer.up).filter_map(move |(name, peer)| {
            let current = peer.current.as_ref()?;
            Some((name, current, *current.claims.get(&vip)?))
        })
    }

    /// Until when the kernel of an expired incarnation may answer for this VIP.
    pub fn answered_until(&self, vip: Vip, now: Instant) -> Option<Instant> {
        let expired = self.claimants(vip).flat_map(|(_, peer)| &peer.expired);
        expired
            .filter(|expired| now < expired.until && expired.claims.contains_key(&vip))
            .map(|expired| expired.until)
            .max()
    }

    /// Until when an incarnation that is not verified may hold this VIP. An incarnation with a lower epoch than another one of its
    /// node is a recording, as far as this node can judge: it delays no claim.
    pub fn unverified_until(&self, vip: Vip, config: &Config, now: Instant) -> Option<Instant> {
        let newest = self.claimants(vip).filter_map(|(_, peer)| peer.newest_candidate());
        let claims = newest.filter(|candidate| candidate.claims.contains_key(&vip));
        claims.map(|candidate| candidate.silent_at(config)).filter(|until| now < *until).max()
    }

    /// The highest term any incarnation has claimed this VIP with, dead or alive.
    pub fn highest_term(&self, vip: Vip) -> Option<Term> {
        let incarnations = self.claimants(vip).flat_map(|(_, peer)| peer.incarnations());
        incarnations.filter_map(|peer| Some(peer.claims.get(&vip)?.term)).max()
    }
}

impl Peer {
    fn new(name: &NodeName) -> Self {
        Self {
            current: None,
            candidates: Vec::new(),
            expired: Vec::new(),
            up: false,
            vouched: false,
            hash: rank::hash_name(name),
        }
    }

    fn claim_lists(&self) -> impl Iterator<Item = &Claims> {
        self.incarnations()
            .map(|incarnation| &incarnation.claims)
            .chain(self.expired.iter().map(|expired| &expired.claims))
    }

    fn mentions(&self, vip: Vip) -> bool {
        self.claim_lists().any(|claims| claims.contains_key(&vip))
    }

    fn mentioned(&self) -> impl Iterator<Item = Vip> {
        self.claim_lists().flat_map(|claims| claims.keys().copied())
    }

    /// An advert of an incarnation that is not the current one.
    fn receive_unknown(
        &mut self,
        advert: Advert,
        own: Challenges,
        config: &Config,
        now: Instant,
    ) -> Result<Received, Reject> {
        // A lower epoch (a wall clock that was set back) has to wait until the higher one is silent. Not until it is dead: a new speaker may
        // be faster than the one before it, and would be a member, and own VIPs, long before a peer knows it.
        let higher = self.current.as_ref().filter(|current| self.up && advert.epoch < current.epoch);
        if higher.is_some_and(|current| now < current.last_received + current.dead(config).min(STALE)) {
            return Err(Reject::StaleEpoch);
        }
        let proves_freshness = matches!(&advert.body, Body::Heartbeat { echoes } if echoes.contains(&own.current));
        let (epoch, heartbeat) = (advert.epoch, matches!(advert.body, Body::Heartbeat { .. }));
        let (candidate, evicted) = self.candidate(&advert, now);
        let change = candidate.take(advert, own, now)?;
        let mut vips: Vec<Vip> = evicted.map(|evicted| evicted.claims.into_keys().collect()).unwrap_or_default();
        vips.extend(change.vips);
        if !proves_freshness {
            let answer = heartbeat && change.newest;
            return Ok(Received { vips, answer, ..Received::default() });
        }
        let replaced = self.current.take();
        self.current = self.candidates.extract_if(.., |candidate| candidate.epoch == epoch).next();
        let came_up = !self.up;
        (self.up, self.vouched) = (true, false);
        vips.extend(self.current.iter().flat_map(|current| current.claims.keys()));
        let was_replaced = replaced.is_some();
        if let Some(old) = replaced {
            vips.extend(old.claims.keys());
            self.expired.push(Expired { until: old.silent_at(config), claims: old.claims });
        }
        Ok(Received {
            verified: true,
            came_up,
            replaced: was_replaced,
            flags: true,
            vips,
            answer: true,
            mac: None,
            receives_us: true,
            pace: self.current.as_ref().and_then(|current| current.pace),
        })
    }

    /// Of all incarnations the one with the highest epoch, unless it is verified.
    fn newest_candidate(&self) -> Option<&Incarnation> {
        let newest = self.candidates.iter().max_by_key(|candidate| candidate.epoch)?;
        self.current.as_ref().is_none_or(|current| newest.epoch > current.epoch).then_some(newest)
    }

    /// The candidate of this epoch; if there is no room, in place of the candidate received longest ago, which is returned. The one with
    /// the highest epoch stays: it may delay claims, and without its window a recording of it would do so again and again.
    fn candidate(&mut self, advert: &Advert, now: Instant) -> (&mut Incarnation, Option<Incarnation>) {
        // Until it states its own: most restarts change no pace.
        let pace = self.current.as_ref().and_then(|known| known.pace);
        let fresh = Incarnation::new(advert, pace, now);
        let mut evicted = None;
        let known = self.candidates.iter().position(|candidate| candidate.epoch == advert.epoch);
        let at = known.unwrap_or_else(|| {
            if self.candidates.len() < MAX_CANDIDATES {
                self.candidates.push(fresh);
                return self.candidates.len() - 1;
            }
            let newest = self.candidates.iter().map(|candidate| candidate.epoch).max();
            let others = self.candidates.iter().enumerate().filter(|(_, candidate)| Some(candidate.epoch) != newest);
            let oldest = others.min_by_key(|(_, candidate)| candidate.last_received);
            let at = oldest.map_or(0, |(at, _)| at);
            evicted = Some(core::mem::replace(&mut self.candidates[at], fresh));
            at
        });
        (&mut self.candidates[at], evicted)
    }

    fn incarnations(&self) -> impl Iterator<Item = &Incarnation> {
        self.current.iter().chain(&self.candidates)
    }

    fn last_received(&self) -> Option<Instant> {
        self.incarnations().map(|incarnation| incarnation.last_received).max()
    }

    pub fn status(&self, name: &NodeName, config: &Config, now: Instant) -> Option<PeerStatus> {
        let shown = self.incarnations().next()?;
        Some(PeerStatus {
            node: name.clone(),
            epoch: shown.epoch,
            alive: self.up,
            vouched: self.vouched,
            verified: self.current.is_some(),
            receives_us: shown.receives_us(config, now),
            ready: shown.flags.ready,
            leaving: shown.flags.leaving,
            last_received: shown.last_received,
            claims: shown.claims.len(),
            loss: shown.loss(),
        })
    }
}
