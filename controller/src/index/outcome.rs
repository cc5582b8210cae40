//! Pure: what the result of a write means: facts, another attempt, or a pause where a third party writes the same.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use sheave_api::ServiceRef;

use super::probing::BETWEEN_PROBES;
use super::{Index, Outcome, Planned, Subject, Write};
use crate::error::WriteError;
use crate::status::StatusWrite;

impl Index {
    /// Takes the result of a write that [`next_write`](Index::next_write) returned.
    pub fn finished(&mut self, planned: &Planned, outcome: Outcome, now: Instant) {
        self.in_flight.remove(&planned.subject);
        self.dirty.insert(planned.subject.clone());
        match &planned.write {
            // Releases wait for what is under way about their Service.
            Write::Status(StatusWrite { uid, .. })
            | Write::Prepare { write: StatusWrite { uid, .. }, .. }
            | Write::Grant { service: ServiceRef { uid, .. }, .. } => self.mark_held(uid),
            Write::Release(_)
            | Write::Amend { .. }
            | Write::GrantAtNode { .. }
            | Write::Confirm(_)
            | Write::PoolStatus { .. }
            | Write::AdvertisementStatus { .. }
            | Write::Probe(_) => {}
        }
        let failure = match outcome {
            Outcome::Done(facts) => {
                facts.into_iter().for_each(|fact| self.observe(fact));
                None
            }
            Outcome::Failed(error) => Some(error),
        };
        match (&planned.write, &failure) {
            // The ledger entry may exist although no answer came: then the next attempt meets it.
            (Write::Grant { address, service, .. }, _) => self.reservation_over(*address, &service.uid),
            (Write::Prepare { address, write }, _) => {
                self.reservation_over(*address, &write.uid);
                if failure.is_none() {
                    self.prepared.insert(write.service.clone(), *address);
                }
            }
            (Write::Release(entry) | Write::Amend { entry, .. } | Write::Confirm(entry), failure) => {
                self.settled(entry.address, failure.as_ref());
            }
            // Under way all the time otherwise, while many Services come: every grant changes its counts.
            (Write::PoolStatus { .. } | Write::AdvertisementStatus { .. }, None) => {
                self.not_before.insert(planned.subject.clone(), now + BETWEEN_COUNTS);
            }
            (Write::Probe(_), None) => drop(self.not_before.insert(planned.subject.clone(), now + BETWEEN_PROBES)),
            (Write::Probe(_), Some(WriteError::NotLeader)) => {}
            (Write::Probe(write), Some(error)) => {
                self.probes.not_written(write, matches!(error, WriteError::Conflict(_)), now);
            }
            (Write::Status(write), None) if write.is_repetition() => self.corrected(&planned.subject, write, now),
            _ => {}
        }
        if let Subject::Service(_, service) = &planned.subject {
            self.count(service);
        }
        match failure {
            None => {
                self.failures.remove(&planned.subject);
            }
            // The watch brings what changed; without the lead there is nothing to wait for.
            Some(WriteError::NotLeader) => {}
            // Every write waits for the end of the pause that was asked for; it need not wait for longer.
            Some(WriteError::TooManyRequests(_)) => {
                self.not_before.insert(planned.subject.clone(), now + RETRY_FIRST);
            }
            Some(_) => {
                let count = self.failures.entry(planned.subject.clone()).or_insert(0);
                *count = count.saturating_add(1);
                let wait = backoff(*count, RETRY_FIRST, RETRY_MOST);
                self.not_before.insert(planned.subject.clone(), now + wait);
            }
        }
    }

    /// Services that wait may have the address now, and those that are to share it.
    fn reservation_over(&mut self, address: IpAddr, uid: &str) {
        self.allocator.unreserve(address, uid);
        self.mark_reserved(address);
        self.mark_waiting();
    }

    /// Another controller writes the same status. Corrected at once a few times, then ever more slowly: two controllers that both
    /// claim a Service must not keep the API server busy.
    fn corrected(&mut self, subject: &Subject, write: &StatusWrite, now: Instant) {
        let (count, last) = self.corrections.entry(write.service.clone()).or_insert((0, now));
        if now.saturating_duration_since(*last) > CORRECTIONS_FORGOTTEN {
            *count = 0;
        }
        *count = count.saturating_add(1);
        *last = now;
        if *count >= CORRECTIONS_AT_ONCE {
            let wait = backoff(*count - CORRECTIONS_AT_ONCE + 1, CORRECTION_FIRST, CORRECTION_MOST);
            self.not_before.insert(subject.clone(), now + wait);
        }
    }
}

/// Doubles with every attempt.
fn backoff(attempt: u32, first: Duration, most: Duration) -> Duration {
    first.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(most)
}

/// Between two writes of one status that counts addresses.
const BETWEEN_COUNTS: Duration = Duration::from_secs(1);
/// Pause after the first failed write of a subject.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(30);
/// Third-party changes of one Service's status that are repaired without a pause.
const CORRECTIONS_AT_ONCE: u32 = 5;
const CORRECTION_FIRST: Duration = Duration::from_secs(1);
const CORRECTION_MOST: Duration = Duration::from_secs(60);
/// After so much peace the count starts anew.
const CORRECTIONS_FORGOTTEN: Duration = Duration::from_secs(120);
