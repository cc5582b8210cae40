//! The API server of the scenarios, and the checkers that inspect every write: what it admits, which versions and watch events follow, and
//! what must not stand beside each other.

use sheave_api::AddressMode;
use sheave_api::addressprobe::most;

use super::*;
use crate::advertisements::Announced;
use crate::node_mode::NODE_POOL;
use crate::places::Room;
use crate::probes::{ProbeView, ProbeWrite};

/// The API server, and the state of the checkers.
#[derive(Default)]
pub struct Api {
    pub version: u64,
    pub services: BTreeMap<ServiceKey, ServiceView>,
    pub pools: BTreeMap<String, PoolView>,
    pub grants: BTreeMap<IpAddr, GrantView>,
    pub advertisements: BTreeMap<String, AdvertisementView>,
    pub probes: BTreeMap<String, ProbeView>,
    /// What each request asks for, by node and round.
    pub asked: BTreeMap<(String, i64), Vec<Ipv4Addr>>,
    pub log: Vec<Observed>,
    /// The addresses that a Service was first shown with since its wishes last changed.
    pub stable: BTreeMap<String, Vec<Ipv4Addr>>,
    /// What we showed last of it, whatever a third party has made of that.
    pub last: BTreeMap<String, Vec<Ipv4Addr>>,
    /// The version in which the user last changed the Service's request.
    pub changed: BTreeMap<String, u64>,
    /// What we ourselves show, by uid.
    pub shown: BTreeMap<String, Vec<IpAddr>>,
    /// Services that an administrator has moved to another pool: their addresses are others.
    pub moved: BTreeSet<String>,
    /// Services whose grant got no answer.
    pub unanswered: BTreeSet<String>,
    /// Services whose finalizer a third party took away.
    pub unmarked: BTreeSet<String>,
    /// Of nodes and speakers.
    pub facts: Vec<Fact>,
    pub groups: BTreeSet<Evidence>,
    /// Flags of replicas that are started from now on.
    pub policy: Policy,
    /// The same of the speakers' tables.
    pub room: Room,
}

