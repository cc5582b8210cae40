//! A cluster has no more addresses in use than speakers can serve.

use std::net::Ipv4Addr;

use sheave_api::MAX_VIRTUAL_IPS;

use super::*;

/// All of them in use: 10.0.0.0 and what follows. Service `0` has the first one, and shares it.
fn full() -> Allocator {
    let mut allocator = with_pools(&[pool("p", &["10.0.0.0/16"])]);
    assert_eq!(settle(&mut allocator, &sharing("0", 80)), Ok([10, 0, 0, 0].into()));
    for number in 1..MAX_VIRTUAL_IPS {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + number as u32);
        allocator.granted(address.into(), "p".into(), vec![service(&number.to_string())]);
    }
    allocator
}

fn sharing(uid: &str, port: i32) -> Request {
    let key = SharingKey { key: "k".into(), namespace: None };
    Request { sharing: Some(Sharing { key, ports: [Port::new(port, None)].into() }), ..request(uid) }
}

#[test]
fn one_more_is_refused_by_name_and_served_when_one_is_freed() {
    let mut allocator = full();
    let Decision::Refuse(refused) = allocator.decide(&request("late")) else { panic!("given") };
    assert_eq!(refused.reason, Refusal::LimitReached);
    assert!(refused.message.contains("4096 addresses are in use"), "{}", refused.message);
    let free: IpAddr = [10, 0, 200, 1].into();
    for other in [
        Request { address: Some(free), ..request("late") },
        Request { adopt: Some(free), shown: vec![free], ..request("late") },
        sharing("late", 80),
    ] {
        assert_eq!(settle(&mut allocator, &other), Err(Refusal::LimitReached), "{other:?}");
    }
    let freed: IpAddr = [10, 0, 0, 7].into();
    allocator.forget(freed);
    assert_eq!(settle(&mut allocator, &request("late")), Ok([10, 0, 16, 0].into()), "the freed one is kept");
    assert_eq!(
        settle(&mut allocator, &Request { address: Some(freed), ..request("later") }),
        Err(Refusal::LimitReached)
    );
}

#[test]
fn what_needs_no_other_address_goes_on() {
    let mut allocator = full();
    assert_eq!(settle(&mut allocator, &sharing("beside", 81)), Ok([10, 0, 0, 0].into()), "an address that is in use");
    let own: IpAddr = [10, 0, 0, 9].into();
    assert_eq!(settle(&mut allocator, &request("9")), Ok(own));
    let moves = Request { address: Some([10, 0, 200, 1].into()), ..request("9") };
    let Decision::Keep { address, remark } = allocator.decide(&moves) else { panic!("not kept") };
    assert_eq!((address, remark.map(|remark| remark.reason)), (own, Some(Refusal::LimitReached)));
}

/// A ledger that another version has filled: nothing is taken away.
#[test]
fn what_was_granted_beyond_it_stays() {
    let mut allocator = full();
    let beyond: IpAddr = [10, 0, 200, 1].into();
    allocator.granted(beyond, "p".into(), vec![service("beyond")]);
    assert_eq!(settle(&mut allocator, &request("beyond")), Ok(beyond));
    allocator.forget([10, 0, 0, 7].into());
    assert_eq!(settle(&mut allocator, &request("late")), Err(Refusal::LimitReached));
}
