//! The inputs that took machines off networks (C1 and C20 of November 2026: a pool of a node's address, a pool of the nodes' subnet).

use super::facts::{NodeFacts, SpeakerFacts};
use super::*;

fn ip(last: u8) -> IpAddr {
    [192, 168, 77, last].into()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn span(text: &str) -> (u128, u128) {
    crate::family::span(net(text))
}

fn here(source: Source, name: &str, version: u64, facts: Facts) -> Fact {
    Fact::Here { source, name: name.into(), uid: format!("uid of {name}"), version, facts }
}

fn node(name: &str, version: u64, address: IpAddr, pods: &str) -> Fact {
    let facts = NodeFacts {
        addresses: BTreeSet::from([address]),
        pod_ranges: BTreeSet::from([net(pods)]),
        ..NodeFacts::default()
    };
    here(Source::Nodes, name, version, Facts::Node(facts))
}

fn speaker(name: &str, version: u64, addresses: &[IpAddr], subnet: &str, gateway: IpAddr) -> Fact {
    let facts = SpeakerFacts {
        addresses: addresses.iter().copied().collect(),
        subnets: BTreeSet::from([net(subnet)]),
        gateways: BTreeSet::from([gateway]),
        ..SpeakerFacts::default()
    };
    here(Source::SpeakerStates, name, version, Facts::Speaker(facts))
}

/// Three nodes on 192.168.77.0/24 with a router at .3; node1 has a second address.
fn cluster() -> Guards {
    let fixed = Fixed { service_ranges: BTreeSet::new(), api_servers: BTreeSet::from([ip(9)]) };
    let mut guards = Guards::new(fixed);
    let facts = [
        node("node1", 1, ip(11), "10.244.1.0/24"),
        node("node2", 2, ip(12), "10.244.2.0/24"),
        speaker("node1", 3, &[ip(11), ip(21)], "192.168.77.0/24", ip(3)),
        speaker("node2", 4, &[ip(12)], "192.168.77.0/24", ip(3)),
        here(Source::ServiceRanges, "kubernetes", 5, Facts::ServiceRanges(BTreeSet::from([net("10.96.0.0/16")]))),
        here(Source::ApiServers, "kubernetes", 6, Facts::ApiServers(BTreeSet::from([ip(11), ip(10)]))),
    ];
    for fact in facts.into_iter().chain(Source::ALL.map(Fact::Complete)) {
        guards.observe(fact);
    }
    guards
}

fn reason(set: &GuardSet, address: impl Into<IpAddr>) -> Option<Refusal> {
    set.check(address).map(|refused| refused.reason)
}

#[test]
fn every_cause_has_its_name() {
    let set = cluster().set(&[]);
    let table: [([u8; 4], Option<Refusal>); 19] = [
        ([192, 168, 77, 11], Some(Refusal::AddressOfNode)),
        ([192, 168, 77, 12], Some(Refusal::AddressOfNode)),
        ([192, 168, 77, 21], Some(Refusal::AddressOfNode)),
        ([192, 168, 77, 3], Some(Refusal::AddressOfGateway)),
        ([192, 168, 77, 10], Some(Refusal::AddressOfAPIServer)),
        ([192, 168, 77, 9], Some(Refusal::AddressOfAPIServer)),
        ([192, 168, 77, 0], Some(Refusal::NetworkAddress)),
        ([192, 168, 77, 255], Some(Refusal::BroadcastAddress)),
        ([192, 168, 77, 1], None),
        ([192, 168, 77, 254], None),
        ([192, 168, 78, 0], None),
        ([10, 244, 2, 7], Some(Refusal::AddressInPodRange)),
        ([10, 244, 3, 7], None),
        ([10, 96, 0, 1], Some(Refusal::AddressInServiceRange)),
        ([127, 0, 0, 1], Some(Refusal::LoopbackAddress)),
        ([224, 0, 0, 18], Some(Refusal::MulticastAddress)),
        ([0, 0, 0, 0], Some(Refusal::ReservedAddress)),
        ([255, 255, 255, 255], Some(Refusal::ReservedAddress)),
        ([203, 0, 113, 0], None),
    ];
    for (address, expected) in table {
        assert_eq!(reason(&set, address), expected, "{address:?}");
    }
    let sentence = set.check(ip(11)).unwrap().message;
    assert_eq!(sentence, "192.168.77.11 is an address of node node1");
    let counts = set::count(&set, span("192.168.77.0/24"));
    let expected = [
        (Refusal::AddressOfNode, 3),
        (Refusal::AddressOfGateway, 1),
        (Refusal::AddressOfAPIServer, 2),
        (Refusal::NetworkAddress, 1),
        (Refusal::BroadcastAddress, 1),
    ];
    assert_eq!(counts, BTreeMap::from(expected));
}

/// In a /23 the .255 in the middle is a host's; a /31 has neither network nor broadcast address (RFC 3021).
#[test]
fn network_and_broadcast_are_those_of_the_interface() {
    let mut guards = cluster();
    guards.observe(speaker("node1", 7, &[ip(11)], "192.168.76.0/23", ip(3)));
    guards.observe(speaker("node2", 8, &[ip(12)], "192.168.77.12/31", ip(3)));
    let set = guards.set(&[]);
    assert_eq!(reason(&set, ip(0)), None);
    assert_eq!(reason(&set, ip(255)), Some(Refusal::BroadcastAddress));
    assert_eq!(reason(&set, [192, 168, 76, 0]), Some(Refusal::NetworkAddress));
    assert_eq!(reason(&set, [192, 168, 76, 255]), None);
    assert_eq!((reason(&set, ip(12)), reason(&set, ip(13))), (Some(Refusal::AddressOfNode), None));
}

#[test]
fn a_heartbeat_changes_nothing_and_a_new_address_does() {
    let mut guards = cluster();
    assert!(!guards.observe(node("node1", 20, ip(11), "10.244.1.0/24")), "the same again");
    assert!(!guards.observe(Fact::Begin(Source::SpeakerStates)));
    assert!(!guards.observe(speaker("node1", 21, &[ip(11), ip(21)], "192.168.77.0/24", ip(3))));
    assert!(guards.observe(Fact::Complete(Source::SpeakerStates)), "node2's is gone");
    assert!(guards.observe(node("node1", 22, ip(14), "10.244.1.0/24")));
    let set = guards.set(&[]);
    assert_eq!((reason(&set, ip(14)), reason(&set, ip(13))), (Some(Refusal::AddressOfNode), None));
    assert!(guards.observe(Fact::Gone { source: Source::Nodes, name: "node2".into(), version: 23 }));
    assert_eq!(reason(&guards.set(&[]), ip(12)), None);
}

/// A fresh installation: pool and Services are there before the first speaker has found out what is a gateway.
#[test]
fn an_entry_around_a_node_waits_for_the_subnet_and_others_do_not() {
    let mut guards = Guards::default();
    guards.observe(node("node1", 1, ip(11), "10.244.1.0/24"));
    let entries = [span("192.168.77.0/24"), span("198.51.100.0/28")];
    let set = guards.set(&entries);
    assert_eq!(reason(&set, ip(11)), Some(Refusal::AddressOfNode));
    assert_eq!(reason(&set, ip(200)), Some(Refusal::SubnetNotReported));
    assert_eq!(reason(&set, [198, 51, 100, 0]), None);
    assert!(set.check(ip(200)).unwrap().message.contains("192.168.77.11, an address of node node1"));
    guards.observe(speaker("node1", 2, &[ip(11)], "192.168.77.0/24", ip(3)));
    let set = guards.set(&entries);
    assert_eq!((reason(&set, ip(200)), reason(&set, ip(0))), (None, Some(Refusal::NetworkAddress)));
}

#[test]
fn cluster_ips_guard_where_no_range_is_known() {
    let key = |name: &str| ServiceKey { namespace: "default".into(), name: name.into() };
    let mut guards = cluster();
    assert!(!guards.set_cluster_ips(&key("a"), &[], &[[10, 96, 0, 7].into()]), "the range contains it");
    let odd: [IpAddr; 1] = [[172, 30, 0, 1].into()];
    assert!(guards.set_cluster_ips(&key("b"), &[], &odd));
    assert_eq!(reason(&guards.set(&[]), odd[0]), Some(Refusal::AddressInServiceRange));
    assert!(guards.set_cluster_ips(&key("b"), &odd, &[]));
    assert_eq!(reason(&guards.set(&[]), odd[0]), None);
    let fixed = Fixed { service_ranges: BTreeSet::from([net("172.30.0.0/16")]), ..Fixed::default() };
    assert_eq!(reason(&Guards::new(fixed).set(&[]), odd[0]), Some(Refusal::AddressInServiceRange));
}

#[test]
fn the_source_that_is_not_read_yet_is_named() {
    let mut guards = Guards::default();
    for source in Source::ALL {
        assert_eq!(guards.unread().next(), Some(source));
        assert!(guards.observe(Fact::Complete(source)), "an empty list is news, the first time");
        assert!(!guards.observe(Fact::Complete(source)));
    }
    assert_eq!(guards.unread().next(), None);
}
