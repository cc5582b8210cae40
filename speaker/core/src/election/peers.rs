//! All peers: who is up, who must be believed, what they claim.
//!
//! Read first: docs/election.md sections Freshness and Peers.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::peer::{Challenges, Claims, Held, Incarnation};
use super::state::{Config, PeerStatus};
use crate::name::{NodeName, Term, Vip};
use crate::time::Instant;
use crate::wire::advert::{Advert, Body, MAX_HEARD, Reject};

/// Incarnations of one peer that are given the chance to prove themselves at a time.
const MAX_CANDIDATES: usize = 4;

/// Peers that are kept at most: as many as a heartbeat can name.
pub(super) const MAX_PEERS: usize = MAX_HEARD;

#[derive(Debug, Default)]
pub(super) struct Peers {
    peers: BTreeMap<NodeName, Peer>,
    /// Claims of incarnations that are over, until their lease is.
    ghosts: Vec<Ghost>,
    /// When any peer was heard last.
    last_sound: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Peer {
    /// The incarnation that has proved to be alive in this node's own time.
    pub current: Option<Incarnation>,
    /// Those that have not yet: the next one, or recordings. They are named in heartbeats, so that they can; their claims delay
    /// this node's, nothing more.
    candidates: Vec<Incarnation>,
    pub up: bool,
    /// Silent here, but heard by a peer: taken to be up for as long as that lasts (rule R6).
    vouched: bool,
}

#[derive(Debug)]
struct Ghost {
    until: Instant,
    claims: Claims,
}

/// What a datagram did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Received {
    pub verified: bool,
    pub came_up: bool,
    /// An earlier incarnation is over: the challenge must change, so that no recording of it can answer.
    pub replaced: bool,
    pub decisive: bool,
    /// A heartbeat of one who is new here, or has a new challenge, or the digest of a claim list that is not known.
    pub answer: bool,
}

impl Peers {
    pub fn receive(
        &mut self,
        advert: Advert,
        own: Challenges,
        config: &Config,
        now: Instant,
    ) -> Result<Received, Reject> {
        self.make_room(&advert.node, config, now)?;
        let received = self.receive_from(advert, own, config, now)?;
        if received.verified {
            if self.is_hushed(config, now) {
                self.break_hush(config, now);
            }
            self.last_sound = now;
        }
        Ok(received)
    }

