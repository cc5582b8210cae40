//! Both families: a Service has one address of each, whatever comes and goes. IPv6 stands beside an IPv4 address, or not at all.

use super::*;
use crate::allocator::Decided;

fn six(last: u16) -> IpAddr {
    [0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into()
}

fn both(uid: &str) -> [Request; 2] {
    Family::ALL.map(|family| Request { family, ..request(uid) })
}

fn kept(decided: &Decided) -> Vec<IpAddr> {
    decided.kept.iter().map(|(address, _)| *address).collect()
}

#[test]
fn ipv6_is_reserved_beside_ipv4_and_released_alone() {
    let mut allocator = with_pools(&[pool("four", &["192.0.2.0/31"]), pool("six", &["2001:db8::/64"])]);
    assert_eq!(kept(&settle_all(&mut allocator, &both("1"))), [ip(0), six(0)]);
    assert_eq!(kept(&settle_all(&mut allocator, &both("2"))), [ip(1), six(1)]);
    // The second family goes and comes back: exactly that address, and the same one again.
    assert_eq!(kept(&settle_all(&mut allocator, &both("1")[..1])), [ip(0)]);
    assert!(allocator.taken(six(0)).is_none() && allocator.taken(six(1)).is_some());
    assert_eq!(settle(&mut allocator.clone(), &both("4")[1]), Ok(six(2)), "it is kept for the Service");
    assert_eq!(kept(&settle_all(&mut allocator, &both("1"))), [ip(0), six(0)]);
    // Without IPv4 it is not reserved.
    let refused = settle_all(&mut allocator, &both("3"));
    assert_eq!((kept(&refused), refused.refused[0].0), (vec![], Family::V4));
    assert_eq!((refused.refused.len(), refused.refused[0].1.reason), (1, Refusal::PoolExhausted));
}

#[test]
fn what_keeps_ipv6_away_takes_no_ipv4() {
    let mut allocator = with_pools(&[pool("four", &["192.0.2.0/24"])]);
    let alone = settle_all(&mut allocator, &both("1"));
    assert_eq!((kept(&alone), alone.refused.len()), (vec![ip(0)], 1));
    let (family, refused) = &alone.refused[0];
    assert_eq!((family, refused.message.as_str()), (&Family::V6, "there is no IPv6 address in pool 'four'"));
    // Then there is a pool; it shrinks, and goes.
    let six_of = |entry: &str| [pool("four", &["192.0.2.0/24"]), pool("six", &[entry])];
    allocator.set_pools(six_of("2001:db8::/64").iter());
    assert_eq!(kept(&settle_all(&mut allocator, &both("1"))), [ip(0), six(0)]);
    for pools in [&six_of("2001:db8::8/125")[..], &six_of("2001:db8::8/125")[..1]] {
        allocator.set_pools(pools.iter());
        let stays = settle_all(&mut allocator, &both("1"));
        assert_eq!(kept(&stays), [ip(0), six(0)]);
        assert_eq!(stays.kept[1].1.as_ref().map(|remark| remark.reason), Some(Refusal::AddressNotInPool));
    }
    // An address that is asked for, and guarded.
    allocator.set_pools(six_of("2001:db8::/64").iter());
    let mut guards = GuardSet::default();
    guards.add_address(six(5), Refusal::AddressOfNode, "an address of node a");
    allocator.set_guards(guards);
    let [first, second] = both("1");
    let asks = |last| [first.clone(), Request { address: Some(six(last)), ..second.clone() }];
    let barred = settle_all(&mut allocator, &asks(5));
    assert_eq!(kept(&barred), [ip(0), six(0)]);
    let remark = barred.kept[1].1.clone().unwrap();
    let says = "2001:db8::5 is an address of node a; no Service may have it; 2001:db8::0 stays";
    assert_eq!(remark, Refused { reason: Refusal::AddressOfNode, message: says.replace("::0", "::") });
    assert_eq!(kept(&settle_all(&mut allocator, &asks(6))), [ip(0), six(6)]);
    assert_eq!(allocator.usage("six").available, [0, i64::MAX]);
}

proptest! {
    /// Services come, go, want one family or both, of pools that change: no address twice, none in a pool of its own choice, none moves
    /// unless its Service gave it up, and each has what there is.
    #[test]
    fn no_address_of_either_family_twice_and_none_moves(
        steps in prop::collection::vec((0u8..10, 0u8..4), 1..150)
    ) {
        let pools = [pool("dual", &["192.0.2.1-192.0.2.4", "2001:db8::/127"]), pool("six", &["2001:db8:1::/126"])];
        let mut allocator = with_pools(&pools);
        let mut held: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for (who, what) in steps {
            let uid = who.to_string();
            if what == 0 {
                held.remove(&uid).into_iter().flatten().for_each(|address| drop(allocator.forget(address)));
            } else {
                let requests = if what == 1 { both(&uid)[..1].to_vec() } else { both(&uid).to_vec() };
                let decided = settle_all(&mut allocator, &requests);
                let (now, before) = (kept(&decided), held.remove(&uid).unwrap_or_default());
                for address in before.iter().filter(|address| address.is_ipv4() || what > 1) {
                    prop_assert!(now.contains(address), "{address} moved");
                }
                prop_assert!(now.iter().filter(|address| address.is_ipv6()).count() <= usize::from(what > 1));
                if now.is_empty() {
                    prop_assert_eq!(held.len(), 4, "IPv4 is left");
                } else {
                    prop_assert_eq!(now.iter().filter(|address| address.is_ipv4()).count(), 1);
                    let six = held.values().flatten().filter(|address| address.is_ipv6()).count();
                    prop_assert!(what == 1 || now.len() == 2 || six == 6, "IPv6 is left");
                    held.insert(uid, now);
                }
            }
            let mut all: Vec<IpAddr> = held.values().flatten().copied().collect();
            let count = all.len();
            all.sort();
            all.dedup();
            prop_assert_eq!(all.len(), count, "one address twice");
            prop_assert!(all.iter().all(|address| allocator.is_in_pools(*address)));
            let taken: Vec<IpAddr> = allocator.taken.keys().copied().collect();
            prop_assert_eq!(taken, all);
            let used: i64 = ["dual", "six"].iter().map(|name| allocator.usage(name).used).sum();
            prop_assert_eq!(used, i64::try_from(count).unwrap());
        }
    }
}
