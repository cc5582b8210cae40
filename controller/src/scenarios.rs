//! The whole decision path against a simulated API server: watches that lag, writes that fail or whose answer is lost, replicas
//! that crash and follow each other, users and third parties that change things. Independent checkers inspect every write and the
//! end state.

mod advertisements;
mod api;
mod at_nodes;
mod end_state;
mod families;
mod pools;
mod probes;
mod relists;
mod room;
mod several;
mod sharing;
mod surroundings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use sheave_api::{Partly, Refusal, ServiceRef};

use crate::advertisements::AdvertisementView;
use crate::allocator::sharing::SharingKey;
use crate::coverage;
use crate::error::WriteError;
use crate::guards::{Fact, Fixed, Source};
use crate::index::{Entry, Index, Kind, Observed, Outcome, Planned, SeenEntry, Write};
use crate::probes::Config;
use crate::request::{Claim, Refused};
use crate::status::{ConditionChange, FinalizerChange, IngressChange, StatusWrite};
use crate::view::{GrantView, Ingress, PoolView, Port, ServiceKey, ServiceView, Writer, example, example_pool};
use crate::whose::{Evidence, Policy};
use api::{Api, named_by};

/// One replica of the controller: its index, how far its watches are, and its writes under way.
struct Replica {
    index: Index,
    cursors: [usize; Kind::ALL.len()],
    under_way: Vec<Planned>,
}

impl Replica {
    fn start(api: &Api) -> Self {
        let mut index = Index::new(api.policy.clone(), Fixed::default(), Config::default());
        index.room = api.room;
        let mut replica = Replica { index, cursors: [api.log.len(); Kind::ALL.len()], under_way: Vec::new() };
        replica.read_all(api);
        replica
    }

    fn read_all(&mut self, api: &Api) {
        let index = &mut self.index;
        api.facts.iter().for_each(|fact| index.observe(Observed::Guard(fact.clone())));
        Source::ALL.into_iter().for_each(|source| index.observe(Observed::Guard(Fact::Complete(source))));
        index.observe(Observed::ApiGroups(api.groups.clone()));
        let kinds = Kind::ALL;
        kinds.into_iter().for_each(|kind| index.observe(Observed::Begin(kind)));
        api.services.values().for_each(|s| index.observe(Observed::Service(s.clone())));
        api.pools.values().for_each(|p| index.observe(Observed::Pool(p.clone())));
        api.grants.values().for_each(|g| index.observe(Observed::Grant(g.clone())));
        api.advertisements.values().for_each(|a| index.observe(Observed::Advertisement(a.clone())));
        api.probes.values().for_each(|probe| index.observe(Observed::Probe(probe.clone())));
        kinds.into_iter().for_each(|kind| index.observe(Observed::Complete(kind, api.version)));
    }

    /// Lets the watch of one kind catch up by so many entries of the log.
    fn deliver(&mut self, api: &Api, kind: Kind, most: usize) {
        let cursor = &mut self.cursors[kind as usize];
        for fact in api.log.iter().skip(*cursor).take(most) {
            *cursor += 1;
            if kind_of(fact) == kind {
                self.index.observe(fact.clone());
            }
        }
    }
}

fn kind_of(fact: &Observed) -> Kind {
    match fact {
        Observed::Service(_) | Observed::ServiceGone(..) => Kind::Services,
        Observed::Pool(_) | Observed::PoolGone(..) => Kind::Pools,
        Observed::Grant(_) | Observed::GrantGone(..) | Observed::Released(..) => Kind::Grants,
        Observed::Namespace(_) | Observed::NamespaceGone(..) => Kind::Namespaces,
        Observed::Advertisement(_) | Observed::AdvertisementGone(..) => Kind::Advertisements,
        Observed::Probe(_) | Observed::ProbeGone(..) => Kind::Probes,
        Observed::Begin(kind) | Observed::Complete(kind, _) | Observed::Unreadable(kind, _) => *kind,
        Observed::Denied(..) | Observed::Guard(_) | Observed::ApiGroups(_) => unreachable!("not in the log"),
    }
}

/// Two replicas and a world that is not kind to them.
struct World {
    api: Api,
    replicas: [Replica; 2],
    leader: usize,
    /// Writes that nobody counts on any more, and that arrive yet: of a leader that was stopped before it sent them, or whose requests got
    /// no answer.
    late: Vec<Write>,
    now: Instant,
    born: u64,
}

