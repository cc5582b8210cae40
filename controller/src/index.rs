//! Pure: everything we know, and what has changed since it was last planned. `observe` takes facts in any order and as often as
//! they come; `next_write` (in [`plan`](crate::plan)) returns what follows from them; `finished` takes the result.
//!
//! One write at a time per subject. Nothing is planned before a full list of everything was seen, nor without the lead.

mod outcome;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Instant;

use sheave_api::{Refusal, ServiceRef};

use crate::allocator::Allocator;
use crate::cache::Cache;
use crate::error::WriteError;
use crate::status::StatusWrite;
use crate::view::{GrantView, PoolView, ServiceKey, ServiceView};

/// A fact about the cluster.
#[derive(Clone, Debug)]
pub enum Observed {
    Service(ServiceView),
    ServiceGone(ServiceKey, u64),
    Pool(PoolView),
    PoolGone(String, u64),
    Grant(GrantView),
    GrantGone(Ipv4Addr, u64),
    /// We have deleted the ledger entry with this uid.
    Released(Ipv4Addr, String),
    /// A full list of one kind begins, or is complete, with the version that it was read at (0 if not known).
    Begin(Kind),
    Complete(Kind, u64),
}

/// The three kinds of objects that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Services,
    Pools,
    Grants,
}

/// What a write is about; at most one is on its way per subject. Addresses come first: what is freed can be given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Address(Ipv4Addr),
    /// Seconds since 1970 when it was created, then its name: the order in which Services that wait are served.
    Service(i64, ServiceKey),
    Pool(String),
}

/// One write to the API server. `Prepare` comes before `Grant`: with it the Service gets the finalizer.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Prepare { address: Ipv4Addr, write: StatusWrite },
    Grant { address: Ipv4Addr, pool: String, service: ServiceRef },
    Status(StatusWrite),
    Release { address: Ipv4Addr, uid: String },
    PoolStatus { pool: String, status: serde_json::Value },
}

/// A write with what it is about, to be handed back with the result.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub subject: Subject,
    pub write: Write,
}

/// What a write led to.
#[derive(Debug)]
pub enum Outcome {
    /// Done, and this is what the API server has now.
    Done(Vec<Observed>),
    /// Not done, or not known to be.
    Failed(WriteError),
}

/// All state of the controller.
#[derive(Debug, Default)]
pub struct Index {
    pub(crate) services: Cache<ServiceKey, ServiceView>,
    pub(crate) pools: Cache<String, PoolView>,
    pub(crate) grants: Cache<Ipv4Addr, GrantView>,
    pub(crate) allocator: Allocator,
    pub(crate) leading: bool,
    pub(crate) dirty: BTreeSet<Subject>,
    pub(crate) in_flight: BTreeSet<Subject>,
    pub(crate) not_before: BTreeMap<Subject, Instant>,
    failures: BTreeMap<Subject, u32>,
    corrections: BTreeMap<ServiceKey, (u32, Instant)>,
    /// Services of ours without an address, or with another than they want, and why.
    pub(crate) waiting: BTreeMap<ServiceKey, Refusal>,
    /// Services that have an address, and which parts of them are not served.
    pub(crate) partly: BTreeMap<ServiceKey, Vec<Refusal>>,
    /// Services that were prepared for this address, until they are planned again: it is preferred.
    pub(crate) prepared: BTreeMap<ServiceKey, Ipv4Addr>,
}

impl Index {
    /// Takes a fact. Idempotent; an older version of a known object changes nothing.
    pub fn observe(&mut self, fact: Observed) {
        match fact {
            Observed::Service(view) => self.service_changed(view),
            Observed::ServiceGone(key, version) => {
                let known = self.services.get(&key).cloned();
                if self.services.delete(&key, version) {
                    self.service_gone(&key, known);
                }
            }
            Observed::Pool(view) => {
                let spec_changed = self.pools.get(&view.name).is_none_or(|known| known.spec != view.spec);
                self.dirty.insert(Subject::Pool(view.name.clone()));
                if self.pools.apply(view.name.clone(), &view.uid.clone(), view.version, view) && spec_changed {
                    self.pools_changed();
                }
            }
            Observed::PoolGone(name, version) => {
                if self.pools.delete(&name, version) {
                    self.pools_changed();
                }
            }
            Observed::Grant(view) => self.grant_changed(view),
            Observed::GrantGone(address, version) => {
                if self.grants.delete(&address, version) {
                    self.grant_gone(address);
                }
            }
            Observed::Released(address, uid) => {
                if self.grants.delete_uid(&address, &uid) {
                    self.grant_gone(address);
                }
            }
            Observed::Begin(Kind::Services) => self.services.begin(),
            Observed::Begin(Kind::Pools) => self.pools.begin(),
            Observed::Begin(Kind::Grants) => self.grants.begin(),
            Observed::Complete(kind, version) => self.list_complete(kind, version),
        }
    }