impl Api {
    pub fn next(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    pub fn put_service(&mut self, mut service: ServiceView) {
        service.version = self.next();
        self.log.push(Observed::Service(service.clone()));
        self.services.insert(service.key.clone(), service);
    }

    /// With a finalizer it stays, and is being deleted.
    pub fn delete_service(&mut self, key: &ServiceKey) {
        match self.services.get(key).cloned() {
            Some(waits) if waits.finalizer => self.put_service(ServiceView { deleting: true, ..waits }),
            _ => self.remove_service(key),
        }
    }

    pub fn remove_service(&mut self, key: &ServiceKey) {
        if let Some(gone) = self.services.remove(key) {
            let version = self.next();
            self.shown.remove(&gone.uid);
            self.log.push(Observed::ServiceGone(key.clone(), version));
        }
    }

    pub fn put_pool(&mut self, name: &str, entry: &str) {
        self.put_pool_view(example_pool(name, &[entry]));
    }

    /// A pool that gives addresses only to those that name it.
    pub fn put_reserve(&mut self, name: &str, entry: &str) {
        let mut view = example_pool(name, &[entry]);
        view.spec.auto_assign = false;
        self.put_pool_view(view);
    }

    fn put_pool_view(&mut self, view: PoolView) {
        let view = PoolView { version: self.next(), ..view };
        self.log.push(Observed::Pool(view.clone()));
        self.pools.insert(view.name.clone(), view);
    }

    /// Carries a write out as the API server would, and checks that it was right.
    pub fn apply(&mut self, write: &Write) -> Result<Vec<Observed>, WriteError> {
        match write {
            Write::Grant { address, pool, service, announced } => {
                if let Some(existing) = self.grants.get(address) {
                    return Ok(vec![Observed::Grant(existing.clone())]);
                }
                let version = self.next();
                let view = GrantView {
                    address: *address,
                    uid: format!("vip-{version}"),
                    version,
                    pool: pool.clone(),
                    node: None,
                    services: vec![service.clone()],
                    announced: announced.clone(),
                    partly: BTreeSet::new(),
                    move_to: None,
                };
                self.log.push(Observed::Grant(view.clone()));
                self.grants.insert(*address, view.clone());
                Ok(vec![Observed::Grant(view)])
            }
            Write::Release(entry) => {
                let address = &entry.address;
                if !self.grants.contains_key(address) {
                    return Ok(vec![Observed::Released(*address, entry.uid.clone())]);
                }
                let grant = self.as_seen(entry)?;
                for holder in &grant.services {
                    assert!(!self.shows(&holder.uid, *address), "released although {} still shows it", holder.name);
                }
                self.grants.remove(address);
                let version = self.next();
                self.log.push(Observed::GrantGone(*address, version));
                Ok(vec![Observed::Released(*address, entry.uid.clone())])
            }
            Write::GrantAtNode { address, node, services } => {
                let address = IpAddr::V4(*address);
                assert!(!self.grants.contains_key(&address), "{address} is in the ledger");
                Ok(self.put_grant(GrantView {
                    address,
                    uid: format!("vip-{}", self.version),
                    version: 0,
                    pool: NODE_POOL.into(),
                    node: Some(node.clone()),
                    services: services.clone(),
                    announced: Announced::default(),
                    partly: BTreeSet::new(),
                    move_to: None,
                }))
            }
            Write::Amend { entry, from, to } => self.amend(entry, from, to),
            Write::Confirm(entry) => {
                let known = self.as_seen(entry)?;
                Ok(self.put_grant(GrantView { version: 0, ..known }))
            }
            Write::Status(write) | Write::Prepare { write, .. } => self.apply_status(write),
            Write::PoolStatus { pool, status } => {
                let version = self.next();
                let view = self.pools.get_mut(pool).ok_or(WriteError::Gone)?;
                decided_by(status, &view.uid, view.version)?;
                view.version = version;
                view.status = serde_json::from_value(status["status"].clone()).unwrap();
                self.log.push(Observed::Pool(view.clone()));
                Ok(vec![Observed::Pool(view.clone())])
            }
            Write::AdvertisementStatus { advertisement, status } => {
                let version = self.next();
                let view = self.advertisements.get_mut(advertisement).ok_or(WriteError::Gone)?;
                decided_by(status, &view.uid, view.version)?;
                view.version = version;
                view.status = serde_json::from_value(status["status"].clone()).unwrap();
                self.log.push(Observed::Advertisement(view.clone()));
                Ok(vec![Observed::Advertisement(view.clone())])
            }
            Write::Probe(write) => self.apply_probe(write),
        }
    }

    /// Made by name, or changed as it was seen.
    pub fn apply_probe(&mut self, write: &ProbeWrite) -> Result<Vec<Observed>, WriteError> {
        let known = self.probes.get(&write.node);
        let seen = known.map(|known| (known.uid.clone(), known.version));
        if seen != write.seen {
            return Err(WriteError::Conflict("uid or resourceVersion".into()));
        }
        assert!(known.is_none_or(|known| known.round < write.round), "round {} again", write.round);
        assert!((1..=most::ADDRESSES).contains(&write.addresses.len()), "{} addresses", write.addresses.len());
        let version = self.next();
        let new = || ProbeView { node: write.node.clone(), uid: format!("probe-{version}"), ..ProbeView::default() };
        let probe = ProbeView { round: write.round, ..self.probes.get(&write.node).cloned().unwrap_or_else(new) };
        self.asked.insert((write.node.clone(), write.round), write.addresses.clone());
        Ok(self.put_probe(probe))
    }

    /// With a new version.
    pub fn put_probe(&mut self, probe: ProbeView) -> Vec<Observed> {
        let probe = ProbeView { version: self.next(), ..probe };
        self.log.push(Observed::Probe(probe.clone()));
        self.probes.insert(probe.node.clone(), probe.clone());
        vec![Observed::Probe(probe)]
    }

    /// A person deletes an entry of the ledger.
    pub fn lose_grant(&mut self, address: IpAddr) {
        let version = self.next();
        self.grants.remove(&address);
        self.log.push(Observed::GrantGone(address, version));
    }

    /// The entry that was seen, or an error.
    pub fn amend(&mut self, seen: &SeenEntry, from: &Entry, to: &Entry) -> Result<Vec<Observed>, WriteError> {
        let (known, address) = (self.as_seen(seen)?, seen.address);
        assert_eq!(
            (&known.pool, &known.services, &known.announced),
            (&from.pool, &from.services, &from.announced),
            "of this version"
        );
        for holder in from.services.iter().filter(|service| !to.services.contains(service)) {
            assert!(!self.shows(&holder.uid, address), "released although {} still shows it", holder.name);
        }
        for holder in to.services.iter().filter(|service| !from.services.contains(service)) {
            let service = self.services.get(&ServiceKey::from(holder)).filter(|service| service.uid == holder.uid);
            let without = service.is_some_and(|service| !service.finalizer && !service.deleting);
            assert!(
                !without || self.unmarked.contains(&holder.uid) || known.node.is_some(),
                "{} is granted an address without a finalizer",
                holder.name
            );
        }
        let Entry { pool, services, announced } = to.clone();
        Ok(self.put_grant(GrantView { pool, services, announced, ..known }))
    }

    pub fn as_seen(&self, seen: &SeenEntry) -> Result<GrantView, WriteError> {
        let known = self.grants.get(&seen.address).ok_or(WriteError::Gone)?;
        if (&known.uid, known.version) != (&seen.uid, seen.version) {
            return Err(WriteError::Conflict("uid or resourceVersion".into()));
        }
        Ok(known.clone())
    }

    /// With a new version.
    pub fn put_grant(&mut self, grant: GrantView) -> Vec<Observed> {
        let grant = GrantView { version: self.next(), ..grant };
        self.log.push(Observed::Grant(grant.clone()));
        self.grants.insert(grant.address, grant.clone());
        vec![Observed::Grant(grant)]
    }

    pub fn apply_status(&mut self, write: &StatusWrite) -> Result<Vec<Observed>, WriteError> {
        let mut service = self.services.get(&write.service).cloned().ok_or(WriteError::Gone)?;
        if service.uid != write.uid {
            return Err(WriteError::Conflict("uid".into()));
        }
        if service.version != write.version {
            return Err(WriteError::Conflict("resourceVersion".into()));
        }
        match &write.ingress {
            IngressChange::Leave => {}
            IngressChange::Clear => {
                let granted = self.grants.values().any(|grant| grant.services[0].uid == service.uid);
                let theirs = service.class.is_none() && service.writer != Writer::Us;
                assert!(!theirs || granted, "emptied, although {} has no class and it was not ours", service.key);
                service.ingress.clear();
                service.writer = Writer::Nobody;
                self.shown.remove(&service.uid);
            }
            IngressChange::Set(addresses, ports) => {
                for address in addresses {
                    assert!(self.is_granted((*address).into(), &service.uid), "{address} shown without a ledger entry");
                }
                self.shown.remove(&service.uid);
                if service.mode != Ok(Some(AddressMode::Node)) && self.policy.address_mode == AddressMode::Pool {
                    self.check_shown(&service, addresses, write.version);
                }
                service.ingress = addresses.iter().map(|address| Ingress::Vip(*address, ports.clone())).collect();
                service.writer = Writer::Us;
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
    fn shows(&self, uid: &str, address: IpAddr) -> bool {
        self.shown.get(uid).is_some_and(|shown| shown.contains(&address))
    }

    /// A Service with addresses from pools shows the same as before; of those that it names all, or what it has had.
    fn check_shown(&mut self, service: &ServiceView, addresses: &[Ipv4Addr], version: u64) {
        assert!(!addresses.is_empty() && addresses.is_sorted(), "{} shows {addresses:?}", service.key);
        let named = named_by(service);
        let wanted = matches!(crate::request::claim(service, AddressMode::Pool), Claim::Wanted(_))
            && !self.moved.contains(&service.uid);
        if wanted && named.len() > 1 && addresses != named && service.writer == Writer::Us {
            let last = self.last.get(&service.uid).cloned().unwrap_or_default();
            let had = |address: &Ipv4Addr| last.contains(address);
            assert!(addresses.iter().all(had), "{} asks for {named:?}, had {last:?}, shows {addresses:?}", service.key);
        }
        self.last.insert(service.uid.clone(), addresses.to_vec());
        // A wish that cannot be granted at once may move it later; so may a write from before the wish.
        let changed = self.changed.get(&service.uid).copied().unwrap_or_default();
        if service.addresses.is_none() && version >= changed && !self.moved.contains(&service.uid) {
            let first = self.stable.entry(service.uid.clone()).or_insert(addresses.to_vec());
            assert_eq!(*first, addresses, "the address of {} moved", service.key);
        }
        self.shown.insert(service.uid.clone(), addresses.iter().copied().map(IpAddr::V4).collect());
    }

    /// Until the watch shows the ledger entry nothing says that there is one. And a finalizer that is late to go may go when another
    /// leader has granted what was refused: the Service shows nothing yet, and gets its finalizer back with the address.
    pub fn no_answer(&mut self, write: &Write) {
        match write {
            Write::Status(write) if write.finalizer == FinalizerChange::Remove => {
                self.unanswered.insert(write.uid.clone());
            }
            Write::Grant { service, .. } => drop(self.unanswered.insert(service.uid.clone())),
            Write::Amend { to, .. } => self.unanswered.extend(to.services.iter().map(|service| service.uid.clone())),
            _ => {}
        }
    }

    pub fn is_granted(&self, address: IpAddr, uid: &str) -> bool {
        self.grants.get(&address).is_some_and(|grant| grant.services.iter().any(|service| service.uid == uid))
    }

    pub fn apply_finalizer(&self, service: &mut ServiceView, change: FinalizerChange) {
        match change {
            FinalizerChange::Leave => {}
            FinalizerChange::Add => {
                assert!(!service.deleting, "a finalizer for {}, which is being deleted", service.key);
                (service.finalizer, service.managed) = (true, true);
            }
            FinalizerChange::Remove => {
                let pooled = self.grants.values().filter(|grant| grant.node.is_none()).map(|grant| grant.address);
                let granted = { pooled }.any(|address| self.is_granted(address, &service.uid));
                let unknown = self.unanswered.contains(&service.uid);
                assert!(!granted || unknown, "the finalizer of {} goes before its ledger entry", service.key);
                (service.finalizer, service.managed) = (false, false);
            }
        }
    }
}

/// A patch with the preconditions that it must have.
fn decided_by(patch: &serde_json::Value, uid: &str, version: u64) -> Result<(), WriteError> {
    let [seen, at] = ["uid", "resourceVersion"].map(|field| patch["metadata"][field].as_str());
    let is = seen == Some(uid) && at == Some(version.to_string().as_str());
    is.then_some(()).ok_or_else(|| WriteError::Conflict("uid or resourceVersion".into()))
}

/// The IPv4 addresses that a Service names, lowest first.
pub fn named_by(service: &ServiceView) -> Vec<Ipv4Addr> {
    let entries = service.addresses.iter().flat_map(|list| list.split(','));
    let named: BTreeSet<Ipv4Addr> = entries.filter_map(|entry| entry.trim().parse().ok()).collect();
    named.into_iter().collect()
}
