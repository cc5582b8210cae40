//! The whole decision path against a simulated API server: watches that lag, writes that fail or whose answer is lost, replicas
//! that crash and follow each other, users and third parties that change things. Independent checkers inspect every write and the
//! end state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use sheave_api::{AddressPoolSpec, AddressPoolStatus, Partly};

use crate::coverage;
use crate::error::WriteError;
use crate::index::{Index, Kind, Observed, Outcome, Planned, Write};
use crate::request::{Claim, Refused, claim};
use crate::status::{ConditionChange, FinalizerChange, IngressChange, StatusWrite};
use crate::view::{GrantView, Ingress, PoolView, Port, ServiceKey, ServiceView, example};

/// The API server, and the state of the checkers.
#[derive(Default)]
struct Api {
    version: u64,
    services: BTreeMap<ServiceKey, ServiceView>,
    pools: BTreeMap<String, PoolView>,
    grants: BTreeMap<Ipv4Addr, GrantView>,
    log: Vec<Observed>,
    /// The address that a Service was first shown with since its wishes last changed.
    stable: BTreeMap<String, Ipv4Addr>,
    /// The version in which the user last changed the Service's request.
    changed: BTreeMap<String, u64>,
    /// What we ourselves show, by uid.
    shown: BTreeMap<String, Ipv4Addr>,
    /// Services whose grant got no answer.
    unanswered: BTreeSet<String>,
}

impl Api {
    fn next(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn put_service(&mut self, mut service: ServiceView) {
        service.version = self.next();
        self.log.push(Observed::Service(service.clone()));
        self.services.insert(service.key.clone(), service);
    }

    /// With a finalizer it stays, and is being deleted.
    fn delete_service(&mut self, key: &ServiceKey) {
        match self.services.get(key).cloned() {
            Some(waits) if waits.finalizer => self.put_service(ServiceView { deleting: true, ..waits }),
            _ => self.remove_service(key),
        }
    }

    fn remove_service(&mut self, key: &ServiceKey) {
        if let Some(gone) = self.services.remove(key) {
            let version = self.next();
            self.shown.remove(&gone.uid);
            self.log.push(Observed::ServiceGone(key.clone(), version));
        }
    }

    fn put_pool(&mut self, name: &str, entry: &str) {
        let version = self.next();
        let spec = AddressPoolSpec { addresses: vec![entry.to_string()], auto_assign: true, avoid_buggy_ips: false };
        let view = PoolView {
            name: name.into(),
            uid: format!("uid of {name}"),
            version,
            created: 0,
            generation: 1,
            spec,
            status: AddressPoolStatus::default(),
        };
        self.log.push(Observed::Pool(view.clone()));
        self.pools.insert(name.into(), view);
    }

    /// Carries a write out as the API server would, and checks that it was right.
    fn apply(&mut self, write: &Write) -> Result<Vec<Observed>, WriteError> {
        match write {
            Write::Grant { address, pool, service } => {
                if let Some(existing) = self.grants.get(address) {
                    return Ok(vec![Observed::Grant(existing.clone())]);
                }
                let version = self.next();
                let view = GrantView {
                    address: *address,
                    uid: format!("vip-{version}"),
                    version,
                    pool: pool.clone(),
                    services: vec![service.clone()],
                    partly: None,
                };
                self.log.push(Observed::Grant(view.clone()));
                self.grants.insert(*address, view.clone());
                Ok(vec![Observed::Grant(view)])
            }
            Write::Release { address, uid } => {
                let Some(grant) = self.grants.get(address) else {
                    return Ok(vec![Observed::Released(*address, uid.clone())]);
                };
                if grant.uid != *uid {
                    return Err(WriteError::Conflict("uid".into()));
                }
                for holder in &grant.services {
                    let shown = self.shown.get(&holder.uid);
                    assert_ne!(shown, Some(address), "released although {} still shows it", holder.name);
                }
                self.grants.remove(address);
                let version = self.next();
                self.log.push(Observed::GrantGone(*address, version));
                Ok(vec![Observed::Released(*address, uid.clone())])
            }
            Write::Status(write) | Write::Prepare { write, .. } => self.apply_status(write),
            Write::PoolStatus { pool, status } => {
                let version = self.next();
                let view = self.pools.get_mut(pool).ok_or(WriteError::Gone)?;
                view.version = version;
                view.status = serde_json::from_value(status["status"].clone()).unwrap();
                self.log.push(Observed::Pool(view.clone()));
                Ok(vec![Observed::Pool(view.clone())])
            }
        }
    }

    fn apply_status(&mut self, write: &StatusWrite) -> Result<Vec<Observed>, WriteError> {
        let mut service = self.services.get(&write.service).cloned().ok_or(WriteError::Gone)?;
        if service.uid != write.uid {
            return Err(WriteError::Conflict("uid".into()));
        }
        let exact = write.ingress == IngressChange::Clear || write.finalizer == FinalizerChange::Add;
        if exact && service.version != write.version {
            return Err(WriteError::Conflict("resourceVersion".into()));
        }
        match &write.ingress {
            IngressChange::Leave => {}
            IngressChange::Clear => {
                service.ingress.clear();
                self.shown.remove(&service.uid);
            }
            IngressChange::Set(address, ports) => {
                let holder = self.grants.get(address).map(|grant| grant.services[0].uid.as_str());
                assert_eq!(holder, Some(service.uid.as_str()), "{address} shown without a ledger entry");
                // A wish that cannot be granted at once may move it later; so may a write from before the wish.
                let changed = self.changed.get(&service.uid).copied().unwrap_or_default();
                if service.addresses.is_none() && write.version >= changed {
                    let first = *self.stable.entry(service.uid.clone()).or_insert(*address);
                    assert_eq!(first, *address, "the address of {} moved", service.key);
                }
                service.ingress = vec![Ingress::Vip(*address, ports.clone())];
                self.shown.insert(service.uid.clone(), *address);
            }
        }
        match &write.condition {
            ConditionChange::Leave => {}
            ConditionChange::Remove => {
                service.condition = None;
                self.shown.remove(&service.uid);
            }
            ConditionChange::Set { condition, .. } => service.condition = Some(condition.clone()),
        }
        self.apply_finalizer(&mut service, write.finalizer);
        self.put_service(service.clone());
        if service.deleting && !service.finalizer {
            self.remove_service(&service.key);
            return Ok(vec![Observed::ServiceGone(service.key, self.version)]);
        }
        Ok(vec![Observed::Service(self.services[&service.key].clone())])
    }
}

impl Api {
    fn apply_finalizer(&self, service: &mut ServiceView, change: FinalizerChange) {
        match change {
            FinalizerChange::Leave => {}
            FinalizerChange::Add => {
                assert!(!service.deleting, "a finalizer for {}, which is being deleted", service.key);
                (service.finalizer, service.managed) = (true, true);
            }
            FinalizerChange::Remove => {
                let granted = self.grants.values().any(|grant| grant.services[0].uid == service.uid);
                let unknown = self.unanswered.contains(&service.uid);
                assert!(!granted || unknown, "the finalizer of {} goes before its ledger entry", service.key);
                (service.finalizer, service.managed) = (false, false);
            }
        }
    }
}

/// One replica of the controller: its index, how far its watches are, and its writes under way.
struct Replica {
    index: Index,
    cursors: [usize; 3],
    under_way: Vec<Planned>,
}

impl Replica {
    fn start(api: &Api) -> Self {
        let mut replica = Replica { index: Index::default(), cursors: [api.log.len(); 3], under_way: Vec::new() };
        replica.read_all(api);
        replica
    }