impl World {
    fn new() -> Self {
        let mut api = Api::default();
        api.put_pool("p", "192.0.2.0/29");
        let replicas = [Replica::start(&api), Replica::start(&api)];
        let mut world = World { api, replicas, leader: 0, late: Vec::new(), now: Instant::now(), born: 0 };
        world.take_over(0);
        world
    }

    fn step(&mut self, (what, who, how): (u8, u8, u8)) {
        self.now += Duration::from_millis(u64::from(how));
        let key = ServiceKey { namespace: "default".into(), name: format!("s{}", who % 12) };
        match what % 22 {
            0..=2 => self.create(key, None),
            3 => self.create(key, Some(how % 12)),
            4 => self.api.delete_service(&key),
            5 => self.change(&key, |service| service.load_balancer = !service.load_balancer),
            6 => self.change(&key, |s| s.addresses = wish(how)),
            7 => self.third_party_change(&key, how),
            8 => self.api.put_pool("p", if how % 2 == 0 { "192.0.2.0/29" } else { "192.0.2.2-192.0.2.5" }),
            9 => self.crash(usize::from(who % 2)),
            10 => self.take_over(usize::from(who % 2)),
            11 | 12 => {
                let kind = [Kind::Services, Kind::Pools, Kind::Grants][usize::from(how % 3)];
                self.replicas[usize::from(who % 2)].deliver(&self.api, kind, usize::from(how % 7));
            }
            13 => self.plan(usize::from(how % 4)),
            18 => self.arrive(how),
            14 => self.change(&key, |service| service.ports = ports(how)),
            15 => self.owner_reports(how),
            16 => self.share(key, how),
            19 => self.order_move(how),
            20 => self.change(&key, |service| service.wants_ipv6 = !how.is_multiple_of(3)),
            17 => self.change(&key, |service| service.sharing_key = (how % 3 > 0).then(|| sharing_key(how % 3))),
            21 => self.begin_anew(who, how),
            _ => self.finish_one(how),
        }
    }

    fn create(&mut self, key: ServiceKey, wish: Option<u8>) {
        if self.api.services.contains_key(&key) {
            return;
        }
        self.born += 1;
        self.api.put_service(ServiceView {
            key,
            uid: format!("uid-{}", self.born),
            version: 0,
            created: i64::try_from(self.born / 3).unwrap(),
            class: self.born.is_multiple_of(2).then(|| sheave_api::LOAD_BALANCER_CLASS.into()),
            addresses: wish.map(|last| format!("192.0.2.{last}")),
            ..example()
        });
    }

    /// A Service with a port of its own, or one that all have, and one of two keys.
    fn share(&mut self, key: ServiceKey, how: u8) {
        if self.api.services.contains_key(&key) {
            return;
        }
        self.create(key.clone(), (how % 4 == 3).then_some(how % 12));
        self.change(&key, |service| {
            let own: i32 = service.uid.trim_start_matches("uid-").parse().unwrap();
            service.ports = vec![Port::new(if how.is_multiple_of(5) { 80 } else { 1000 + own }, None)];
            service.sharing_key = Some(sharing_key(how % 2));
        });
    }

    /// The user changes the request: from here on the address may be another one.
    fn change(&mut self, key: &ServiceKey, change: impl FnOnce(&mut ServiceView)) {
        if let Some(mut service) = self.api.services.get(key).cloned() {
            change(&mut service);
            self.api.stable.remove(&service.uid);
            self.api.changed.insert(service.uid.clone(), self.api.version + 1);
            self.api.put_service(service);
        }
    }

    fn third_party_change(&mut self, key: &ServiceKey, how: u8) {
        if let Some(mut service) = self.api.services.get(key).cloned() {
            self.api.shown.remove(&service.uid);
            // Unless it waits for its deletion: that would be over.
            service.finalizer &= service.deleting || !how.is_multiple_of(5);
            if !service.finalizer {
                self.api.unmarked.insert(service.uid.clone());
            }
            service.managed &= service.finalizer;
            service.condition = service.condition.filter(|_| !how.is_multiple_of(7));
            service.ingress = match how % 3 {
                0 => vec![],
                1 => vec![Ingress::Vip(Ipv4Addr::new(192, 0, 2, how % 12), vec![])],
                _ => vec![Ingress::Other],
            };
            service.writer = if service.ingress.is_empty() { Writer::Nobody } else { Writer::Person };
            self.api.put_service(service);
        }
    }

