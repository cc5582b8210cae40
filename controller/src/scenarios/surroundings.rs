//! Guards, other owners and unreadable objects, through the whole decision path.

use sheave_api::{Refusal, UplinkState};

use super::*;
use crate::guards::facts::{Facts, NodeFacts, SpeakerFacts, SpeakerStatus};

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 77, last)
}

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: name.into() }
}

impl World {
    /// A pool of the nodes' subnet, node1 (.11) and its speaker, a router at .3.
    fn on_the_nodes_subnet() -> Self {
        let mut world = World::new();
        world.api.put_pool("p", "192.168.77.0/24");
        world.node("node1", 1, ip(11));
        let status = serde_json::json!({ "uplinks": [UplinkState {
            name: "eth0".into(),
            addresses: vec![ip(11).to_string()],
            subnets: vec!["192.168.77.0/24".into()],
            gateways: vec![ip(3).to_string()],
            ..UplinkState::default()
        }]});
        let facts = Facts::Speaker(SpeakerFacts::new(serde_json::from_value::<SpeakerStatus>(status).unwrap()));
        world.fact(Fact::Here {
            source: Source::SpeakerStates,
            name: "node1".into(),
            uid: "s1".into(),
            version: 2,
            facts,
        });
        world
    }

    fn fact(&mut self, fact: Fact) {
        self.api.facts.push(fact.clone());
        self.replicas.iter_mut().for_each(|replica| replica.index.observe(Observed::Guard(fact.clone())));
    }

    fn node(&mut self, name: &str, version: u64, address: Ipv4Addr) {
        let facts = Facts::Node(NodeFacts { addresses: BTreeSet::from([address.into()]), ..NodeFacts::default() });
        self.fact(Fact::Here {
            source: Source::Nodes,
            name: name.into(),
            uid: format!("uid of {name}"),
            version,
            facts,
        });
    }

    fn groups(&mut self, groups: &[Evidence]) {
        self.api.groups = groups.iter().copied().collect();
        let groups = self.api.groups.clone();
        self.replicas.iter_mut().for_each(|replica| replica.index.observe(Observed::ApiGroups(groups.clone())));
    }

    fn classless(&mut self, name: &str) -> ServiceView {
        let created = ServiceView { key: key(name), uid: format!("uid of {name}"), version: 0, ..example() };
        self.api.put_service(created);
        assert!(self.settle());
        self.api.services[&key(name)].clone()
    }

    fn with_class(&mut self, name: &str, address: Option<Ipv4Addr>) -> ServiceView {
        let class = Some(sheave_api::LOAD_BALANCER_CLASS.to_string());
        let addresses = address.map(|address| address.to_string());
        let uid = format!("uid of {name}");
        self.api.put_service(ServiceView { key: key(name), uid, version: 0, class, addresses, ..example() });
        assert!(self.settle());
        self.api.services[&key(name)].clone()
    }

    fn service(&mut self, name: &str) -> ServiceView {
        assert!(self.settle());
        self.api.services[&key(name)].clone()
    }

    /// Another controller writes its own address into the Service's status.
    fn rewrite(&mut self, name: &str, last: u8) {
        let service = self.api.services[&key(name)].clone();
        let (ingress, writer) = (vec![Ingress::Vip(ip(last), vec![])], Writer::Controller("other".into()));
        self.api.shown.remove(&service.uid);
        self.api.put_service(ServiceView { ingress, writer, ..service });
    }

    fn excluded(&self) -> BTreeMap<&str, i64> {
        self.api.pools["p"]
            .status
            .excluded_by
            .iter()
            .map(|left_out| (left_out.reason.as_str(), left_out.count))
            .collect()
    }
}

fn reason(service: &ServiceView) -> (bool, &str) {
    let condition = service.condition.as_ref().expect("a condition");
    (condition.allocated, &condition.reason)
}

/// C20 of November 2026: .0, .1 and the router's .3 were handed out.
#[test]
fn a_pool_of_the_nodes_subnet_works_and_says_what_it_leaves_out() {
    let mut world = World::on_the_nodes_subnet();
    let shown: Vec<Ipv4Addr> =
        ["a", "b", "c"].iter().map(|name| world.with_class(name, None).shown().expect("an address")).collect();
    assert_eq!(shown, [ip(1), ip(2), ip(4)]);
    let excluded = [("AddressOfGateway", 1), ("AddressOfNode", 1), ("BroadcastAddress", 1), ("NetworkAddress", 1)];
    assert_eq!(world.excluded(), BTreeMap::from(excluded));
    let status = &world.api.pools["p"].status;
    assert_eq!((status.used, status.free, status.excluded), (3, 249, 4));
}

