//! Which Services share an address.

use super::*;

fn key(key: &str) -> SharingKey {
    SharingKey { key: key.into(), namespace: None }
}

/// A Service with a key and ports such as "80/TCP".
fn shares(uid: &str, with: &str, ports: &[&str]) -> Request {
    let port = |text: &&str| {
        let (number, protocol) = text.split_once('/').unwrap();
        Port::new(number.parse().unwrap(), Some(protocol))
    };
    Request { sharing: Some(Sharing { key: key(with), ports: ports.iter().map(port).collect() }), ..request(uid) }
}

fn in_namespace(request: Request, namespace: &str) -> Request {
    Request { service: ServiceRef { namespace: namespace.into(), ..request.service.clone() }, ..request }
}

fn wants(request: Request, last: u8) -> Request {
    Request { address: Some(ip(last)), ..request }
}

#[test]
fn the_same_key_and_no_common_port() {
    type Case<'a> = (&'a str, Request, u8, Result<u8, Refusal>);
    let first = || shares("1", "web", &["80/TCP", "53/TCP"]);
    let plain = || Request { sharing: None, ..request("2") };
    let confined = |namespace: &str| {
        let mut request = shares("2", "web", &["443/TCP"]);
        request.sharing.as_mut().unwrap().key.namespace = Some(namespace.into());
        request
    };
    // Of itself, and if it asks for the address of the first.
    let cases: [Case<'_>; 7] = [
        ("another port", shares("2", "web", &["443/TCP"]), 0, Ok(0)),
        ("the same number of another protocol", shares("2", "web", &["53/UDP", "443/TCP"]), 0, Ok(0)),
        ("a port of the first", shares("2", "web", &["443/TCP", "53/TCP"]), 1, Err(Refusal::AddressInUse)),
        ("another key", shares("2", "mail", &["443/TCP"]), 1, Err(Refusal::AddressInUse)),
        ("no key", plain(), 1, Err(Refusal::AddressInUse)),
        ("a key of one namespace", confined("default"), 1, Err(Refusal::AddressInUse)),
        ("another namespace", in_namespace(shares("2", "web", &["443/TCP"]), "other"), 0, Ok(0)),
    ];
    for (what, second, by_itself, asked) in cases {
        let mut allocator = with_pools(&[pool("p", &["192.0.2.0/30"])]);
        assert_eq!(settle(&mut allocator, &first()), Ok(ip(0)));
        assert_eq!(settle(&mut allocator.clone(), &second), Ok(ip(by_itself)), "{what}");
        assert_eq!(settle(&mut allocator, &wants(second, 0)), asked.map(ip), "{what}");
    }
    let mut allocator = with_pools(&[pool("p", &["192.0.2.0/30"])]);
    settle(&mut allocator, &plain()).unwrap();
    assert_eq!(settle(&mut allocator, &first()), Ok(ip(1)), "the first has no key");
    assert_eq!(allocator.usage("p").used, 2);
}

#[test]
fn a_refusal_names_the_service_and_the_port_that_is_in_the_way() {
    let mut allocator = with_pools(&[pool("p", &["192.0.2.0"])]);
    settle(&mut allocator, &shares("1", "web", &["80/TCP"])).unwrap();
    let message = |request: Request| match allocator.decide(&wants(request, 0)) {
        Decision::Refuse(refused) => refused.message,
        other => panic!("{other:?}"),
    };
    let taken = "192.0.2.0 is granted already: default/service-1 has";
    assert_eq!(message(shares("2", "web", &["80/TCP"])), format!("{taken} its port 80/TCP"));
    assert_eq!(message(shares("2", "other", &["81/TCP"])), format!("{taken} it, without the sharing key 'other'"));
    assert_eq!(message(request("2")), format!("{taken} it"));
}

#[test]
fn no_more_than_64_services_share_an_address() {
    let mut allocator = with_pools(&[pool("p", &["192.0.2.0/31"])]);
    for n in 0..65u32 {
        let request = shares(&n.to_string(), "web", &[&format!("{}/TCP", 80 + n)]);
        assert_eq!(settle(&mut allocator, &request), Ok(ip(u8::from(n == 64))), "{n}");
    }
    let Decision::Refuse(refused) = allocator.decide(&wants(shares("65", "web", &["1/UDP"]), 0)) else { panic!() };
    assert_eq!(refused.reason, Refusal::AddressInUse);
    assert!(refused.message.contains("64 Services share it"), "{}", refused.message);
}

/// The pool must be open to the namespaces of all, also of those that came before it was closed.
#[test]
fn a_pool_that_is_closed_to_one_namespace_shares_none_of_its_addresses_with_it() {
    let mut view = pool("p", &["192.0.2.0/30"]);
    let mut allocator = with_pools(std::slice::from_ref(&view));
    settle(&mut allocator, &in_namespace(shares("1", "web", &["80/TCP"]), "blue")).unwrap();
    view.spec.namespaces = vec!["green".into()];
    allocator.set_pools([&view].into_iter());
    let green = in_namespace(shares("2", "web", &["81/TCP"]), "green");
    assert_eq!(settle(&mut allocator, &wants(green.clone(), 0)), Err(Refusal::AddressInUse));
    assert_eq!(settle(&mut allocator, &green), Ok(ip(1)));
}

