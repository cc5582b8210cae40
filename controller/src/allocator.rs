//! Pure and deterministic: which address a Service gets. What the ledger grants comes first and never moves; else the
//! lowest free address of the pools in the order of their names. Knows no time, no order of events and no API.

pub mod pool;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use sheave_api::{PoolReason, Refusal, ServiceRef};

use crate::request::{Refused, Request};
use crate::view::PoolView;
use pool::Pool;

/// Pools, and every address that is taken.
#[derive(Debug, Default)]
pub struct Allocator {
    pools: BTreeMap<String, Pool>,
    taken: BTreeMap<Ipv4Addr, Taken>,
    /// Addresses by the uid of their holder, reserved ones included.
    held: BTreeMap<String, BTreeSet<Ipv4Addr>>,
}

/// Why an address is not free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    pub pool: String,
    pub services: Vec<ServiceRef>,
    pub state: State,
}

/// How far an address is on its way into the ledger or out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The ledger entry is being written.
    Reserved,
    Granted,
    /// The ledger entry is being deleted. There is no way back: the answer may be lost although it is gone.
    Leaving,
}

/// What is to be done for a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It has this address; a remark names what is not as it should be.
    Keep { address: Ipv4Addr, remark: Option<Refused> },
    /// It is to have this address: write the ledger.
    Grant { address: Ipv4Addr, pool: String },
    /// It waits.
    Refuse(Refused),
}

/// Figures for a pool's status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub assigned: i64,
    pub available: i64,
    pub outside: i64,
}

