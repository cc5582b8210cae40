//! Pools that are renamed, moved, shrunk, deleted and created again under grants: no address moves, and the pool that contains a
//! grant adopts it.

use super::*;

/// What becomes of 192.0.2.0, granted from pool `a` with 192.0.2.0/30, when the pools are these.
struct Case {
    what: &'static str,
    pools: Vec<PoolView>,
    /// The pool that the grant belongs to afterwards.
    pool: &'static str,
    outside: bool,
}

fn cases() -> Vec<Case> {
    let disabled = |mut view: PoolView| {
        view.spec.disabled = true;
        view
    };
    let selective = |mut view: PoolView| {
        view.spec.namespaces = vec!["other".into()];
        view
    };
    let all = "192.0.2.0/30";
    let case = |what, pools, pool, outside| Case { what, pools, pool, outside };
    vec![
        case("nothing changes", vec![pool("a", &[all])], "a", false),
        case("renamed", vec![pool("b", &[all])], "b", false),
        case("renamed, both there", vec![pool("a", &[all]), pool("b", &["192.0.2.0/24"])], "a", false),
        case("deleted", vec![], "a", true),
        case("deleted, another pool elsewhere", vec![pool("b", &["192.0.2.128/30"])], "a", true),
        case("shrunk", vec![pool("a", &["192.0.2.2/31"])], "a", true),
        case(
            "shrunk, the rest is another's",
            vec![pool("a", &["192.0.2.2/31"]), pool("b", &["192.0.2.0/31"])],
            "b",
            false,
        ),
        case("moved", vec![pool("a", &["198.51.100.0/30"])], "a", true),
        case("moved, a successor in its place", vec![pool("a", &["198.51.100.0/30"]), pool("z", &[all])], "z", false),
        case("grown", vec![pool("a", &["192.0.0.0/16"])], "a", false),
        case("malformed", vec![pool("a", &["nonsense"])], "a", true),
        case("drained, and a successor", vec![disabled(pool("a", &[all])), pool("b", &[all])], "a", false),
        case("a successor that is drained", vec![disabled(pool("b", &[all]))], "b", false),
        case("two successors", vec![disabled(pool("b", &[all])), pool("c", &[all])], "c", false),
        case("a successor that does not select the Service", vec![selective(pool("b", &[all]))], "b", false),
    ]
}

#[test]
fn no_change_of_pools_moves_an_address() {
    for Case { what, pools, pool: adopts, outside } in cases() {
        for wish in [
            request("1"),
            Request { shown: vec![ip(0)], ..request("1") },
            Request { address: Some(ip(0)), ..request("1") },
        ] {
            let mut allocator = with_pools(&[pool("a", &["192.0.2.0/30"])]);
            assert_eq!(settle(&mut allocator, &wish), Ok(ip(0)));
            allocator.set_pools(pools.iter());
            assert_eq!(allocator.taken(ip(0)).unwrap().pool, adopts, "{what}");
            let Decision::Keep { address, remark } = allocator.decide(&wish) else { panic!("{what}: it moves") };
            let malformed = pools.iter().any(|pool| pool.spec.addresses == ["nonsense"]);
            let reason = remark.map(|remark| remark.reason);
            assert_eq!(
                (address, reason),
                (ip(0), (outside && !malformed).then_some(Refusal::AddressNotInPool)),
                "{what}"
            );
            if allocator.pool(adopts).is_some() {
                let usage = allocator.usage(adopts);
                assert_eq!((usage.used, usage.outside), (1, i64::from(outside)), "{what}");
            }
            // The same after a restart: the ledger still names the first pool.
            let mut after = with_pools(&[]);
            after.granted(ip(0), "a".into(), vec![service("1")]);
            after.set_pools(pools.iter());
            let mut earlier = with_pools(&pools);
            earlier.granted(ip(0), "a".into(), vec![service("1")]);
            for allocator in [after, earlier] {
                assert_eq!(allocator.taken(ip(0)).unwrap().pool, adopts, "{what}");
            }
            // The address of another Service stays its own.
            let rival = settle(&mut allocator, &Request { address: Some(ip(0)), ..request("2") });
            assert!(rival.is_err(), "{what}: given twice");
        }
    }
}

/// cases-2026-11, C4: the Service is annotated for the pool that takes the place of the first.
#[test]
fn a_service_that_names_the_successor_keeps_its_address() {
    let mut allocator = with_pools(&[pool("a", &["192.0.2.0/30"])]);
    settle(&mut allocator, &request("1")).unwrap();
    let named = Request { pool: Some("b".into()), ..request("1") };
    for pools in [vec![pool("a", &["192.0.2.0/30"])], vec![]] {
        allocator.set_pools(pools.iter());
        let Decision::Keep { address, remark: Some(remark) } = allocator.decide(&named) else { panic!() };
        assert_eq!((address, remark.reason), (ip(0), Refusal::UnknownPool));
    }
    for first in [vec![pool("a", &["192.0.2.0/30"])], vec![]] {
        let pools = first.into_iter().chain([pool("b", &["192.0.2.0/24"])]).collect::<Vec<_>>();
        allocator.set_pools(pools.iter());
        assert_eq!(allocator.decide(&named), Decision::Keep { address: ip(0), remark: None });
    }
    allocator.set_pools([pool("b", &["192.0.2.0/30"])].iter());
    assert_eq!(allocator.decide(&named), Decision::Keep { address: ip(0), remark: None });
}