/// C1 of November 2026, and everything else that must not be asked for.
#[test]
fn an_asked_for_address_is_refused_by_its_cause_and_granted_when_that_is_gone() {
    let mut world = World::on_the_nodes_subnet();
    for (name, address, cause) in [
        ("node", ip(11), Refusal::AddressOfNode),
        ("gateway", ip(3), Refusal::AddressOfGateway),
        ("network", ip(0), Refusal::NetworkAddress),
        ("broadcast", ip(255), Refusal::BroadcastAddress),
        ("loopback", Ipv4Addr::LOCALHOST, Refusal::LoopbackAddress),
    ] {
        let refused = world.with_class(name, Some(address));
        assert_eq!(reason(&refused), (false, cause.as_str()));
        assert!(refused.condition.unwrap().message.contains(&address.to_string()));
    }
    assert!(world.api.grants.is_empty());
    world.node("node2", 5, ip(12));
    assert_eq!(reason(&world.with_class("later", Some(ip(12)))), (false, "AddressOfNode"));
    world.fact(Fact::Gone { source: Source::Nodes, name: "node2".into(), version: 6 });
    assert_eq!(world.service("later").shown(), Some(ip(12)), "the node is gone");
}

#[test]
fn a_node_that_joins_with_a_granted_address_takes_nothing_away() {
    let mut world = World::on_the_nodes_subnet();
    let held = world.with_class("held", None);
    assert_eq!((held.shown(), reason(&held)), (Some(ip(1)), (true, "AddressAllocated")));
    world.node("late", 7, ip(1));
    let held = world.service("held");
    assert_eq!((held.shown(), reason(&held)), (Some(ip(1)), (true, "AddressOfNode")));
    assert_eq!(
        held.condition.unwrap().message,
        "192.168.77.1 from pool 'p'; 192.168.77.1 is an address of node late; it stays and is not served"
    );
    assert!(world.api.grants.contains_key(&ip(1).into()));
    assert_eq!(world.excluded()["AddressOfNode"], 2);
    world.fact(Fact::Gone { source: Source::Nodes, name: "late".into(), version: 8 });
    assert_eq!(reason(&world.service("held")), (true, "AddressAllocated"));
}

#[test]
fn a_heartbeat_of_a_node_plans_nothing() {
    let mut world = World::on_the_nodes_subnet();
    world.with_class("held", None);
    let written = world.api.version;
    for version in 10..20 {
        world.node("node1", version, ip(11));
        let leader = &mut world.replicas[world.leader].index;
        assert_eq!(leader.next_write(world.now, Timestamp::UNIX_EPOCH), None);
        assert_eq!(leader.backlog(), 0);
    }
    assert_eq!(world.api.version, written);
}

/// Nothing at all is written about Services without a class, and those that were served stay as they are.
#[test]
fn another_owner_of_services_without_a_class_is_left_alone() {
    let mut world = World::on_the_nodes_subnet();
    let before = world.classless("before");
    assert_eq!(before.shown(), Some(ip(1)));
    world.groups(&[Evidence::ApiGroup("metallb.io")]);
    assert!(world.settle());
    let written = world.api.version;
    let after = world.classless("after");
    assert_eq!((after.condition, after.finalizer, world.api.version), (None, false, written + 1), "only its creation");
    assert_eq!(world.service("before"), before);
    let ours = world.with_class("ours", None);
    assert_eq!(reason(&ours), (true, "AddressAllocated"));
    for replica in &mut world.replicas {
        replica.index.next_write(world.now, Timestamp::UNIX_EPOCH);
        assert!(replica.index.notes()[0].contains("API group metallb.io"), "the follower says it as well");
    }
    assert_eq!(world.replicas[world.leader].index.left[&key("after")], "API group metallb.io");

    // It empties and rewrites what it thinks is its own.
    for last in [99, 98] {
        world.rewrite("before", last);
        let written = world.api.version;
        assert!(world.settle());
        assert_eq!(world.api.version, written, "no correction");
    }
    assert!(world.api.grants.contains_key(&ip(1).into()), "and nothing is taken back");

    world.groups(&[]);
    assert_eq!(reason(&world.service("after")), (true, "AddressAllocated"), "it is gone");
}

/// A controller that no sign in the cluster names: its field manager does.
#[test]
fn a_war_with_another_controller_does_not_begin() {
    let mut world = World::on_the_nodes_subnet();
    let class = None;
    let (ingress, writer) =
        (vec![Ingress::Vip(Ipv4Addr::new(192, 0, 2, 10), vec![])], Writer::Controller("other".into()));
    let theirs = ServiceView { key: key("theirs"), uid: "t".into(), version: 0, class, ingress, writer, ..example() };
    world.api.put_service(theirs.clone());
    world.classless("raced");
    let written = world.api.version;
    for round in 0..50u8 {
        world.rewrite("raced", 100 + round);
        world.api.put_service(ServiceView { ports: vec![Port::new(80 + i32::from(round), None)], ..theirs.clone() });
        assert!(world.settle());
    }
    assert_eq!(world.api.version, written + 100, "only its own writes");
    assert_eq!(world.service("theirs").condition, None);
}

