//! Scenarios and properties of the allocator alone. What it does inside a cluster that fails is in `scenarios`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use proptest::prelude::*;
use sheave_api::{AddressPoolSpec, AddressPoolStatus, Refusal, ServiceRef};

use super::{Allocator, Decision, Usage};
use crate::request::{Refused, Request};
use crate::view::PoolView;

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

fn pool(name: &str, entries: &[&str]) -> PoolView {
    let addresses = entries.iter().map(|entry| entry.to_string()).collect();
    PoolView {
        name: name.into(),
        uid: format!("uid of {name}"),
        version: 1,
        created: 0,
        generation: 1,
        spec: AddressPoolSpec { addresses, auto_assign: true, avoid_buggy_ips: false },
        status: AddressPoolStatus::default(),
    }
}

fn with_pools(pools: &[PoolView]) -> Allocator {
    let mut allocator = Allocator::default();
    allocator.set_pools(pools.iter());
    allocator
}

fn service(uid: &str) -> ServiceRef {
    ServiceRef { namespace: "default".into(), name: format!("service-{uid}"), uid: uid.into() }
}

fn request(uid: &str) -> Request {
    Request { service: service(uid), pool: None, address: None, shown: None, adopt: None }
}

/// Decides and carries a grant out, as the ledger would.
fn settle(allocator: &mut Allocator, request: &Request) -> Result<Ipv4Addr, Refusal> {
    match allocator.decide(request) {
        Decision::Keep { address, .. } => Ok(address),
        Decision::Refuse(Refused { reason, .. }) => Err(reason),
        Decision::Grant { address, pool } => {
            allocator.reserve(address, pool.clone(), request.service.clone());
            allocator.granted(address, pool, vec![request.service.clone()]);
            Ok(address)
        }
    }
}

#[test]
fn the_lowest_free_address_of_the_pools_in_the_order_of_their_names() {
    let mut allocator = with_pools(&[pool("b", &["192.0.2.0/31"]), pool("a", &["192.0.2.10-192.0.2.11"])]);
    let got: Vec<_> = ["1", "2", "3", "4", "5"].iter().map(|uid| settle(&mut allocator, &request(uid))).collect();
    assert_eq!(got, [Ok(ip(10)), Ok(ip(11)), Ok(ip(0)), Ok(ip(1)), Err(Refusal::PoolExhausted)]);
    allocator.forget(ip(11));
    assert_eq!(settle(&mut allocator, &request("5")), Ok(ip(11)));
}

#[test]
fn every_refusal_has_its_name() {
    let mut by_name_only = pool("quiet", &["192.0.2.64/30"]);
    by_name_only.spec.auto_assign = false;
    let mut allocator = with_pools(&[]);
    assert_eq!(settle(&mut allocator, &request("1")), Err(Refusal::NoPool));
    allocator.set_pools([by_name_only.clone()].iter());
    assert_eq!(settle(&mut allocator, &request("1")), Err(Refusal::NoPool));
    let named = |name: &str| Request { pool: Some(name.into()), ..request("1") };
    assert_eq!(settle(&mut allocator, &named("missing")), Err(Refusal::UnknownPool));
    assert_eq!(settle(&mut allocator, &named("quiet")), Ok(ip(64)));
    let wants = |uid: &str, last: u8| Request { address: Some(ip(last)), ..request(uid) };
    assert_eq!(settle(&mut allocator, &wants("2", 64)), Err(Refusal::AddressInUse));
    assert_eq!(settle(&mut allocator, &wants("2", 99)), Err(Refusal::AddressNotInPool));
    assert_eq!(settle(&mut allocator, &wants("2", 65)), Ok(ip(65)), "who names an address needs no autoAssign");
    allocator.set_pools([pool("bad", &["nonsense"])].iter());
    assert_eq!(settle(&mut allocator, &request("3")), Err(Refusal::PoolMalformed));
}

#[test]
fn a_pool_that_shrinks_or_goes_takes_nothing_back() {
    let mut allocator = with_pools(&[pool("p", &["192.0.2.0/30"])]);
    assert_eq!(settle(&mut allocator, &request("1")), Ok(ip(0)));
    for pools in [vec![pool("p", &["192.0.2.2/31"])], vec![]] {
        allocator.set_pools(pools.iter());
        let Decision::Keep { address, remark: Some(remark) } = allocator.decide(&request("1")) else { panic!() };
        assert_eq!((address, remark.reason), (ip(0), Refusal::AddressNotInPool));
    }
    allocator.set_pools([pool("p", &["nonsense"])].iter());
    assert_eq!(allocator.decide(&request("1")), Decision::Keep { address: ip(0), remark: None });
}

