//! Addresses that were freed are kept for the Service that had them.

use std::time::{Duration, Instant};

use super::*;

const MINUTES: Duration = Duration::from_secs(60);

/// The Service of this uid, under the name that another one had.
fn again(uid: &str, name_of: &str) -> Request {
    Request { service: ServiceRef { uid: uid.into(), ..service(name_of) }, ..request(uid) }
}

/// Of two Services the first one is deleted.
fn freed(mut view: PoolView, retention: Option<&str>) -> (Allocator, Instant) {
    view.retention = retention.map(str::to_string);
    let mut allocator = with_pools(&[view]);
    assert_eq!(settle(&mut allocator, &request("1")), Ok(ip(0)));
    assert_eq!(settle(&mut allocator, &request("2")), Ok(ip(1)));
    allocator.forget(ip(0));
    let now = Instant::now();
    allocator.tick(now);
    (allocator, now)
}

#[test]
fn a_service_that_returns_in_time_has_its_address_again() {
    let four = || pool("p", &["192.0.2.0/30"]);
    for (retention, minutes, own, others) in
        [(None, 4, 0, 2), (None, 5, 0, 0), (Some("10m"), 9, 0, 2), (Some("10m"), 10, 0, 0), (Some("0s"), 0, 0, 0)]
    {
        let (mut allocator, now) = freed(four(), retention);
        allocator.tick(now + minutes * MINUTES);
        let mut crowded = allocator.clone();
        assert_eq!(settle(&mut crowded, &request("3")), Ok(ip(others)), "{retention:?} {minutes}");
        assert_eq!(settle(&mut allocator, &again("4", "1")), Ok(ip(own)), "{retention:?} {minutes}");
        let late = if others == 0 { 2 } else { 0 };
        assert_eq!(settle(&mut crowded, &again("4", "1")), Ok(ip(late)), "{retention:?} {minutes}");
    }
    let (mut allocator, _) = freed(four(), None);
    let elsewhere = Request { service: ServiceRef { namespace: "other".into(), ..service("1") }, ..request("1") };
    assert_eq!(settle(&mut allocator, &elsewhere), Ok(ip(2)), "the same name in another namespace");
}

#[test]
fn others_get_it_if_they_ask_or_if_the_pool_is_full_otherwise() {
    let (mut allocator, now) = freed(pool("p", &["192.0.2.0/30"]), None);
    let asks = Request { address: Some(ip(0)), ..request("3") };
    assert_eq!(settle(&mut allocator.clone(), &asks), Ok(ip(0)));
    assert_eq!(settle(&mut allocator, &request("3")), Ok(ip(2)));
    allocator.forget(ip(1));
    allocator.tick(now + MINUTES);
    assert_eq!(settle(&mut allocator, &request("4")), Ok(ip(3)));
    assert_eq!(settle(&mut allocator, &request("5")), Ok(ip(0)), "the one that was freed first");
    assert_eq!(settle(&mut allocator, &request("6")), Ok(ip(1)));
    assert_eq!(settle(&mut allocator, &again("7", "1")), Err(Refusal::PoolExhausted));
}

/// A wish comes before what was kept; a pool that is not open to the Service any more keeps nothing for it.
#[test]
fn what_is_kept_is_no_wish_and_opens_no_pool() {
    let (mut allocator, _) = freed(pool("p", &["192.0.2.0/30"]), None);
    let wishes = Request { address: Some(ip(3)), ..again("4", "1") };
    assert_eq!(settle(&mut allocator.clone(), &wishes), Ok(ip(3)));
    let mut closed = pool("p", &["192.0.2.0/30"]);
    closed.spec.namespaces = vec!["other".into()];
    allocator.set_pools([closed, pool("q", &["192.0.2.9"])].iter());
    assert_eq!(settle(&mut allocator, &again("4", "1")), Ok(ip(9)));
}

/// One of several Services goes and comes back to the others.
#[test]
fn a_shared_address_is_kept_for_each_of_its_services() {
    let shares = |uid: &str, port: i32| {
        let key = SharingKey { key: "web".into(), namespace: None };
        Some(Sharing { key, ports: [Port::new(port, None), Port::new(uid.parse().unwrap(), None)].into() })
    };
    let mut allocator = with_pools(&[pool("p", &["192.0.2.0/30"])]);
    for (uid, last) in [("1", 2), ("2", 2)] {
        let asks = Request {
            address: Some(ip(last)),
            sharing: shares(uid, 100 + uid.parse::<i32>().unwrap()),
            ..request(uid)
        };
        assert_eq!(settle(&mut allocator, &asks), Ok(ip(2)));
    }
    allocator.granted(ip(2), "p".into(), vec![service("2")]);
    allocator.tick(Instant::now());
    let back = Request { sharing: shares("3", 101), ..again("3", "1") };
    assert_eq!(settle(&mut allocator.clone(), &back), Ok(ip(2)));
    let alone = Request { sharing: None, ..back };
    assert_eq!(settle(&mut allocator, &alone), Ok(ip(0)), "not without the key");
}
