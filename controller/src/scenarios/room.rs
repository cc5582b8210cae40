//! What the speakers' tables have room for in the whole cluster, through the whole decision path: who gets it, who is told that there is none,
//! and that a new leader says the same.

use super::*;
use crate::places::Room;
use crate::view::{Clients, PortStatus};

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: name.into() }
}

impl World {
    fn with_room() -> Self {
        let mut world = World::new();
        world.api.room = Room { service_ports: 10, lists: 2, ranges: 20 };
        [0, 1].into_iter().for_each(|replica| world.crash(replica));
        world
    }

    /// A Service that is younger than those before it, or has other ports from now on.
    fn has_ports(&mut self, name: &str, ports: std::ops::RangeInclusive<i32>) -> (bool, String, String) {
        if !self.api.services.contains_key(&key(name)) {
            self.born += 3;
            self.create(key(name), None);
        }
        self.change(&key(name), |service| service.ports = ports.map(|number| Port::new(number, None)).collect());
        self.said_of(name)
    }

    fn has_clients(&mut self, name: &str, clients: Clients) -> (bool, String, String) {
        self.change(&key(name), |service| service.clients = clients);
        self.said_of(name)
    }

    /// Whether it has an address, and why it says so.
    fn said_of(&mut self, name: &str) -> (bool, String, String) {
        assert!(self.settle());
        let service = &self.api.services[&key(name)];
        let condition = service.condition.clone().unwrap();
        assert_eq!(condition.allocated, service.shown().is_some());
        assert_eq!(condition.allocated, service.finalizer);
        (condition.allocated, condition.reason, condition.message)
    }

    /// The numbers of its ports that its status says are not served, of all that it lists.
    fn errors(&self, name: &str) -> (Vec<i32>, usize) {
        let Some(Ingress::Vip(_, ports)) = self.api.services[&key(name)].ingress.first() else { return (vec![], 0) };
        let error = |status: &&PortStatus| status.error.as_deref() == Some("sheave.dev/LimitReached");
        (ports.iter().filter(error).map(|status| status.port.number).collect(), ports.len())
    }

    /// Others lead, with what the API server has: nothing is written.
    fn is_said_again(&mut self) {
        let version = self.api.version;
        for replica in [0, 1] {
            self.crash(replica);
            self.take_over(replica);
            assert!(self.settle());
        }
        self.replicas[1].index.look_at_everything();
        assert!(self.settle());
        assert_eq!(self.api.version, version, "a new leader says something else");
    }
}

const LIMIT: &str = "LimitReached";

#[test]
fn the_youngest_is_refused_by_name_and_follows_when_there_is_room() {
    let mut world = World::with_room();
    assert_eq!([world.has_ports("old", 1..=4).1, world.has_ports("middle", 1..=4).1], ["AddressAllocated"; 2]);
    let (has, reason, message) = world.has_ports("young", 1..=4);
    assert_eq!((has, reason.as_str()), (false, LIMIT), "{message}");
    assert!(message.starts_with("its 4 service ports") && message.contains("may have 10"), "{message}");
    // A smaller one fits, and one more does not.
    assert_eq!(
        [world.has_ports("small", 1..=2).1.as_str(), world.has_ports("last", 1..=1).1.as_str()],
        ["AddressAllocated", LIMIT]
    );
    world.is_said_again();
    // Two places are free: the younger one fits, and takes none of those that the older one waits for in vain.
    world.api.delete_service(&key("small"));
    assert_eq!([world.said_of("young").1.as_str(), world.said_of("last").1.as_str()], [LIMIT, "AddressAllocated"]);
    world.api.delete_service(&key("old"));
    assert_eq!(world.said_of("young").1, "AddressAllocated");
    world.is_said_again();
    world.check();
}

#[test]
fn one_that_waits_gets_the_places_of_one_that_needs_fewer() {
    let mut world = World::with_room();
    world.has_ports("old", 1..=8);
    assert_eq!(world.has_ports("young", 1..=4).1, LIMIT);
    world.has_ports("old", 1..=6);
    assert_eq!(world.said_of("young").1, "AddressAllocated");
}

#[test]
fn what_a_service_grows_by_is_named_on_it_and_nothing_else_changes() {
    let mut world = World::with_room();
    world.has_ports("old", 11..=14);
    world.has_ports("young", 1..=4);
    let before = world.api.services[&key("young")].clone();
    let (has, reason, message) = world.has_ports("old", 9..=16);
    assert_eq!((has, reason.as_str()), (true, LIMIT), "{message}");
    assert!(message.contains("not served: port 15/TCP, 16/TCP (the Services of a cluster may have 10"), "{message}");
    assert_eq!(world.errors("old"), (vec![15, 16], 8), "what it had is served");
    assert_eq!(world.api.services[&key("young")].ingress, before.ingress);
    assert_eq!(world.has_ports("new", 80..=80).1, LIMIT);
    world.is_said_again();
    assert_eq!(
        world.errors("old"),
        (vec![15, 16], 8),
        "also by the next leader, although others come first by their numbers"
    );
    world.api.delete_service(&key("young"));
    assert_eq!(world.said_of("old").1, "AddressAllocated");
    assert_eq!((world.errors("old"), world.said_of("new").1.as_str()), ((vec![], 0), "AddressAllocated"));
}

#[test]
fn a_list_without_room_is_refused_and_named_where_the_address_is_granted() {
    let mut world = World::with_room();
    for name in ["a", "b", "c"] {
        world.has_ports(name, 1..=1);
    }
    assert_eq!(
        [world.has_clients("a", Clients::Ranges(5)).1, world.has_clients("b", Clients::Ranges(15)).1],
        ["AddressAllocated"; 2]
    );
    let (has, reason, message) = world.has_clients("c", Clients::Ranges(1));
    assert_eq!((has, reason.as_str()), (true, LIMIT));
    assert!(
        message.contains("no client outside the cluster is admitted") && message.contains("2 Services"),
        "{message}"
    );
    world.is_said_again();
    assert_eq!(world.has_clients("a", Clients::All).1, "AddressAllocated");
    assert_eq!(world.said_of("c").1, "AddressAllocated");
    let (has, reason, message) = world.has_clients("c", Clients::Ranges(6));
    assert_eq!((has, reason.as_str()), (true, LIMIT));
    assert!(
        message.contains("source ranges that are new admit no client") && message.contains("20 together"),
        "{message}"
    );
    assert_eq!(world.has_clients("c", Clients::All).1, "AddressAllocated");
    // One that has no address gets none.
    world.born += 3;
    world.create(key("new"), None);
    let (has, reason, message) = world.has_clients("new", Clients::Ranges(6));
    assert_eq!((has, reason.as_str()), (false, LIMIT));
    assert!(message.starts_with("its 6 source ranges have no room"), "{message}");
    world.is_said_again();
    assert_eq!(world.has_clients("new", Clients::Ranges(5)).1, "AddressAllocated");
}
