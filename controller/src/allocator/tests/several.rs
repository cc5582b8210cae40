//! Several addresses of one Service: each judged as if it were alone, and all of them granted or none.

use super::*;

/// Asks for these (last numbers of 192.0.2.0/24).
fn asks(uid: &str, addresses: &[u8]) -> Vec<Request> {
    addresses.iter().map(|last| Request { address: Some(ip(*last)), ..request(uid) }).collect()
}

/// Last numbers of what it has, or the refusal.
fn got(decided: &Decided) -> Result<Vec<u8>, (Refusal, String)> {
    let last = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => panic!("{address}"),
    };
    match decided.refused.first() {
        Some((_, refused)) => Err((refused.reason, refused.message.clone())),
        None => Ok(decided.kept.iter().map(|(address, _)| last(address)).collect()),
    }
}

fn pools() -> [PoolView; 4] {
    let mut pools = [
        pool("auto", &["192.0.2.0/28"]),
        pool("by-name", &["192.0.2.16/28"]),
        pool("drained", &["192.0.2.32/28"]),
        pool("theirs", &["192.0.2.48/28"]),
    ];
    pools[1].spec.auto_assign = false;
    pools[2].spec.disabled = true;
    pools[3].spec.namespaces = vec!["elsewhere".into()];
    pools
}

#[test]
fn every_address_is_judged_by_its_pool_and_the_refusal_names_it() {
    let mut allocator = with_pools(&pools());
    let mut guards = GuardSet::default();
    guards.add_address(ip(9), Refusal::AnsweredByHost, "in use by the host x");
    allocator.set_guards(guards);
    assert_eq!(got(&settle_all(&mut allocator, &asks("1", &[3, 20]))), Ok(vec![3, 20]), "of two pools");
    let all = "; the Service asks for 2 addresses and gets all of them or none";
    for (other, reason, says) in [
        (9, Refusal::AnsweredByHost, "192.0.2.9 is in use by the host x; no Service may have it"),
        (33, Refusal::PoolDisabled, "192.0.2.33: pool 'drained': spec.disabled: Services keep their addresses"),
        (50, Refusal::ServiceNotSelected, "192.0.2.50: pool 'theirs' does not select namespace 'default'"),
        (99, Refusal::AddressNotInPool, "192.0.2.99 is in no pool"),
        (3, Refusal::AddressInUse, "192.0.2.3 is granted already: default/service-1 has it"),
    ] {
        let refused = got(&settle_all(&mut allocator, &asks("2", &[4, other])));
        assert_eq!(refused, Err((reason, format!("{says}{all}"))));
        assert!(allocator.taken(ip(4)).is_none());
    }
    // The pool that the Service names must have all.
    let in_pool = |last| Request { pool: Some("by-name".into()), ..asks("2", &[last]).remove(0) };
    let refused = got(&settle_all(&mut allocator, &[in_pool(21), in_pool(4)])).unwrap_err();
    assert_eq!(
        (refused.0, refused.1.starts_with("192.0.2.4 is not in pool 'by-name'")),
        (Refusal::AddressNotInPool, true)
    );
    assert_eq!(got(&settle_all(&mut allocator, &[in_pool(21), in_pool(22)])), Ok(vec![21, 22]));
    // Pools that change take nothing away, and are said of the address.
    let mut changed = pools();
    changed[1].spec.addresses = vec!["192.0.2.22".into()];
    allocator.set_pools(changed.iter());
    let kept = settle_all(&mut allocator, &[in_pool(21), in_pool(22)]);
    let remark = kept.kept[0].1.clone().expect("a remark");
    assert_eq!((got(&kept), remark.reason), (Ok(vec![21, 22]), Refusal::AddressNotInPool));
    assert!(remark.message.contains("192.0.2.21"), "{}", remark.message);
}

/// Together they must have room among the addresses that a cluster may have.
#[test]
fn several_count_among_the_most_addresses_together() {
    let mut allocator = with_pools(&[pool("p", &["10.0.0.0/16", "192.0.2.0/24"])]);
    for number in 1..sheave_api::MAX_VIRTUAL_IPS {
        let [.., high, low] = number.to_be_bytes();
        allocator.granted([10, 0, high, low].into(), "p".into(), vec![service(&format!("s{number}"))]);
    }
    let refused = got(&settle_all(&mut allocator, &asks("late", &[1, 2]))).unwrap_err();
    assert_eq!(refused.0, Refusal::LimitReached, "{}", refused.1);
    assert_eq!(got(&settle_all(&mut allocator, &asks("late", &[1]))), Ok(vec![1]));
}

proptest! {
    /// Services come, go and ask for other sets: no address twice, all that is asked for or what was there before, and none moves that is
    /// still asked for.
    #[test]
    fn all_or_what_there_was_and_no_address_twice(
        steps in prop::collection::vec((0u8..6, prop::collection::btree_set(0u8..24, 0..5)), 1..120)
    ) {
        let mut allocator = with_pools(&pools());
        let mut held: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        for (who, wanted) in steps {
            let (uid, wanted) = (who.to_string(), wanted.into_iter().collect::<Vec<u8>>());
            let before = held.remove(&who).unwrap_or_default();
            if wanted.is_empty() {
                before.iter().for_each(|last| drop(allocator.forget(ip(*last))));
            } else {
                let mut requests = asks(&uid, &wanted);
                requests.iter_mut().for_each(|request| request.shown = before.iter().map(|last| ip(*last)).collect());
                let taken = |last: &u8| held.values().flatten().any(|other| other == last);
                let free = !wanted.iter().any(taken);
                let now = got(&settle_all(&mut allocator, &requests));
                let expected = if free { wanted } else { before };
                prop_assert_eq!(now.unwrap_or_default(), expected.clone());
                if !expected.is_empty() {
                    held.insert(who, expected);
                }
            }
            let mut all: Vec<IpAddr> = held.values().flatten().map(|last| ip(*last)).collect();
            all.sort();
            prop_assert_eq!(allocator.taken.keys().copied().collect::<Vec<_>>(), all);
        }
    }
}
