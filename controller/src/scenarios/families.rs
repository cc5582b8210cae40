//! The second family, while everything else goes wrong as well: it comes and goes beside an IPv4 address, in the ledger and the condition.

use super::*;

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: name.into() }
}

fn six(last: u16) -> IpAddr {
    [0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into()
}

impl World {
    /// A Service has one IPv6 address or none, and its condition says which.
    pub(super) fn check_second(&self, service: &ServiceView, held: &[IpAddr], six: &[IpAddr]) {
        assert!(six.len() <= 1, "{} holds {six:?}", service.key);
        let said = service.condition.as_ref().map(|condition| condition.message.as_str()).unwrap_or_default();
        if let [address] = six {
            assert!(!held.is_empty() && service.wants_ipv6, "{} holds {address}, and {held:?}", service.key);
            let claimed = self.replicas[self.leader].index.claim(service);
            let named = said.contains(&format!("{address} from pool 'six' is reserved"));
            assert!(named || matches!(claimed, Claim::Refused(_)), "{said}");
        } else if service.wants_ipv6 && !held.is_empty() {
            let left = self.api.pools.get("six").is_some_and(|pool| pool.status.free > 0);
            let claimed = self.replicas[self.leader].index.claim(service);
            if matches!(claimed, Claim::Wanted(_)) {
                assert!(!left, "{}: addresses of IPv6 are left", service.key);
                assert!(said.contains("IPv6, which is not served"), "{said}");
            }
        }
    }

    fn dual(&mut self, name: &str, change: impl FnOnce(&mut ServiceView)) -> ServiceView {
        if !self.api.services.contains_key(&key(name)) {
            self.create(key(name), None);
        }
        self.change(&key(name), change);
        assert!(self.settle());
        self.check();
        self.api.services[&key(name)].clone()
    }

    fn all_granted(&self) -> Vec<String> {
        self.api.grants.keys().map(IpAddr::to_string).collect()
    }
}

fn condition(service: &ServiceView) -> (bool, &str, &str) {
    let condition = service.condition.as_ref().expect("a condition");
    (condition.allocated, &condition.reason, &condition.message)
}

#[test]
fn the_second_family_is_added_and_removed_live() {
    let mut world = World::new();
    world.api.put_pool("six", "2001:db8::/64");
    let web = world.dual("web", |service| service.wants_ipv6 = true);
    let says = "192.0.2.0 from pool 'p'; spec.ipFamilies also has IPv6, which is not served: 2001:db8:: from pool 'six' is reserved";
    assert_eq!(condition(&web), (true, "IPv6NotServed", says));
    assert_eq!(
        (web.shown(), world.all_granted()),
        (Some([192, 0, 2, 0].into()), vec!["192.0.2.0".into(), "2001:db8::".into()])
    );
    let other = world.dual("other", |service| service.wants_ipv6 = true);
    assert!(condition(&other).2.contains("2001:db8::1 from pool 'six'"));
    // Exactly that address goes.
    let web = world.dual("web", |service| service.wants_ipv6 = false);
    assert_eq!(condition(&web), (true, "AddressAllocated", "192.0.2.0 from pool 'p'"));
    assert_eq!(world.all_granted(), ["192.0.2.0", "192.0.2.1", "2001:db8::1"]);
    // Another is asked for; then the Service goes, and both with it.
    let asks = "2001:db8::77";
    let web = world.dual("web", |service| (service.wants_ipv6, service.addresses) = (true, Some(asks.into())));
    assert!(condition(&web).2.contains("2001:db8::77 from pool 'six' is reserved"), "{:?}", web.condition);
    let web = world.dual("web", |service| service.addresses = Some("2001:db8::1".into()));
    let says = "2001:db8::1 is granted already: default/other has it; 2001:db8::77 stays";
    assert_eq!((condition(&web).1, condition(&web).2.contains(says)), ("AddressInUse", true), "{:?}", web.condition);
    world.api.delete_service(&key("web"));
    assert!(world.settle());
    assert_eq!(world.all_granted(), ["192.0.2.1", "2001:db8::1"]);
}

#[test]
fn a_family_without_an_address_keeps_no_ipv4_waiting_and_is_tried_again() {
    let mut world = World::new();
    let prefers = world.dual("prefers", |service| service.wants_ipv6 = true);
    let none = "no address is reserved, there is no IPv6 address in pool 'p'";
    assert_eq!((condition(&prefers).1, condition(&prefers).2.contains(none)), ("IPv6NotServed", true));
    assert_eq!(world.replicas[0].index.waiting()[&Refusal::PoolExhausted], 0, "it does without");
    let requires = world.dual("requires", |service| (service.wants_ipv6, service.requires_both) = (true, true));
    assert_eq!((condition(&requires).0, condition(&requires).1), (true, "PoolExhausted"));
    assert_eq!(world.replicas[0].index.waiting()[&Refusal::PoolExhausted], 1);
    assert_eq!(world.all_granted(), ["192.0.2.0", "192.0.2.1"]);
    // One address: the older Service gets it, the other one when it is freed.
    world.api.put_pool("six", "2001:db8::7");
    let [prefers, requires] = ["prefers", "requires"].map(|name| world.dual(name, |_| ()));
    let has = |service: &ServiceView| condition(service).2.contains("2001:db8::7 from pool 'six' is reserved");
    assert_eq!((has(&prefers), has(&requires)), (true, false));
    world.api.delete_service(&key("prefers"));
    let requires = world.dual("requires", |_| ());
    assert_eq!((has(&requires), condition(&requires).1), (true, "IPv6NotServed"));
    // IPv6 alone is refused, and what the Service had goes.
    let only = world.dual("requires", |service| service.wants_ipv4 = false);
    assert_eq!((condition(&only).0, condition(&only).1), (true, "IPv6NotServed"), "nothing is taken away");
    let fresh = world.dual("fresh", |service| (service.wants_ipv4, service.wants_ipv6) = (false, true));
    assert_eq!((condition(&fresh).0, condition(&fresh).1, fresh.finalizer), (false, "IPv6NotServed", false));
}

/// A predecessor's addresses of both families are in the status: both are taken up, and IPv4 is shown.
#[test]
fn addresses_of_a_predecessor_are_adopted_in_both_families() {
    let mut world = World::new();
    world.api.put_pool("six", "2001:db8::/64");
    let ingress = vec![Ingress::Vip([192, 0, 2, 3].into(), vec![]), Ingress::V6("2001:db8::9".parse().unwrap())];
    let class = Some(sheave_api::LOAD_BALANCER_CLASS.to_string());
    let uid = "uid of web".into();
    world.api.put_service(ServiceView { key: key("web"), uid, class, wants_ipv6: true, ingress, ..example() });
    assert!(world.settle());
    world.check();
    assert_eq!(world.all_granted(), ["192.0.2.3", "2001:db8::9"]);
    assert_eq!(world.api.services[&key("web")].shown(), Some([192, 0, 2, 3].into()));
}

/// The same Services get the same addresses again after a restart, whatever has become of the pools.
#[test]
fn a_restart_and_a_pool_that_shrinks_move_neither_family() {
    let mut world = World::new();
    world.api.put_pool("six", "2001:db8::/64");
    (0..3).for_each(|n| drop(world.dual(&format!("s{n}"), |service| service.wants_ipv6 = true)));
    let before = world.all_granted();
    assert!(before.contains(&six(2).to_string()));
    world.api.put_pool("six", "2001:db8:1::/64");
    world.crash(world.leader);
    let web = world.dual("s1", |_| ());
    assert_eq!(world.all_granted(), before);
    let says = "2001:db8::1 stays, although pool 'six' no longer contains it";
    assert!(condition(&web).2.contains(says) && condition(&web).1 == "AddressNotInPool", "{:?}", web.condition);
    assert_eq!((world.api.pools["six"].status.used, world.api.pools["six"].status.outside), (3, 3));
}
