use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::ToString;
use alloc::vec;

use super::endpoints::{Reason, Refusal, api_servers, digests, frontends, service_key};
use super::example::*;
use super::*;
use crate::time::{Duration, Instant};

fn ready(node: &str, n: u8) -> Endpoint {
    pod(node, n, Conditions::READY)
}

#[test]
fn the_same_event_twice_changes_nothing() {
    let mut known = view([ready("a", 1)]);
    for object in known.objects() {
        assert_eq!(known.handle(Event::Apply(object)), Change::None);
    }
    assert_eq!(known.handle(Event::Apply(slice([ready("b", 1)]))), Change::Changed);
    for (key, change) in [(Key::VirtualIp(VIP), Change::Changed), (Key::VirtualIp(VIP), Change::None)] {
        assert_eq!(known.handle(Event::Delete(key)), change);
    }
}

#[test]
fn a_list_removes_what_is_not_in_it_and_touches_no_other_kind() {
    let mut known = view([]);
    assert_eq!(known.handle(Event::Relisted(Kind::Node, vec![node("a"), node("d")])), Change::Changed);
    assert_eq!(known.members().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "d"]);
    assert_eq!(known.services().len(), 1);
    assert_eq!(known.handle(Event::Relisted(Kind::Node, vec![node("a"), node("d")])), Change::None);
    assert_eq!(known.handle(Event::Relisted(Kind::Service, vec![])), Change::Changed);
    assert!(known.services().is_empty());
}

#[test]
fn what_was_read_last_of_an_object_that_cannot_be_read_stays() {
    let mut known = view([]);
    let unreadable = |name: &str| Object::Unreadable(Key::Node(name.into()));
    known.handle(Event::Relisted(Kind::Node, vec![node("a"), node("d")]));
    let list = vec![unreadable("a"), node("d"), unreadable("e")];
    assert_eq!(known.handle(Event::Relisted(Kind::Node, list)), Change::None);
    assert_eq!(known.handle(Event::Apply(unreadable("d"))), Change::None);
    assert_eq!(known.members().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "d"]);
    assert_eq!(known.handle(Event::Relisted(Kind::Node, vec![unreadable("a")])), Change::Changed);
    assert_eq!(known.members().map(|(name, _)| name).collect::<Vec<_>>(), ["a"]);
}

#[test]
fn limits_are_counted_and_known_objects_may_still_change() {
    let mut known = View::default();
    let limit = Limit::Nodes.value();
    for i in 0..=limit {
        let name = format!("n{i}");
        let change = known.handle(Event::Apply(Object::Node(name, Node::at(VIP))));
        assert_eq!(change == Change::Refused(Limit::Nodes), i == limit);
    }
    assert_eq!((known.nodes().len(), known.refused().get(Limit::Nodes)), (limit, 1));
    let unready = Object::Node("n0".into(), Node { ready: false, ..Node::at(VIP) });
    assert_eq!(known.handle(Event::Apply(unready)), Change::Changed);
}

/// For as long as something is left out, and no longer.
#[test]
fn limits_are_reached_while_something_is_left_out() {
    let mut known = view([ready("a", 1)]);
    let reached = |known: &View| known.limits_reached().collect::<Vec<_>>();
    let many = vec![ready("a", 1); Limit::EndpointsPerSlice.value() + 1];
    let crowd = |address| vip(address, vec![web(); Limit::ServicesPerVip.value() + 1]);
    let other = Ipv4Addr::new(192, 0, 2, 2);
    assert_eq!(reached(&known), []);
    known.handle(Event::Apply(slice(many)));
    known.handle(Event::Apply(crowd(VIP)));
    known.handle(Event::Apply(crowd(other)));
    assert_eq!(reached(&known), [Limit::EndpointsPerSlice, Limit::ServicesPerVip]);
    known.handle(Event::Apply(slice([ready("a", 1)])));
    known.handle(Event::Delete(Key::VirtualIp(VIP)));
    assert_eq!(reached(&known), [Limit::ServicesPerVip], "of the other one");
    known.handle(Event::Relisted(Kind::Service, vec![]));
    assert_eq!(reached(&known), [Limit::ServicesPerVip], "another kind");
    known.handle(Event::Relisted(Kind::VirtualIp, vec![crowd(VIP)]));
    assert_eq!(reached(&known), [Limit::ServicesPerVip]);
    known.handle(Event::Relisted(Kind::VirtualIp, vec![vip(VIP, [web()])]));
    assert_eq!(reached(&known), []);
}

