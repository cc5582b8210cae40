//! When a target is checked, and what its answers amount to.
//!
//! A check starts every [`Config::interval`]. A second one starts [`Config::second`] after a first one that failed or has no answer by then.
//! [`Config::fall`] failures in a row take a target out, one answer brings it back. So a silent target is out after an interval, the
//! second's delay and a timeout, and one that refuses after an interval and the second's delay.
//!
//! A failure counts only if its check began after the newest answer came: the slow loser of two checks says nothing.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use ebpf_common::siphash13;

use super::{Outcome, Target};
use crate::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub interval: Duration,
    /// After that a check without an answer has failed.
    pub timeout: Duration,
    pub second: Duration,
    pub fall: u32,
    /// A random number: speakers that start together do not check together.
    pub seed: u64,
}

impl Config {
    pub const fn new(seed: u64) -> Self {
        Self {
            interval: Duration::from_millis(500),
            timeout: Duration::from_secs(1),
            second: Duration::from_millis(200),
            fall: 2,
            seed,
        }
    }
}

/// A check that runs. Its outcome comes back with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Check {
    pub target: Target,
    pub started: Instant,
}

/// What is known of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// `None`: no check has ended yet.
    pub outcome: Option<Outcome>,
    /// Whether it counts as one that answers, and since when.
    pub answers: bool,
    pub since: Instant,
    /// How long the last check took.
    pub took: Duration,
    failures: u32,
    /// Its interval: shorter than the configured one by up to a tenth.
    interval: Duration,
    next: Instant,
    /// When the second check of this round starts, unless the first is answered before.
    second: Option<Instant>,
}

#[derive(Debug)]
pub struct Checks {
    config: Config,
    targets: BTreeMap<Target, State>,
    running: BTreeSet<Check>,
}

impl Checks {
    pub fn new(config: Config) -> Self {
        Self { config, targets: BTreeMap::new(), running: BTreeSet::new() }
    }

    /// Which targets are checked from now on. A new one is checked at once, and counts as one that answers until a check has failed: a
    /// speaker that restarts takes no server out.
    pub fn set_targets(&mut self, targets: &BTreeSet<Target>, now: Instant) {
        self.targets.retain(|target, _| targets.contains(target));
        self.running.retain(|check| targets.contains(&check.target));
        for target in targets {
            let interval = self.interval_of(*target);
            self.targets.entry(*target).or_insert(State {
                outcome: None,
                answers: true,
                since: now,
                took: Duration::ZERO,
                failures: 0,
                interval,
                next: now,
                second: None,
            });
        }
    }

    pub fn targets(&self) -> impl Iterator<Item = (Target, &State)> {
        self.targets.iter().map(|(target, state)| (*target, state))
    }

    pub fn get(&self, target: Target) -> Option<&State> {
        self.targets.get(&target)
    }

    /// Checks to start now. What has run into its timeout has failed.
    pub fn turn(&mut self, now: Instant) -> Vec<Check> {
        let late = |check: &&Check| now.since(check.started) >= self.config.timeout;
        let late: Vec<Check> = self.running.iter().filter(late).copied().collect();
        for check in late {
            self.ended(check, Outcome::Silent, now);
        }
        let mut starts = Vec::new();
        for (target, state) in &mut self.targets {
            let mut running = self.running.iter().filter(|check| check.target == *target).count();
            if state.second.is_some_and(|second| second <= now) {
                state.second = None;
                starts.push(Check { target: *target, started: now });
                running += 1;
            }
            // A round ends when its two checks have. One that is out is checked at its pace: a check that hangs must not delay the one
            // that finds it again.
            let free = state.second.is_none() && running < if state.answers { 1 } else { MAX_RUNNING };
            if free && state.next <= now {
                state.next = now + state.interval;
                state.second = state.answers.then(|| now + self.config.second);
                starts.push(Check { target: *target, started: now });
            }
        }
        starts.dedup();
        self.running.extend(starts.iter().copied());
        starts
    }

    /// A check has ended. Whether the target counts as another one than before.
    pub fn ended(&mut self, check: Check, outcome: Outcome, now: Instant) -> bool {
        // Else it is of a target that is checked no more, or an answer came meanwhile.
        if !self.running.remove(&check) {
            return false;
        }
        let Some(state) = self.targets.get_mut(&check.target) else { return false };
        let is_first = state.outcome.is_none();
        state.outcome = Some(outcome);
        state.took = now.since(check.started);
        if outcome.answers() {
            self.running.retain(|other| other.target != check.target);
            state.failures = 0;
            state.second = None;
        } else {
            state.failures = state.failures.saturating_add(1);
        }
        let answers = match outcome.answers() {
            true => true,
            // Nothing is known in its favor.
            false => state.answers && state.failures < self.config.fall && !is_first,
        };
        let changed = core::mem::replace(&mut state.answers, answers) != answers;
        if changed {
            state.since = now;
            state.second = None;
        }
        changed
    }

    /// When [`Checks::turn`] has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        let timeouts = self.running.iter().map(|check| check.started + self.config.timeout);
        let starts = self.targets.iter().filter_map(|(target, state)| {
            let running = self.running.iter().filter(|check| check.target == *target).count();
            let free = running < if state.answers { 1 } else { MAX_RUNNING };
            state.second.or_else(|| free.then_some(state.next))
        });
        timeouts.chain(starts).min()
    }

    fn interval_of(&self, target: Target) -> Duration {
        let number = siphash13(&[self.config.seed, 0], u32::from(target.address).into(), target.port.into());
        let tenth = self.config.interval.as_nanos() as u64 / 10;
        self.config.interval - Duration::from_nanos(number % tenth.max(1))
    }
}

/// Checks of one target at the same time, where it is out: a timeout is two intervals.
const MAX_RUNNING: usize = 3;

#[cfg(test)]
mod tests;
