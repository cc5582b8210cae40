//! Pools that change under grants: the ledger follows, and nothing moves.

use super::*;
use crate::view::NamespaceView;

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: name.into() }
}

fn vip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

impl Api {
    fn delete_pool(&mut self, name: &str) {
        if self.pools.remove(name).is_some() {
            let version = self.next();
            self.log.push(Observed::PoolGone(name.into(), version));
        }
    }

    fn put_namespace(&mut self, name: &str, labels: &[(&str, &str)]) {
        let version = self.next();
        let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let view = NamespaceView { name: name.into(), uid: format!("uid of {name}"), version, labels };
        self.log.push(Observed::Namespace(view));
    }
}

/// Whatever the order in which the two changes are seen, and whoever leads then.
#[test]
fn a_pool_that_is_renamed_is_named_by_the_ledger_and_moves_nothing() {
    for (deleted_first, fails_over) in [(true, false), (false, false), (true, true), (false, true)] {
        let mut world = World::new();
        for name in ["first", "second"] {
            world.create(key(name), None);
        }
        assert!(world.settle());
        if deleted_first {
            world.api.delete_pool("p");
            assert!(world.settle());
        }
        world.api.put_pool("q", "192.0.2.0/29");
        assert!(world.settle());
        if fails_over {
            world.crash(0);
        }
        world.api.delete_pool("p");
        assert!(world.settle());
        for (name, last) in [("first", 0), ("second", 1)] {
            let service = &world.api.services[&key(name)];
            assert_eq!(service.ingress, [Ingress::Vip(vip(last), vec![])]);
            let condition = service.condition.as_ref().unwrap();
            assert_eq!((condition.allocated, condition.reason.as_str()), (true, "AddressAllocated"), "{condition:?}");
            assert_eq!(condition.message, format!("192.0.2.{last} from pool 'q'"));
        }
        assert!(world.api.grants.values().all(|grant| grant.pool == "q"), "{:?}", world.api.grants);
        let status = &world.api.pools["q"].status;
        assert_eq!((status.total, status.used, status.free, status.outside), (8, 2, 6, 0));
    }
}

/// A pool is opened by a label of a namespace: the Services that wait there are given addresses, and keep them when it goes.
#[test]
fn a_label_of_a_namespace_opens_a_pool() {
    let mut world = World::new();
    world.api.delete_pool("p");
    let mut view = example_pool("labeled", &["192.0.2.0/30"]);
    view.version = world.api.next();
    let selector = serde_json::json!([{ "matchLabels": { "open": "yes" } }]);
    view.spec.namespace_selectors = serde_json::from_value(selector).unwrap();
    world.api.log.push(Observed::Pool(view.clone()));
    world.api.pools.insert("labeled".into(), view);
    world.api.put_namespace("default", &[]);
    world.create(key("web"), None);
    assert!(world.settle());
    let reason = |world: &World| world.api.services[&key("web")].condition.as_ref().unwrap().reason.clone();
    assert_eq!(reason(&world), "ServiceNotSelected");
    world.api.put_namespace("default", &[("open", "yes")]);
    assert!(world.settle());
    assert_eq!(reason(&world), "AddressAllocated");
    world.api.put_namespace("default", &[]);
    world.replicas[0].index.look_at_everything();
    assert!(world.settle());
    assert_eq!(world.api.services[&key("web")].ingress, [Ingress::Vip(vip(0), vec![])]);
    assert_eq!(reason(&world), "AddressAllocated");
}

/// Every grant changes the counts. The last of them are written, too.
#[test]
fn a_pool_s_status_is_written_once_a_second() {
    let mut world = World::new();
    assert!(world.settle());
    let written = |world: &World| world.api.log.iter().filter(|fact| matches!(fact, Observed::Pool(_))).count();
    let before = written(&world);
    for number in 0..5 {
        world.create(key(&format!("s{number}")), None);
        // No time passes.
        loop {
            Kind::ALL.into_iter().for_each(|kind| world.replicas[world.leader].deliver(&world.api, kind, usize::MAX));
            world.plan(8);
            if world.replicas[world.leader].under_way.is_empty() {
                break;
            }
            world.finish_one(0);
        }
    }
    assert_eq!(world.api.grants.len(), 5);
    assert_eq!(written(&world) - before, 1);
    assert!(world.settle());
    assert_eq!(written(&world) - before, 2);
    assert_eq!(world.api.pools["p"].status.used, 5);
}