#[test]
fn an_object_that_outgrows_its_limit_is_left_out_altogether() {
    let mut known = view([ready("a", 1)]);
    let many = vec![ready("a", 1); Limit::EndpointsPerSlice.value() + 1];
    assert_eq!(known.handle(Event::Apply(slice(many))), Change::Refused(Limit::EndpointsPerSlice));
    assert!(known.slices().is_empty());
    let services = vec![web(); Limit::ServicesPerVip.value() + 1];
    assert_eq!(known.handle(Event::Apply(vip(VIP, services))), Change::Refused(Limit::ServicesPerVip));
    assert!(known.vips().is_empty());
    assert_eq!(Limit::ALL.iter().map(|&limit| known.refused().get(limit)).sum::<u64>(), 2);
}

#[test]
fn objects_lead_back_to_the_view() {
    let known = view([ready("a", 1), pod("b", 2, TERMINATING)]);
    assert_eq!(View::from(known.objects()), known);
    assert_ne!(View::from(known.objects()), view([]));
}

#[test]
fn absent_conditions() {
    let unknown = Conditions::from_optional(None, None, None);
    assert_eq!(unknown, Conditions::READY);
    assert_eq!(Conditions::from_optional(Some(false), None, None), UNREADY);
    assert_eq!(Conditions::from_optional(Some(false), Some(true), Some(true)), TERMINATING);
}

#[test]
fn ports_match_by_name_and_protocol() {
    let known = view([ready("a", 1)]);
    let (frontends, refused) = frontends(&known);
    let found: Vec<_> = frontends.iter().map(|(key, frontend)| (*key, frontend.pods[0].port)).collect();
    let expected = [(service_key(VIP, 53, Protocol::Udp), 5353), (service_key(VIP, 80, Protocol::Tcp), 8080)];
    assert_eq!((found, refused), (expected.to_vec(), vec![]));
}

#[test]
fn a_pod_in_two_slices_counts_once_and_as_ready() {
    let mut known = view([pod("a", 1, UNREADY), ready("b", 1)]);
    known.handle(Event::Apply(slice_named("web-2", [ready("a", 1), pod("b", 1, TERMINATING)])));
    let (frontends, _) = frontends(&known);
    let pods = &frontends[&service_key(VIP, 80, Protocol::Tcp)].pods;
    assert_eq!(pods.iter().map(|pod| (pod.node, pod.conditions.ready)).collect::<Vec<_>>(), [("a", true), ("b", true)]);
}

#[test]
fn two_services_want_one_port() {
    let mut known = view([ready("a", 1)]);
    let rival = ObjectName::new("default", "rival");
    known.handle(Event::Apply(service(rival.clone(), Affinity::ClientIp)));
    known.handle(Event::Apply(vip(VIP, [web(), rival.clone()])));
    let (frontends, refused) = frontends(&known);
    assert!(frontends.values().all(|frontend| *frontend.service == rival));
    let refused: Vec<_> = refused.iter().map(|refusal| (&refusal.service, refusal.reason, &*refusal.subject)).collect();
    assert_eq!(refused, [(&web(), Reason::PortTaken, "53"), (&web(), Reason::PortTaken, "80")]);
}

#[test]
fn what_cannot_be_sent_to_is_left_out_and_named() {
    let addresses = ["127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.1", "255.255.255.255", "192.0.2.1"];
    let mut bad: Vec<Endpoint> =
        addresses.iter().map(|text| Endpoint { address: text.parse().unwrap(), ..ready("a", 1) }).collect();
    bad.push(ready("z", 8));
    let mut known = view(bad);
    known.handle(Event::Apply(vip(VIP, [web(), ObjectName::new("default", "nobody")])));
    let (frontends, refused) = frontends(&known);
    assert!(frontends.values().all(|frontend| frontend.pods.is_empty()));
    let count = |reason| refused.iter().filter(|refusal| refusal.reason == reason).count();
    assert_eq!(count(Reason::EndpointAddress), addresses.len());
    assert_eq!(count(Reason::EndpointNode), 1);
    assert_eq!(count(Reason::ServiceUnknown), 1);
    assert_eq!(refused.last().unwrap().to_string(), "default/web of 192.0.2.1 (10.0.122.8): endpoint_node");
}

