//! Services that ask for several addresses: all of them or none, whatever comes between.

use super::*;

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: name.into() }
}

fn vip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

impl World {
    /// The Service asks for these from now on.
    fn asks(&mut self, name: &str, list: &str) {
        if !self.api.services.contains_key(&key(name)) {
            self.create(key(name), None);
        }
        self.change(&key(name), |service| service.addresses = Some(list.into()));
    }

    /// What becomes of it: what is shown, why, and the message.
    fn asked(&mut self, name: &str, list: &str) -> (Vec<u8>, String, String) {
        self.asks(name, list);
        assert!(self.settle());
        self.check();
        self.said(name)
    }

    fn said(&self, name: &str) -> (Vec<u8>, String, String) {
        let service = &self.api.services[&key(name)];
        let condition = service.condition.as_ref().unwrap();
        let shown = service.shown_alone().unwrap_or_default().iter().map(|address| address.octets()[3]).collect();
        (shown, condition.reason.clone(), condition.message.clone())
    }

    fn granted(&self) -> Vec<u8> {
        let last = |address: &IpAddr| match address {
            IpAddr::V4(address) => Some(address.octets()[3]),
            IpAddr::V6(_) => None,
        };
        self.api.grants.keys().filter_map(last).collect()
    }
}

#[test]
fn all_are_granted_and_shown_and_come_and_go_alone() {
    let mut world = World::new();
    world.api.put_reserve("q", "192.0.2.20-192.0.2.29");
    let (shown, reason, message) = world.asked("web", "192.0.2.20, 192.0.2.3,192.0.2.5");
    assert_eq!((shown, reason.as_str()), (vec![3, 5, 20], "AddressAllocated"));
    assert_eq!(message, "192.0.2.3 from pool 'p', 192.0.2.5 from pool 'p', 192.0.2.20 from pool 'q'");
    assert_eq!((world.api.pools["p"].status.used, world.api.pools["q"].status.used), (2, 1));
    // One goes and one comes: what stays is not written again.
    let entry = |world: &World, last| {
        (world.api.grants[&vip(last).into()].uid.clone(), world.api.grants[&vip(last).into()].version)
    };
    let before = (entry(&world, 3), entry(&world, 20));
    assert_eq!(world.asked("web", "192.0.2.3,192.0.2.20,192.0.2.4").0, [3, 4, 20]);
    assert_eq!((world.granted(), (entry(&world, 3), entry(&world, 20))), (vec![3, 4, 20], before.clone()));
    // At rest nothing is written, by a new leader neither, that knows only what the API server has.
    let version = world.api.version;
    world.replicas[0].index.look_at_everything();
    assert!(world.settle());
    assert_eq!(world.api.version, version);
    world.crash(0);
    assert!(world.settle());
    assert_eq!((world.said("web").0, world.api.version), (vec![3, 4, 20], version));
    // A third party's change is taken back.
    world.third_party_change(&key("web"), 3);
    assert!(world.settle());
    assert_eq!(world.said("web").0, [3, 4, 20]);
    // A wish for none of them in particular leaves one.
    world.change(&key("web"), |service| service.addresses = None);
    assert!(world.settle());
    assert_eq!((world.said("web").0, world.granted(), entry(&world, 3)), (vec![3], vec![3], before.0));
    world.asked("web", "192.0.2.3,192.0.2.21");
    world.api.delete_service(&key("web"));
    assert!(world.settle());
    assert!(world.api.services.is_empty() && world.api.grants.is_empty());
}

#[test]
fn one_that_cannot_be_had_keeps_all_away_and_takes_none() {
    let mut world = World::new();
    world.asked("other", "192.0.2.4");
    let (shown, reason, message) = world.asked("web", "192.0.2.3,192.0.2.4,192.0.3.1");
    assert_eq!((shown, reason.as_str(), world.granted()), (vec![], "AddressInUse", vec![4]));
    let says = "192.0.2.4 is granted already: default/other has it; 192.0.3.1 is in no pool; \
                the Service asks for 3 addresses and gets all of them or none";
    assert_eq!((message.as_str(), world.api.services[&key("web")].finalizer), (says, false));
    let (shown, reason, message) = world.asked("web", "192.0.2.2,192.0.2.3");
    assert_eq!((shown, reason.as_str()), (vec![2, 3], "AddressAllocated"), "{message}");
    // What it has stays: also what it asks for no more.
    for list in ["192.0.2.2,192.0.2.3,192.0.2.4", "192.0.2.5,192.0.2.4", "192.0.2.4"] {
        let (shown, reason, message) = world.asked("web", list);
        assert_eq!((shown, reason.as_str(), world.granted()), (vec![2, 3], "AddressInUse", vec![2, 3, 4]));
        assert!(message.contains("192.0.2.4 is granted already: default/other has it"), "{message}");
        assert!(message.ends_with("192.0.2.2, 192.0.2.3 stay"), "{message}");
    }
    let many: Vec<String> = (1..=17).map(|last| format!("192.0.2.{last}")).collect();
    let (shown, reason, message) = world.asked("web", &many.join(","));
    assert_eq!((shown, reason.as_str()), (vec![2, 3], "AddressMalformed"), "{message}");
    world.asks("web", "192.0.2.5,192.0.2.4");
    world.api.delete_service(&key("other"));
    assert!(world.settle());
    assert_eq!((world.said("web").0, world.granted()), (vec![4, 5], vec![4, 5]), "its turn has come");
}