impl World {
    /// `sheave pool move`, or `--undo`.
    fn order(&mut self, address: IpAddr, to: Option<&str>) {
        let grant = self.api.grants[&address].clone();
        self.api.moved.extend(grant.services.iter().map(|service| service.uid.clone()));
        self.api.put_grant(GrantView { move_to: to.map(Into::into), ..grant });
    }

    fn shows(&self, name: &str) -> (Vec<Ingress>, String, String) {
        let service = &self.api.services[&key(name)];
        let condition = service.condition.as_ref().unwrap();
        (service.ingress.clone(), condition.reason.clone(), condition.message.clone())
    }
}

/// Its old address is granted until the Service shows the new one; nothing of the order stays behind.
#[test]
fn a_service_moves_to_another_pool_with_consent_and_at_a_later_time() {
    let mut world = World::new();
    world.api.put_reserve("q", "192.0.2.20");
    for name in ["first", "second"] {
        world.create(key(name), None);
    }
    assert!(world.settle());
    for last in [0, 1] {
        world.order(vip(last).into(), Some("q"));
        assert!(world.settle());
    }
    let moved = || vec![Ingress::Vip(vip(20), vec![])];
    assert_eq!(world.shows("first"), (moved(), "AddressAllocated".into(), "192.0.2.20 from pool 'q'".into()));
    let (stays, reason, message) = world.shows("second");
    assert_eq!((stays, reason.as_str()), (vec![Ingress::Vip(vip(1), vec![])], "PoolExhausted"));
    assert!(message.contains("pool 'q'") && message.ends_with("192.0.2.1 stays"), "{message}");
    let grants: Vec<IpAddr> = world.api.grants.keys().copied().collect();
    assert_eq!(grants, [vip(1), vip(20)].map(IpAddr::V4));
    world.crash(0);
    world.api.delete_service(&key("first"));
    assert!(world.settle());
    assert_eq!(world.shows("second").0, moved(), "its turn has come, under another leader");
    assert!(world.api.grants.values().all(|grant| grant.move_to.is_none()));
    world.check();
}

#[test]
fn what_a_service_names_outranks_the_order_and_an_order_that_is_taken_back_is_none() {
    let mut world = World::new();
    world.create(key("web"), Some(3));
    assert!(world.settle());
    world.order(vip(3).into(), Some("q"));
    assert!(world.settle());
    let stays = || vec![Ingress::Vip(vip(3), vec![])];
    let (shown, reason, message) = world.shows("web");
    assert_eq!((shown, reason.as_str()), (stays(), "AddressAmbiguous"));
    assert!(message.contains("moves it to pool 'q', and the Service names address 192.0.2.3"), "{message}");
    world.change(&key("web"), |service| service.addresses = None);
    assert!(world.settle());
    assert_eq!(world.shows("web").1, "UnknownPool", "there is none of this name yet");
    world.order(vip(3).into(), None);
    world.api.put_reserve("q", "192.0.2.20");
    assert!(world.settle());
    assert_eq!(world.shows("web"), (stays(), "AddressAllocated".into(), "192.0.2.3 from pool 'p'".into()));
}

/// Together, to one address.
#[test]
fn services_that_share_an_address_share_the_new_one() {
    let mut world = World::new();
    world.api.put_reserve("q", "192.0.2.20-192.0.2.22");
    for (name, port) in [("first", 1), ("second", 2), ("third", 3)] {
        world.create(key(name), None);
        world.change(&key(name), |service| {
            service.ports = vec![Port::new(port, None)];
            service.sharing_key = Some(sharing_key(0));
        });
        assert!(world.settle());
    }
    assert_eq!(world.api.grants.len(), 1);
    world.order(vip(0).into(), Some("q"));
    assert!(world.settle());
    let grants: Vec<(IpAddr, usize)> =
        world.api.grants.values().map(|grant| (grant.address, grant.services.len())).collect();
    assert_eq!(grants, [(vip(20).into(), 3)]);
}
