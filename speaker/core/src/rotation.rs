//! Which key signs, and which are accepted, while the signing key is replaced: no node may sign what a peer cannot verify.
//!
//! Read first: docs/election.md section Keys. A node accepts a new key as soon as it knows it, and every advert names the keys
//! that its sender accepts. So a node signs with the new key when each received peer has it, and with the previous one again when
//! a peer appears that has not. One byte travels; the keys themselves come from the Secret.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::machine::Machine;
use crate::name::NodeName;
use crate::time::{Duration, Instant};
use crate::wire::advert::{Key, Keyring, MAX_ECHOES, Signer};

/// The signing keys of the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    pub current: Key,
    pub previous: Option<Key>,
}

#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// A peer is up for this long after an advert; a slower one for longer (`window_of`).
    pub window: Duration,
    /// How long all peers must have had the new key before the first node signs with it. Longer than `window`; longer where slower peers
    /// are ([`Event::Slowest`]).
    pub grace: Duration,
    /// A key that the Secret does not name is refused after this time, whatever peers name: so a stolen key ends.
    pub revocation: Duration,
}

impl Config {
    /// For peers that are declared down after `dead`.
    pub fn new(dead: Duration) -> Self {
        let window = Self::window_of(dead);
        Self { window, grace: Self::grace_of(dead), revocation: Duration::from_secs(600) }
    }

    fn window_of(dead: Duration) -> Duration {
        3 * dead
    }

    fn grace_of(dead: Duration) -> Duration {
        Duration::from_secs(2).max(2 * Self::window_of(dead))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The Secret, when it is read or has changed.
    Secret(Secret),
    /// Before a Secret: the silence after which the slowest peer is dead. One that lacks the new key may have been received last so long
    /// ago.
    Slowest(Duration),
    /// A verified advert. Needed only while the ring has two keys.
    Received {
        node: NodeName,
        signer: Signer,
        other_hint: u8,
        /// The silence after which it is dead; `None`: as this node.
        dead: Option<Duration>,
    },
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sign and verify with these from now on.
    Keys(Keyring),
    /// Peers whose only key is the one to be replaced. Empty: no longer.
    Lacking(BTreeSet<NodeName>),
}

/// One node's part in it.
#[derive(Debug)]
pub struct Rotation {
    config: Config,
    secret: Secret,
    signing: Key,
    /// What this node signed with before, until its peers do not.
    retiring: Option<Key>,
    /// The last change of the Secret, or of the key that signs.
    changed: Instant,
    /// Since when the key that signs is not, or is, one of the Secret's.
    noticed: Instant,
    /// When a peer without both keys was received last.
    lacked: Instant,
    peers: BTreeMap<NodeName, Peer>,
    /// No peer is silent earlier. It may be past: every advert would have to compare all peers else.
    silent: Option<Instant>,
    /// After this silence the slowest peer is dead.
    slowest: Duration,
    lacking: BTreeSet<NodeName>,
    /// Peers visited: what the time of this machine is proportional to.
    work: u64,
}

#[derive(Clone, Debug)]
struct Peer {
    /// It is up until then.
    until: Instant,
    signs_with: Key,
    other_hint: u8,
}

impl Peer {
    fn has(&self, key: &Key) -> bool {
        self.signs_with == *key || self.other_hint == key.hint()
    }
}

impl Rotation {
    /// `ring`: what the speaker before this one used last. Without it this node begins with the previous key, which every other node
    /// accepts that has read the same Secret or an earlier one.
    pub fn new(config: Config, secret: Secret, ring: Option<Keyring>, now: Instant) -> Self {
        let (signing, retiring) = match ring {
            Some(Keyring { current, other }) => (current, other),
            None => (secret.previous.clone().unwrap_or_else(|| secret.current.clone()), None),
        };
        Self {
            config,
            secret,
            signing,
            retiring,
            changed: now,
            noticed: now,
            lacked: now,
            peers: BTreeMap::new(),
            silent: None,
            slowest: Duration::ZERO,
            lacking: BTreeSet::new(),
            work: 0,
        }
    }

    pub fn ring(&self) -> Keyring {
        let Secret { current, previous } = &self.secret;
        let other = match self.next() {
            Some(next) => Some(next),
            None => previous.as_ref().or(self.retiring.as_ref()).filter(|key| *key != current).cloned(),
        };
        Keyring { current: self.signing.clone(), other }
    }

    /// This node signs with another key than the Secret's current one.
    pub fn is_under_way(&self) -> bool {
        self.signing != self.secret.current
    }

    /// Whether adverts of peers decide anything at the moment.
    pub fn has_two_keys(&self) -> bool {
        self.ring().other.is_some()
    }

    /// What this node is to sign with next. One key at a time: a node that has missed a rotation passes through the previous key.
    fn next(&self) -> Option<Key> {
        let Secret { current, previous } = &self.secret;
        if self.signing == *current {
            return None;
        }
        Some(previous.as_ref().filter(|key| **key != self.signing).unwrap_or(current).clone())
    }

    fn grace(&self) -> Duration {
        self.config.grace.max(Config::grace_of(self.slowest))
    }

    fn is_revoked(&self, key: &Key, now: Instant) -> bool {
        !self.is_named(key) && now.since(self.noticed) >= self.config.revocation
    }

