use alloc::vec;

use super::ruleset::{replace, update};
use super::*;
use crate::view::endpoints::service_key;
use crate::view::example::*;
use crate::view::{Conditions, Endpoint, Event, Protocol};

fn plan(endpoints: impl Into<Vec<Endpoint>>) -> Plan {
    Plan::new(&view(endpoints), "a", Uplink::new("eth0").unwrap())
}

fn ready(node: &str, n: u8) -> Endpoint {
    pod(node, n, Conditions::READY)
}

fn web_pods(plan: &Plan) -> Vec<(Ipv4Addr, u16)> {
    plan.services.get(&service_key(VIP, 80, Protocol::Tcp)).map_or(vec![], |local| local.pods.clone())
}

#[test]
fn only_ready_pods_of_this_node() {
    let plan = plan([ready("a", 2), ready("a", 1), ready("b", 3), pod("a", 4, UNREADY), pod("a", 5, TERMINATING)]);
    let address = |n| Ipv4Addr::new(10, 0, b'a', n);
    assert_eq!(web_pods(&plan), [(address(1), 8080), (address(2), 8080)]);
}

#[test]
fn terminating_pods_serve_whoever_is_still_sent_here() {
    let plan = plan([pod("a", 1, TERMINATING), pod("a", 2, UNREADY), ready("b", 1)]);
    assert_eq!(web_pods(&plan), [(Ipv4Addr::new(10, 0, b'a', 1), 8080)]);
}

#[test]
fn no_pod_here_no_service_here() {
    let plan = plan([ready("b", 1)]);
    assert!(plan.services.is_empty());
    assert!(plan.vips.contains(&VIP), "the guard refuses what comes all the same");
}

#[test]
fn only_udp_flows_to_pods_that_left_are_stale() {
    let (two, one) = (plan([ready("a", 1), ready("a", 2)]), plan([ready("a", 1)]));
    let stale = [StaleFlow { vip: (VIP, 53), pod: (Ipv4Addr::new(10, 0, b'a', 2), 5353) }];
    assert_eq!(stale_flows(&two, &one), stale);
    assert_eq!(stale_flows(&one, &two), []);
    assert_eq!(stale_flows(&two, &plan([])).len(), 2);
}

#[test]
fn interface_names() {
    for good in ["eth0", "eth0.5", "bond-1", "wan_0", "a@b", "en:1", "abcdefghijklmno"] {
        assert_eq!(Uplink::new(good).unwrap().as_str(), good);
    }
    for bad in ["", ".", "..", "abcdefghijklmnop", "a b", "a\"b", "a\nb", "a/b", "a;b", "a*", "{a}", "é", "$x", "\\"] {
        assert!(Uplink::new(bad).is_err(), "{bad:?}");
    }
}

/// What the kernel is asked for; the tests with a real nft are in `speaker/src/backend/tests.rs`, those with packets in
/// `tests/tests/backend_nft.rs`.
#[test]
fn the_text() {
    let mut known = view([ready("a", 1), ready("a", 2)]);
    let text = replace(&Plan::new(&known, "a", Uplink::new("eth0").unwrap()));
    for line in [
        "\tset vips { type ipv4_addr; elements = { 192.0.2.1 }; }",
        "\tchain tcp-192.0.2.1-80 { meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 10.0.97.1 . 8080, \
         1 : 10.0.97.2 . 8080 }; }",
        "elements = { 192.0.2.1 . udp . 53 : goto udp-192.0.2.1-53, 192.0.2.1 . tcp . 80 : goto tcp-192.0.2.1-80 }; }",
        "\t\tiifname \"eth0\" ip daddr @vips dnat to ip daddr",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    known.handle(Event::Apply(service(web(), Affinity::ClientIp)));
    let text = replace(&Plan::new(&known, "a", Uplink::new("eth0").unwrap()));
    assert!(text.contains("dnat ip to jhash ip saddr mod 2 seed 0x53686561 map {"), "{text}");
}

#[test]
fn an_update_names_only_what_differs() {
    let (one, other) = (plan([ready("a", 1)]), plan([ready("a", 2)]));
    assert_eq!(update(&one, &one), None);
    let expected = "flush chain ip sheave udp-192.0.2.1-53\n\
                    add rule ip sheave udp-192.0.2.1-53 meta l4proto udp dnat to 10.0.97.2:5353\n\
                    flush chain ip sheave tcp-192.0.2.1-80\n\
                    add rule ip sheave tcp-192.0.2.1-80 meta l4proto tcp dnat to 10.0.97.2:8080\n";
    assert_eq!(update(&one, &other).unwrap(), expected);
    let moved = Plan { uplink: Uplink::new("eth1").unwrap(), ..other };
    assert_eq!(update(&one, &moved).unwrap(), replace(&moved));
}

#[test]
fn names_given_by_people_do_not_reach_the_text() {
    let evil = "x; } flush ruleset; #\n";
    let mut known = View::default();
    let name = crate::view::ObjectName::new(evil, evil);
    let ports: Vec<_> = ports(80, 53).into_iter().map(|port| crate::view::Port { name: evil.into(), ..port }).collect();
    let endpoints = vec![Endpoint { node: Some(evil.into()), ..ready("a", 1) }];
    let slice = crate::view::EndpointSlice { service: evil.into(), ports: ports.clone(), endpoints };
    for object in [
        crate::view::Object::Node(evil.into(), crate::view::Node { address: VIP, ready: true, excluded: false }),
        crate::view::Object::Service(name.clone(), crate::view::Service { ports, affinity: Affinity::None }),
        crate::view::Object::EndpointSlice(name.clone(), slice),
        vip(VIP, [name]),
    ] {
        known.handle(Event::Apply(object));
    }
    let plan = Plan::new(&known, evil, Uplink::new("eth0").unwrap());
    assert_eq!(plan.services.len(), 2);
    assert!(!replace(&plan).contains("flush"));
    assert!(!replace(&plan).contains('#'));
}