#[test]
fn two_nodes_translate_for_an_endpoint_of_no_node() {
    let outside = |n| Endpoint { address: Ipv4Addr::new(198, 51, 100, n), node: None, conditions: Conditions::READY };
    let node_b = Endpoint { address: Ipv4Addr::new(192, 0, 2, b'b'), ..outside(0) };
    let mut known = view([outside(1), ready("a", 1), node_b]);
    // A second slice names the node of one of them.
    let on_c = Endpoint { node: Some("c".into()), ..outside(2) };
    known.handle(Event::Apply(slice_named("web-2", [outside(2), on_c.clone(), outside(2)])));
    let places = |view: &View| {
        let (frontends, refused) = frontends(view);
        assert_eq!(refused, []);
        let pods = frontends[&service_key(VIP, 80, Protocol::Tcp)].pods.clone();
        pods.into_iter().map(|pod| (pod.address, String::from(pod.node), pod.via)).collect::<Vec<_>>()
    };
    let all = places(&known);
    let of = |address| all.iter().filter(|place| place.0 == address).collect::<Vec<_>>();
    let (first, second) = (of(outside(1).address), of(on_c.address));
    assert!(first.len() == 2 && first[0].1 != first[1].1 && first.iter().all(|place| place.2), "{all:?}");
    assert_eq!((second.len(), &*second[0].1, second[0].2), (1, "c", false));
    assert_eq!(of(Ipv4Addr::new(192, 0, 2, b'b'))[0].1, "b", "by its address");
    assert_eq!(all.len(), 5);
    for node in ["a", "b", "c"] {
        known.handle(Event::Delete(Key::Node(node.into())));
    }
    let (frontends, refused) = frontends(&known);
    assert!(!frontends.values().flat_map(|frontend| &frontend.pods).any(|pod| pod.via));
    let left_out = |refusal: &&Refusal| refusal.reason == Reason::EndpointNode && refusal.subject == "198.51.100.1";
    assert_eq!(refused.iter().filter(left_out).count(), 1, "{refused:?}");
}

/// Nodes of different versions compare it: when this vector changes, so does `wire::report::VERSION`.
#[test]
fn api_servers_are_the_ready_endpoints_of_their_service() {
    let at = |n| Endpoint { address: Ipv4Addr::new(192, 0, 2, n), node: None, conditions: Conditions::READY };
    let unready = Endpoint { conditions: UNREADY, ..at(9) };
    let slice = |namespace: &str, endpoints: &[Endpoint]| {
        let ports = [("https", 6443, Protocol::Tcp), ("quic", 6443, Protocol::Udp)];
        let ports = ports.map(|(name, port, protocol)| Port { name: name.into(), port, protocol }).into();
        let slice = EndpointSlice { service: "kubernetes".into(), ports, endpoints: endpoints.into() };
        Object::EndpointSlice(ObjectName::new(namespace, "kubernetes"), slice)
    };
    let mut view = view([ready("a", 1)]);
    assert_eq!(api_servers(&view), []);
    view.handle(Event::Apply(slice("somebody", &[at(7)])));
    view.handle(Event::Apply(slice("default", &[at(2), unready, at(1)])));
    assert_eq!(
        api_servers(&view).iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["192.0.2.1:6443", "192.0.2.2:6443"]
    );
}

#[test]
fn the_digest_is_of_what_concerns_packets() {
    let of = |view: &View| endpoints::digests(view, &frontends(view).0).view;
    let known = view([ready("a", 1)]);
    assert_eq!(of(&known), 8875503696922633026);
    let changed = |event| {
        let mut changed = known.clone();
        assert_eq!(changed.handle(event), Change::Changed);
        of(&changed)
    };
    let unready = Object::Node("a".into(), Node { ready: false, ..known.nodes()["a"].clone() });
    assert_eq!(changed(Event::Apply(unready)), of(&known), "the API server learns of it late; nothing follows from it");
    let excluded = Object::Node("a".into(), Node { excluded: true, ..known.nodes()["a"].clone() });
    let terminating = pod("a", 1, Conditions { ready: false, serving: true, terminating: true });
    let events = [
        Event::Apply(excluded),
        Event::Delete(Key::Node("c".into())),
        Event::Apply(slice([ready("b", 1)])),
        Event::Apply(slice([ready("a", 2)])),
        Event::Apply(slice([terminating])),
        Event::Apply(slice([])),
        Event::Apply(service(web(), Affinity::ClientIp)),
        Event::Delete(Key::VirtualIp(VIP)),
    ];
    let digests: BTreeSet<u64> = events.into_iter().map(changed).chain([of(&known)]).collect();
    assert_eq!(digests.len(), 9);
}

