//! Pure: figures of what is known, for metrics.

use std::collections::BTreeMap;

use sheave_api::Refusal;

use super::Index;

impl Index {
    /// Writes that could be planned or are under way.
    pub fn backlog(&self) -> usize {
        self.dirty.len() + self.in_flight.len()
    }

    /// How many Services wait for which reason.
    pub fn waiting(&self) -> BTreeMap<Refusal, i64> {
        counts(self.waiting.values())
    }

    /// Of how many Services a part is not served, by reason.
    pub fn partly_served(&self) -> BTreeMap<Refusal, i64> {
        counts(self.partly.values().flatten())
    }

    pub fn granted(&self) -> usize {
        self.grants.len()
    }
}

/// Every reason has a count, so that "never" reads as 0.
fn counts<'a>(reasons: impl Iterator<Item = &'a Refusal>) -> BTreeMap<Refusal, i64> {
    let mut counts: BTreeMap<Refusal, i64> = Refusal::ALL.into_iter().map(|reason| (reason, 0)).collect();
    for reason in reasons {
        *counts.entry(*reason).or_default() += 1;
    }
    counts
}