    /// A speaker writes the status of a VirtualIP.
    fn owner_reports(&mut self, how: u8) {
        let version = self.api.next();
        if let Some(grant) = self.api.grants.values_mut().nth(usize::from(how % 5)) {
            grant.version = version;
            grant.partly = how.is_multiple_of(2).then_some(Partly::FQDNNotServed).into_iter().collect();
            self.api.log.push(Observed::Grant(grant.clone()));
        }
    }

    /// An administrator has the Services of an entry moved to pool "q", or thinks better of it.
    fn order_move(&mut self, how: u8) {
        let Some(grant) = self.api.grants.values().nth(usize::from(how % 5)).cloned() else { return };
        self.api.moved.extend(grant.services.iter().map(|service| service.uid.clone()));
        self.api.put_grant(GrantView { move_to: (!how.is_multiple_of(4)).then(|| "q".into()), ..grant });
    }

    /// Killed in the middle of things and started again. Of what was under way some has happened and some has not.
    fn crash(&mut self, replica: usize) {
        let under_way = std::mem::take(&mut self.replicas[replica].under_way);
        for (n, planned) in under_way.iter().enumerate() {
            if n % 2 == 0 {
                let _ = self.api.apply(&planned.write);
            }
        }
        self.replicas[replica] = Replica::start(&self.api);
        if replica == self.leader {
            self.take_over(1 - replica);
        }
    }

    /// The old leader's writes under way are over, or late.
    fn take_over(&mut self, replica: usize) {
        while !self.replicas[self.leader].under_way.is_empty() {
            self.finish_one(if self.born.is_multiple_of(3) { 0 } else { LATE });
        }
        self.replicas[self.leader].index.lead(false);
        self.leader = replica;
        let leader = &mut self.replicas[replica];
        leader.read_all(&self.api);
        leader.index.lead(true);
    }

    fn plan(&mut self, most: usize) {
        let leader = &mut self.replicas[self.leader];
        for _ in 0..=most {
            match leader.index.next_write(self.now, Timestamp::UNIX_EPOCH) {
                Some(planned) => leader.under_way.push(planned),
                None => break,
            }
        }
    }

    /// A write comes to its end: done, refused by a broken network, or done with the answer lost.
    fn finish_one(&mut self, how: u8) {
        let leader = &mut self.replicas[self.leader];
        if leader.under_way.is_empty() {
            return;
        }
        let planned = leader.under_way.remove(usize::from(how) % leader.under_way.len());
        let outcome = match how % 8 {
            LATE => {
                self.api.no_answer(&planned.write);
                self.late.push(planned.write.clone());
                Outcome::Failed(WriteError::Timeout)
            }
            6 => Outcome::Failed(WriteError::Unavailable("broken".into())),
            7 => {
                let _ = self.api.apply(&planned.write);
                self.api.no_answer(&planned.write);
                if let Write::Status(write) = &planned.write {
                    // This cannot be decided. If the user changes the Service in the same instant, its ledger entry may go before
                    // the status that came late is taken back; speakers follow the ledger, so no node answers.
                    self.api.shown.remove(&write.uid);
                }
                Outcome::Failed(WriteError::Timeout)
            }
            _ => match self.api.apply(&planned.write) {
                Ok(facts) => Outcome::Done(facts),
                Err(error) => Outcome::Failed(error),
            },
        };
        leader.index.finished(&planned, outcome, self.now);
    }

    /// A late write arrives. Whether it is carried out or refused, nobody learns of it.
    fn arrive(&mut self, how: u8) {
        if self.late.is_empty() {
            return;
        }
        let write = self.late.remove(usize::from(how) % self.late.len());
        let _ = self.api.apply(&write);
    }

    /// The world is kind again. True if everything came to rest within a bounded number of writes.
    fn settle(&mut self) -> bool {
        while !self.late.is_empty() {
            self.arrive(0);
        }
        for _ in 0..2000 {
            self.resolve_doubts();
            for kind in Kind::ALL {
                self.replicas[self.leader].deliver(&self.api, kind, usize::MAX);
            }
            self.plan(8);
            let leader = &self.replicas[self.leader];
            if !leader.under_way.is_empty() {
                self.finish_one(0);
            } else if let Some(at) = leader.index.next_deadline() {
                self.now = self.now.max(at);
            } else {
                return true;
            }
        }
        false
    }
}

