//! From the plan in force to a newer one. A part of it that nft refuses is kept back alone, and tried again with back-off.

use std::collections::{BTreeMap, BTreeSet};

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
        match self.bring(target).await {
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
            Err(error) => return Err(error),
        }
        // A table that is built anew shows what the kernel can.
        plan.second_chance = self.second_chance;
        self.retry(&plan, known, attempts).await?;
        let missing = self.in_force().map(|from| from.changes(&plan)).unwrap_or_default();
        self.held.retain(&missing);
        if missing.is_empty() { Ok(outcome) } else { Err(NftError::Refused(self.held.describe())) }
    }

    /// There were too few attempts to find all that nft refuses: [`Backend::sync`] is to be called again soon.
    pub fn is_searching(&self) -> bool {
        self.held.parts.values().any(|held| !held.alone)
    }

    /// All of it or nothing.
    async fn bring(&mut self, target: Plan) -> Result<Outcome, NftError> {
        let is_sound = |applied: &Applied| !applied.suspect && !ruleset::needs_replace(&applied.plan, &target);
        if !self.applied.as_ref().is_some_and(is_sound) {
            self.replace(target).await?;
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

    /// Of a sound table, by what differs.
    async fn update(&mut self, target: Plan) -> Result<Outcome, NftError> {
        let Some(applied) = &mut self.applied else { return Ok(Outcome::Unchanged) };
        let Some(text) = ruleset::update(&applied.plan, &target) else {
            let audited = applied.audited.take();
            self.keep(Applied { plan: target, audited, suspect: false });
            return Ok(Outcome::Unchanged);
        };
        match self.apply(&text).await {
            Ok(_) => {
                self.keep(Applied { plan: target, audited: None, suspect: false });
                Ok(Outcome::Updated)
            }
            // Nothing was changed.
            Err(error @ NftError::Refused(_)) => Err(error),
            Err(error) => {
                self.suspect_rules(&target, &error);
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
        let mut search = Search::new(parts, refused.is_some(), attempts);
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
                Err(error) => return Err(error),
            }
        }
        let (unknown, left) = search.end();
        unknown.into_iter().for_each(|part| self.held.hold(part, plan, last.clone(), false));
        Ok(left)
    }

    /// Refused: the table is as before.
    async fn attempt(&mut self, plan: &Plan, parts: &[Part]) -> Result<(), NftError> {
        let Some(applied) = &self.applied else { return Ok(()) };
        let target = applied.plan.with(plan, &parts.iter().copied().collect());
        if !ruleset::needs_replace(&applied.plan, &target) {
            return self.update(target).await.map(drop);
        }
        let outcome = self.replace(target).await;
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
        for part in self.held.longest_untried(alone) {
            match self.attempt(plan, &[part]).await {
                Ok(()) => {}
                Err(NftError::Refused(cause)) => self.held.hold(part, plan, cause, true),
                Err(error) => return Err(error),
            }
        }
        self.held.due = Some(Instant::now() + self.held.backoff.failed());
        Ok(())
    }
}

impl HeldBack {
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
/// In the error.
const NAMED: usize = 4;