    fn receive_from(
        &mut self,
        advert: Advert,
        own: Challenges,
        config: &Config,
        now: Instant,
    ) -> Result<Received, Reject> {
        let peer = self.peers.entry(advert.node.clone()).or_default();
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
                current.first_heard = now;
            }
            return Ok(Received {
                verified: change.newest,
                came_up,
                replaced: false,
                decisive: change.decisive || came_up,
                answer: change.challenged || heartbeat && change.newest && (came_up || !current.claims_known()),
            });
        }
        peer.receive_unknown(advert, own, config, now, &mut self.ghosts)
    }

    /// A peer that has been silent for a while gives way to a new one.
    fn make_room(&mut self, node: &NodeName, config: &Config, now: Instant) -> Result<(), Reject> {
        if self.peers.len() < MAX_PEERS || self.peers.contains_key(node) {
            return Ok(());
        }
        let gone = |peer: &Peer| !peer.up && !peer.candidates.iter().any(|candidate| candidate.is_fresh(config, now));
        let oldest = self.peers.iter().filter(|(_, peer)| gone(peer)).min_by_key(|(_, peer)| peer.last_heard());
        let name = oldest.map(|(name, _)| name.clone()).ok_or(Reject::TooManyPeers)?;
        self.peers.remove(&name);
        Ok(())
    }

    /// Nobody has been heard for so long that it may be this node that is cut off (rule R3a). With one peer there is no telling.
    fn is_hushed(&self, config: &Config, now: Instant) -> bool {
        now > self.last_sound + config.hush() && self.direct().nth(1).is_some()
    }

    /// Somebody is heard again: the others get the time to speak that they need.
    fn break_hush(&mut self, config: &Config, now: Instant) {
        let silent_since = now + config.testimony_window() - config.dead();
        for current in self.peers.values_mut().filter(|peer| peer.up).filter_map(|peer| peer.current.as_mut()) {
            current.last_heard = current.last_heard.max(silent_since);
        }
    }

    /// Declares silent peers down, unless another peer hears them (rule R6). Names those who went down, and tells whether the
    /// claims of an incarnation that is over have ended.
    pub fn expire(&mut self, config: &Config, now: Instant) -> (Vec<NodeName>, bool) {
        let ghosts = self.ghosts.len();
        self.ghosts.retain(|ghost| now < ghost.until);
        let laid = self.ghosts.len() < ghosts;
        if self.is_hushed(config, now) && now < self.last_sound + config.dead() {
            return (Vec::new(), laid);
        }
        let silent: Vec<(NodeName, u32, bool)> = self
            .peers
            .iter()
            .filter_map(|(name, peer)| {
                peer.current.as_ref().filter(|_| peer.up).map(|current| (name, current, peer.vouched))
            })
            .filter(|(_, current, _)| !current.is_fresh(config, now))
            .map(|(name, current, vouched)| (name.clone(), current.challenge, vouched))
            .collect();
        let mut down = Vec::new();
        for (name, challenge, vouched) in silent {
            // Once vouched for, a peer is not given up for one lost heartbeat of its witness.
            let since = if vouched { now - config.dead() } else { now - config.testimony_window() };
            let witnessed =
                self.direct().any(|(_, witness)| witness.is_fresh(config, now) && witness.hears(challenge, since));
            if let Some(peer) = self.peers.get_mut(&name) {
                peer.vouched = witnessed;
                peer.up = witnessed;
            }
            if !witnessed {
                down.push(name);
            }
        }
        (down, laid)
    }

    /// When `expire` has something to do, after it was called at `last`: what it put off then it looks at again soon.
    pub fn next_expiry(&self, config: &Config, last: Instant) -> Option<Instant> {
        let silence = |(_, peer): (_, &Incarnation)| peer.silent_at(config);
        let next = self.up().map(silence).chain(self.ghosts.iter().map(|ghost| ghost.until)).min()?;
        Some(if next <= last { last + config.rank_skew } else { next })
    }

    /// The silence was this node's own: everybody gets a fresh start.
    pub fn forgive_silence(&mut self, now: Instant) {
        self.last_sound = now;
        for peer in self.peers.values_mut().filter(|peer| peer.up) {
            if let Some(current) = &mut peer.current {
                current.last_heard = now;
            }
        }
    }

    /// Up, also on the word of others.
    pub fn up(&self) -> impl Iterator<Item = (&NodeName, &Incarnation)> {
        self.peers.iter().filter(|(_, peer)| peer.up).filter_map(|(name, peer)| Some((name, peer.current.as_ref()?)))
    }

    /// Up and heard by this node itself.
    pub fn direct(&self) -> impl Iterator<Item = (&NodeName, &Incarnation)> {
        let direct = self.peers.iter().filter(|(_, peer)| peer.up && !peer.vouched);
        direct.filter_map(|(name, peer)| Some((name, peer.current.as_ref()?)))
    }

    /// Heard, and they hear this node.
    pub fn mutual(&self, config: &Config, now: Instant) -> impl Iterator<Item = &NodeName> {
        self.direct().filter(move |(_, peer)| peer.hears_us(config, now)).map(|(name, _)| name)
    }

    pub fn all(&self) -> impl Iterator<Item = (&NodeName, &Peer)> {
        self.peers.iter()
    }

    pub fn is_up(&self, node: &NodeName) -> bool {
        self.peers.get(node).is_some_and(|peer| peer.up)
    }

    /// The challenges to name in a heartbeat.
    pub fn heard(&self, config: &Config, now: Instant) -> Vec<u32> {
        let incarnations = self.peers.values().flat_map(Peer::incarnations);
        let heard = incarnations.filter(|peer| now < peer.last_heard + config.heard_window());
        heard.map(|peer| peer.challenge).take(MAX_HEARD).collect()
    }

    /// Somebody who is heard has a claim list that this node does not know.
    pub fn misses_claims(&self) -> bool {
        self.direct().any(|(_, peer)| !peer.claims_known())
    }

    /// Everybody who is heard has proved so since `challenge`, and has told its claims.
    pub fn view_is_full(&self, challenge: u32, config: &Config, now: Instant) -> bool {
        let mut candidates = self.peers.values().flat_map(|peer| &peer.candidates);
        self.direct().all(|(_, peer)| peer.has_answered(challenge) && peer.claims_known())
            && !candidates.any(|candidate| candidate.is_fresh(config, now))
    }

    /// The claims on a VIP of peers that are up.
    pub fn claims(&self, vip: Vip) -> impl Iterator<Item = (&NodeName, &Incarnation, Held)> {
        self.up().filter_map(move |(name, peer)| Some((name, peer, *peer.claims.get(&vip)?)))
    }

    /// Until when an incarnation that is over may hold this VIP.
    pub fn haunted_until(&self, vip: Vip, now: Instant) -> Option<Instant> {
        let ghosts = self.ghosts.iter().filter(|ghost| now < ghost.until && ghost.claims.contains_key(&vip));
        ghosts.map(|ghost| ghost.until).max()
    }

    /// Until when an incarnation that has not proved itself may hold this VIP. One with a lower epoch than is known of its node
    /// is a recording, for all we know: it delays nobody.
    pub fn doubtful_until(&self, vip: Vip, config: &Config, now: Instant) -> Option<Instant> {
        let plausible = |peer: &Peer, epoch| peer.current.as_ref().is_none_or(|current| epoch > current.epoch);
        let candidates = self.peers.values().flat_map(|peer| peer.candidates.iter().map(move |c| (peer, c)));
        let claims = candidates.filter(|(peer, c)| c.claims.contains_key(&vip) && plausible(peer, c.epoch));
        claims.map(|(_, candidate)| candidate.silent_at(config)).filter(|until| now < *until).max()
    }

    /// The highest term anybody has claimed this VIP with, dead or alive.
    pub fn highest_term(&self, vip: Vip) -> Option<Term> {
        let incarnations = self.peers.values().flat_map(Peer::incarnations);
        incarnations.filter_map(|peer| Some(peer.claims.get(&vip)?.term)).max()
    }
}

