//! Pure and deterministic: which address a Service gets. What the ledger grants comes first and never moves; else the lowest free
//! address of the pools in their order ([`choice`]). Knows no order of events and no API.

mod choice;
pub mod kept;
pub mod pool;
mod runs;
pub mod selection;
mod several;
pub mod sharing;
mod span;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use sheave_api::{Excluded, MAX_VIRTUAL_IPS, PoolReason, Refusal, ServiceRef};

use crate::family::{Family, number};
use crate::guards::GuardSet;
use crate::request::{Refused, Request};
use crate::view::{PoolView, ServiceKey};
use kept::Kept;
use pool::Pool;
use runs::Runs;
use selection::{Labels, Namespaces};
pub use several::Decided;
use sharing::Sharers;

/// Pools, and every address that is taken.
#[derive(Clone, Debug, Default)]
pub struct Allocator {
    pools: BTreeMap<String, Pool>,
    namespaces: Namespaces,
    guards: GuardSet,
    taken: BTreeMap<IpAddr, Taken>,
    /// The same, as numbers.
    runs: Runs,
    /// Addresses by the uid of their holder, reserved ones included.
    held: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Services that share their address, if another one fits.
    sharers: Sharers,
    kept: Kept,
}

/// Why an address is not free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// The pool that contains the address now; if none does, the one that the ledger names.
    pub pool: String,
    /// In the order of the ledger, then those that are to be added to it. Never empty.
    pub holders: Vec<Holder>,
}

/// A Service that an address is granted to, or about to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub service: ServiceRef,
    pub state: State,
}

/// How far a Service is on its way into the ledger or out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The ledger entry is being written, or is to name it.
    Reserved,
    Granted,
    /// The ledger entry is being deleted, or is to name it no more. There is no way back: the answer may be lost although it is gone.
    Leaving,
}

/// What is to be done for a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It has this address; a remark names what is not as it should be.
    Keep { address: IpAddr, remark: Option<Refused> },
    /// It is to have this address: write the ledger.
    Grant { address: IpAddr, pool: String },
    /// It waits.
    Refuse(Refused),
}

/// Figures for a pool's status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub total: i64,
    pub used: i64,
    pub free: i64,
    pub excluded: i64,
    pub outside: i64,
    /// What `free` has of either family.
    pub available: [i64; 2],
}

