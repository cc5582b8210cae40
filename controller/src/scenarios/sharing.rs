//! Services that share an address come and go: one entry of the ledger names them all.

use super::*;

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: name.into() }
}

fn create(world: &mut World, name: &str, port: i32) {
    world.create(key(name), None);
    let known = world.api.services[&key(name)].clone();
    world.api.put_service(ServiceView {
        ports: vec![Port::new(port, None)],
        sharing_key: Some(sharing_key(0)),
        ..known
    });
}

fn named(world: &World, last: u8) -> Vec<&str> {
    let grant = world.api.grants.get(&IpAddr::from([192, 0, 2, last]));
    grant.into_iter().flat_map(|grant| &grant.services).map(|service| service.name.as_str()).collect()
}

fn shows(world: &World, name: &str, last: u8) -> bool {
    world.api.services[&key(name)].ingress == [Ingress::Vip(Ipv4Addr::new(192, 0, 2, last), vec![])]
}

/// As many as may, at once; the ledger is written once per batch, not once per Service.
#[test]
fn many_services_are_joined_in_few_writes() {
    let mut world = World::new();
    for n in 0..65 {
        create(&mut world, &format!("s{n:02}"), 1000 + n);
    }
    let before = world.api.log.len();
    assert!(world.settle());
    world.check();
    assert_eq!((named(&world, 0).len(), named(&world, 1).len()), (64, 1));
    let grants = world.api.log[before..].iter().filter(|fact| matches!(fact, Observed::Grant(_))).count();
    assert!(grants < 40, "{grants} writes of the ledger");
}

#[test]
fn those_that_stay_keep_their_entry_when_others_go() {
    let mut world = World::new();
    for (name, port) in [("a", 80), ("b", 81), ("c", 82)] {
        create(&mut world, name, port);
    }
    assert!(world.settle());
    assert_eq!(named(&world, 0), ["a", "b", "c"]);
    let uid = world.api.grants[&IpAddr::from([192, 0, 2, 0])].uid.clone();
    // Deleted, no LoadBalancer any more, and by a leader that ends in the middle of it.
    world.api.delete_service(&key("a"));
    world.change(&key("c"), |service| service.load_balancer = false);
    for kind in [Kind::Services, Kind::Grants] {
        world.replicas[0].deliver(&world.api, kind, usize::MAX);
    }
    world.plan(1);
    world.crash(0);
    assert!(world.settle());
    world.check();
    assert_eq!((named(&world, 0), shows(&world, "b", 0)), (vec!["b"], true));
    assert_eq!(world.api.grants[&IpAddr::from([192, 0, 2, 0])].uid, uid);
    assert!(!world.api.services.contains_key(&key("a")) && !world.api.services[&key("c")].finalizer);
    create(&mut world, "d", 80);
    assert!(world.settle());
    assert_eq!((named(&world, 0), shows(&world, "d", 0)), (vec!["b", "d"], true));
}

/// A port that collides later moves neither Service; the later one says so until it is gone.
#[test]
fn a_port_that_two_have_is_said_and_moves_nothing() {
    let mut world = World::new();
    create(&mut world, "a", 80);
    create(&mut world, "b", 81);
    assert!(world.settle());
    let ports =
        |world: &mut World, port| world.change(&key("b"), |service| service.ports = vec![Port::new(port, None)]);
    ports(&mut world, 80);
    assert!(world.settle());
    let condition = |world: &World, name: &str| world.api.services[&key(name)].condition.clone().unwrap();
    for name in ["a", "b"] {
        assert_eq!(condition(&world, name).reason, "SharingConflict");
        assert!(condition(&world, name).allocated && shows(&world, name, 0));
    }
    ports(&mut world, 82);
    assert!(world.settle());
    assert!(["a", "b"].iter().all(|name| condition(&world, name).reason == "AddressAllocated"));
}
