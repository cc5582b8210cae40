//! One peer as this node receives it: its incarnation, its latest adverts, its claim list.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::state::Config;
use crate::name::{Term, Vip};
use crate::time::{Duration, Instant};
use crate::wire::advert::{self, Advert, Body, Claim, EMPTY_DIGEST, Flags, MAX_CLAIMS, Reject};
use crate::wire::pace::Pace;

/// The challenges by which peers prove that they receive this node now: the one that is sent, and the one before it, which peers
/// may still echo (docs/election.md section Freshness).
#[derive(Clone, Copy, Debug)]
pub(super) struct Challenges {
    pub current: u32,
    pub previous: u32,
}

/// One run of a peer's speaker: all adverts of one (node, epoch).
#[derive(Clone, Debug)]
pub(super) struct Incarnation {
    pub epoch: u64,
    window: Window,
    pub challenge: u32,
    pub flags: Flags,
    /// As it states it; until then that of the incarnation before it. `None`, as of a speaker of an earlier version: this node's.
    pub pace: Option<Pace>,
    pub first_received: Instant,
    /// If it is ready and not leaving: since when it has been received so.
    pub ready_since: Instant,
    pub last_received: Instant,
    /// The challenges in its latest heartbeat, and when that came.
    echoes: Vec<u32>,
    beat_at: Instant,
    /// When it last named a challenge of this node.
    echoed_at: Option<Instant>,
    /// The latest of this node's challenges that it has named.
    answered: Option<u32>,
    digest: u64,
    pub claims: Claims,
    claims_digest: u64,
    assembly: Option<Assembly>,
}

/// A claim list.
pub(super) type Claims = BTreeMap<Vip, Held>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub term: Term,
    pub stepping_down: bool,
}

/// What an advert changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// Not overtaken by a later advert.
    pub newest: bool,
    /// The node's own flags changed.
    pub flags: bool,
    /// VIPs that it claims otherwise than before, or not any more.
    pub vips: Vec<Vip>,
    /// It wants a fresh proof that it is received.
    pub challenged: bool,
    /// Where the node is reached.
    pub mac: Option<[u8; 6]>,
}

/// What a datagram did.
#[derive(Clone, Debug, Default)]
pub(super) struct Received {
    pub verified: bool,
    pub came_up: bool,
    /// An earlier incarnation is over: the challenge must change, so that no recording of it can answer.
    pub replaced: bool,
    /// The flags of a verified peer changed: which nodes can claim, and which step down.
    pub flags: bool,
    /// VIPs to be decided anew.
    pub vips: Vec<Vip>,
    /// A heartbeat of a new peer, or with a new challenge, or with the digest of an unknown claim list.
    pub answer: bool,
    /// Where the node is reached, if it is verified.
    pub mac: Option<[u8; 6]>,
    /// Its latest heartbeats name this node.
    pub receives_us: bool,
    pub pace: Option<Pace>,
}

impl Incarnation {
    pub fn new(advert: &Advert, pace: Option<Pace>, now: Instant) -> Self {
        Self {
            epoch: advert.epoch,
            window: Window::default(),
            challenge: advert.challenge,
            flags: advert.flags,
            pace,
            first_received: now,
            ready_since: now,
            last_received: now,
            echoes: Vec::new(),
            beat_at: now,
            echoed_at: None,
            answered: None,
            digest: EMPTY_DIGEST,
            claims: Claims::new(),
            claims_digest: EMPTY_DIGEST,
            assembly: None,
        }
    }

    /// An advert of this incarnation. An advert that was overtaken changes nothing, unless it is a missing part of the claim
    /// list.
    pub fn take(&mut self, advert: Advert, own: Challenges, now: Instant) -> Result<Change, Reject> {
        let mut change = Change::default();
        if self.window.arrive(advert.sequence)? == Arrival::Newest {
            change.newest = true;
            self.last_received = now;
            change.challenged = core::mem::replace(&mut self.challenge, advert.challenge) != advert.challenge;
            let before = core::mem::replace(&mut self.flags, advert.flags);
            change.flags = before != advert.flags;
            if !before.ready || before.leaving {
                self.ready_since = now;
            }
            self.digest = advert.digest;
            if self.digest == EMPTY_DIGEST {
                change.vips = self.forget_claims();
            }
            match &advert.body {
                Body::Heartbeat { echoes } => self.echo(echoes, own, now),
                Body::Node { mac, pace } => {
                    change.mac = Some(*mac);
                    self.pace = *pace;
                }
                Body::Claims { .. } => {}
            }
        }
        if let Body::Claims { part, parts, claims } = advert.body
            && advert.digest == self.digest
        {
            change.vips.extend(self.assemble(part, parts, claims));
        }
        Ok(change)
    }