    fn read_all(&mut self, api: &Api) {
        let index = &mut self.index;
        let kinds = [Kind::Services, Kind::Pools, Kind::Grants];
        kinds.into_iter().for_each(|kind| index.observe(Observed::Begin(kind)));
        api.services.values().for_each(|s| index.observe(Observed::Service(s.clone())));
        api.pools.values().for_each(|p| index.observe(Observed::Pool(p.clone())));
        api.grants.values().for_each(|g| index.observe(Observed::Grant(g.clone())));
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
        Observed::Begin(kind) | Observed::Complete(kind, _) => *kind,
    }
}

/// Two replicas and a world that is not kind to them.
struct World {
    api: Api,
    replicas: [Replica; 2],
    leader: usize,
    now: Instant,
    born: u64,
}

impl World {
    fn new() -> Self {
        let mut api = Api::default();
        api.put_pool("p", "192.0.2.0/29");
        let replicas = [Replica::start(&api), Replica::start(&api)];
        let mut world = World { api, replicas, leader: 0, now: Instant::now(), born: 0 };
        world.take_over(0);
        world
    }

    fn step(&mut self, (what, who, how): (u8, u8, u8)) {
        self.now += Duration::from_millis(u64::from(how));
        let key = ServiceKey { namespace: "default".into(), name: format!("s{}", who % 12) };
        match what % 18 {
            0..=2 => self.create(key, None),
            3 => self.create(key, Some(how % 12)),
            4 => self.api.delete_service(&key),
            5 => self.change(&key, |service| service.load_balancer = !service.load_balancer),
            6 => self.change(&key, |s| s.addresses = (how % 3 > 0).then(|| format!("192.0.2.{}", how % 12))),
            7 => self.third_party_change(&key, how),
            8 => self.api.put_pool("p", if how % 2 == 0 { "192.0.2.0/29" } else { "192.0.2.2-192.0.2.5" }),
            9 => self.crash(usize::from(who % 2)),
            10 => self.take_over(usize::from(who % 2)),
            11 | 12 => {
                let kind = [Kind::Services, Kind::Pools, Kind::Grants][usize::from(how % 3)];
                self.replicas[usize::from(who % 2)].deliver(&self.api, kind, usize::from(how % 7));
            }
            13 => self.plan(usize::from(how % 4)),
            14 => self.change(&key, |service| service.ports = ports(how)),
            15 => self.owner_reports(how),
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
            addresses: wish.map(|last| format!("192.0.2.{last}")),
            ..example()
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
            service.managed &= service.finalizer;
            service.condition = service.condition.filter(|_| !how.is_multiple_of(7));
            service.ingress = match how % 3 {
                0 => vec![],
                1 => vec![Ingress::Vip(Ipv4Addr::new(192, 0, 2, how % 12), vec![])],
                _ => vec![Ingress::Other],
            };
            self.api.put_service(service);
        }
    }

