//! The backend's I/O: the nft program, conntrack, sysctls. `speaker_core::backend` decides their content. Read first:
//! docs/backend.md.

pub mod accept_mark;
mod apply;
pub mod arp_guard;
pub mod clients;
pub mod conntrack;
mod conntrack_room;
mod counters;
mod foreign_chains;
mod forget;
mod legacy_iptables;
mod netfilter;
pub mod nft;
mod recorded;
pub mod service_proxy;
pub mod sysctl;
pub mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use speaker_core::backend::affinity::Records;
use speaker_core::backend::ruleset;
use speaker_core::backend::ruleset::members::Count;
use speaker_core::backend::{Guard, Place, Plan};
use speaker_core::health::totals::{Counted, Totals};
use tokio::time::{Instant, sleep_until, timeout};

pub use foreign_chains::{Chain, ForeignChains};

use apply::HeldBack;
use forget::Forgetter;
use netfilter::Monitor;
use nft::{Nft, NftError};
use recorded::Recorded;

/// Keeps the nftables table at the plan, and conntrack free of flows that have lost their pod.
#[derive(Debug)]
pub struct Backend {
    nft: Nft,
    applied: Option<Applied>,
    counters: BTreeMap<&'static str, Counter>,
    /// Of members of the API server endpoint.
    members: Counted,
    second_chance: bool,
    forgetter: Forgetter,
    watch: Watch,
    recorded: Recorded,
    held: HeldBack,
}

/// Watches for third-party changes of the table.
#[derive(Debug)]
struct Watch {
    monitor: Listening,
    /// Our own transactions, each as the generations before and after: there is one of them in between, and perhaps third-party
    /// ones.
    own: VecDeque<(u32, u32)>,
    /// The generation before our last attempt.
    before: Option<u32>,
    /// Before our last transaction that built the tables anew: it repaired whatever third parties had done until then.
    repaired: Option<u32>,
    /// Not ours, and not audited yet.
    third_party: bool,
    /// When the next change may be reported.
    next: Instant,
}

#[derive(Debug)]
enum Listening {
    NotYet,
    Yes(Monitor),
    /// The kernel refused. The periodic audit remains.
    Never,
}

#[derive(Debug)]
struct Applied {
    plan: Plan,
    /// `None` until the first audit after a change.
    audited: Option<Audited>,
    /// A transaction failed since: the next one builds the table anew.
    suspect: bool,
}

#[derive(Debug)]
struct Audited {
    /// Of the node's whole ruleset; `None` if the kernel did not return it.
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
    /// The kernel's last value; it starts at 0 whenever the table is built anew.
    kernel: u64,
}

impl Backend {
    pub fn new(nft: Nft) -> Self {
        let counters = Guard::ALL.iter().map(|guard| (guard.label(), Counter::default())).collect();
        Self {
            applied: None,
            counters,
            members: Counted::default(),
            second_chance: true,
            forgetter: Forgetter::default(),
            watch: Watch {
                monitor: Listening::NotYet,
                own: VecDeque::new(),
                before: None,
                repaired: None,
                third_party: false,
                next: Instant::now(),
            },
            recorded: Recorded::new(nft.place.table()),
            nft,
            held: HeldBack::default(),
        }
    }

    /// False: this kernel cannot hand packets on (no `CONFIG_NFT_DUP_IPV4`), so that flows end where rows move.
    pub fn second_chance(&self) -> bool {
        self.second_chance
    }

    /// Flows whose conntrack entries were deleted because they had lost their pod, since the start of this speaker.
    pub fn flows_forgotten(&self) -> u64 {
        self.forgetter.forgotten()
    }

    /// TCP flows that stay with pods that no EndpointSlice names any more and that live.
    pub fn flows_in_removal_grace(&self) -> u64 {
        self.forgetter.unnamed()
    }

    /// The content of the table, as far as this is known: `None` before the first success.
    pub fn in_force(&self) -> Option<&Plan> {
        self.applied.as_ref().map(|applied| &applied.plan)
    }

    /// The last transaction failed: [`Backend::sync`] is to be called again.
    pub fn is_suspect(&self) -> bool {
        self.applied.as_ref().is_none_or(|applied| applied.suspect)
    }

    /// This plan's transaction of so many parts failed.
    async fn transaction_failed(&mut self, plan: &Plan, parts: usize, error: &NftError) {
        if matches!(error, NftError::Timeout { .. } | NftError::Ended(_)) {
            self.held.exceeded(parts, error);
            if self.nothing_changed(error).await {
                return;
            }
        }
        let Some(applied) = &mut self.applied else { return };
        match error {
            // The program did not run.
            NftError::Start { .. } => {}
            NftError::Refused(_) => applied.suspect = true,
            // It may be in force all the same: only what both plans have is certain.
            NftError::Timeout { .. } | NftError::Pipe(_) | NftError::Ended(_) | NftError::TooLong => {
                *applied = Applied { plan: common(plan, &applied.plan), audited: None, suspect: true };
            }
        }
    }