/// Nothing moves when ports or keys change; the remark says what is in the way, and no other joins.
#[test]
fn services_that_do_not_fit_any_more_keep_their_address() {
    let mut allocator = with_pools(&[pool("p", &["192.0.2.0/30"])]);
    let (first, second) = (shares("1", "web", &["80/TCP"]), shares("2", "web", &["443/TCP"]));
    settle(&mut allocator, &first).unwrap();
    settle(&mut allocator, &second).unwrap();
    for (changed, says) in [
        (shares("2", "web", &["443/TCP", "80/TCP"]), "192.0.2.0 is shared: default/service-1 has its port 80/TCP"),
        (
            shares("2", "other", &["443/TCP"]),
            "192.0.2.0 is shared: default/service-1 has it, without the sharing key 'other'",
        ),
        (request("2"), "192.0.2.0 is shared: default/service-1 has it"),
    ] {
        allocator.set_sharing("2", changed.sharing.clone());
        let Decision::Keep { address, remark: Some(remark) } = allocator.decide(&changed) else { panic!("{says}") };
        assert_eq!((address, remark.reason, remark.message.as_str()), (ip(0), Refusal::SharingConflict, says));
    }
    assert_eq!(settle(&mut allocator, &shares("3", "web", &["81/TCP"])), Ok(ip(1)), "the second has no key any more");
    assert!(allocator.set_sharing("2", second.sharing.clone()) && !allocator.set_sharing("2", second.sharing.clone()));
    assert_eq!(allocator.decide(&second), Decision::Keep { address: ip(0), remark: None });
}

/// One Service goes, the other stays; until it is gone no other joins.
#[test]
fn a_service_that_leaves_takes_nothing_from_the_others() {
    let mut allocator = with_pools(&[pool("p", &["192.0.2.0/30"])]);
    let (first, second) = (shares("1", "web", &["80/TCP"]), shares("2", "web", &["443/TCP"]));
    settle(&mut allocator, &first).unwrap();
    settle(&mut allocator, &second).unwrap();
    allocator.leave(ip(0), &["1"]);
    assert_eq!(settle(&mut allocator.clone(), &first), Ok(ip(1)), "not even the same Service comes back on the way");
    assert!(allocator.is_leaving(ip(0), "1") && allocator.is_listed("1"));
    assert_eq!(allocator.held_by("1").count(), 0);
    assert_eq!(allocator.decide(&second), Decision::Keep { address: ip(0), remark: None });
    let third = shares("3", "web", &["80/TCP"]);
    assert_eq!(settle(&mut allocator.clone(), &wants(third.clone(), 0)), Err(Refusal::AddressInUse));
    // The owner reports itself meanwhile: the ledger still names both.
    allocator.granted(ip(0), "p".into(), vec![service("1"), service("2")]);
    assert!(allocator.is_leaving(ip(0), "1"), "there is no way back");
    let before = allocator.granted(ip(0), "p".into(), vec![service("2")]);
    assert_eq!(before, [service("1"), service("2")]);
    assert!(!allocator.is_listed("1"));
    assert_eq!(settle(&mut allocator, &third), Ok(ip(0)));
    assert_eq!(allocator.forget(ip(0)), [service("2"), service("3")]);
}

/// A reservation keeps ports from others, and ends alone.
#[test]
fn a_reservation_beside_others_ends_alone() {
    let mut allocator = with_pools(&[pool("p", &["192.0.2.0/30"])]);
    settle(&mut allocator, &shares("1", "web", &["80/TCP"])).unwrap();
    let (second, rival) = (shares("2", "web", &["443/TCP"]), shares("3", "web", &["443/TCP"]));
    allocator.set_sharing("2", second.sharing.clone());
    allocator.reserve(&[(ip(0), "p".into())], &service("2"));
    assert_eq!((allocator.reservations_of("2"), allocator.reserved(ip(0)).count()), (vec![ip(0)], 1));
    assert_eq!(settle(&mut allocator.clone(), &rival), Ok(ip(1)));
    allocator.granted(ip(0), "p".into(), vec![service("1")]);
    assert_eq!(allocator.reservations_of("2"), [ip(0)], "the ledger does not name it yet");
    allocator.reserve(&[(ip(2), "p".into()), (ip(3), "p".into())], &service("2"));
    assert_eq!(allocator.reservations_of("2"), [ip(2), ip(3)], "those of the last plan");
    allocator.unreserve(ip(3), "2");
    allocator.unreserve(ip(2), "2");
    assert_eq!((allocator.reservations_of("2"), allocator.held_by("1").count()), (vec![], 1));
    assert_eq!(settle(&mut allocator, &rival), Ok(ip(0)));
}