#[test]
fn usage_counts_what_is_inside_and_what_is_not() {
    let mut allocator = with_pools(&[pool("p", &["192.0.2.0/30"])]);
    settle(&mut allocator, &request("1")).unwrap();
    settle(&mut allocator, &request("2")).unwrap();
    assert_eq!(allocator.usage("p"), Usage { assigned: 2, available: 2, outside: 0 });
    allocator.set_pools([pool("p", &["192.0.2.1/32", "192.0.2.9/32"])].iter());
    assert_eq!(allocator.usage("p"), Usage { assigned: 2, available: 1, outside: 1 });
    allocator.set_pools([pool("p", &["10.0.0.0/8"])].iter());
    assert_eq!(allocator.usage("p"), Usage { assigned: 2, available: 1 << 24, outside: 2 });
}

#[test]
fn a_shown_address_is_adopted_only_from_a_pool_that_may_serve() {
    let mut quiet = pool("quiet", &["192.0.2.64/30"]);
    quiet.spec.auto_assign = false;
    let mut allocator = with_pools(&[pool("p", &["192.0.2.0/30"]), quiet]);
    let shows = |uid: &str, last: u8| Request { shown: Some(ip(last)), adopt: Some(ip(last)), ..request(uid) };
    assert_eq!(settle(&mut allocator, &shows("1", 3)), Ok(ip(3)));
    assert_eq!(settle(&mut allocator, &shows("2", 3)), Ok(ip(0)), "granted to another");
    assert_eq!(settle(&mut allocator, &shows("3", 64)), Ok(ip(1)), "a pool that must be named");
    assert_eq!(settle(&mut allocator, &shows("4", 200)), Ok(ip(2)), "in no pool");
}

#[test]
fn a_new_wish_is_granted_beside_the_old_address_first() {
    let mut allocator = with_pools(&[pool("p", &["192.0.2.0/30"])]);
    settle(&mut allocator, &request("1")).unwrap();
    let wish = Request { address: Some(ip(2)), shown: Some(ip(0)), ..request("1") };
    assert_eq!(settle(&mut allocator, &wish), Ok(ip(2)));
    assert_eq!(allocator.decide(&wish), Decision::Keep { address: ip(2), remark: None });
    assert_eq!(allocator.held_by("1").collect::<Vec<_>>(), [ip(0), ip(2)]);
}

proptest! {
    /// Whatever comes and goes: no address twice, none from outside, and what is held does not move.
    #[test]
    fn no_address_twice_and_none_moves(steps in prop::collection::vec((0u8..12, any::<bool>()), 1..200)) {
        let mut allocator = with_pools(&[pool("p", &["192.0.2.1-192.0.2.6"]), pool("q", &["192.0.2.128/31"])]);
        let mut held: BTreeMap<String, Ipv4Addr> = BTreeMap::new();
        for (who, comes) in steps {
            let uid = who.to_string();
            if comes {
                match settle(&mut allocator, &request(&uid)) {
                    Ok(address) => {
                        let before = held.insert(uid, address);
                        prop_assert!(before.is_none_or(|before| before == address), "it moved");
                    }
                    Err(reason) => {
                        prop_assert_eq!(reason, Refusal::PoolExhausted);
                        prop_assert_eq!(held.len(), 8);
                    }
                }
            } else if let Some(address) = held.remove(&uid) {
                allocator.forget(address);
            }
            let mut addresses: Vec<_> = held.values().copied().collect();
            addresses.sort();
            addresses.dedup();
            prop_assert_eq!(addresses.len(), held.len(), "one address twice");
            let inside = |a: &Ipv4Addr| (ip(1)..=ip(6)).contains(a) || (ip(128)..=ip(129)).contains(a);
            prop_assert!(addresses.iter().all(inside));
        }
    }

    /// A restart reads the ledger in any order and decides the same.
    #[test]
    fn a_restart_in_any_order_changes_nothing(order in Just((0u8..8).collect::<Vec<_>>()).prop_shuffle()) {
        let pools = [pool("p", &["192.0.2.0/29"])];
        let mut before = with_pools(&pools);
        let granted: Vec<_> = (0..8).map(|n| settle(&mut before, &request(&n.to_string())).unwrap()).collect();
        let mut after = with_pools(&pools);
        for n in &order {
            after.granted(granted[usize::from(*n)], "p".into(), vec![service(&n.to_string())]);
        }
        for n in 0..8u8 {
            let kept = Decision::Keep { address: granted[usize::from(n)], remark: None };
            prop_assert_eq!(after.decide(&request(&n.to_string())), kept);
        }
    }
}