    /// A speaker writes the status of a VirtualIP.
    fn owner_reports(&mut self, how: u8) {
        let version = self.api.next();
        if let Some(grant) = self.api.grants.values_mut().nth(usize::from(how % 5)) {
            grant.version = version;
            grant.partly = how.is_multiple_of(2).then_some(Partly::FQDNNotServed);
            self.api.log.push(Observed::Grant(grant.clone()));
        }
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

    /// The lease makes sure that the old leader's writes are over before the new one's first.
    fn take_over(&mut self, replica: usize) {
        while !self.replicas[self.leader].under_way.is_empty() {
            self.finish_one(0);
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
            6 => Outcome::Failed(WriteError::Unavailable("broken".into())),
            7 => {
                let _ = self.api.apply(&planned.write);
                if let Write::Grant { service, .. } = &planned.write {
                    // Nor can this: until the watch shows the ledger entry nothing says that there is one.
                    self.api.unanswered.insert(service.uid.clone());
                }
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

    /// The world is kind again. True if everything came to rest within a bounded number of writes.
    fn settle(&mut self) -> bool {
        for _ in 0..2000 {
            for kind in [Kind::Services, Kind::Pools, Kind::Grants] {
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

    /// What must be true once everything has come to rest.
    fn check(&self) {
        let mut holders: BTreeMap<&str, Vec<Ipv4Addr>> = BTreeMap::new();
        for (address, grant) in &self.api.grants {
            holders.entry(&grant.services[0].uid).or_default().push(*address);
        }
        let mut waits = false;
        for service in self.api.services.values() {
            let held = holders.remove(service.uid.as_str()).unwrap_or_default();
            match (claim(service), &held[..]) {
                (Claim::Foreign, []) => assert!(service.condition.is_none() && !service.finalizer, "{service:?}"),
                (Claim::Foreign, held) => panic!("{} is not ours and holds {held:?}", service.key),
                (_, [address]) => {
                    assert_eq!(service.ingress, [Ingress::Vip(*address, coverage::ports(service))], "{}", service.key);
                    let condition = service.condition.as_ref().unwrap();
                    assert!(condition.allocated && service.finalizer_is_ours(), "{service:?}");
                    let named = |part: &Refused| condition.message.contains(&part.message);
                    assert!(
                        coverage::remarks(service, self.api.grants[address].partly).iter().all(named),
                        "{condition:?}"
                    );
                }
                (claimed, []) => {
                    assert!(service.ingress.is_empty(), "{service:?}");
                    assert!(!service.condition.as_ref().unwrap().allocated && !service.finalizer, "{service:?}");
                    waits |= service.addresses.is_none() && matches!(claimed, Claim::Wanted(_));
                }
                (_, held) => panic!("{} holds {held:?}", service.key),
            }
        }
        assert!(holders.is_empty(), "granted to a Service that does not exist: {holders:?}");
        let pool = &self.api.pools["p"];
        let range: sheave_api::AddressRange = pool.spec.addresses[0].parse().unwrap();
        let free = range.iter().filter(|address| !self.api.grants.contains_key(address)).count();
        assert!(!waits || free == 0, "a Service waits although {free} addresses are free");
        assert_eq!(pool.status.available, i64::try_from(free).unwrap());
        assert_eq!(pool.status.assigned, i64::try_from(self.api.grants.len()).unwrap());
    }
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
