//! Scenarios and properties of the allocator alone. What it does inside a cluster that fails is in `scenarios`.

mod families;
mod kept;
mod limit;
mod metallb;
mod moves;
mod pools;
mod several;
mod sharing;

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use proptest::prelude::*;
use sheave_api::{AddressPoolSpec, Refusal, ServiceRef};

use super::selection::Labels;
use super::sharing::{Sharing, SharingKey};
use super::{Allocator, Decided, Decision, Usage};
use crate::family::Family;
use crate::guards::GuardSet;
use crate::request::{Refused, Request};
use crate::view::{PoolView, Port, example_pool as pool};

fn ip(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

/// Of a pool with IPv4 alone.
fn usage(total: i64, used: i64, free: i64, excluded: i64, outside: i64) -> Usage {
    Usage { total, used, free, excluded, outside, available: [free, 0] }
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
    Request {
        service: service(uid),
        family: Family::V4,
        labels: Labels::new(),
        sharing: None,
        pool: None,
        address: None,
        shown: vec![],
        had_all: false,
        adopt: None,
    }
}

/// Decides and carries a grant out, as the ledger would.
fn settle(allocator: &mut Allocator, request: &Request) -> Result<IpAddr, Refusal> {
    allocator.set_sharing(&request.service.uid, request.sharing.clone());
    match allocator.decide(request) {
        Decision::Keep { address, .. } => Ok(address),
        Decision::Refuse(Refused { reason, .. }) => Err(reason),
        Decision::Grant { address, pool } => {
            allocator.reserve(&[(address, pool.clone())], &request.service);
            let holders = allocator.taken(address).into_iter().flat_map(|taken| &taken.holders);
            let services = holders.map(|holder| holder.service.clone()).collect();
            allocator.granted(address, pool, services);
            Ok(address)
        }
    }
}

/// What is decided is carried out, and what is kept no more is given back.
fn settle_all(allocator: &mut Allocator, requests: &[Request]) -> Decided {
    let mut requests = requests.to_vec();
    let service = requests[0].service.clone();
    for _ in 0..3 {
        let decided = allocator.decide_all(&requests);
        if decided.grants.is_empty() {
            let held: Vec<IpAddr> = allocator.held_by(&service.uid).collect();
            let gone = held.into_iter().filter(|address| !decided.keeps(*address));
            gone.for_each(|address| drop(allocator.forget(address)));
            return decided;
        }
        allocator.reserve(&decided.grants, &service);
        for (address, pool) in decided.grants {
            allocator.granted(address, pool, vec![service.clone()]);
            requests.iter_mut().for_each(|request| request.shown.push(address));
        }
    }
    panic!("never at rest");
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

/// A pool of one address, which is a node's (C1 of November 2026).
#[test]
fn a_pool_of_guarded_addresses_has_nothing_to_give_and_says_why() {
    let mut allocator = with_pools(&[pool("p", &["192.0.2.0/30"])]);
    let mut guards = GuardSet::default();
    guards.add_address(ip(0), Refusal::NetworkAddress, "the network address of 192.0.2.0/30");
    guards.add_address(ip(1), Refusal::AddressOfNode, "an address of node a");
    assert!(allocator.set_guards(guards.clone()) && !allocator.set_guards(guards.clone()));
    assert_eq!(settle(&mut allocator, &request("1")), Ok(ip(2)));
    assert_eq!(settle(&mut allocator, &request("2")), Ok(ip(3)));
    let Decision::Refuse(refused) = allocator.decide(&request("3")) else { panic!() };
    assert_eq!(refused.reason, Refusal::PoolExhausted);
    let said = "every IPv4 address of pool 'p' is granted or left out (1 AddressOfNode, 1 NetworkAddress); a Service that is deleted frees one";
    assert_eq!(refused.message, said);
    let wants = |last: u8| Request { address: Some(ip(last)), ..request("4") };
    let Decision::Refuse(refused) = allocator.decide(&wants(1)) else { panic!() };
    assert_eq!(refused.message, "192.0.2.1 is an address of node a; no Service may have it");
    let adopts = Request { adopt: Some(ip(1)), ..request("4") };
    assert_eq!(settle(&mut allocator, &adopts), Err(Refusal::PoolExhausted), "nor by what a status shows");
    assert_eq!(allocator.usage("p"), usage(4, 2, 0, 2, 0));

    // A node takes a granted address: excluded, and not subtracted twice.
    guards.add_address(ip(3), Refusal::AddressOfNode, "an address of node b");
    allocator.set_guards(guards);
    assert_eq!(allocator.guarded("p"), BTreeMap::from([(Refusal::AddressOfNode, 2), (Refusal::NetworkAddress, 1)]));
    let Decision::Keep { remark: Some(remark), .. } = allocator.decide(&request("2")) else { panic!() };
    assert_eq!(remark.reason, Refusal::AddressOfNode);
    allocator.forget(ip(2));
    assert_eq!(allocator.usage("p"), usage(4, 1, 1, 3, 0));
}

#[test]
fn wide_guarded_ranges_cost_nothing_and_buggy_addresses_are_not_counted_twice() {
    let mut wide = pool("p", &["10.0.0.0/8"]);
    wide.spec.avoid_buggy_ips = true;
    let mut allocator = with_pools(&[wide]);
    let mut guards = GuardSet::default();
    guards.add_network("10.0.0.0/9".parse::<ipnet::IpNet>().unwrap(), Refusal::AddressInPodRange, "in the pod range");
    allocator.set_guards(guards);
    assert_eq!(settle(&mut allocator, &request("1")), Ok([10, 128, 0, 1].into()));
    let (all, half) = (1u128 << 24, (1u128 << 15) * 254);
    let usage = allocator.usage("p");
    assert_eq!((i128::from(usage.total), i128::from(usage.used)), (all as i128, 1));
    assert_eq!(i128::from(usage.free), half as i128 - 1);
    assert_eq!(i128::from(usage.excluded), (all - half) as i128);
    assert_eq!(allocator.guarded("p"), BTreeMap::from([(Refusal::AddressInPodRange, half)]));
    let said: Vec<(String, i64)> = allocator.excluded_by("p").into_iter().map(|by| (by.reason, by.count)).collect();
    let settings = (1i64 << 16) * 2;
    assert_eq!(said, [("AddressInPodRange".into(), half as i64), ("ExcludedBySpec".into(), settings)]);
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
    assert_eq!(allocator.usage("p"), usage(4, 2, 2, 0, 0));
    allocator.set_pools([pool("p", &["192.0.2.1/32", "192.0.2.9/32"])].iter());
    assert_eq!(allocator.usage("p"), usage(2, 2, 1, 0, 1));
    allocator.set_pools([pool("p", &["10.0.0.0/8"])].iter());
    assert_eq!(allocator.usage("p"), usage(1 << 24, 2, 1 << 24, 0, 2));
}

#[test]
fn a_shown_address_is_adopted_only_from_a_pool_that_may_serve() {
    let mut quiet = pool("quiet", &["192.0.2.64/30"]);
    quiet.spec.auto_assign = false;
    let mut allocator = with_pools(&[pool("p", &["192.0.2.0/30"]), quiet]);
    let shows = |uid: &str, last: u8| Request { shown: vec![ip(last)], adopt: Some(ip(last)), ..request(uid) };
    assert_eq!(settle(&mut allocator, &shows("1", 3)), Ok(ip(3)));
    assert_eq!(settle(&mut allocator, &shows("2", 3)), Ok(ip(0)), "granted to another");
    assert_eq!(settle(&mut allocator, &shows("3", 64)), Ok(ip(1)), "a pool that must be named");
    assert_eq!(settle(&mut allocator, &shows("4", 200)), Ok(ip(2)), "in no pool");
}

#[test]
fn a_new_wish_is_granted_beside_the_old_address_first() {
    let mut allocator = with_pools(&[pool("p", &["192.0.2.0/30"])]);
    settle(&mut allocator, &request("1")).unwrap();
    let wish = Request { address: Some(ip(2)), shown: vec![ip(0)], ..request("1") };
    assert_eq!(settle(&mut allocator, &wish), Ok(ip(2)));
    assert_eq!(allocator.decide(&wish), Decision::Keep { address: ip(2), remark: None });
    assert_eq!(allocator.held_by("1").collect::<Vec<_>>(), [ip(0), ip(2)]);
}

proptest! {
    /// Whatever comes and goes: no address twice, none from outside, and what is held does not move.
    #[test]
    fn no_address_twice_and_none_moves(steps in prop::collection::vec((0u8..12, any::<bool>()), 1..200)) {
        let mut allocator = with_pools(&[pool("p", &["192.0.2.1-192.0.2.6"]), pool("q", &["192.0.2.128/31"])]);
        let mut held: BTreeMap<String, IpAddr> = BTreeMap::new();
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
            let inside = |a: &IpAddr| (ip(1)..=ip(6)).contains(a) || (ip(128)..=ip(129)).contains(a);
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