    /// Takes or releases the lead. A new leader has read everything anew, and first plans all of it.
    pub fn lead(&mut self, leading: bool) {
        self.leading = leading;
        self.allocator.stay();
        self.prepared.clear();
        self.look_at_everything();
    }

    /// The periodic full pass: heals whatever a missed fact could have left undone.
    pub fn look_at_everything(&mut self) {
        let services = self.services.iter().map(|(key, view)| Subject::Service(view.created, key.clone()));
        self.dirty.extend(services);
        self.dirty.extend(self.grants.iter().map(|(address, _)| Subject::Address(*address)));
        self.dirty.extend(self.pools.iter().map(|(name, _)| Subject::Pool(name.clone())));
    }

    /// Whether a full list of every kind was seen.
    pub fn is_synced(&self) -> bool {
        self.services.is_synced() && self.pools.is_synced() && self.grants.is_synced()
    }

    /// When to call `next_write` again although nothing was observed.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.not_before.iter().filter(|(subject, _)| self.dirty.contains(*subject)).map(|(_, at)| *at).min()
    }

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

    pub(crate) fn mark_service(&mut self, service: &ServiceKey) {
        if let Some(view) = self.services.get(service) {
            self.dirty.insert(Subject::Service(view.created, service.clone()));
        }
    }

    pub(crate) fn mark_held(&mut self, uid: &str) {
        let addresses: Vec<Ipv4Addr> = self.allocator.held_by(uid).collect();
        self.dirty.extend(addresses.into_iter().map(Subject::Address));
    }

    fn service_changed(&mut self, view: ServiceView) {
        let (key, uid) = (view.key.clone(), view.uid.clone());
        let before = self.services.get(&key).cloned();
        if !self.services.apply(key.clone(), &uid, view.version, view) {
            return;
        }
        if let Some(before) = before.filter(|before| before.uid != uid) {
            self.service_gone(&key, Some(before));
        }
        self.mark_service(&key);
        self.mark_held(&uid);
    }

    fn service_gone(&mut self, key: &ServiceKey, view: Option<ServiceView>) {
        self.forget_standing(key);
        if let Some(view) = view {
            let subject = Subject::Service(view.created, key.clone());
            self.forget_retries(&subject);
            self.mark_held(&view.uid);
        }
    }

    fn grant_changed(&mut self, view: GrantView) {
        let address = view.address;
        let known = self.grants.get(&address).cloned();
        if !self.grants.apply(address, &view.uid, view.version, view.clone()) {
            return;
        }
        // The owner reports itself in the status every now and then: nothing for us, except what it does not serve.
        if let Some(known) = known
            && (known.uid == view.uid && known.pool == view.pool && known.services == view.services)
        {
            if known.partly != view.partly {
                view.services.iter().for_each(|service| self.mark_service(&ServiceKey::from(service)));
            }
            return;
        }
        let before = self.allocator.forget(address);
        self.allocator.granted(address, view.pool.clone(), view.services.clone());
        self.dirty.insert(Subject::Address(address));
        self.dirty.insert(Subject::Pool(view.pool));
        for service in before.iter().chain(&view.services) {
            self.mark_service(&ServiceKey::from(service));
        }
    }

    fn grant_gone(&mut self, address: Ipv4Addr) {
        let subject = Subject::Address(address);
        self.dirty.remove(&subject);
        self.forget_retries(&subject);
        self.dirty.extend(self.allocator.taken(address).map(|taken| Subject::Pool(taken.pool.clone())));
        for service in self.allocator.forget(address) {
            self.mark_service(&ServiceKey::from(&service));
        }
        self.mark_waiting();
    }

    /// An address may have become free: all waiting Services are planned, in order of age.
    fn mark_waiting(&mut self) {
        let waiting: Vec<ServiceKey> = self.waiting.keys().cloned().collect();
        waiting.iter().for_each(|service| self.mark_service(service));
    }

    fn pools_changed(&mut self) {
        self.allocator.set_pools(self.pools.iter().map(|(_, view)| view));
        self.look_at_everything();
    }

    fn list_complete(&mut self, kind: Kind, version: u64) {
        match kind {
            Kind::Services => {
                for key in self.services.complete(version) {
                    self.forget_standing(&key);
                }
                // Grants of Services that are gone are marked here, because no event of their Service comes.
                self.dirty.extend(self.grants.iter().map(|(address, _)| Subject::Address(*address)));
            }
            Kind::Pools => {
                if !self.pools.complete(version).is_empty() {
                    self.pools_changed();
                }
            }
            Kind::Grants => {
                for address in self.grants.complete(version) {
                    self.grant_gone(address);
                }
            }
        }
    }

    fn forget_standing(&mut self, service: &ServiceKey) {
        self.waiting.remove(service);
        self.partly.remove(service);
        self.prepared.remove(service);
        self.corrections.remove(service);
    }

    fn forget_retries(&mut self, subject: &Subject) {
        self.failures.remove(subject);
        self.not_before.remove(subject);
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
