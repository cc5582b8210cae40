//! Silence of peers: each by its own pace, and when it may be this node's own (docs/election.md rules R3a and R9).

use super::super::state::Config;
use super::Peers;
use crate::time::{Duration, Instant};
use crate::wire::pace::Pace;

#[derive(Debug, Default)]
pub(super) struct Silence {
    /// When any peer was received last.
    last_sound: Instant,
    /// When the next peer falls silent, at the earliest.
    expiry: Option<Instant>,
    /// The longest dead interval of this node and its peers, those that are received and not verified yet included.
    slowest: Duration,
    /// Peers have different paces: after this time without any of them a heartbeat of the fastest is overdue, and no other may be due for
    /// long.
    mixed: Option<Duration>,
    /// They were asked for a sign in this silence.
    asked: bool,
    /// A peer went down in it.
    unheard: bool,
}

impl Silence {
    /// A peer is down whose heartbeat was overdue from then on. If none was received since, this node may be cut off, although peers of a
    /// slower pace still count as up.
    pub fn went_down(&mut self, overdue: Instant) {
        self.unheard |= self.last_sound <= overdue;
    }
}

impl Peers {
    /// No peer has been received for so long that this node may be cut off (rule R3a), and until when it may be: two or more were to be
    /// received in this time. With one the two cases look the same.
    pub(super) fn group_silence(&self, config: &Config, now: Instant) -> Option<Instant> {
        let last_sound = self.silence.last_sound;
        if now <= last_sound + Pace::SHORTEST.min(config.interval) * 3 / 2 {
            return None;
        }
        let overdue = self.direct().filter(|(_, peer)| now > last_sound + peer.overdue(config));
        let (count, dead) = overdue
            .fold((0, Duration::ZERO), |(count, longest), (_, peer)| (count + 1, longest.max(peer.dead(config))));
        (count > 1).then(|| last_sound + dead)
    }

    /// A peer is received that is silent at that time, if not received again.
    pub(super) fn heard(&mut self, silent_at: Instant, config: &Config, now: Instant) {
        if self.group_silence(config, now).is_some() {
            self.end_group_silence(config, now);
        }
        let silence = &mut self.silence;
        (silence.last_sound, silence.asked, silence.unheard) = (now, false, false);
        silence.expiry = Some(silence.expiry.map_or(silent_at, |known| known.min(silent_at)));
    }

    /// A peer is received again: the others get the time to transmit that they need.
    fn end_group_silence(&mut self, config: &Config, now: Instant) {
        for current in self.peers.values_mut().filter(|peer| peer.up).filter_map(|peer| peer.current.as_mut()) {
            let silent_since = now + current.next_beat(config) - current.dead(config);
            current.last_received = current.last_received.max(silent_since);
        }
    }

    /// The silence was this node's own: the silence of all peers ends.
    pub(in crate::election) fn end_silence(&mut self, now: Instant) {
        self.silence.last_sound = now;
        for peer in self.peers.values_mut().filter(|peer| peer.up) {
            if let Some(current) = &mut peer.current {
                current.last_received = now;
            }
        }
    }

    /// After each judgement: what hangs on all peers.
    pub(super) fn survey(&mut self, config: &Config, now: Instant) {
        let (mut next, mut slowest) = (None, config.dead());
        let mut overdue: Option<(Duration, Duration)> = None;
        let mut ends = |at: Instant| next = Some(next.map_or(at, |known: Instant| known.min(at)));
        for peer in self.peers.values() {
            peer.expired.iter().for_each(|expired| ends(expired.until));
            let candidates = peer.candidates.iter().filter(|candidate| candidate.is_fresh(config, now));
            slowest = candidates.map(|candidate| candidate.dead(config)).fold(slowest, Duration::max);
            let Some(current) = &peer.current else { continue };
            slowest = slowest.max(current.dead(config));
            if peer.up {
                ends(current.silent_at(config));
                let own = current.overdue(config);
                overdue = Some(overdue.map_or((own, own), |(least, most)| (least.min(own), most.max(own))));
            }
        }
        // What was put off is decided again soon.
        self.silence.expiry = next.map(|at| if at <= now { now + config.rank_skew } else { at });
        self.silence.slowest = slowest;
        self.silence.mixed = overdue.filter(|(least, most)| least < most).map(|(least, _)| least);
    }

    /// When `expire` has something to do.
    pub(in crate::election) fn next_expiry(&self) -> Option<Instant> {
        self.silence.expiry
    }

    /// All peers that fall silent together are down within this time.
    pub(in crate::election) fn slowest_dead(&self) -> Duration {
        self.silence.slowest
    }

    /// When all peers are to be asked for a sign: the fastest is overdue, and the others need not transmit for long. Their answers show
    /// whether it is this node that is cut off, and whether they receive the peer that is overdue (R6).
    pub(in crate::election) fn ask_at(&self) -> Option<Instant> {
        let Silence { last_sound, mixed, asked, .. } = &self.silence;
        mixed.filter(|_| !asked).map(|overdue| *last_sound + overdue)
    }

    /// They are asked now, once in a silence.
    pub(in crate::election) fn asks(&mut self, now: Instant) -> bool {
        let due = self.ask_at().is_some_and(|at| at <= now);
        self.silence.asked |= due;
        due
    }

    /// A peer went down, and none was received since it was overdue: those that count as up need not have transmitted.
    pub(in crate::election) fn is_unheard(&self) -> bool {
        self.silence.unheard
    }
}
