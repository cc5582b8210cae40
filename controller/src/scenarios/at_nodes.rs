//! Services whose ports are at nodes' addresses, through the whole decision path: ledger first, then status, and back.

use sheave_api::{AddressMode, Refusal};

use super::*;
use crate::guards::facts::{Facts, NodeFacts, SpeakerFacts};
use crate::node_mode::NODE_POOL;

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 77, last)
}

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: name.into() }
}

impl World {
    /// Nodes `n1` to `n3` (.11 to .13), on which SSH listens.
    fn with_nodes() -> Self {
        let mut world = World::new();
        for number in 1..=3 {
            world.put_node(number, |_| {});
            world.put_speaker(number, |_| {});
        }
        world
    }

    fn put_fact(&mut self, source: Source, name: String, facts: Facts) {
        let version = self.api.next();
        let fact = Fact::Here { source, uid: format!("{source:?} {name}"), name, version, facts };
        self.api.facts.push(fact.clone());
        self.replicas.iter_mut().for_each(|replica| replica.index.observe(Observed::Guard(fact.clone())));
    }

    fn put_node(&mut self, number: u8, change: impl FnOnce(&mut NodeFacts)) {
        let (addresses, internal) = ([ip(10 + number).into()].into(), vec![ip(10 + number)]);
        let mut node = NodeFacts { addresses, internal, ready: true, ..NodeFacts::default() };
        change(&mut node);
        self.put_fact(Source::Nodes, format!("n{number}"), Facts::Node(node));
    }

    fn put_speaker(&mut self, number: u8, change: impl FnOnce(&mut SpeakerFacts)) {
        let listening = Some([Port::new(22, None)].into());
        let mut speaker = SpeakerFacts { listening, ..SpeakerFacts::default() };
        change(&mut speaker);
        self.put_fact(Source::SpeakerStates, format!("n{number}"), Facts::Speaker(speaker));
    }

    fn at_nodes(&mut self, name: &str, port: i32) -> ServiceView {
        self.born += 1;
        self.api.put_service(ServiceView {
            key: key(name),
            uid: format!("uid of {name}"),
            version: 0,
            created: i64::try_from(self.born).unwrap(),
            mode: Ok(Some(AddressMode::Node)),
            ports: vec![Port::new(port, None)],
            ..example()
        });
        self.rest(name)
    }

    fn rest(&mut self, name: &str) -> ServiceView {
        assert!(self.settle());
        self.api.services[&key(name)].clone()
    }

    /// Last numbers of the addresses at which the ledger names the Service.
    fn ledger(&self, name: &str) -> Vec<u8> {
        let uid = self.api.services.get(&key(name)).map_or(String::new(), |service| service.uid.clone());
        let granted = self.api.grants.keys().filter(|address| self.api.is_granted(**address, &uid));
        let last = |address: &IpAddr| match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => panic!("{address}"),
        };
        granted.map(last).collect()
    }
}

fn shown(service: &ServiceView) -> Vec<u8> {
    let address = |entry: &Ingress| match entry {
        Ingress::Vip(address, _) => address.octets()[3],
        other => panic!("{other:?}"),
    };
    service.ingress.iter().map(address).collect()
}

fn reason(service: &ServiceView) -> (bool, &str) {
    let condition = service.condition.as_ref().expect("a condition");
    (condition.allocated, &condition.reason)
}

#[test]
fn all_nodes_show_their_addresses_and_no_finalizer_holds_the_service() {
    let mut world = World::with_nodes();
    let web = world.at_nodes("web", 80);
    assert_eq!((shown(&web), reason(&web)), (vec![11, 12, 13], (true, "AddressAllocated")));
    assert!(!web.finalizer);
    let entry = &world.api.grants[&ip(11).into()];
    assert_eq!((entry.pool.as_str(), entry.node.as_deref()), (NODE_POOL, Some("n1")));
    // It goes, and with it the entries.
    world.api.delete_service(&key("web"));
    assert!(world.settle());
    assert!(world.api.grants.is_empty(), "{:?}", world.api.grants);
}

