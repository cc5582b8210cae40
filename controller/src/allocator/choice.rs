//! Pure: the address for a Service that has none. Pools that may serve it, in their order; then the lowest free address.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sheave_api::{MAX_VIRTUAL_IPS, PoolReason, Refusal, excerpt};

use super::Allocator;
use super::pool::Pool;
use crate::family::Family;
use crate::request::{Refused, Request};
use crate::view::ServiceKey;

impl Allocator {
    /// A free address for this request, and its pool.
    pub(super) fn find(&self, request: &Request) -> Result<(IpAddr, String), Refused> {
        if let Some(refused) = request.address.and_then(|address| self.guards.check(address)) {
            let message = format!("{}; no Service may have it", refused.message);
            return Err(Refused { message, ..refused });
        }
        let pools = self.candidates(request)?;
        if let Some(address) = request.address {
            return self.exactly(address, &pools, request);
        }
        let holds = |address: &IpAddr| pools.iter().find(|pool| pool.contains(*address));
        if let Some(address) = request.adopt.filter(|address| self.is_free(*address, request))
            && let Some(pool) = holds(&address)
        {
            return Ok((address, pool.name.clone()));
        }
        if let Some(found) = self.kept_for(request, &pools).or_else(|| self.shared(request, &pools)) {
            return Ok(found);
        }
        if !self.has_room() {
            return Err(limit_reached());
        }
        for pool in &pools {
            let of_family = |address| Family::of(address) == request.family;
            let is_free = |address| !self.taken.contains_key(&address) && of_family(address);
            let may_go = |address| is_free(address) && !self.guards.contains(address) && pool.contains(address);
            let oldest = || self.kept.oldest(may_go);
            if let Some(address) = self.fresh(pool, request.family).next().or_else(oldest) {
                return Ok((address, pool.name.clone()));
            }
        }
        Err(self.exhausted(&pools, request.family))
    }

    /// Nothing is left, or nothing is known yet of what is left.
    fn exhausted(&self, pools: &[&Pool], family: Family) -> Refused {
        let names: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
        let mut guarded: BTreeMap<Refusal, u128> = BTreeMap::new();
        for (reason, count) in pools.iter().flat_map(|pool| pool.guarded(family, &self.guards)) {
            *guarded.entry(reason).or_default() += count;
        }
        let waits = guarded.contains_key(&Refusal::SubnetNotReported);
        let reason = if waits { Refusal::SubnetNotReported } else { Refusal::PoolExhausted };
        let left_out: Vec<String> = guarded.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let left_out = match left_out.is_empty() {
            true => String::new(),
            false => format!(" or left out ({})", left_out.join(", ")),
        };
        let listed = listed(&names);
        refused(
            reason,
            format!("every {family} address of {listed} is granted{left_out}; a Service that is deleted frees one"),
        )
    }

    /// What a Service of this name had until lately.
    fn kept_for(&self, request: &Request, pools: &[&Pool]) -> Option<(IpAddr, String)> {
        let service = ServiceKey::from(&request.service);
        let kept: Vec<IpAddr> =
            self.kept.of(&service, request.family).filter(|address| self.is_free(*address, request)).collect();
        first_in(pools, &kept)
    }

    /// The pools that may serve this request, the one to try first in front.
    fn candidates(&self, request: &Request) -> Result<Vec<&Pool>, Refused> {
        let ready = ready(self.named(request)?)?;
        let rejects = |pool: &&Pool| pool.selection.rejects(request, &self.namespaces);
        let mut pools: Vec<&Pool> = ready.iter().copied().filter(|pool| rejects(pool).is_none()).collect();
        if pools.is_empty() {
            let what = ready
                .iter()
                .filter_map(|pool| Some(format!("pool '{}' does not select {}", pool.name, rejects(pool)?)));
            return Err(refused(Refusal::ServiceNotSelected, sentences(what)));
        }
        pools.sort_by_key(|pool| pool.order());
        Ok(pools)
    }

