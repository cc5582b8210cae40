//! From the plan in force to a newer one. A part of it that nft refuses is kept back alone, and tried again with back-off. A
//! transaction that exceeds its time is halved, until its parts fit: what fits comes into force.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use speaker_core::backend::parts::{Content, Part, Search};
use speaker_core::backend::{Plan, ruleset};
use tokio::time::Instant;

use super::nft::NftError;
use super::{Applied, Backend, Outcome};
use crate::backoff::Backoff;

/// Parts that are not in force because nft refuses them.
#[derive(Debug, Default)]
pub struct HeldBack {
    parts: BTreeMap<Part, Held>,
    backoff: Backoff,
    /// When they are to be tried again; a part that has changed since is tried at once.
    due: Option<Instant>,
    /// Parts that one transaction brings in time, as far as that is known; `None`: all.
    most: Option<usize>,
}

#[derive(Debug)]
struct Held {
    /// What was refused.
    wanted: Content,
    cause: String,
    /// It was refused alone. If not, there was no attempt left to find out.
    alone: bool,
    /// How often alone.
    tried: u32,
}

impl Backend {
    /// After `Err` the table is as before (one transaction), or all but what nft refuses is in force: see [`Backend::in_force`].
    pub async fn sync(&mut self, mut plan: Plan) -> Result<Outcome, NftError> {
        if let Some(applied) = &self.applied {
            plan.second_chance = applied.plan.second_chance;
        }
        let known = self.held.known(&plan);
        let fresh = |from: &Plan, plan: &Plan| &from.changes(plan) - &known;
        let target = self.in_force().map_or_else(|| plan.clone(), |from| from.with(&plan, &fresh(from, &plan)));
        let (mut outcome, mut attempts) = (Outcome::Updated, ATTEMPTS);
        let changes = self.in_force().map(|from| from.changes(&target)).unwrap_or_default();
        let brought = match !self.is_suspect() && self.held.exceeds(changes.len()) {
            true => Ok(outcome),
            false => self.bring(target).await,
        };
        match brought {
            Ok(brought) => outcome = brought,
            Err(NftError::Refused(cause)) => {
                if self.is_suspect() {
                    let base = self.in_force().cloned().unwrap_or_else(|| plan.without_ports());
                    if self.replace(base).await.is_err() {
                        return Err(NftError::Refused(cause));
                    }
                    outcome = Outcome::Replaced;
                }
                plan.second_chance = self.second_chance;
                let parts = self.in_force().map(|from| fresh(from, &plan)).unwrap_or_default();
                attempts = self.bring_parts(&plan, parts, Some(cause), attempts).await?;
            }
            Err(error) => {
                // It took too long although there is nothing that could be left out.
                if let (Some(part), Some(1), false) = (changes.first(), self.held.most, self.is_suspect())
                    && changes.len() == 1
                {
                    self.held.hold(*part, &plan, error.to_string(), true);
                }
                return Err(error);
            }
        }
        if self.held.most.is_some() {
            let parts = self.in_force().map(|from| fresh(from, &plan)).unwrap_or_default();
            let parts = parts.into_iter().filter(|part| !self.held.parts.contains_key(part)).collect();
            attempts = self.bring_parts(&plan, parts, None, attempts).await?;
        }
        // A table that is built anew shows what the kernel can.
        plan.second_chance = self.second_chance;
        self.retry(&plan, known, attempts).await?;
        let missing = self.in_force().map(|from| from.changes(&plan)).unwrap_or_default();
        self.held.retain(&missing);
        if missing.is_empty() {
            self.held.most = None;
            return Ok(outcome);
        }
        // A table that was built anew had no room for these.
        let left: Vec<Part> = missing.into_iter().filter(|part| !self.held.parts.contains_key(part)).collect();
        left.into_iter().for_each(|part| self.held.hold(part, &plan, "not tried yet".into(), false));
        Err(NftError::Refused(self.held.describe()))
    }

    /// There were too few attempts to find all that nft refuses: [`Backend::sync`] is to be called again soon.
    pub fn is_searching(&self) -> bool {
        self.held.parts.values().any(|held| !held.alone)
    }