impl Allocator {
    /// Replaces the pools. Grants stay, whatever the pools contain; a pool that contains one adopts it.
    pub fn set_pools<'a>(&mut self, views: impl Iterator<Item = &'a PoolView>) {
        self.pools = pool::parse_all(views).into_iter().map(|pool| (pool.name.clone(), pool)).collect();
        let mut taken = std::mem::take(&mut self.taken);
        for (address, taken) in &mut taken {
            taken.pool = self.pool_of(*address, &taken.pool).to_string();
        }
        self.taken = taken;
    }

    /// Replaces the labels of a namespace; `None`: it is gone. True if that can change which pools are open to its Services.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) -> bool {
        let before = self.namespaces.remove(name);
        let counts = before != labels && self.pools.values().any(|pool| pool.selection.reads_namespaces());
        self.namespaces.extend(labels.map(|labels| (name.to_string(), labels)));
        counts
    }

    /// Replaces the guards. Grants stay, with a remark. True if they were others before.
    pub fn set_guards(&mut self, guards: GuardSet) -> bool {
        let changed = self.guards != guards;
        self.guards = guards;
        changed
    }

    /// The spans of addresses of all pools, as numbers.
    pub fn entries(&self) -> Vec<(u128, u128)> {
        let families = self.pools.values().flat_map(|pool| Family::ALL.map(|family| pool.spans(family)));
        families.flatten().map(|span| (span.first, span.last)).collect()
    }

    /// How many addresses of a pool are guarded, by reason.
    pub fn guarded(&self, name: &str) -> BTreeMap<Refusal, u128> {
        let mut counts: BTreeMap<Refusal, u128> = BTreeMap::new();
        let families = self.pools.get(name).map(|pool| Family::ALL.map(|family| pool.guarded(family, &self.guards)));
        for (reason, count) in families.into_iter().flatten().flatten() {
            *counts.entry(reason).or_default() += count;
        }
        counts
    }

    /// How many addresses of a pool are never given, by reason, as its status has it.
    pub fn excluded_by(&self, name: &str) -> Vec<Excluded> {
        let entry = |reason: &str, count: u128| Excluded {
            reason: reason.to_string(),
            count: i64::try_from(count).unwrap_or(i64::MAX),
        };
        let settings = self.pools.get(name).map(Pool::excluded).filter(|count| *count > 0);
        let settings = settings.map(|count| entry(Excluded::SPEC, count));
        self.guarded(name).into_iter().map(|(reason, count)| entry(reason.as_str(), count)).chain(settings).collect()
    }

    /// The addresses of a pool that nobody has, and that are kept for nobody, lowest first.
    fn fresh<'a>(&'a self, pool: &'a Pool, family: Family) -> impl Iterator<Item = IpAddr> + 'a {
        pool.open(family, &self.guards, |number| self.runs.end(number).or_else(|| self.kept.run(number)))
    }

    /// The IPv4 addresses next in line of each pool that grants some, so many at most.
    pub fn ahead(&self, most: usize) -> Vec<Vec<Ipv4Addr>> {
        let is_free = |address: &IpAddr| !self.taken.contains_key(address);
        let ready = self.pools.values().filter(|pool| pool.is_ready());
        let v4 = |address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        let ahead = ready.map(|pool| {
            let mut ahead: Vec<Ipv4Addr> = self.fresh(pool, Family::V4).filter_map(v4).take(most).collect();
            // Where no other is left, these are given, the one that was freed first in front.
            if ahead.len() < most {
                let may_go = |one: &IpAddr| is_free(one) && !self.guards.contains(*one) && pool.contains(*one);
                ahead.extend(self.kept.by_age().filter(may_go).filter_map(v4).take(most - ahead.len()));
            }
            ahead
        });
        ahead.collect()
    }

    /// Whether a pool that grants addresses contains this one.
    pub fn is_in_pools(&self, address: impl Into<IpAddr> + Copy) -> bool {
        self.pools.values().any(|pool| pool.is_ready() && pool.contains(address))
    }

    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.get(name)
    }

    pub fn has_pools(&self) -> bool {
        !self.pools.is_empty()
    }

    /// The ledger has it: true whatever was assumed before, except that Services on their way in or out stay on it. Returns the
    /// Services that it named before.
    pub fn granted(&mut self, address: IpAddr, pool: String, services: Vec<ServiceRef>) -> Vec<ServiceRef> {
        let before = self.remove(address);
        let leaves = |service: &ServiceRef| {
            let known = before.iter().find(|holder| holder.service.uid == service.uid);
            known.is_some_and(|holder| holder.state == State::Leaving)
        };
        let state = |service: &ServiceRef| if leaves(service) { State::Leaving } else { State::Granted };
        let listed: Vec<Holder> =
            services.into_iter().map(|service| Holder { state: state(&service), service }).collect();
        let named = |holder: &Holder| listed.iter().any(|other| other.service.uid == holder.service.uid);
        let (reserved, gone): (Vec<Holder>, Vec<Holder>) =
            before.into_iter().partition(|holder| holder.state == State::Reserved);
        let joining: Vec<Holder> = reserved.into_iter().filter(|holder| !named(holder)).collect();
        let left = gone.iter().filter(|holder| !named(holder)).map(|holder| ServiceKey::from(&holder.service));
        let left: Vec<ServiceKey> = left.collect();
        let pool = self.pool_of(address, &pool).to_string();
        self.insert(address, Taken { pool: pool.clone(), holders: listed.into_iter().chain(joining).collect() });
        self.keep(address, Some(&pool), left.into_iter());
        gone.into_iter().map(|holder| holder.service).collect()
    }

    /// Keeps addresses from being given twice, or to a Service that cannot share them, while the ledger is being written. A Service
    /// has the reservations of its last plan alone.
    pub fn reserve(&mut self, addresses: &[(IpAddr, String)], service: &ServiceRef) {
        for other in self.reservations_of(&service.uid) {
            if addresses.iter().all(|(address, _)| *address != other) {
                self.unreserve(other, &service.uid);
            }
        }
        for (address, pool) in addresses {
            let mut taken = Taken { pool: pool.clone(), holders: self.remove(*address) };
            if taken.holders.iter().all(|holder| holder.service.uid != service.uid) {
                taken.holders.push(Holder { service: service.clone(), state: State::Reserved });
            }
            self.insert(*address, taken);
        }
    }

    /// Ends the reservation of a Service, unless the ledger has it by now.
    pub fn unreserve(&mut self, address: IpAddr, uid: &str) {
        self.retain(address, |holder| holder.state != State::Reserved || holder.service.uid != uid);
    }

    /// Services that wait for the ledger to name them beside others.
    pub fn reserved(&self, address: IpAddr) -> impl Iterator<Item = &ServiceRef> {
        let holders = self.taken.get(&address).into_iter().flat_map(|taken| &taken.holders);
        holders.filter(|holder| holder.state == State::Reserved).map(|holder| &holder.service)
    }

    /// The addresses that are reserved for the Service with this uid.
    pub fn reservations_of(&self, uid: &str) -> Vec<IpAddr> {
        let reserved = |address: &IpAddr| self.reserved(*address).any(|service| service.uid == uid);
        self.held.get(uid).into_iter().flatten().copied().filter(reserved).collect()
    }

    /// Addresses that are reserved for a Service.
    pub fn reservations(&self) -> impl Iterator<Item = IpAddr> {
        let reserved = |taken: &Taken| taken.holders.iter().any(|holder| holder.state == State::Reserved);
        self.taken.iter().filter(move |(_, taken)| reserved(taken)).map(|(address, _)| *address)
    }

    /// The ledger is about to name these Services no more: they have the address no longer.
    pub fn leave(&mut self, address: IpAddr, uids: &[&str]) {
        for holder in self.taken.get_mut(&address).into_iter().flat_map(|taken| &mut taken.holders) {
            if uids.contains(&holder.service.uid.as_str()) {
                holder.state = State::Leaving;
            }
        }
    }

    pub fn is_leaving(&self, address: IpAddr, uid: &str) -> bool {
        let holders = self.taken.get(&address).into_iter().flat_map(|taken| &taken.holders);
        holders.filter(|holder| holder.service.uid == uid).any(|holder| holder.state == State::Leaving)
    }

    /// The ledger was read anew: what is in it is granted.
    pub fn stay(&mut self) {
        let holders = self.taken.values_mut().flat_map(|taken| &mut taken.holders);
        for holder in holders.filter(|holder| holder.state == State::Leaving) {
            holder.state = State::Granted;
        }
    }

    /// The ledger has it no more. Returns the Services that it named.
    pub fn forget(&mut self, address: IpAddr) -> Vec<ServiceRef> {
        let pool = self.taken.get(&address).map(|taken| taken.pool.clone());
        let gone = self.retain(address, |holder| holder.state == State::Reserved);
        let gone: Vec<ServiceRef> = gone.into_iter().map(|holder| holder.service).collect();
        self.keep(address, pool.as_deref(), gone.iter().map(ServiceKey::from));
        gone
    }

    /// Time passes for addresses that were freed.
    pub fn tick(&mut self, now: Instant) {
        self.kept.tick(now);
    }

    /// Services that had the address until now get it again if they return soon.
    fn keep(&mut self, address: IpAddr, pool: Option<&str>, services: impl Iterator<Item = ServiceKey>) {
        let pool = pool.and_then(|name| self.pools.get(name));
        let span = pool.map_or(kept::DEFAULT, |pool| pool.retention);
        self.kept.add(address, services, span);
    }

    pub fn taken(&self, address: IpAddr) -> Option<&Taken> {
        self.taken.get(&address)
    }

    /// Addresses that the ledger grants to the Service with this uid, lowest first; not those that leave it.
    pub fn held_by(&self, uid: &str) -> impl Iterator<Item = IpAddr> {
        let granted = move |address: &IpAddr| {
            let holders = self.taken.get(address).into_iter().flat_map(|taken| &taken.holders);
            holders.filter(|holder| holder.service.uid == uid).any(|holder| holder.state == State::Granted)
        };
        self.held.get(uid).into_iter().flatten().copied().filter(granted)
    }

    /// The addresses at which the ledger names the Service with this uid, also in an entry that is being written or deleted.
    pub fn listed(&self, uid: &str) -> impl Iterator<Item = IpAddr> {
        self.held.get(uid).into_iter().flatten().copied()
    }

    /// Whether the ledger names the Service with this uid, also in an entry that is being written or deleted.
    pub fn is_listed(&self, uid: &str) -> bool {
        self.held.contains_key(uid)
    }

    /// Decides for one address of a Service. Changes nothing.
    pub fn decide(&self, request: &Request) -> Decision {
        if let Some(address) = self.fitting(request) {
            return Decision::Keep { address, remark: self.remark_of(address, request) };
        }
        match (self.find(request), request.prefer_shown(self.held_of(request))) {
            (Ok((address, pool)), _) => Decision::Grant { address, pool },
            (Err(refused), Some(address)) => Decision::Keep { address, remark: Some(refused.keeping(&[address])) },
            (Err(refused), None) => Decision::Refuse(refused),
        }
    }

    /// What is granted to the Service already, of the family that is asked for.
    fn held_of(&self, request: &Request) -> impl Iterator<Item = IpAddr> {
        self.held_by(&request.service.uid).filter(|address| Family::of(*address) == request.family)
    }

    /// The address that is granted already and is as the Service wants it.
    fn fitting(&self, request: &Request) -> Option<IpAddr> {
        request.prefer_shown(self.held_of(request).filter(|address| self.fits(request, *address)))
    }

    /// The remark about a grant that is as the Service wants it.
    fn remark_of(&self, address: IpAddr, request: &Request) -> Option<Refused> {
        self.remark(address).or_else(|| self.sharing_remark(address, request))
    }

    /// What a pool's status says. Counts of IPv6 can be beyond what it can say.
    pub fn usage(&self, name: &str) -> Usage {
        let Some(pool) = self.pools.get(name) else { return Usage::default() };
        let saturating = |count: u128| i64::try_from(count).unwrap_or(i64::MAX);
        let guarded = Family::ALL.map(|family| pool.guarded(family, &self.guards).values().sum::<u128>());
        let mut usage = Usage {
            total: saturating(pool.total()),
            excluded: saturating(pool.excluded() + guarded.iter().sum::<u128>()),
            ..Usage::default()
        };
        let mut unavailable = guarded;
        // What is reserved the ledger may never have.
        let granted = |taken: &Taken| taken.holders.iter().any(|holder| holder.state != State::Reserved);
        for (address, taken) in self.taken.iter().filter(|(_, taken)| granted(taken)) {
            let contained = pool.contains(*address);
            unavailable[Family::of(*address) as usize] += u128::from(contained && !self.guards.contains(*address));
            if taken.pool == name {
                usage.used += 1;
                usage.outside += i64::from(!contained);
            }
        }
        if pool.is_ready() {
            let free = Family::ALL.map(|family| pool.usable(family).saturating_sub(unavailable[family as usize]));
            usage.free = saturating(free.iter().sum());
            usage.available = free.map(saturating);
        }
        usage
    }

    /// The pool that an address belongs to: the one that the ledger names, unless another one contains it in its stead.
    fn pool_of<'a>(&'a self, address: IpAddr, named: &'a str) -> &'a str {
        if self.pools.get(named).is_some_and(|pool| pool.contains(address)) {
            return named;
        }
        let containing = self.pools.values().filter(|pool| pool.contains(address));
        containing.min_by_key(|pool| (!pool.is_ready(), &pool.name)).map_or(named, |pool| &pool.name)
    }

    /// Whether a grant is what the Service wants now.
    fn fits(&self, request: &Request, address: IpAddr) -> bool {
        let pool = self.taken.get(&address).map(|taken| taken.pool.as_str());
        // Also if another pool has it that contains it as well: such a wish is no reason to move.
        let contains = |name: &str| self.pools.get(name).is_some_and(|pool| pool.contains(address));
        request.address.is_none_or(|wanted| wanted == address)
            && request.pool.as_deref().is_none_or(|wanted| Some(wanted) == pool || contains(wanted))
    }

    /// The remark about a grant that stays.
    fn remark(&self, address: IpAddr) -> Option<Refused> {
        // Nothing is known against an address whose subnet is not known yet.
        if let Some(guarded) = self.guards.check(address).filter(|found| found.reason != Refusal::SubnetNotReported) {
            let barred = [Refusal::AddressOfNode, Refusal::AddressOfGateway].contains(&guarded.reason);
            let fate = if barred { "it stays and is not served" } else { "it stays" };
            return Some(Refused { message: format!("{}; {fate}", guarded.message), ..guarded });
        }
        let name = &self.taken.get(&address)?.pool;
        let message = match self.pools.get(name) {
            Some(pool) if pool.contains(address) || pool.reason == PoolReason::Malformed => return None,
            Some(_) => format!("{address} stays, although pool '{name}' no longer contains it"),
            None => format!("{address} stays, although pool '{name}' no longer exists"),
        };
        Some(Refused { reason: Refusal::AddressNotInPool, message })
    }

    /// Whether this Service may have it: it is not guarded, and no other has it, or it may be shared.
    fn is_free(&self, address: IpAddr, request: &Request) -> bool {
        let free = match self.taken.get(&address) {
            Some(taken) => self.bars(taken, request).is_none(),
            None => self.has_room(),
        };
        free && !self.guards.contains(address)
    }

    /// Whether the cluster may have one more address in use.
    fn has_room(&self) -> bool {
        self.taken.len() < MAX_VIRTUAL_IPS
    }

    fn insert(&mut self, address: IpAddr, taken: Taken) {
        for holder in &taken.holders {
            self.held.entry(holder.service.uid.clone()).or_default().insert(address);
            if holder.state == State::Granted {
                self.kept.returned(address, &ServiceKey::from(&holder.service));
            }
        }
        self.runs.insert(number(address));
        self.taken.insert(address, taken);
    }

    fn remove(&mut self, address: IpAddr) -> Vec<Holder> {
        self.retain(address, |_| false)
    }

    /// Returns those that are not kept.
    fn retain(&mut self, address: IpAddr, keep: impl Fn(&Holder) -> bool) -> Vec<Holder> {
        let Some(taken) = self.taken.get_mut(&address) else { return Vec::new() };
        let (kept, gone): (Vec<Holder>, Vec<Holder>) =
            std::mem::take(&mut taken.holders).into_iter().partition(|holder| keep(holder));
        if kept.is_empty() {
            self.taken.remove(&address);
            self.runs.remove(number(address));
        } else {
            taken.holders = kept;
        }
        for holder in &gone {
            if let Some(addresses) = self.held.get_mut(&holder.service.uid) {
                addresses.remove(&address);
                if addresses.is_empty() {
                    self.held.remove(&holder.service.uid);
                }
            }
        }
        gone
    }
}