#[test]
fn a_second_service_on_the_port_is_refused_by_name_and_follows_when_the_first_goes() {
    let mut world = World::with_nodes();
    world.at_nodes("web", 80);
    let other = world.at_nodes("other", 80);
    assert_eq!((shown(&other), reason(&other)), (vec![], (false, "PortTakenOnNode")));
    assert!(other.condition.unwrap().message.contains("default/web"));
    assert_eq!(world.at_nodes("third", 81).ingress.len(), 3);
    // A new leader decides the same, though it knows the ledger alone.
    world.take_over(1);
    assert_eq!((shown(&world.rest("web")).len(), world.ledger("other")), (3, vec![]));
    world.api.delete_service(&key("web"));
    assert_eq!(shown(&world.rest("other")), [11, 12, 13]);
}

#[test]
fn a_process_that_listens_takes_the_port_of_its_node_back() {
    let mut world = World::with_nodes();
    let web = world.at_nodes("web", 8080);
    assert_eq!(shown(&web), [11, 12, 13]);
    world.put_speaker(2, |speaker| {
        speaker.listening.as_mut().unwrap().insert(Port::new(8080, None));
    });
    let web = world.rest("web");
    assert_eq!(
        (shown(&web), reason(&web), world.ledger("web")),
        (vec![11, 13], (true, "PortInUseOnNode"), vec![11, 13])
    );
    assert!(web.condition.as_ref().unwrap().message.contains("node n2"), "{web:?}");
    world.put_speaker(2, |_| {});
    assert_eq!(shown(&world.rest("web")), [11, 12, 13]);

    let ssh = world.at_nodes("ssh", 22);
    assert_eq!((shown(&ssh), reason(&ssh)), (vec![], (false, "PortInUseOnNode")));
    // A NodePort of any Service is kube-proxy's.
    let node_ports = vec![Port::new(30080, None)];
    world.api.put_service(ServiceView {
        key: key("np"),
        uid: "np".into(),
        load_balancer: false,
        node_ports,
        ..example()
    });
    assert_eq!(reason(&world.at_nodes("clash", 30080)), (false, "PortInUseOnNode"));
}

#[test]
fn nodes_that_go_change_or_are_not_chosen_are_not_shown() {
    let mut world = World::with_nodes();
    world.at_nodes("web", 80);
    // Its address is another one.
    world.put_node(1, |node| node.internal = vec![ip(21)]);
    assert_eq!(shown(&world.rest("web")), [12, 13, 21]);
    world.put_node(2, |node| node.ready = false);
    assert_eq!((shown(&world.rest("web")), world.ledger("web")), (vec![13, 21], vec![12, 13, 21]));
    world.put_node(3, |node| node.enabled = true);
    assert_eq!(shown(&world.rest("web")), [13]);
    world.put_node(3, |node| (node.enabled, node.external) = (true, vec![ip(99)]));
    assert_eq!((shown(&world.rest("web")), world.ledger("web")), (vec![99], vec![13, 99]));
    world.put_speaker(3, |speaker| speaker.listening = None);
    let web = world.rest("web");
    assert_eq!((shown(&web), reason(&web), world.ledger("web")), (vec![], (false, "NoNodeForService"), vec![]));
}

#[test]
fn local_shows_the_nodes_with_pods() {
    let mut world = World::with_nodes();
    world.at_nodes("web", 80);
    let mut web = world.api.services[&key("web")].clone();
    web.local = true;
    world.api.put_service(web);
    let none = world.rest("web");
    assert_eq!((shown(&none), reason(&none)), (vec![], (true, "AddressAllocated")));
    assert_eq!(world.ledger("web"), [11, 12, 13], "as far as pods are there");
    world.put_speaker(3, |speaker| {
        speaker.local_services.insert(key("web"));
    });
    assert_eq!(shown(&world.rest("web")), [13]);
}