/// How a write ends of which nobody learns whether it was carried out.
const LATE: u8 = 5;

/// None, one address, or several.
fn wish(how: u8) -> Option<String> {
    match how % 4 {
        0 => None,
        1 | 2 => Some(format!("192.0.2.{}", how % 12)),
        _ => Some(format!("192.0.2.{},192.0.2.{}", how % 12, how / 4 % 12)),
    }
}

fn sharing_key(which: u8) -> SharingKey {
    SharingKey { key: which.to_string(), namespace: None }
}

/// All served, some, or none.
fn ports(how: u8) -> Vec<Port> {
    let protocols: &[&str] =
        [&["TCP"][..], &["TCP", "SCTP"], &["SCTP", "UDP", "SCTP"], &["SCTP"]][usize::from(how % 4)];
    (1..).zip(protocols).map(|(number, protocol)| Port::new(number, Some(protocol))).collect()
}

proptest! {

    /// Checkers inside `apply` inspect every write: never shown without a ledger entry, never released while shown, never moved
    /// unless the user wanted it.
    #[test]
    fn any_order_of_events_failures_and_failovers_ends_well(
        steps in prop::collection::vec(any::<(u8, u8, u8)>(), 1..250)
    ) {
        let mut world = World::new();
        world.api.put_pool("six", "2001:db8::/126");
        world.api.put_reserve("q", "192.0.2.20-192.0.2.22");
        steps.into_iter().for_each(|step| world.step(step));
        prop_assert!(world.settle(), "does not come to rest");
        world.check();
    }
}

#[test]
fn who_waits_longest_is_served_first() {
    let mut world = World::new();
    world.api.put_pool("p", "192.0.2.1-192.0.2.2");
    let key = |name: &str| ServiceKey { namespace: "default".into(), name: name.into() };
    world.born = 30;
    for name in ["first", "second", "z-third", "a-fourth"] {
        world.born += 3;
        world.create(key(name), None);
    }
    assert!(world.settle());
    world.check();
    let shows = |world: &World, name: &str| world.api.services[&key(name)].ingress.clone();
    assert!(shows(&world, "z-third").is_empty() && shows(&world, "a-fourth").is_empty());
    world.api.delete_service(&key("first"));
    assert!(world.settle());
    assert!(!world.api.services.contains_key(&key("first")), "its deletion waits no longer");
    assert_eq!(shows(&world, "z-third"), [Ingress::Vip(Ipv4Addr::new(192, 0, 2, 1), vec![])]);
    assert!(shows(&world, "a-fourth").is_empty());
}

/// A third party takes our condition away, then the Service is deleted: what its status shows is taken back before the address is.
#[test]
fn an_address_shown_without_our_condition_is_not_released() {
    let mut world = World::new();
    let key = ServiceKey { namespace: "default".into(), name: "web".into() };
    world.create(key.clone(), None);
    assert!(world.settle());
    world.api.put_service(ServiceView { condition: None, ..world.api.services[&key].clone() });
    world.api.delete_service(&key);
    assert!(world.settle());
    assert!(!world.api.services.contains_key(&key) && world.api.grants.is_empty());
}

#[test]
fn nothing_is_decided_before_everything_was_seen_or_without_the_lead() {
    let mut world = World::new();
    world.create(ServiceKey { namespace: "default".into(), name: "web".into() }, None);
    let mut index = Index::default();
    index.lead(true);
    index.observe(Observed::Service(world.api.services.values().next().unwrap().clone()));
    index.observe(Observed::Pool(world.api.pools["p"].clone()));
    assert_eq!(index.next_write(world.now, Timestamp::UNIX_EPOCH), None);
    assert_eq!(index.unread(), Some("Services"));
    let mut follower = Replica::start(&world.api);
    assert_eq!(follower.index.next_write(world.now, Timestamp::UNIX_EPOCH), None);
}

#[test]
fn a_war_over_a_status_slows_down() {
    let mut world = World::new();
    let key = ServiceKey { namespace: "default".into(), name: "web".into() };
    world.create(key.clone(), None);
    assert!(world.settle());
    let started = world.now;
    for _ in 0..12 {
        world.third_party_change(&key, 2);
        assert!(world.settle());
    }
    assert!(world.now - started > Duration::from_secs(60), "only {:?} passed", world.now - started);
    world.check();
}