    /// All of it or nothing.
    async fn bring(&mut self, target: Plan) -> Result<Outcome, NftError> {
        let is_sound = |applied: &Applied| !applied.suspect && !ruleset::needs_replace(&applied.plan, &target);
        if !self.applied.as_ref().is_some_and(is_sound) {
            let fits = self.cut(target);
            self.replace(fits).await?;
            return Ok(Outcome::Replaced);
        }
        match self.update(target.clone()).await {
            // A third-party change of our table is repaired by building it anew.
            Err(error @ NftError::Refused(_)) if !self.is_untouched().await => {
                self.replace(target).await?;
                tracing::warn!(%error, "nftables update refused; table replaced");
                Ok(Outcome::Replaced)
            }
            outcome => outcome,
        }
    }

    /// As much of it as one transaction brings in time: first what is in force.
    fn cut(&self, target: Plan) -> Plan {
        let base = target.without_ports();
        let ports = base.changes(&target);
        if !self.held.exceeds(ports.len()) {
            return target;
        }
        let is_in_force = |part: &Part| self.in_force().is_some_and(|plan| plan.content(part) == target.content(part));
        let (known, new): (Vec<Part>, Vec<Part>) = ports.into_iter().partition(is_in_force);
        let fits = known.into_iter().chain(new).take(self.held.most.unwrap_or(usize::MAX));
        base.with(&target, &fits.collect())
    }

    /// Of a sound table, by what differs.
    async fn update(&mut self, target: Plan) -> Result<Outcome, NftError> {
        let Some(applied) = &mut self.applied else { return Ok(Outcome::Unchanged) };
        let Some(text) = ruleset::update(&applied.plan, &target) else {
            let audited = applied.audited.take();
            self.keep(Applied { plan: target, audited, suspect: false });
            return Ok(Outcome::Unchanged);
        };
        let parts = applied.plan.changes(&target).len();
        match self.apply(&text).await {
            Ok(_) => {
                self.held.fitted(parts);
                self.keep(Applied { plan: target, audited: None, suspect: false });
                Ok(Outcome::Updated)
            }
            // Nothing was changed.
            Err(error @ NftError::Refused(_)) => Err(error),
            Err(error) => {
                self.transaction_failed(&target, parts, &error).await;
                Err(error)
            }
        }
    }

