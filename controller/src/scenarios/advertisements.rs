//! L2Advertisements that come, change and go under grants: the ledger names them, from its first write on.

use serde_json::{Value, json};
use sheave_api::Announce;

use super::*;
use crate::advertisements::Announced;
use crate::advertisements::tests::advertisement;

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: name.into() }
}

impl Api {
    fn put_advertisement(&mut self, name: &str, spec: Value) {
        let version = self.next();
        let view = AdvertisementView { version, ..advertisement(name, spec) };
        self.log.push(Observed::Advertisement(view.clone()));
        self.advertisements.insert(name.into(), view);
    }

    fn delete_advertisement(&mut self, name: &str) {
        self.advertisements.remove(name);
        let version = self.next();
        self.log.push(Observed::AdvertisementGone(name.into(), version));
    }

    /// What the ledger says of the only grant.
    fn named(&self) -> Vec<String> {
        self.grants.values().next().expect("a grant").announced.advertisements.clone()
    }
}

/// Never an entry without them: every node would claim the address until the next write.
#[test]
fn the_first_write_of_a_grant_names_what_selects_it() {
    let mut world = World::new();
    world.api.put_advertisement("some", json!({ "pools": ["p"] }));
    world.api.put_advertisement("other", json!({ "pools": ["q"] }));
    world.create(key("web"), None);
    assert!(world.settle());
    assert_eq!(world.api.named(), ["some"]);
    let grants = world.api.log.iter().filter(|fact| matches!(fact, Observed::Grant(_))).count();
    assert_eq!(grants, 1, "it was written once");
    let status = |name: &str| world.api.advertisements[name].status.clone();
    let reason = |name: &str| status(name).conditions[0].reason.clone();
    assert_eq!((status("some").addresses, reason("some").as_str()), (1, "Valid"));
    assert_eq!((status("other").addresses, reason("other").as_str()), (0, "UnknownPool"));
}

/// Also where it is selected; and when the pool is gone it goes on.
#[test]
fn a_pool_that_is_not_announced_is_named_by_the_ledger() {
    let mut world = World::new();
    world.api.put_advertisement("every", json!({}));
    let put = |world: &mut World, announce| {
        let mut pool = PoolView { version: world.api.next(), ..world.api.pools["p"].clone() };
        pool.spec.announce = announce;
        world.api.log.push(Observed::Pool(pool.clone()));
        world.api.pools.insert("p".into(), pool);
    };
    put(&mut world, Announce::None);
    world.create(key("web"), None);
    assert!(world.settle());
    let announced = |world: &World| world.api.grants.values().next().expect("a grant").announced.clone();
    let not = Announced { advertisements: vec![], not: true };
    assert_eq!((announced(&world), world.api.grants.len()), (not.clone(), 1));
    put(&mut world, Announce::L2);
    assert!(world.settle());
    assert_eq!(world.api.named(), ["every"]);
    put(&mut world, Announce::None);
    assert!(world.settle());
    let version = world.api.next();
    world.api.pools.remove("p");
    world.api.log.push(Observed::PoolGone("p".into(), version));
    assert!(world.settle());
    assert_eq!(announced(&world), not);
}

/// Whatever changes: the object, the pool's labels, the Service's; and whoever leads then.
#[test]
fn the_ledger_follows_what_selects_a_grant() {
    for fails_over in [false, true] {
        let mut world = World::new();
        world.create(key("web"), None);
        assert!(world.settle());
        assert_eq!(world.api.named(), [""; 0]);
        world.api.put_advertisement("z", json!({}));
        let app = json!([{ "matchLabels": { "app": "a" } }]);
        world.api.put_advertisement("app", json!({ "serviceSelectors": app }));
        world.api.put_advertisement("zone", json!({ "poolSelectors": [{ "matchLabels": { "zone": "1" } }] }));
        assert!(world.settle());
        assert_eq!(world.api.named(), ["z"]);
        if fails_over {
            world.crash(0);
        }
        world.change(&key("web"), |service| drop(service.labels.insert("app".into(), "a".into())));
        assert!(world.settle());
        assert_eq!(world.api.named(), ["app", "z"], "in order");
        let mut pool = PoolView { version: world.api.next(), ..world.api.pools["p"].clone() };
        pool.labels.insert("zone".into(), "1".into());
        world.api.log.push(Observed::Pool(pool.clone()));
        world.api.pools.insert("p".into(), pool);
        world.api.delete_advertisement("z");
        assert!(world.settle());
        assert_eq!(world.api.named(), ["app", "zone"]);
        assert_eq!(world.api.advertisements["zone"].status.addresses, 1);
        world.api.delete_service(&key("web"));
        assert!(world.settle());
        assert_eq!(world.api.advertisements["zone"].status.addresses, 0);
    }
}
