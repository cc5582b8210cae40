//! The backend's hands: the nft program, conntrack, sysctls. What they should say is decided in `speaker_core::backend`.

pub mod conntrack;
mod netfilter;
pub mod nft;
pub mod sysctl;

use std::collections::BTreeMap;

use speaker_core::backend::ruleset;
use speaker_core::backend::{Guard, Plan, StaleFlow, stale_flows};

use nft::{Nft, NftError};

/// Keeps the nftables table at the plan.
#[derive(Debug)]
pub struct Backend {
    nft: Nft,
    applied: Option<Applied>,
    counters: BTreeMap<&'static str, Counter>,
}

#[derive(Debug)]
struct Applied {
    plan: Plan,
    /// `None` until the first audit after a change.
    audited: Option<Audited>,
}

#[derive(Debug)]
struct Audited {
    /// Of the node's whole ruleset; `None` if the kernel did not say.
    generation: Option<u32>,
    /// The table as nft lists it, without what changes by itself.
    listing: String,
}

/// What [`Backend::sync`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Unchanged,
    Updated,
    /// Built anew: the first time, or after an update that failed.
    Replaced,
}

/// A guard counter since the start of this speaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    pub packets: u64,
    /// What the kernel's counter last said; it starts at 0 whenever the table is built anew.
    kernel: u64,
}

impl Backend {
    pub fn new(nft: Nft) -> Self {
        let counters = Guard::ALL.iter().map(|guard| (guard.label(), Counter::default())).collect();
        Self { nft, applied: None, counters }
    }

    /// After `Err` the table is as before (one transaction); the next call builds it anew.
    pub async fn sync(&mut self, plan: Plan) -> Result<Outcome, NftError> {
        let Some(applied) = self.applied.take() else {
            self.replace(plan).await?;
            return Ok(Outcome::Replaced);
        };
        let Some(text) = ruleset::update(&applied.plan, &plan) else {
            self.applied = Some(applied);
            return Ok(Outcome::Unchanged);
        };
        let stale = stale_flows(&applied.plan, &plan);
        let outcome = match self.nft.apply(&text).await {
            Ok(()) => {
                self.applied = Some(Applied { plan, audited: None });
                Outcome::Updated
            }
            // A foreign hand in our table is mended by building it anew; anything else fails again and is reported.
            Err(error) => {
                tracing::warn!(%error, "nftables update refused, building the table anew");
                self.replace(plan).await?;
                Outcome::Replaced
            }
        };
        forget(stale).await;
        Ok(outcome)
    }

    /// Puts right what somebody else did to the table. True: there was something. Call it every few seconds: it costs one
    /// system call while nobody on the node changes any nftables rule, else a run of nft.
    pub async fn audit(&mut self) -> Result<bool, NftError> {
        let Some(applied) = &mut self.applied else { return Ok(false) };
        // Read before the listing: a change in between is seen the next time.
        let generation = netfilter::generation().ok();
        if generation.is_some() && applied.audited.as_ref().is_some_and(|audited| audited.generation == generation) {
            return Ok(false);
        }
        if let Some(listing) = self.nft.listing().await? {
            let sound = match &applied.audited {
                Some(audited) => audited.listing == listing,
                None => is_whole(&listing),
            };
            if sound {
                applied.audited = Some(Audited { generation, listing });
                return Ok(false);
            }
        }
        let plan = applied.plan.clone();
        self.replace(plan).await?;
        Ok(true)
    }

    /// Packets per guard, by label.
    pub async fn counters(&mut self) -> Result<&BTreeMap<&'static str, Counter>, NftError> {
        for (name, now) in self.nft.read_counters().await? {
            if let Some(counter) = self.counters.get_mut(name.as_str()) {
                // Lower than before: a foreign hand reset it.
                counter.packets += now.checked_sub(counter.kernel).unwrap_or(now);
                counter.kernel = now;
            }
        }
        Ok(&self.counters)
    }

    async fn replace(&mut self, plan: Plan) -> Result<(), NftError> {
        self.applied = None;
        self.nft.apply(&ruleset::replace(&plan)).await?;
        self.counters.values_mut().for_each(|counter| counter.kernel = 0);
        self.applied = Some(Applied { plan, audited: None });
        Ok(())
    }
}

/// After the rules, else the flow would come back with its next packet. Its failure costs those flows only.
async fn forget(stale: Vec<StaleFlow>) {
    if stale.is_empty() {
        return;
    }
    let pods = stale.len();
    match tokio::task::spawn_blocking(move || conntrack::forget(&stale)).await {
        Ok(Ok(flows)) => tracing::debug!(pods, flows, "UDP flows to pods that left are forgotten"),
        Ok(Err(error)) => tracing::warn!(pods, %error, "UDP flows to pods that left may go into a hole"),
        Err(error) => tracing::error!(%error, "conntrack clean-up ended early"),
    }
}

/// Our base chains are there: somebody who flushes or deletes between a change and its first audit is noticed all the same.
fn is_whole(listing: &str) -> bool {
    ["hook prerouting", "hook forward", "hook input"].iter().all(|hook| listing.contains(hook))
}

#[cfg(test)]
mod tests;