/// Live, and with what klipper-lb left.
#[test]
fn the_annotation_comes_and_goes() {
    let mut world = World::with_nodes();
    let of_klipper = ServiceView {
        ingress: vec![Ingress::Vip(ip(11), vec![])],
        writer: Writer::Controller("k3s".into()),
        ..example()
    };
    world.api.put_service(ServiceView { key: key("web"), uid: "uid of web".into(), version: 0, ..of_klipper });
    assert_eq!(world.rest("web").condition, None, "without a sign it is another owner's");
    let with = |world: &World, mode| {
        let mut web = world.api.services[&key("web")].clone();
        web.mode = mode;
        web
    };
    let node = with(&world, Ok(Some(AddressMode::Node)));
    world.api.put_service(node);
    let web = world.rest("web");
    assert_eq!((shown(&web), reason(&web), &web.writer), (vec![11, 12, 13], (true, "AddressAllocated"), &Writer::Us));

    let pool = with(&world, Ok(Some(AddressMode::Pool)));
    world.api.put_service(pool);
    let web = world.rest("web");
    assert_eq!((web.shown().map(|vip| vip.octets()[..3].to_vec()), web.finalizer), (Some(vec![192, 0, 2]), true));
    assert_eq!(world.api.grants.len(), 1);

    let node = with(&world, Ok(Some(AddressMode::Node)));
    world.api.put_service(node);
    let web = world.rest("web");
    assert_eq!((shown(&web), web.finalizer, world.api.grants.len()), (vec![11, 12, 13], false, 3));

    let wrong = with(&world, Err("sheave.dev/address-mode: 'x' is unknown".into()));
    world.api.put_service(wrong);
    let web = world.rest("web");
    assert_eq!((shown(&web), reason(&web)), (vec![], (false, Refusal::AddressModeUnknown.as_str())));
    assert!(world.api.grants.is_empty());
}

/// With the flag, Services that say nothing are at nodes. What has an address from a pool keeps it, and who names one gets it.
#[test]
fn the_cluster_s_default_is_for_services_that_say_nothing_and_moves_none() {
    let mut world = World::with_nodes();
    let put = |world: &mut World, name: &str, change: fn(&mut ServiceView)| {
        world.born += 1;
        let created = i64::try_from(world.born).unwrap();
        let ports = vec![Port::new(1000 + i32::try_from(world.born).unwrap(), None)];
        let mut view = ServiceView { key: key(name), uid: format!("uid of {name}"), created, ports, ..example() };
        change(&mut view);
        world.api.put_service(view);
        world.rest(name)
    };
    let pooled = put(&mut world, "pooled", |_| {});
    assert_eq!(pooled.shown(), Some([192, 0, 2, 0].into()));
    // Both replicas start anew with the flag.
    world.api.policy.address_mode = AddressMode::Node;
    (0..2).for_each(|replica| world.crash(replica));
    assert_eq!(world.rest("pooled"), pooled);
    let plain = put(&mut world, "plain", |_| {});
    assert_eq!((shown(&plain), reason(&plain), plain.finalizer), (vec![11, 12, 13], (true, "AddressAllocated"), false));
    let asks = put(&mut world, "asks", |service| service.addresses = Some("192.0.2.5".into()));
    assert_eq!(asks.shown(), Some([192, 0, 2, 5].into()));
    let names = put(&mut world, "names", |service| service.pool = Some("p".into()));
    assert_eq!(names.shown(), Some([192, 0, 2, 1].into()));
    let says = put(&mut world, "says", |service| service.mode = Ok(Some(AddressMode::Pool)));
    assert_eq!(says.shown(), Some([192, 0, 2, 2].into()));
    // What klipper-lb has left is taken up; what another controller shows is not.
    let left = |last: [u8; 4]| vec![Ingress::Vip(last.into(), vec![])];
    let klipper = || Writer::Controller("klipper".into());
    let mut later = ServiceView { key: key("later"), uid: "uid of later".into(), writer: klipper(), ..example() };
    later.ingress = left([198, 51, 100, 1]);
    world.api.put_service(later.clone());
    assert_eq!(world.rest("later").condition, None);
    world.api.put_service(ServiceView { ingress: left([192, 168, 77, 12]), ..later });
    assert_eq!(shown(&world.rest("later")), [11, 12, 13]);
    // Its entry is lost: it has its address back, from the pool.
    world.api.lose_grant([192, 0, 2, 0].into());
    assert_eq!(world.rest("pooled").shown(), Some([192, 0, 2, 0].into()));
    assert_eq!(world.ledger("pooled"), [0]);
    // Without the flag again nothing from a pool moves.
    world.api.policy.address_mode = AddressMode::Pool;
    (0..2).for_each(|replica| world.crash(replica));
    assert_eq!(world.rest("pooled").shown(), Some([192, 0, 2, 0].into()));
    assert_eq!(world.rest("plain").shown().map(|vip| vip.octets()[..3].to_vec()), Some(vec![192, 0, 2]));
}