    fn echo(&mut self, echoes: &[u32], own: Challenges, now: Instant) {
        let named = [own.current, own.previous].into_iter().find(|tag| echoes.contains(tag));
        if named.is_some() {
            self.echoed_at = Some(now);
            self.answered = named;
        }
        self.echoes.clear();
        self.echoes.extend_from_slice(echoes);
        self.beat_at = now;
    }

    /// What is claimed otherwise, if the list is whole now.
    fn assemble(&mut self, part: u16, parts: u16, claims: Vec<Claim>) -> Vec<Vip> {
        if self.claims_known() {
            return Vec::new();
        }
        let fits = |a: &Assembly| a.digest == self.digest && a.parts == parts;
        if !self.assembly.as_ref().is_some_and(fits) {
            self.assembly = Some(Assembly { digest: self.digest, parts, got: BTreeMap::new() });
        }
        let Some(assembly) = &mut self.assembly else { return Vec::new() };
        assembly.got.insert(part, claims);
        let Some(claims) = assembly.complete() else { return Vec::new() };
        (self.claims_digest, self.assembly) = (self.digest, None);
        let before = core::mem::replace(&mut self.claims, claims);
        let lost = before.keys().filter(|vip| !self.claims.contains_key(vip));
        let changed = self.claims.iter().filter(|(vip, held)| before.get(vip) != Some(held)).map(|(vip, _)| vip);
        lost.chain(changed).copied().collect()
    }

    fn forget_claims(&mut self) -> Vec<Vip> {
        (self.claims_digest, self.assembly) = (EMPTY_DIGEST, None);
        core::mem::take(&mut self.claims).into_keys().collect()
    }

    /// Its list is the one whose digest it sends.
    pub fn claims_known(&self) -> bool {
        self.claims_digest == self.digest
    }

    /// Silence after which it is dead.
    pub fn dead(&self, config: &Config) -> Duration {
        self.pace.map_or_else(|| config.dead(), Pace::dead)
    }

    /// Silence after which a heartbeat is overdue.
    pub fn overdue(&self, config: &Config) -> Duration {
        self.pace.map_or_else(|| config.group_silence(), Pace::overdue)
    }

    /// It is named in heartbeats for this long after it was received ([`Config::echo_window`]).
    pub fn echo_window(&self, config: &Config) -> Duration {
        self.pace.map_or_else(|| config.echo_window(), |pace| pace.interval * pace.dead_intervals - pace.overdue())
    }

    /// For how long after a heartbeat the next one may be under way ([`Config::testimony_window`]).
    pub fn next_beat(&self, config: &Config) -> Duration {
        self.pace.map_or_else(|| config.testimony_window(), |pace| pace.interval + pace.skew())
    }

    /// A heartbeat of another peer that names it speaks for it for so long at most, whatever the pace of that one: with its echo window a
    /// testimony must not be older than the silence that it contradicts (rule R6).
    pub fn testimony(&self, vouched: bool, config: &Config) -> Duration {
        if vouched { self.dead(config) } else { self.overdue(config) }
    }

    /// It can name this node no sooner than it has received it, by this node's pace, and transmits at its own.
    fn naming(&self, config: &Config) -> Duration {
        self.dead(config).max(config.dead())
    }

    pub fn silent_at(&self, config: &Config) -> Instant {
        self.last_received + self.dead(config)
    }

    pub fn is_fresh(&self, config: &Config, now: Instant) -> bool {
        now < self.silent_at(config)
    }

    pub fn loss(&self) -> Loss {
        self.window.loss()
    }

    /// It receives this node, by the echoes in its heartbeats.
    pub fn receives_us(&self, config: &Config, now: Instant) -> bool {
        self.echoed_at.is_some_and(|at| now < at + self.naming(config))
    }

    /// It has been received for a dead interval and has not received this node in that time (rule R7).
    pub fn is_one_way(&self, config: &Config, now: Instant) -> bool {
        now >= self.echoed_at.unwrap_or(self.first_received).max(self.first_received) + self.naming(config)
    }

    /// It has answered this challenge: its adverts since then are not older than the challenge.
    pub fn has_answered(&self, challenge: u32) -> bool {
        self.answered == Some(challenge)
    }