#[test]
fn the_digest_of_a_nodes_pods_is_of_these_alone() {
    let of = |endpoints: &[Endpoint]| {
        let view = view(endpoints);
        endpoints::digests(&view, &frontends(&view).0).pods
    };
    let known = of(&[ready("a", 1), ready("b", 1)]);
    assert_eq!(known.keys().collect::<Vec<_>>(), ["a", "b"]);
    let other = of(&[ready("a", 1), ready("b", 1), ready("b", 2), ready("c", 1)]);
    assert!(known["a"] == other["a"] && known["b"] != other["b"] && other.contains_key("c"));
    assert_ne!(of(&[pod("a", 1, TERMINATING)])["a"], known["a"]);
}

/// A deleted node keeps its place until its flows are over: but it is no member, and the digest of the view is that of nodes that never
/// knew it.
#[test]
fn a_deleted_node_departs_and_is_forgotten_later() {
    let mut known = view([ready("a", 1), ready("b", 1)]);
    let never = {
        let nodes = ["a", "c"].map(node);
        let rest = [service(web(), Affinity::None), slice([ready("a", 1), ready("b", 1)]), vip(VIP, [web()])];
        View::from(nodes.into_iter().chain(rest).collect::<Vec<_>>())
    };
    let digest = |view: &View| digests(view, &frontends(view).0).view;
    let deleted = Event::Delete(Key::Node("b".into()));
    assert_eq!(known.handle(deleted.clone()), Change::Changed);
    assert_eq!(known.handle(deleted), Change::None);
    assert!(known.nodes().contains_key("b") && !known.is_member("b"));
    assert_eq!(digest(&known), digest(&never));
    assert!(!known.forget_node("a"), "only departed nodes");
    assert!(known.forget_node("b") && !known.nodes().contains_key("b"));
}

/// Another node with the address of a departed one, and a node that returns.
#[test]
fn a_departed_node_gives_way() {
    let mut known = view([]);
    known.handle(Event::Delete(Key::Node("b".into())));
    known.handle(Event::Apply(node("b")));
    assert!(known.is_member("b"));
    known.handle(Event::Delete(Key::Node("b".into())));
    let heir = Object::Node("d".into(), known.nodes()["b"].clone());
    let Object::Node(name, mut heir) = heir else { panic!("a node") };
    heir.departed = false;
    known.handle(Event::Apply(Object::Node(name, heir)));
    assert!(!known.nodes().contains_key("b") && known.is_member("d"));
}

/// A speaker that restarts after the deletion knows of it by the view on disk.
#[test]
fn departed_nodes_are_carried_over_a_restart() {
    let earlier = view([]);
    let mut known = View::from(alloc::vec![node("a")]);
    known.carry_departed(&earlier);
    assert_eq!(known.members().map(|(name, _)| name).collect::<Vec<_>>(), ["a"]);
    assert_eq!(known.nodes().len(), 3);
}

/// Whatever the API has, no VIP is one of a node's addresses.
#[test]
fn an_address_of_a_node_is_never_served() {
    let mut known = view([ready("a", 1)]);
    let Object::Node(name, mut other) = node("b") else { panic!("a node") };
    other.aliases.insert(VIP);
    known.handle(Event::Apply(Object::Node(name, other)));
    let (frontends, refused) = frontends(&known);
    assert_eq!(frontends.len(), 0);
    assert_eq!(refused.iter().map(|refusal| refusal.reason).collect::<Vec<_>>(), [Reason::AddressOfNode]);
}

/// Speakers of two versions stand side by side during an upgrade: what a Service had in November 2026 keeps its digests.
#[test]
fn a_service_without_new_attributes_is_the_same_to_an_earlier_version() {
    let of = |attributes: Affinity| {
        let mut known = view([ready("a", 1), ready("b", 1)]);
        known.handle(Event::Apply(service(web(), attributes)));
        let (frontends, _) = frontends(&known);
        let digests = digests(&known, &frontends);
        (digests.view, digests.pods["a"])
    };
    assert_eq!(of(Affinity::None), (18_113_589_229_606_401_225, 10_443_869_060_431_551_957));
    assert_eq!(of(Affinity::ClientIp), (4_386_693_914_373_994_741, 7_567_546_955_576_997_594));
}