impl Peer {
    /// An advert of an incarnation that is not the current one.
    fn receive_unknown(
        &mut self,
        advert: Advert,
        own: Challenges,
        config: &Config,
        now: Instant,
        ghosts: &mut Vec<Ghost>,
    ) -> Result<Received, Reject> {
        // A lower epoch (a wall clock that was set back) has to wait until the higher one is silent.
        let older = self.current.as_ref().is_some_and(|current| advert.epoch < current.epoch);
        if older && self.up {
            return Err(Reject::StaleEpoch);
        }
        let proves_freshness = matches!(&advert.body, Body::Heartbeat { heard } if heard.contains(&own.current));
        let (epoch, heartbeat) = (advert.epoch, matches!(advert.body, Body::Heartbeat { .. }));
        let candidate = self.candidate(&advert, now);
        let change = candidate.take(advert, own, now)?;
        if !proves_freshness {
            let answer = heartbeat && change.newest;
            return Ok(Received { decisive: change.decisive, answer, ..Received::default() });
        }
        let replaced = self.current.take();
        self.current = self.candidates.extract_if(.., |candidate| candidate.epoch == epoch).next();
        let came_up = !self.up;
        (self.up, self.vouched) = (true, false);
        if let Some(old) = &replaced {
            ghosts.push(Ghost { until: old.silent_at(config), claims: old.claims.clone() });
        }
        Ok(Received { verified: true, came_up, replaced: replaced.is_some(), decisive: true, answer: true })
    }

    /// The candidate of this epoch; if there is no room, in place of the one that was not heard for the longest time.
    fn candidate(&mut self, advert: &Advert, now: Instant) -> &mut Incarnation {
        let known = self.candidates.iter().position(|candidate| candidate.epoch == advert.epoch);
        let at = known.unwrap_or_else(|| {
            if self.candidates.len() < MAX_CANDIDATES {
                self.candidates.push(Incarnation::new(advert, now));
                return self.candidates.len() - 1;
            }
            let oldest = self.candidates.iter().enumerate().min_by_key(|(_, candidate)| candidate.last_heard);
            let at = oldest.map_or(0, |(at, _)| at);
            self.candidates[at] = Incarnation::new(advert, now);
            at
        });
        &mut self.candidates[at]
    }

    fn incarnations(&self) -> impl Iterator<Item = &Incarnation> {
        self.current.iter().chain(&self.candidates)
    }

    fn last_heard(&self) -> Option<Instant> {
        self.incarnations().map(|incarnation| incarnation.last_heard).max()
    }

    pub fn status(&self, name: &NodeName, config: &Config, now: Instant) -> Option<PeerStatus> {
        let shown = self.incarnations().next()?;
        Some(PeerStatus {
            node: name.clone(),
            epoch: shown.epoch,
            alive: self.up,
            vouched: self.vouched,
            verified: self.current.is_some(),
            hears_us: shown.hears_us(config, now),
            ready: shown.flags.ready,
            leaving: shown.flags.leaving,
            last_heard: shown.last_heard,
            claims: shown.claims.len(),
        })
    }
}