    /// Brings these parts of the plan into force, as far as nft takes them; `refused`: all of them together were. Returns the attempts
    /// that are left.
    async fn bring_parts(
        &mut self,
        plan: &Plan,
        parts: BTreeSet<Part>,
        refused: Option<String>,
        attempts: usize,
    ) -> Result<usize, NftError> {
        let mut search = Search::new(parts, refused.is_some(), attempts).at_most(self.held.most.unwrap_or(usize::MAX));
        let mut exceeded = None;
        let mut last = refused.unwrap_or_default();
        while let Some(group) = search.next_group() {
            match self.attempt(plan, &group).await {
                Ok(()) => {}
                Err(NftError::Refused(cause)) => {
                    last.clone_from(&cause);
                    if let Some(part) = search.refused(group) {
                        self.held.hold(part, plan, cause, true);
                    }
                }
                // The table is as before. The worker has other things to do before the halves are tried.
                Err(error @ (NftError::Timeout { .. } | NftError::Ended(_))) if !self.is_suspect() => {
                    last = error.to_string();
                    if let Some(part) = search.refused(group) {
                        self.held.hold(part, plan, last.clone(), true);
                    }
                    exceeded = Some(error);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let (unknown, left) = search.end();
        unknown.into_iter().for_each(|part| self.held.hold(part, plan, last.clone(), false));
        exceeded.map_or(Ok(left), Err)
    }

    /// Refused: the table is as before.
    async fn attempt(&mut self, plan: &Plan, parts: &[Part]) -> Result<(), NftError> {
        let Some(applied) = &self.applied else { return Ok(()) };
        let target = applied.plan.with(plan, &parts.iter().copied().collect());
        if !ruleset::needs_replace(&applied.plan, &target) {
            return self.update(target).await.map(drop);
        }
        let fits = self.cut(target);
        let outcome = self.replace(fits).await;
        if let (Err(NftError::Refused(_)), Some(applied)) = (&outcome, &mut self.applied) {
            applied.suspect = false;
        }
        outcome
    }

    /// Tries again what was kept back before, when it is due: first what has not been tried alone, then some of what has.
    async fn retry(&mut self, plan: &Plan, known: BTreeSet<Part>, attempts: usize) -> Result<(), NftError> {
        if known.is_empty() || self.held.due.is_some_and(|due| Instant::now() < due) {
            return Ok(());
        }
        let (alone, unknown): (BTreeSet<Part>, BTreeSet<Part>) =
            known.into_iter().partition(|part| self.held.parts.get(part).is_some_and(|held| held.alone));
        if !unknown.is_empty() {
            self.held.backoff = Backoff::default();
        }
        self.bring_parts(plan, unknown, None, attempts).await?;
        let mut wasted = Duration::ZERO;
        for part in self.held.longest_untried(alone) {
            let began = Instant::now();
            match self.attempt(plan, &[part]).await {
                Ok(()) => {}
                Err(NftError::Refused(cause)) => self.held.hold(part, plan, cause, true),
                // One that exceeds its time is enough for now.
                Err(error @ (NftError::Timeout { .. } | NftError::Ended(_))) if !self.is_suspect() => {
                    self.held.hold(part, plan, error.to_string(), true);
                    wasted = began.elapsed();
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        // Other changes do not wait most of the time for one that never ends.
        self.held.due = Some(Instant::now() + self.held.backoff.failed().max(wasted * REST));
        Ok(())
    }
}

impl HeldBack {
    fn exceeds(&self, parts: usize) -> bool {
        self.most.is_some_and(|most| parts > most)
    }

    /// A transaction of so many parts took too long: the next ones have half of them at most.
    pub(super) fn exceeded(&mut self, parts: usize, error: &NftError) {
        let most = (parts / 2).max(1);
        self.most = Some(self.most.map_or(most, |known| known.min(most)));
        tracing::warn!(reason = error.label(), %error, parts, next = most, "nftables transaction is split: it exceeded its time");
    }

    /// One of so many parts did not: the next ones may have twice as many.
    fn fitted(&mut self, parts: usize) {
        self.most = self.most.map(|most| if parts >= most { most.saturating_mul(2) } else { most });
    }

    /// Parts that the plan wants as they were refused.
    fn known(&self, plan: &Plan) -> BTreeSet<Part> {
        self.parts.iter().filter(|(part, held)| plan.content(part) == held.wanted).map(|(part, _)| *part).collect()
    }

    fn hold(&mut self, part: Part, plan: &Plan, cause: String, alone: bool) {
        let wanted = plan.content(&part);
        let known = self.parts.get(&part).filter(|held| held.wanted == wanted);
        let tried = known.map_or(0, |held| held.tried) + u32::from(alone);
        if known.is_none() {
            (self.backoff, self.due) = (Backoff::default(), None);
        }
        if alone && !known.is_some_and(|held| held.alone) {
            tracing::error!(%part, cause, "nftables refuses this change; it is kept back alone and retried");
        }
        self.parts.insert(part, Held { wanted, cause, alone, tried });
    }

    /// Those that are in force now, or not wanted any more, are forgotten.
    fn retain(&mut self, missing: &BTreeSet<Part>) {
        self.parts.retain(|part, _| {
            let stays = missing.contains(part);
            if !stays {
                tracing::info!(%part, "nftables change that was refused is in force, or not wanted any more");
            }
            stays
        });
    }

    fn longest_untried(&self, parts: BTreeSet<Part>) -> Vec<Part> {
        let mut parts: Vec<Part> = parts.into_iter().collect();
        parts.sort_by_key(|part| self.parts.get(part).map_or(0, |held| held.tried));
        parts.truncate(ALONE_AGAIN);
        parts
    }

    fn describe(&self) -> String {
        let named = self.parts.iter().take(NAMED).map(|(part, held)| format!("{part} ({})", held.cause));
        let named: Vec<String> = named.collect();
        let more = self.parts.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        format!("{}{more}; the rest is in force", named.join(", "))
    }
}

/// Transactions in search of what is refused, in one go: enough for one service port of 16,384 (each is as small as its parts).
const ATTEMPTS: usize = 40;
/// Parts that were refused alone and are tried again in one go.
const ALONE_AGAIN: usize = 8;
/// Times as long as an attempt that exceeded its time lasts the pause after it.
const REST: u32 = 10;
/// In the error.
const NAMED: usize = 4;