impl Allocator {
    /// Replaces the pools. Grants stay, whatever the pools contain.
    pub fn set_pools<'a>(&mut self, views: impl Iterator<Item = &'a PoolView>) {
        self.pools = pool::parse_all(views).into_iter().map(|pool| (pool.name.clone(), pool)).collect();
    }

    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.get(name)
    }

    pub fn has_pools(&self) -> bool {
        !self.pools.is_empty()
    }

    /// The ledger has it: true whatever was assumed before.
    pub fn granted(&mut self, address: Ipv4Addr, pool: String, services: Vec<ServiceRef>) {
        self.insert(address, Taken { pool, services, state: State::Granted });
    }

    /// Keeps an address from being given twice while its ledger entry is being written.
    pub fn reserve(&mut self, address: Ipv4Addr, pool: String, service: ServiceRef) {
        assert!(!self.taken.contains_key(&address), "{address} is taken already");
        self.insert(address, Taken { pool, services: vec![service], state: State::Reserved });
    }

    /// Frees an address that was reserved, unless the ledger has it by now.
    pub fn unreserve(&mut self, address: Ipv4Addr) {
        if self.taken.get(&address).is_some_and(|taken| taken.state == State::Reserved) {
            self.forget(address);
        }
    }

    /// Its ledger entry is about to be deleted: no Service has it and none gets it.
    pub fn leave(&mut self, address: Ipv4Addr) {
        if let Some(taken) = self.taken.get_mut(&address) {
            taken.state = State::Leaving;
        }
    }

    /// The ledger was read anew: what is in it is granted.
    pub fn stay(&mut self) {
        for taken in self.taken.values_mut().filter(|taken| taken.state == State::Leaving) {
            taken.state = State::Granted;
        }
    }

    /// The ledger has it no more. Returns its holder.
    pub fn forget(&mut self, address: Ipv4Addr) -> Vec<ServiceRef> {
        let Some(taken) = self.taken.remove(&address) else { return Vec::new() };
        for service in &taken.services {
            if let Some(addresses) = self.held.get_mut(&service.uid) {
                addresses.remove(&address);
                if addresses.is_empty() {
                    self.held.remove(&service.uid);
                }
            }
        }
        taken.services
    }

    pub fn taken(&self, address: Ipv4Addr) -> Option<&Taken> {
        self.taken.get(&address)
    }

    /// Addresses that the ledger grants to the Service with this uid, lowest first; not those that leave it.
    pub fn held_by(&self, uid: &str) -> impl Iterator<Item = Ipv4Addr> {
        let addresses = self.held.get(uid).into_iter().flatten().copied();
        addresses.filter(|address| self.taken.get(address).is_some_and(|taken| taken.state == State::Granted))
    }

    /// Whether the ledger names the Service with this uid, also in an entry that is being written or deleted.
    pub fn is_listed(&self, uid: &str) -> bool {
        self.held.contains_key(uid)
    }

    /// Decides for one Service. Changes nothing.
    pub fn decide(&self, request: &Request) -> Decision {
        let held: Vec<Ipv4Addr> = self.held_by(&request.service.uid).collect();
        let prefer_shown = |candidates: &[Ipv4Addr]| {
            request.shown.filter(|shown| candidates.contains(shown)).or(candidates.first().copied())
        };
        let fitting: Vec<Ipv4Addr> = held.iter().copied().filter(|address| self.fits(request, *address)).collect();
        if let Some(address) = prefer_shown(&fitting) {
            return Decision::Keep { address, remark: self.remark(address) };
        }
        match (self.find(request), prefer_shown(&held)) {
            (Ok((address, pool)), _) => Decision::Grant { address, pool },
            (Err(refused), Some(address)) => Decision::Keep { address, remark: Some(refused.keeping(address)) },
            (Err(refused), None) => Decision::Refuse(refused),
        }
    }

    /// Assigned, free, and assigned outside the pool's present entries.
    pub fn usage(&self, name: &str) -> Usage {
        let Some(pool) = self.pools.get(name) else { return Usage::default() };
        let mut usage = Usage::default();
        let mut inside = 0;
        // What is reserved the ledger may never have.
        for (address, taken) in self.taken.iter().filter(|(_, taken)| taken.state != State::Reserved) {
            let contained = pool.contains(*address);
            inside += i64::from(contained);
            if taken.pool == name {
                usage.assigned += 1;
                usage.outside += i64::from(!contained);
            }
        }
        let total = i64::try_from(pool.total()).unwrap_or(i64::MAX);
        usage.available = if pool.is_ready() { total - inside } else { 0 };
        usage
    }

    /// Whether a grant is what the Service wants now.
    fn fits(&self, request: &Request, address: Ipv4Addr) -> bool {
        let pool = self.taken.get(&address).map(|taken| taken.pool.as_str());
        request.address.is_none_or(|wanted| wanted == address)
            && request.pool.as_deref().is_none_or(|wanted| Some(wanted) == pool)
    }

    /// The remark about a grant that stays.
    fn remark(&self, address: Ipv4Addr) -> Option<Refused> {
        let name = &self.taken.get(&address)?.pool;
        let message = match self.pools.get(name) {
            Some(pool) if pool.contains(address) || pool.reason == PoolReason::Malformed => return None,
            Some(_) => format!("{address} stays, although pool '{name}' no longer contains it"),
            None => format!("{address} stays, although pool '{name}' no longer exists"),
        };
        Some(Refused { reason: Refusal::AddressNotInPool, message })
    }

    /// A free address for this request, and its pool.
    fn find(&self, request: &Request) -> Result<(Ipv4Addr, String), Refused> {
        let candidates = self.candidates(request)?;
        let ready: Vec<&Pool> = candidates.iter().copied().filter(|pool| pool.is_ready()).collect();
        let malformed = || {
            let what: Vec<String> = candidates.iter().map(|p| format!("pool '{}': {}", p.name, p.message)).collect();
            Refused { reason: Refusal::PoolMalformed, message: what.join("; ") }
        };
        if ready.is_empty() {
            return Err(malformed());
        }
        if let Some(address) = request.address {
            return self.exactly(address, &ready, request);
        }
        let holds = |address: &Ipv4Addr| ready.iter().find(|pool| pool.contains(*address));
        if let Some(address) = request.adopt.filter(|address| self.is_free(*address))
            && let Some(pool) = holds(&address)
        {
            return Ok((address, pool.name.clone()));
        }
        for pool in &ready {
            if let Some(address) = pool.lowest(|address| self.is_free(address)) {
                return Ok((address, pool.name.clone()));
            }
        }
        let names: Vec<&str> = ready.iter().map(|pool| pool.name.as_str()).collect();
        let message = format!("every address of {} is granted; a Service that is deleted frees one", listed(&names));
        Err(Refused { reason: Refusal::PoolExhausted, message })
    }

    /// The pools that may serve this request, in the order of their names.
    fn candidates(&self, request: &Request) -> Result<Vec<&Pool>, Refused> {
        if let Some(name) = &request.pool {
            let pool = self.pools.get(name).ok_or_else(|| Refused {
                reason: Refusal::UnknownPool,
                message: format!("there is no AddressPool '{name}'"),
            })?;
            return Ok(vec![pool]);
        }
        // A Service that names an address may have it from any pool, also from a pool that does not assign by itself.
        let by_itself = |pool: &&Pool| request.address.is_some() || pool.auto_assign;
        let pools: Vec<&Pool> = self.pools.values().filter(by_itself).collect();
        if !pools.is_empty() {
            return Ok(pools);
        }
        let message = if self.pools.is_empty() {
            "there is no AddressPool".to_string()
        } else {
            "no AddressPool has autoAssign, and the Service names none".to_string()
        };
        Err(Refused { reason: Refusal::NoPool, message })
    }

    /// The requested address, or why not.
    fn exactly(&self, address: Ipv4Addr, pools: &[&Pool], request: &Request) -> Result<(Ipv4Addr, String), Refused> {
        let Some(pool) = pools.iter().find(|pool| pool.contains(address)) else {
            let message = match &request.pool {
                Some(name) => format!("{address} is not in pool '{name}'"),
                None => format!("{address} is in no pool that is ready"),
            };
            return Err(Refused { reason: Refusal::AddressNotInPool, message });
        };
        match self.taken.get(&address) {
            None => Ok((address, pool.name.clone())),
            Some(taken) => {
                let who: Vec<String> = taken.services.iter().map(|s| format!("{}/{}", s.namespace, s.name)).collect();
                let message = format!("{address} is granted to {}", who.join(", "));
                Err(Refused { reason: Refusal::AddressInUse, message })
            }
        }
    }

    fn is_free(&self, address: Ipv4Addr) -> bool {
        !self.taken.contains_key(&address)
    }

    fn insert(&mut self, address: Ipv4Addr, taken: Taken) {
        self.forget(address);
        for service in &taken.services {
            self.held.entry(service.uid.clone()).or_default().insert(address);
        }
        self.taken.insert(address, taken);
    }
}

fn listed(names: &[&str]) -> String {
    match names {
        [one] => format!("pool '{one}'"),
        many => format!("pools '{}'", many.join("', '")),
    }
}