    fn is_named(&self, key: &Key) -> bool {
        *key == self.secret.current || self.secret.previous.as_ref() == Some(key)
    }

    /// Peers visited since the start.
    pub fn work(&self) -> u64 {
        self.work
    }

    /// Whether that is news: most adverts repeat what their sender has stated before.
    fn on_received(
        &mut self,
        node: NodeName,
        signer: Signer,
        other_hint: u8,
        dead: Option<Duration>,
        now: Instant,
    ) -> bool {
        let Keyring { current, other } = self.ring();
        let Some(signs_with) = (match signer {
            Signer::Current => Some(current),
            Signer::Other => other,
        }) else {
            return false;
        };
        let until = now + dead.map_or(self.config.window, Config::window_of);
        self.slowest = self.slowest.max(dead.unwrap_or_default());
        let peer = Peer { until, signs_with, other_hint };
        let has_room = self.peers.len() < MAX_ECHOES;
        match self.peers.get_mut(&node) {
            Some(known) => {
                let known = core::mem::replace(known, peer.clone());
                (known.signs_with, known.other_hint) != (peer.signs_with, peer.other_hint) || now >= known.until
            }
            None if has_room => {
                self.silent.get_or_insert(until);
                self.peers.insert(node, peer);
                true
            }
            // One of those that are known may be silent.
            None => true,
        }
    }

    fn decide(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.work += self.peers.len() as u64;
        self.peers.retain(|_, peer| now < peer.until);
        self.silent = self.peers.values().map(|peer| peer.until).min();
        match self.next() {
            Some(next) => self.advance(next, now, actions),
            None => self.hold(now, actions),
        }
    }

    /// Signs with the old key, or with the new one if all peers have it.
    fn advance(&mut self, next: Key, now: Instant, actions: &mut Vec<Action>) {
        let lacking = self.without(&next);
        // Until its window was over a peer that lacked it had to be waited for.
        if !lacking.is_empty() || !self.lacking.is_empty() {
            self.lacked = now;
        }
        let waited = now.since(self.changed.max(self.lacked)) >= self.grace();
        let in_use = self.peers.values().any(|peer| peer.signs_with == next);
        let go = lacking.is_empty() && (waited || in_use) || self.is_revoked(&self.signing, now);
        self.report(lacking, actions);
        if go {
            self.sign_with(next, now, actions);
        }
    }

    /// Signs with the new key, unless a peer that has only the old one appears.
    fn hold(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let ring = self.ring();
        let lacking = self.without(&ring.current);
        let back = (!lacking.is_empty()).then_some(ring.other).flatten().filter(|key| !self.is_revoked(key, now));
        self.report(lacking, actions);
        if let Some(previous) = back {
            self.lacked = now;
            self.sign_with(previous, now, actions);
        } else if let Some(retiring) = &self.retiring
            && now.since(self.changed) >= self.grace()
            && (self.is_revoked(retiring, now) || self.peers.values().all(|peer| peer.signs_with != *retiring))
        {
            self.retiring = None;
            if self.secret.previous.is_none() {
                actions.push(Action::Keys(self.ring()));
            }
        }
    }

    fn without(&self, key: &Key) -> BTreeSet<NodeName> {
        self.peers.iter().filter(|(_, peer)| !peer.has(key)).map(|(node, _)| node.clone()).collect()
    }

    fn report(&mut self, lacking: BTreeSet<NodeName>, actions: &mut Vec<Action>) {
        if lacking != self.lacking {
            self.lacking = lacking.clone();
            actions.push(Action::Lacking(lacking));
        }
    }

    fn sign_with(&mut self, key: Key, now: Instant, actions: &mut Vec<Action>) {
        let before = core::mem::replace(&mut self.signing, key);
        self.retiring = Some(before);
        self.changed = now;
        actions.push(Action::Keys(self.ring()));
    }

    fn set_secret(&mut self, secret: Secret, now: Instant, actions: &mut Vec<Action>) {
        if secret == self.secret {
            return;
        }
        let before = self.ring();
        self.secret = secret;
        (self.changed, self.noticed) = (now, now);
        let ring = self.ring();
        if ring != before {
            actions.push(Action::Keys(ring));
        }
    }
}

impl Machine for Rotation {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Secret(secret) => self.set_secret(secret, now, actions),
            Event::Slowest(dead) => self.slowest = dead,
            Event::Received { node, signer, other_hint, dead } => {
                if !self.on_received(node, signer, other_hint, dead, now) {
                    return;
                }
            }
            Event::Tick => {}
        }
        self.decide(now, actions);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let revoked = (!self.is_named(&self.signing)).then(|| self.noticed + self.config.revocation);
        // A peer that fell silent is not waited for any longer than its window.
        let silent = self.silent.filter(|_| !self.lacking.is_empty() || self.retiring.is_some());
        let waited = self.changed.max(self.lacked) + self.grace();
        match self.next() {
            Some(_) => [Some(waited), revoked, silent].into_iter().flatten().min(),
            None if self.retiring.is_some() => [Some(self.changed + self.grace()), silent].into_iter().flatten().max(),
            None => silent,
        }
    }
}

#[cfg(test)]
mod tests;
