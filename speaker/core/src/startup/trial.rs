//! One new pod's port: when to try a connection, and what an answer means.

use crate::time::{Duration, Instant};

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A program listens.
    Accepted,
    /// A reset: a kernel has the address, and nothing listens at this port; maybe not yet.
    Refused,
    /// Nothing came back in time. A policy may forbid this node to connect.
    Silence,
    /// No host has the address, or there is no route to it (EHOSTUNREACH, ENETUNREACH). A policy may say the same.
    Unreachable,
}

#[derive(Debug)]
pub struct Trial {
    since: Instant,
    next: Next,
    /// Since when it has refused without a break.
    refused: Option<Instant>,
    /// Since when it has been silent without a break.
    silent: Option<Instant>,
    silence: Silence,
}

/// Whether a pod that stays silent counts as one that accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    Counts,
    /// It was unreachable before it was tried: not before its host is there.
    CountsOnceRefused,
    /// It has accepted, and then refused: nothing keeps this node from it.
    Never,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    Due(Instant),
    /// The probe of that time runs.
    Asked(Instant),
    /// It has accepted.
    Never,
}

/// Between two probes.
pub const PACE: Duration = Duration::from_millis(50);
/// The same for a port that has refused, or a pod that was gone, for [`super::REFUSED`]: it may never listen.
pub const SLOW: Duration = Duration::from_millis(500);
/// A pod that stays silent for so long counts as one that accepts.
pub const SILENCE: Duration = Duration::from_secs(1);

impl Trial {
    pub fn new(now: Instant) -> Self {
        Self { since: now, next: Next::Due(now), refused: None, silent: None, silence: Silence::Counts }
    }

    /// Of a pod that was found unreachable.
    pub fn of_gone(now: Instant) -> Self {
        Self { silence: Silence::CountsOnceRefused, ..Self::new(now) }
    }

    /// Of a pod that was there, and has refused.
    pub fn of_refusing(now: Instant) -> Self {
        Self { silence: Silence::Never, refused: Some(now), ..Self::new(now) }
    }

    /// Of a pod that has accepted before.
    pub fn accepted(now: Instant) -> Self {
        Self { next: Next::Never, ..Self::new(now) }
    }

    pub fn due(&self) -> Option<Instant> {
        match self.next {
            Next::Due(at) => Some(at),
            Next::Asked(_) | Next::Never => None,
        }
    }

    pub fn is_asked(&self) -> bool {
        matches!(self.next, Next::Asked(_))
    }

    pub fn ask(&mut self, now: Instant) {
        self.next = Next::Asked(now);
    }

    /// It is tried no more.
    pub fn has_accepted(&self) -> bool {
        matches!(self.next, Next::Never)
    }

    pub fn refused(&self) -> Option<Instant> {
        self.refused
    }

    /// `asked`: of the probe. One of an earlier pod with this address counts for nothing.
    pub fn answered(&mut self, asked: Instant, answer: Answer, now: Instant) {
        if !matches!(self.next, Next::Asked(at) if at == asked) {
            return;
        }
        match answer {
            Answer::Accepted => return self.accept(),
            Answer::Refused => {
                self.refused.get_or_insert(asked);
                self.silent = None;
                if self.silence == Silence::CountsOnceRefused {
                    self.silence = Silence::Counts;
                }
            }
            Answer::Silence | Answer::Unreachable => {
                let silent = *self.silent.get_or_insert(asked);
                self.refused = None;
                if now.since(silent) >= SILENCE && self.silence == Silence::Counts {
                    return self.accept();
                }
            }
        }
        let slow =
            (self.refused.is_some() || self.silence != Silence::Counts) && now.since(self.since) >= super::REFUSED;
        self.next = Next::Due(now.max(asked + if slow { SLOW } else { PACE }));
    }

    fn accept(&mut self) {
        (self.next, self.refused, self.silent) = (Next::Never, None, None);
    }
}