/// C3 of November 2026.
#[test]
fn a_refusal_without_a_class_is_a_condition_and_no_more() {
    let mut world = World::new();
    let ingress = vec![Ingress::Vip(Ipv4Addr::new(192, 0, 2, 200), vec![])];
    let taken = Some("192.0.2.77".to_string());
    let uid = "t".to_string();
    let theirs = ServiceView {
        key: key("theirs"),
        uid,
        ingress: ingress.clone(),
        writer: Writer::Person,
        addresses: taken,
        ..example()
    };
    world.api.put_service(theirs.clone());
    let refused = world.service("theirs");
    assert_eq!((reason(&refused), &refused.ingress), ((false, "AddressNotInPool"), &ingress));
    let written = world.api.version;
    world.api.put_service(ServiceView { ingress: vec![Ingress::Other], ..refused });
    assert!(world.settle());
    assert_eq!(world.api.version, written + 1, "and not again");
    let class = Some(sheave_api::LOAD_BALANCER_CLASS.to_string());
    world.api.put_service(ServiceView { key: key("classed"), uid: "c".into(), class, ..theirs });
    assert!(world.service("classed").ingress.is_empty(), "its class names us");
}

/// A full list has the Service in a state that cannot be read: it keeps its address, also from a controller that has just started.
#[test]
fn an_unreadable_service_keeps_its_grant() {
    let mut world = World::new();
    world.with_class("odd", None);
    let version = world.api.version;
    let granted = world.api.grants.clone();
    for started in [false, true] {
        if started {
            world.api.services.clear();
            world.api.shown.clear();
            world.replicas[world.leader] = Replica::start(&world.api);
            world.replicas[world.leader].index.lead(true);
        }
        let index = &mut world.replicas[world.leader].index;
        index.observe(Observed::Begin(Kind::Services));
        index.observe(Observed::Unreadable(Kind::Services, "default/odd".into()));
        index.observe(Observed::Complete(Kind::Services, version));
        assert_eq!(index.unreadable()[&Kind::Services], 1);
        assert_eq!(index.notes(), ["Services default/odd cannot be read; skipped"]);
        assert!(world.settle());
        assert_eq!(world.api.grants.keys().collect::<Vec<_>>(), granted.keys().collect::<Vec<_>>());
    }
    let index = &mut world.replicas[world.leader].index;
    index.observe(Observed::Begin(Kind::Services));
    assert_eq!(index.unreadable()[&Kind::Services], 1, "until the list is complete");
    index.observe(Observed::Complete(Kind::Services, version));
    assert_eq!(index.unreadable()[&Kind::Services], 0);
    assert!(world.settle() && world.api.grants.is_empty(), "the list has no such Service");
}

#[test]
fn the_address_of_an_unreadable_virtual_ip_is_not_given_again() {
    let mut world = World::new();
    let index = &mut world.replicas[world.leader].index;
    index.observe(Observed::Unreadable(Kind::Grants, "192.0.2.0".into()));
    assert_eq!(world.with_class("a", None).shown(), Some(Ipv4Addr::new(192, 0, 2, 1)));
    let index = &mut world.replicas[world.leader].index;
    index.observe(Observed::GrantGone([192, 0, 2, 0].into(), 0));
    assert_eq!(world.with_class("b", None).shown(), Some(Ipv4Addr::new(192, 0, 2, 0)));
}

/// An upgrade without its ClusterRole: what is missing is named until the objects were read.
#[test]
fn a_missing_right_is_named_until_the_objects_were_read() {
    let api = Api::default();
    let mut index = Index::default();
    let complete = |index: &mut Index, source| index.observe(Observed::Guard(Fact::Complete(source)));
    Kind::ALL.into_iter().for_each(|kind| index.observe(Observed::Complete(kind, api.version)));
    index.observe(Observed::ApiGroups(BTreeSet::new()));
    [Source::SpeakerStates, Source::ApiServers].into_iter().for_each(|source| complete(&mut index, source));
    assert!(index.notes().is_empty(), "it may only take its time");
    for kind in ["Nodes", "ServiceCIDRs"] {
        index.observe(Observed::Denied(kind, format!("cannot list {kind}")));
    }
    let named: Vec<&str> = index.denied().map(|(kind, _)| kind).collect();
    assert_eq!((named, index.unread()), (vec!["Nodes", "ServiceCIDRs"], Some("Nodes")));
    assert!(index.notes()[0].starts_with("not allowed to read Nodes"), "{:?}", index.notes());
    assert!(index.notes()[0].contains("cannot list Nodes") && index.notes()[1].contains("cannot list ServiceCIDRs"));
    [Source::Nodes, Source::ServiceRanges].into_iter().for_each(|source| complete(&mut index, source));
    assert!(index.is_synced() && index.notes().is_empty());
}