/// A leader ends when one entry is written, and before the next one is the other address is granted to somebody else.
#[test]
fn a_part_that_was_granted_goes_when_the_rest_cannot_be_had() {
    let mut world = World::new();
    world.asks("web", "192.0.2.3,192.0.2.4");
    for kind in Kind::ALL {
        world.replicas[0].deliver(&world.api, kind, usize::MAX);
    }
    while world.api.grants.is_empty() {
        world.plan(0);
        world.finish_one(0);
    }
    assert_eq!(world.granted(), [3]);
    let version = world.api.version;
    let mut rival = world.api.services[&key("web")].clone();
    (rival.key, rival.uid, rival.addresses) = (key("rival"), "uid of rival".into(), Some("192.0.2.4".into()));
    (rival.created, rival.finalizer, rival.condition) = (-1, false, None);
    world.api.put_service(rival);
    world.crash(0);
    assert!(world.settle());
    world.check();
    assert!(world.api.version > version);
    assert_eq!(world.said("rival").0, [4]);
    let (shown, reason, _) = world.said("web");
    assert_eq!((shown, reason.as_str(), world.granted()), (vec![], "AddressInUse", vec![4]));
    assert!(!world.api.services[&key("web")].finalizer);
    world.api.delete_service(&key("rival"));
    assert!(world.settle());
    assert_eq!(world.said("web").0, [3, 4]);
}

#[test]
fn several_addresses_are_shared_and_stand_beside_ipv6() {
    let mut world = World::new();
    world.api.put_pool("six", "2001:db8::/64");
    for (name, port) in [("a", 80), ("b", 81)] {
        world.create(key(name), None);
        world.change(&key(name), |service| {
            (service.ports, service.sharing_key) = (vec![Port::new(port, None)], Some(sharing_key(0)));
            (service.wants_ipv6, service.addresses) = (name == "b", Some("192.0.2.1,192.0.2.2".into()));
        });
    }
    assert!(world.settle());
    world.check();
    assert_eq!((world.said("a").0, world.said("b").0, world.granted()), (vec![1, 2], vec![1, 2], vec![1, 2]));
    assert!(world.said("b").2.contains("2001:db8:: from pool 'six' is reserved"), "{}", world.said("b").2);
    // One of them is left by one of the two.
    assert_eq!(world.asked("a", "192.0.2.2,192.0.2.6").0, [2, 6]);
    let names = |world: &World, last: u8| world.api.grants[&vip(last).into()].services.len();
    assert_eq!([1, 2, 6].map(|last| names(&world, last)), [1, 2, 1]);
    // A port that collides on one address is said on the Services, which keep all.
    world.change(&key("b"), |service| service.ports = vec![Port::new(80, None)]);
    assert!(world.settle());
    for (name, shown) in [("a", [2, 6]), ("b", [1, 2])] {
        let (has, reason, message) = world.said(name);
        assert_eq!((&has[..], reason.as_str()), (&shown[..], "SharingConflict"));
        assert!(message.contains("192.0.2.2 is shared"), "{message}");
    }
    world.api.delete_service(&key("a"));
    world.api.delete_service(&key("b"));
    assert!(world.settle());
    assert!(world.api.grants.is_empty() && world.api.services.is_empty());
}

/// As with one address that a Service names: its own wish outranks an administrator's.
#[test]
fn an_order_to_move_one_of_several_is_ambiguous() {
    let mut world = World::new();
    world.api.put_reserve("q", "192.0.2.20-192.0.2.22");
    world.asked("web", "192.0.2.1,192.0.2.2");
    let grant = world.api.grants[&vip(2).into()].clone();
    world.api.moved.insert(world.api.services[&key("web")].uid.clone());
    world.api.put_grant(GrantView { move_to: Some("q".into()), ..grant });
    assert!(world.settle());
    let (shown, reason, message) = world.said("web");
    assert_eq!((shown, reason.as_str()), (vec![1, 2], "AddressAmbiguous"));
    assert!(message.contains("the Service names address 192.0.2.2"), "{message}");
    assert_eq!(world.asked("web", "192.0.2.1,192.0.2.20").0, [1, 20], "then it moves by itself");
}

/// A predecessor's addresses are taken up where they are those that the Service asks for.
#[test]
fn addresses_of_a_predecessor_are_adopted_together() {
    let mut world = World::new();
    let ingress = vec![Ingress::Vip(vip(5), vec![]), Ingress::Vip(vip(3), vec![])];
    let writer = Writer::Controller("controller".into());
    let (uid, addresses) = ("uid of web".to_string(), Some("192.0.2.3,192.0.2.5".to_string()));
    world.api.put_service(ServiceView { key: key("web"), uid, addresses, ingress, writer, ..example() });
    assert!(world.settle());
    world.check();
    assert_eq!((world.said("web").0, world.granted()), (vec![3, 5], vec![3, 5]));
}
