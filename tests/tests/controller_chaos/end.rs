//! What must be true when nothing changes any more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sheave_tests::lab::wait_for;
use sheave_tests::scenario::api::{Api, text};

use super::{LEDGER, POOLS, SERVICES};

/// Every Service has an address or a refusal that is true, and no entry is left of anything else.
pub fn wait_true(api: &Api) -> Result<()> {
    let mut untrue = vec![];
    let all_true = wait_for("everything to be true", Duration::from_secs(60), || {
        untrue = find_untrue(api)?;
        Ok(untrue.is_empty().then_some(()))
    });
    all_true.with_context(|| format!("{} are not true:\n{}", untrue.len(), untrue.join("\n")))
}

fn find_untrue(api: &Api) -> Result<Vec<String>> {
    let services = api.list(SERVICES)?;
    let ledger = Ledger::read(api)?;
    let mut untrue = vec![];
    for service in &services {
        if let Some(sentence) = ledger.untrue_of(service) {
            untrue.push(format!("{}: {sentence}", text(service, "/metadata/name")));
        }
    }
    let wanting = |service: &&Value| text(service, "/spec/type") == "LoadBalancer";
    let wanting: BTreeSet<&str> =
        services.iter().filter(wanting).map(|service| text(service, "/metadata/uid")).collect();
    for (address, uids) in &ledger.granted {
        for uid in uids.iter().filter(|uid| !wanting.contains(uid.as_str())) {
            untrue.push(format!("{address} is granted to {uid}, which does not want it"));
        }
    }
    Ok(untrue)
}

struct Ledger {
    /// The uids of the Services of each address.
    granted: BTreeMap<Ipv4Addr, Vec<String>>,
    /// First and last address of each pool.
    pools: Vec<(Ipv4Addr, Ipv4Addr)>,
}

impl Ledger {
    fn read(api: &Api) -> Result<Self> {
        let mut granted = BTreeMap::new();
        for entry in api.list(LEDGER)? {
            let services = entry["spec"]["services"].as_array().context("services")?;
            let uids = services.iter().map(|service| text(service, "/uid").to_owned()).collect();
            granted.insert(text(&entry, "/spec/address").parse()?, uids);
        }
        let mut pools = vec![];
        for pool in api.list(POOLS)? {
            let (first, last) = text(&pool, "/spec/addresses/0").split_once('-').context("a range")?;
            pools.push((first.parse()?, last.parse()?));
        }
        Ok(Self { granted, pools })
    }

    /// What is not true of this Service.
    fn untrue_of(&self, service: &Value) -> Option<String> {
        let uid = text(service, "/metadata/uid");
        let ingress = service.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
        let shown: Vec<Ipv4Addr> =
            ingress.into_iter().flatten().filter_map(|one| text(one, "/ip").parse().ok()).collect();
        let held: Vec<Ipv4Addr> =
            self.granted.iter().filter(|(_, uids)| uids.iter().any(|known| known == uid)).map(|(at, _)| *at).collect();
        if shown != held {
            return Some(format!("shows {shown:?}, is granted {held:?}"));
        }
        if !service["metadata"]["deletionTimestamp"].is_null() {
            return Some("is deleted and still there".into());
        }
        let (status, reason) = condition(service);
        let finalizers = service.pointer("/metadata/finalizers").and_then(Value::as_array).map_or(0, Vec::len);
        if text(service, "/spec/type") != "LoadBalancer" {
            let clean = held.is_empty() && finalizers == 0 && reason.is_empty();
            return (!clean).then(|| format!("is no LoadBalancer: {held:?}, {finalizers} finalizers, {reason:?}"));
        }
        let wish: Option<Ipv4Addr> = text(service, "/metadata/annotations/sheave.dev~1addresses").parse().ok();
        let expected = match wish {
            Some(wish) if held.contains(&wish) => "AddressAllocated",
            Some(wish) if !self.in_a_pool(wish) => "AddressNotInPool",
            Some(wish) if self.granted.contains_key(&wish) => "AddressInUse",
            Some(wish) => return Some(format!("wants {wish}, which is free, and has {held:?} ({reason})")),
            None if !held.is_empty() => "AddressAllocated",
            None if self.is_full() => "PoolExhausted",
            None => return Some(format!("has none, and some are free ({status} {reason})")),
        };
        (reason != expected).then(|| format!("{status} {reason:?}; {expected} is true: wants {wish:?}, has {held:?}"))
    }

    fn in_a_pool(&self, address: Ipv4Addr) -> bool {
        self.pools.iter().any(|(first, last)| (*first..=*last).contains(&address))
    }

    fn is_full(&self) -> bool {
        let size: u32 = self.pools.iter().map(|(first, last)| u32::from(*last) - u32::from(*first) + 1).sum();
        self.granted.len() == size as usize
    }
}

/// Status and reason of the controller's condition.
pub fn condition(service: &Value) -> (&str, &str) {
    let all = service.pointer("/status/conditions").and_then(Value::as_array);
    let ours = all.and_then(|all| all.iter().find(|one| one["type"] == "sheave.dev/Allocated"));
    ours.map_or(("", ""), |one| (text(one, "/status"), text(one, "/reason")))
}