/// Nodes compare them to find one that follows the API server no more: then its lists are old.
#[test]
fn source_ranges_count_in_the_digests_of_view_and_table() {
    let of = |ranges: Option<&[(u8, u8)]>| {
        let prefix = |(a, length): &(u8, u8)| Prefix { network: Ipv4Addr::new(*a, 0, 0, 0), length: *length };
        let list = |ranges: &[(u8, u8)]| ranges.iter().map(prefix).collect::<Vec<_>>().into();
        let mut known = view([ready("a", 1)]);
        known.handle(Event::Apply(service(
            web(),
            ServiceAttributes { source_ranges: ranges.map(list), ..Default::default() },
        )));
        let (frontends, _) = frontends(&known);
        let digests = digests(&known, &frontends);
        let mut planner =
            crate::forwarding::Planner::new([1, 2], crate::forwarding::previous::PreviousRings::new(Duration::ZERO));
        let table = planner.table(&known, &Default::default(), &Default::default(), Instant::ZERO);
        (digests.view, digests.pods["a"], table.digest)
    };
    let lists: [Option<&[(u8, u8)]>; 5] =
        [None, Some(&[]), Some(&[(10, 8)]), Some(&[(10, 9)]), Some(&[(10, 8), (11, 8)])];
    let all = lists.map(of);
    let different = |digests: BTreeSet<u64>| assert_eq!(digests.len(), lists.len());
    different(all.iter().map(|(view, ..)| *view).collect());
    different(all.iter().map(|(_, pods, _)| *pods).collect());
    different(all.iter().map(|(.., table)| *table).collect());
    assert_eq!(of(lists[2]), all[2]);
}

#[test]
fn a_service_with_more_source_ranges_than_the_limit_keeps_its_ports_and_admits_no_client() {
    let mut known = view([ready("a", 1)]);
    let restricted = |count: u32| {
        let ranges: Vec<Prefix> = (0..count).map(|n| Prefix { network: (n << 8).into(), length: 24 }).collect();
        Event::Apply(service(web(), ServiceAttributes { source_ranges: Some(ranges.into()), ..Default::default() }))
    };
    let admitted = |known: &View| {
        let count =
            |frontend: &endpoints::Frontend<'_>| frontend.attributes.source_ranges.as_ref().map(SourceRanges::len);
        frontends(known).0.values().map(count).collect::<Vec<_>>()
    };
    let most = Limit::RangesPerService.value() as u32;
    assert_eq!(known.handle(restricted(most + 1)), Change::Refused(Limit::RangesPerService));
    assert_eq!(admitted(&known), [Some(0), Some(0)], "both ports, for nobody");
    assert_eq!(known.limits_reached().collect::<Vec<_>>(), [Limit::RangesPerService]);
    assert_eq!(View::from(known.objects()), known, "the same from disk");
    assert_eq!(known.handle(restricted(most)), Change::Changed);
    assert_eq!((admitted(&known), known.limits_reached().count()), (vec![Some(1024), Some(1024)], 0));
}

/// Ports are granted there, and not the address: no election, and no endpoint at it is refused.
#[test]
fn an_address_of_a_node_has_the_ports_and_is_no_vip() {
    let own = Ipv4Addr::new(192, 0, 2, b'a');
    let on_host = Endpoint { address: own, node: Some("a".into()), conditions: Conditions::READY };
    let mut known = view([ready("b", 1), on_host]);
    known.handle(Event::Apply(at_node("a", own, [web()])));
    assert_eq!((known.served_vips(), known.is_vip(own)), (BTreeSet::from([VIP]), false));
    let (all, refused) = frontends(&known);
    assert_eq!((all.len(), refused), (4, vec![]));
    let pods = |vip| all[&service_key(vip, 80, Protocol::Tcp)].pods.len();
    assert_eq!((pods(own), pods(VIP)), (2, 2));
    assert_eq!(View::from(known.objects()), known, "the same from disk");

    // Of another node, of none, of one that left: the name says why nothing is served.
    for (node, address) in [("b", own), ("x", own), ("a", Ipv4Addr::new(192, 0, 2, 200))] {
        let mut known = view([ready("b", 1)]);
        known.handle(Event::Apply(at_node(node, address, [web()])));
        let (all, refused) = frontends(&known);
        assert_eq!((all.len(), refused[0].reason, refused[0].vip), (2, Reason::NotAddressOfNode, address));
    }
    known.handle(Event::Delete(Key::Node("a".into())));
    assert_eq!(frontends(&known).1.iter().filter(|one| one.reason == Reason::NotAddressOfNode).count(), 1);
}