    /// The program ended before the kernel had taken its transaction.
    async fn nothing_changed(&mut self, error: &NftError) -> bool {
        if matches!(error, NftError::Timeout { ended: false, .. }) {
            return false;
        }
        let generation = netfilter::generation().ok();
        generation.is_some() && generation == self.watch.before || self.is_untouched().await
    }

    /// Returns when a third party has changed our table, at most every [`PACE`]: [`Backend::audit`] repairs it. Never returns if
    /// the kernel does not report changes. May be dropped while it waits.
    pub async fn changed(&mut self) {
        sleep_until(self.watch.next).await;
        self.watch.third_party_transaction(self.nft.place.table()).await;
        self.watch.third_party = true;
        self.watch.next = Instant::now() + PACE;
    }

    /// Repairs third-party changes of the table. True: there was one. Call it after [`Backend::changed`], and every few seconds:
    /// it costs one system call while no nftables rule on the node changes, else a run of nft.
    pub async fn audit(&mut self) -> Result<bool, NftError> {
        let third_party = std::mem::take(&mut self.watch.third_party);
        // A transaction that failed is repeated by `sync`.
        let Some(applied) = self.applied.as_mut().filter(|applied| !applied.suspect) else { return Ok(false) };
        // Read before the listing: a change in between is seen the next time.
        let generation = netfilter::generation().ok();
        if generation.is_some() && applied.audited.as_ref().is_some_and(|audited| audited.generation == generation) {
            return Ok(false);
        }
        let listing = match self.nft.listing().await {
            Ok(listing) => listing,
            Err(error) => {
                // What was reported is not reported again: `sync` builds the table anew.
                applied.suspect = third_party;
                return Err(error);
            }
        };
        if let Some(listing) = listing {
            let sound = match &applied.audited {
                Some(audited) => audited.listing == listing,
                // Nothing to compare with: our change since the last audit, and then a third-party one.
                None => !third_party && is_whole(&listing),
            };
            if sound {
                applied.audited = Some(Audited { generation, listing });
                return Ok(false);
            }
        }
        applied.suspect = true;
        let plan = applied.plan.clone();
        self.replace(plan).await?;
        Ok(true)
    }

    /// Packets per guard, by label. Blocks for the time of a netlink dump.
    pub fn counters(&mut self) -> std::io::Result<&BTreeMap<&'static str, Counter>> {
        let read = counters::read(self.nft.place.table())?;
        for (name, counter) in &mut self.counters {
            let Some(Count { packets: now, .. }) = read.get(*name).copied() else { continue };
            // Lower than before: a third party reset it.
            counter.packets += now.checked_sub(counter.kernel).unwrap_or(now);
            counter.kernel = now;
        }
        self.members.read(&ruleset::members::totals(&read));
        Ok(&self.counters)
    }

    /// What was led to members since the start of this speaker, as [`Backend::counters`] read it last; `None`: that is not counted.
    pub fn totals(&self) -> Option<&Totals> {
        self.in_force().filter(|plan| !plan.counted.is_empty()).map(|_| self.members.totals())
    }

    /// Remembers which clients have which pods, in case a third party deletes the table. Blocks for the time of a netlink dump.
    pub fn remember_clients(&mut self) {
        if let Some(applied) = self.applied.as_ref().filter(|applied| !applied.suspect) {
            self.recorded.read(&applied.plan, Instant::now());
        }
    }

    /// No third party has changed our table since our last transaction, as far as the kernel reports it.
    async fn is_untouched(&mut self) -> bool {
        if self.watch.third_party || !matches!(self.watch.monitor, Listening::Yes(_)) {
            return false;
        }
        self.watch.third_party =
            timeout(REPORTED, self.watch.third_party_transaction(self.nft.place.table())).await.is_ok();
        !self.watch.third_party && matches!(self.watch.monitor, Listening::Yes(_))
    }

    async fn replace(&mut self, mut plan: Plan) -> Result<(), NftError> {
        // What the guards have counted ends with the table.
        if let Err(error) = self.counters() {
            tracing::debug!(%error, "counters not read before the table is replaced");
        }
        if let Err(error) = self.try_replace(&mut plan).await {
            let ports = plan.without_ports().changes(&plan).len();
            self.transaction_failed(&plan, ports, &error).await;
            return Err(error);
        }
        if self.second_chance && !plan.second_chance {
            tracing::warn!("kernel lacks CONFIG_NFT_DUP_IPV4: no second chance; open flows end when their row moves");
        }
        self.second_chance = plan.second_chance;
        self.counters.values_mut().for_each(|counter| counter.kernel = 0);
        self.members.begin_anew(&plan.counted);
        self.keep(Applied { plan, audited: None, suspect: false });
        Ok(())
    }

    async fn try_replace(&mut self, plan: &mut Plan) -> Result<(), NftError> {
        plan.second_chance = true;
        // A kernel does not lose an expression: once it was in force, a refusal has another cause.
        let is_known = self.applied.as_ref().is_some_and(|applied| applied.plan.second_chance);
        let known = self.applied.as_ref().map(|applied| &applied.plan);
        let records = self.recorded.for_replacement(plan, known, Instant::now());
        let before = match self.apply(&self.replacement(plan, &records)).await {
            Err(NftError::Refused(_)) if !is_known && self.nft.lacks_dup().await? => {
                plan.second_chance = false;
                self.apply(&self.replacement(plan, &records)).await
            }
            outcome => outcome,
        };
        self.watch.repaired = before?.or(self.watch.repaired);
        Ok(())
    }

    /// The first one removes what a speaker left that served beside another.
    fn replacement(&self, plan: &Plan, records: &Records) -> String {
        let text = ruleset::replace_with(plan, records);
        match (self.nft.place, &self.applied) {
            (Place::Alone, None) => Place::Second.delete() + &text,
            _ => text,
        }
    }

    /// What is in force. Flows are judged by it from now on: an entry that is deleted before would come back with its next
    /// packet.
    fn keep(&mut self, applied: Applied) {
        self.forgetter.judge_by(&applied.plan.endpoints);
        self.recorded.retain(&applied.plan);
        self.applied = Some(applied);
    }

    /// One transaction, recorded as our own. Returns the generation before it, if the kernel told it.
    async fn apply(&mut self, text: &str) -> Result<Option<u32>, NftError> {
        let before = netfilter::generation().ok();
        self.watch.before = before;
        self.nft.apply(text).await?;
        if let (Some(before), Ok(after)) = (before, netfilter::generation()) {
            self.watch.own.push_back((before, after));
            if self.watch.own.len() > MAX_OWN {
                self.watch.own.pop_front();
            }
        }
        Ok(before)
    }
}