    /// The pool that the Service names, or those that contain the address it names, or those that assign by themselves.
    fn named(&self, request: &Request) -> Result<Vec<&Pool>, Refused> {
        if self.pools.is_empty() && request.pool.is_none() {
            return Err(refused(Refusal::NoPool, "there is no AddressPool"));
        }
        let named = match &request.pool {
            Some(name) => {
                let unknown = || refused(Refusal::UnknownPool, format!("there is no AddressPool '{}'", excerpt(name)));
                vec![self.pools.get(name).ok_or_else(unknown)?]
            }
            None => self.pools.values().collect(),
        };
        if let Some(address) = request.address {
            let containing: Vec<&Pool> = named.into_iter().filter(|pool| pool.contains(address)).collect();
            let message = || match &request.pool {
                Some(name) => format!("{address} is not in pool '{name}'"),
                None => format!("{address} is in no pool"),
            };
            return if containing.is_empty() {
                Err(refused(Refusal::AddressNotInPool, message()))
            } else {
                Ok(containing)
            };
        }
        // A pool that is named need not assign by itself.
        let pools: Vec<&Pool> = named.into_iter().filter(|pool| request.pool.is_some() || pool.auto_assign).collect();
        if pools.is_empty() {
            return Err(refused(Refusal::NoPool, "no AddressPool has autoAssign, and the Service names none"));
        }
        let names: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
        let of_family: Vec<&Pool> = pools.iter().copied().filter(|pool| pool.has(request.family)).collect();
        // One that cannot be read may have some.
        if of_family.is_empty() && pools.iter().any(|pool| pool.is_ready()) {
            let message = format!("there is no {} address in {}", request.family, listed(&names));
            return Err(refused(Refusal::PoolExhausted, message));
        }
        Ok(if of_family.is_empty() { pools } else { of_family })
    }

    /// The requested address, which these pools contain, or why not.
    fn exactly(&self, address: IpAddr, pools: &[&Pool], request: &Request) -> Result<(IpAddr, String), Refused> {
        if let Some(barred) = self.taken.get(&address).and_then(|taken| self.bars(taken, request)) {
            return Err(refused(barred.reason, format!("{address} is granted already: {}", barred.message)));
        }
        if !self.taken.contains_key(&address) && !self.has_room() {
            return Err(limit_reached());
        }
        let pool =
            pools.first().ok_or_else(|| refused(Refusal::AddressNotInPool, format!("{address} is in no pool")))?;
        Ok((address, pool.name.clone()))
    }
}

/// Of the first pool that contains any of them, the first.
pub(super) fn first_in(pools: &[&Pool], addresses: &[IpAddr]) -> Option<(IpAddr, String)> {
    pools.iter().find_map(|pool| {
        let address = addresses.iter().find(|address| pool.contains(**address))?;
        Some((*address, pool.name.clone()))
    })
}

/// Those that grant addresses.
fn ready(pools: Vec<&Pool>) -> Result<Vec<&Pool>, Refused> {
    let (ready, others): (Vec<&Pool>, Vec<&Pool>) = pools.into_iter().partition(|pool| pool.is_ready());
    if !ready.is_empty() {
        return Ok(ready);
    }
    let drained = others.iter().any(|pool| pool.reason == PoolReason::Disabled);
    let reason = if drained { Refusal::PoolDisabled } else { Refusal::PoolMalformed };
    Err(refused(reason, sentences(others.iter().map(|pool| format!("pool '{}': {}", pool.name, pool.message)))))
}

pub(super) fn limit_reached() -> Refused {
    let message = format!(
        "{MAX_VIRTUAL_IPS} addresses are in use, which is the most that the Services of a cluster may have; Services that share an \
         address need one together, and a Service that is deleted frees one"
    );
    refused(Refusal::LimitReached, message)
}

fn refused(reason: Refusal, message: impl Into<String>) -> Refused {
    Refused { reason, message: message.into() }
}

fn sentences(sentences: impl Iterator<Item = String>) -> String {
    sentences.collect::<Vec<_>>().join("; ")
}

fn listed(names: &[&str]) -> String {
    match names {
        [one] => format!("pool '{one}'"),
        many => format!("pools '{}'", many.join("', '")),
    }
}