    /// Its latest heartbeat, not older than `since`, named this challenge.
    pub fn echoes_challenge(&self, challenge: u32, since: Instant) -> bool {
        self.beat_at >= since && self.echoes.contains(&challenge)
    }

    /// Steps down from this VIP.
    pub fn steps_down(&self, held: Held) -> bool {
        held.stepping_down || self.flags.leaving || !self.flags.ready
    }
}

/// A claim list of which parts have come.
#[derive(Clone, Debug)]
struct Assembly {
    digest: u64,
    parts: u16,
    got: BTreeMap<u16, Vec<Claim>>,
}

impl Assembly {
    /// The list, once all parts are there and they are what was announced.
    fn complete(&self) -> Option<Claims> {
        if self.got.len() < usize::from(self.parts) {
            return None;
        }
        let claims: Claims = self
            .got
            .values()
            .flatten()
            .map(|c| (c.vip, Held { term: c.term, stepping_down: c.stepping_down }))
            .collect();
        (claims.len() <= MAX_CLAIMS && digest(&claims) == self.digest).then_some(claims)
    }
}

pub(super) fn digest(claims: &Claims) -> u64 {
    advert::digest(claims.iter().map(|(vip, held)| Claim {
        vip: *vip,
        term: held.term,
        stepping_down: held.stepping_down,
    }))
}

/// Adverts of a peer that did not arrive, of the last ones that it sent: 64 at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    pub missing: u32,
    pub of: u32,
}

/// Which sequence numbers have come: the newest, and the 63 before it (RFC 4303 section 3.4.3 has the same window).
#[derive(Clone, Debug, Default)]
struct Window {
    /// The first one that came.
    first: u64,
    top: u64,
    seen: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    Newest,
    /// Overtaken by a later one, and not seen before.
    Late,
}

impl Window {
    fn arrive(&mut self, sequence: u64) -> Result<Arrival, Reject> {
        if self.seen == 0 {
            self.first = sequence;
        }
        if sequence > self.top {
            let step = sequence - self.top;
            self.seen = if step < 64 { self.seen << step } else { 0 } | 1;
            self.top = sequence;
            return Ok(Arrival::Newest);
        }
        let age = self.top - sequence;
        if age >= 64 || self.seen & (1 << age) != 0 {
            return Err(Reject::Replayed);
        }
        self.seen |= 1 << age;
        Ok(Arrival::Late)
    }

    fn loss(&self) -> Loss {
        if self.seen == 0 {
            return Loss::default();
        }
        let of = self.top.saturating_sub(self.first).saturating_add(1).min(64) as u32;
        let seen = self.seen << (64 - of);
        Loss { missing: of - seen.count_ones(), of }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_counted_from_the_first_advert_on_and_over_the_last_64() {
        let mut window = Window::default();
        let loss = |window: &Window| (window.loss().missing, window.loss().of);
        assert_eq!(loss(&window), (0, 0));
        for sequence in [1000, 1001, 1004] {
            window.arrive(sequence).unwrap();
        }
        assert_eq!(loss(&window), (2, 5));
        window.arrive(1002).unwrap();
        assert_eq!(loss(&window), (1, 5), "late is not lost");
        window.arrive(999).unwrap();
        assert_eq!(loss(&window), (1, 5), "before the first one it says nothing");
        (1005..1200).for_each(|sequence| _ = window.arrive(sequence).unwrap());
        assert_eq!(loss(&window), (0, 64));
        window.arrive(1300).unwrap();
        assert_eq!(loss(&window), (63, 64));
        window.arrive(u64::MAX).unwrap();
        assert_eq!(loss(&window), (63, 64));
    }

    #[test]
    fn window_takes_each_sequence_once() {
        let mut window = Window::default();
        assert_eq!(window.arrive(5), Ok(Arrival::Newest));
        assert_eq!(window.arrive(5), Err(Reject::Replayed));
        assert_eq!(window.arrive(3), Ok(Arrival::Late));
        assert_eq!(window.arrive(3), Err(Reject::Replayed));
        assert_eq!(window.arrive(70), Ok(Arrival::Newest));
        assert_eq!(window.arrive(7), Ok(Arrival::Late));
        assert_eq!(window.arrive(6), Err(Reject::Replayed), "64 behind: too old to tell");
        assert_eq!(window.arrive(5), Err(Reject::Replayed));
        assert_eq!(window.arrive(u64::MAX), Ok(Arrival::Newest));
        assert_eq!(window.arrive(u64::MAX), Err(Reject::Replayed));
    }
}