impl Watch {
    async fn third_party_transaction(&mut self, table: &str) {
        if matches!(self.monitor, Listening::NotYet) {
            self.monitor = Monitor::open(table).map_or_else(
                |error| {
                    tracing::warn!(%error, "nftables monitor not opened; third-party changes are found by the audit only");
                    Listening::Never
                },
                Listening::Yes,
            );
        }
        while let Listening::Yes(monitor) = &mut self.monitor {
            match monitor.next().await {
                Ok(Some(generation)) if self.is_own(generation) || self.is_repaired(generation) => {}
                Ok(_) => return,
                Err(error) => {
                    tracing::warn!(%error, "nftables monitor failed; third-party changes are found by the audit only");
                    self.monitor = Listening::Never;
                }
            }
        }
        std::future::pending().await
    }

    /// The first transaction of our table in one of our spans is ours, whichever came first: two of them are one too many.
    fn is_own(&mut self, generation: u32) -> bool {
        let covers = |&(before, after): &(u32, u32)| before < generation && generation <= after;
        self.own.iter().position(covers).and_then(|place| self.own.remove(place)).is_some()
    }

    /// The periodic audit may come before the notice. A second repair would change nothing, and the pace after it would keep the next one.
    fn is_repaired(&self, generation: u32) -> bool {
        self.repaired.is_some_and(|before| generation <= before)
    }
}

/// The service ports, peers and new pods of both.
fn common(plan: &Plan, other: &Plan) -> Plan {
    let mut common = other.clone();
    common.services.retain(|key, _| plan.services.contains_key(key));
    common.peers.retain(|slot, address| plan.peers.get(slot) == Some(address));
    common.starting.retain(|pod| plan.starting.contains(pod));
    common
}

/// Our base chains are there: a third party that flushes or deletes between a change and its first audit is noticed all the same.
fn is_whole(listing: &str) -> bool {
    let chains = ["flow_lookup", "prerouting", "forward", "input", "clear_accept_mark", "postrouting"];
    chains.iter().all(|chain| listing.contains(&format!("chain {chain} {{\n\t\ttype ")))
}

/// Between two reported changes of the table: a third party that rewrites it all the time must not keep us busy.
const PACE: Duration = Duration::from_millis(200);
/// Within this the runtime has seen a report that the kernel has made.
const REPORTED: Duration = Duration::from_millis(10);
/// Own transactions whose notice has not come yet.
const MAX_OWN: usize = 64;

#[cfg(test)]
mod tests;
