//! Pure: everything we know, and what has changed since it was last planned. `observe` takes facts in any order and as often as
//! they come; `next_write` (in [`plan`](crate::plan)) returns what follows from them; `finished` takes the result.
//!
//! One write at a time per subject. Nothing is planned before a full list of everything was seen, nor without the lead.

mod announced;
mod at_nodes;
mod figures;
mod late;
mod marks;
mod outcome;
mod probing;
mod room;
mod surroundings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use sheave_api::{Refusal, ServiceRef};

use crate::advertisements::{AdvertisementView, Advertisements, Announced};
use crate::allocator::Allocator;
use crate::allocator::selection::Labels;
use crate::cache::Cache;
use crate::error::WriteError;
use crate::guards::{Fact, Fixed, Guards};
use crate::places::{Places, Room};
use crate::probes::{self, ProbeView, ProbeWrite, Probes};
use crate::status::StatusWrite;
use crate::view::{GrantView, NamespaceView, PoolView, ServiceKey, ServiceView};
use crate::whose::{Evidence, Policy, Responsibility};
use at_nodes::AtNodes;

/// A fact about the cluster.
#[derive(Clone, Debug)]
pub enum Observed {
    Service(ServiceView),
    ServiceGone(ServiceKey, u64),
    Pool(PoolView),
    PoolGone(String, u64),
    Grant(GrantView),
    GrantGone(IpAddr, u64),
    Advertisement(AdvertisementView),
    AdvertisementGone(String, u64),
    Namespace(NamespaceView),
    NamespaceGone(String, u64),
    Probe(ProbeView),
    ProbeGone(String, u64),
    /// We have deleted the ledger entry with this uid.
    Released(IpAddr, String),
    /// A full list of one kind begins, or is complete, with the version that it was read at (0 if not known).
    Begin(Kind),
    Complete(Kind, u64),
    /// An object that cannot be read: what was known of it stays.
    Unreadable(Kind, String),
    /// This replica's account may not read this kind of objects; what the API server says.
    Denied(&'static str, String),
    /// What guards are made of.
    Guard(Fact),
    /// The API groups that say who else serves Services.
    ApiGroups(BTreeSet<Evidence>),
}

/// The kinds of objects that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Services,
    Pools,
    Grants,
    Namespaces,
    Advertisements,
    Probes,
}

impl Kind {
    pub const ALL: [Kind; 6] =
        [Kind::Services, Kind::Pools, Kind::Grants, Kind::Namespaces, Kind::Advertisements, Kind::Probes];

    /// The objects, as log, metrics and `/readyz` name them.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Services => "Services",
            Kind::Pools => "AddressPools",
            Kind::Grants => "VirtualIPs",
            Kind::Namespaces => "Namespaces",
            Kind::Advertisements => "L2Advertisements",
            Kind::Probes => "AddressProbes",
        }
    }
}

/// What a write is about; at most one is on its way per subject. Probes come first: Services wait for the answer. Then addresses: what
/// is freed can be given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A request to the speaker of this node.
    Probe(String),
    Address(IpAddr),
    /// Of a node.
    NodeAddress(Ipv4Addr),
    /// Seconds since 1970 when it was created, then its name: the order in which Services that wait are served.
    Service(i64, ServiceKey),
    Pool(String),
    Advertisement(String),
}

/// One write to the API server. `Prepare` comes before `Grant`: with it the Service gets the finalizer.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Prepare {
        address: IpAddr,
        write: StatusWrite,
    },
    Grant {
        address: IpAddr,
        pool: String,
        service: ServiceRef,
        announced: Announced,
    },
    /// Ports at an address of a node.
    GrantAtNode {
        address: Ipv4Addr,
        node: String,
        services: Vec<ServiceRef>,
    },
    Status(StatusWrite),
    Release(SeenEntry),
    /// The ledger entry is to name another pool, other L2Advertisements, or Services that come or go.
    Amend {
        entry: SeenEntry,
        from: Entry,
        to: Entry,
    },
    /// The ledger entry is to have another version, and else to stay as it is.
    Confirm(SeenEntry),
    PoolStatus {
        pool: String,
        status: serde_json::Value,
    },
    AdvertisementStatus {
        advertisement: String,
        status: serde_json::Value,
    },
    Probe(ProbeWrite),
}

/// An entry of the ledger as it was seen; one that has changed since is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenEntry {
    pub address: IpAddr,
    pub uid: String,
    pub version: u64,
}

/// What an entry of the ledger says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub pool: String,
    pub services: Vec<ServiceRef>,
    pub announced: Announced,
}

/// A write with what it is about, to be handed back with the result.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub subject: Subject,
    pub write: Write,
}

/// What a write led to.
#[derive(Debug)]
pub enum Outcome {
    /// Done, and this is what the API server has now.
    Done(Vec<Observed>),
    /// Not done, or not known to be.
    Failed(WriteError),
}

/// All state of the controller.
#[derive(Debug, Default)]
pub struct Index {
    pub(crate) services: Cache<ServiceKey, ServiceView>,
    pub(crate) pools: Cache<String, PoolView>,
    pub(crate) grants: Cache<IpAddr, GrantView>,
    /// Ports at addresses of nodes.
    pub(crate) at_nodes: AtNodes,
    pub(crate) namespaces: Cache<String, NamespaceView>,
    pub(crate) advertisements: Cache<String, AdvertisementView>,
    /// The same, parsed.
    pub(crate) announcing: Advertisements,
    pub(crate) allocator: Allocator,
    pub(crate) probes: Probes,
    guards: Guards,
    /// The guards were made of other facts than those that are known now.
    guards_outdated: bool,
    pub(crate) whose: Responsibility,
    /// None until they were read.
    api_groups: Option<BTreeSet<Evidence>>,
    /// Services without a class that somebody else serves, and who.
    pub(crate) left: BTreeMap<ServiceKey, String>,
    /// Objects that cannot be read, by kind and name (Services: namespace/name), and whether the present full list has them.
    unreadable: BTreeMap<(Kind, String), bool>,
    /// Kinds of objects that could not be read in full yet for want of a right, and what the API server says.
    denied: BTreeMap<&'static str, String>,
    pub(crate) leading: bool,
    /// Objects that a watch showed no more when it began anew may be gone: only a list that is read from the store itself can tell.
    in_doubt: bool,
    pub(crate) dirty: BTreeSet<Subject>,
    pub(crate) in_flight: BTreeSet<Subject>,
    pub(crate) not_before: BTreeMap<Subject, Instant>,
    failures: BTreeMap<Subject, u32>,
    corrections: BTreeMap<ServiceKey, (u32, Instant)>,
    /// Services of ours without an address, or with another than they want, and why.
    pub(crate) waiting: BTreeMap<ServiceKey, Refusal>,
    /// Services that have an address, and which parts of them are not served.
    pub(crate) partly: BTreeMap<ServiceKey, Vec<Refusal>>,
    /// Entries of the ledger that a write of which nothing is known may yet release (module `late`).
    pub(crate) unconfirmed: BTreeSet<IpAddr>,
    /// Services that were prepared for this address, until they are planned again: it is preferred.
    pub(crate) prepared: BTreeMap<ServiceKey, IpAddr>,
    /// What Services take in the speakers' tables; none until they were counted, which the leader does.
    pub(crate) places: Option<Places>,
    pub(crate) room: Room,
    /// Services that have an IPv4 address, and would take one of IPv6 beside it.
    pub(crate) beside: BTreeSet<ServiceKey>,
}

impl Index {
    pub fn new(policy: Policy, fixed: Fixed, probing: probes::Config) -> Self {
        let at_nodes = AtNodes::new(policy.address_mode);
        let (whose, guards, probes) = (Responsibility::new(policy), Guards::new(fixed), Probes::new(probing));
        Index { whose, guards, probes, at_nodes, ..Index::default() }
    }

    /// Takes a fact. Idempotent; an older version of a known object changes nothing.
    pub fn observe(&mut self, fact: Observed) {
        if self.leaves_doubt(&fact) {
            self.in_doubt = true;
            return;
        }
        self.now_readable(&fact);
        match fact {
            Observed::Service(view) => self.service_changed(view),
            Observed::ServiceGone(key, version) => {
                let known = self.services.get(&key).cloned();
                if self.services.delete(&key, version) {
                    self.service_gone(&key, known);
                }
            }
            Observed::Pool(view) => {
                let differs = |known: &PoolView| {
                    known.spec != view.spec || known.retention != view.retention || known.labels != view.labels
                };
                let spec_changed = self.pools.get(&view.name).is_none_or(differs);
                self.dirty.insert(Subject::Pool(view.name.clone()));
                if self.pools.apply(view.name.clone(), &view.uid.clone(), view.version, view) && spec_changed {
                    self.pools_changed();
                }
            }
            Observed::PoolGone(name, version) => {
                if self.pools.delete(&name, version) {
                    self.pools_changed();
                }
            }
            Observed::Grant(view) if view.node.is_some() => self.node_grant_changed(view),
            Observed::Grant(view) => self.grant_changed(view),
            Observed::GrantGone(address, version) => {
                self.node_grant_gone(address, |grants, address| grants.delete(address, version));
                if self.grants.delete(&address, version) {
                    self.grant_gone(address);
                }
            }
            Observed::Released(address, uid) => {
                self.node_grant_gone(address, |grants, address| grants.delete_uid(address, &uid));
                if self.grants.delete_uid(&address, &uid) {
                    self.grant_gone(address);
                }
            }
            Observed::Advertisement(view) => self.advertisement_changed(view),
            Observed::AdvertisementGone(name, version) => {
                if self.advertisements.delete(&name, version) {
                    self.advertisements_changed();
                }
            }
            Observed::Namespace(view) => {
                let (name, labels) = (view.name.clone(), view.labels.clone());
                if self.namespaces.apply(name.clone(), &view.uid.clone(), view.version, view) {
                    self.namespace_changed(&name, Some(labels));
                }
            }
            Observed::NamespaceGone(name, version) => {
                if self.namespaces.delete(&name, version) {
                    self.namespace_changed(&name, None);
                }
            }
            Observed::Probe(view) => self.probes.observe(view),
            Observed::ProbeGone(node, version) => drop(self.probes.objects.delete(&node, version)),
            Observed::Begin(Kind::Services) => self.services.begin(),
            Observed::Begin(Kind::Pools) => self.pools.begin(),
            Observed::Begin(Kind::Grants) => {
                self.grants.begin();
                self.at_nodes.grants.begin();
            }
            Observed::Begin(Kind::Namespaces) => self.namespaces.begin(),
            Observed::Begin(Kind::Advertisements) => self.advertisements.begin(),
            Observed::Begin(Kind::Probes) => self.probes.objects.begin(),
            Observed::Complete(kind, version) => self.list_complete(kind, version),
            Observed::Unreadable(kind, name) => self.cannot_read(kind, name),
            Observed::Denied(kind, said) => drop(self.denied.insert(kind, said)),
            Observed::Guard(fact) => self.guards_outdated |= self.guards.observe(fact),
            Observed::ApiGroups(found) => {
                self.guards_outdated |= self.api_groups.as_ref() != Some(&found);
                self.api_groups = Some(found);
            }
        }
    }

    /// Takes or releases the lead. A new leader has read everything anew, and first plans all of it.
    pub fn lead(&mut self, leading: bool) {
        self.leading = leading;
        self.unconfirmed = self.find_unconfirmed();
        self.allocator.stay();
        self.places = None;
        self.prepared.clear();
        self.probes.lead();
        self.look_at_everything();
    }

    /// Whether everything is to be read as it is now; asked once.
    pub fn take_doubt(&mut self) -> bool {
        std::mem::take(&mut self.in_doubt)
    }

    /// When to call `next_write` again although nothing was observed.
    pub fn next_deadline(&self) -> Option<Instant> {
        let paused = self.not_before.iter().filter(|(subject, _)| self.dirty.contains(*subject)).map(|(_, at)| *at);
        paused.chain(self.probes.next_deadline()).min()
    }

    fn service_changed(&mut self, view: ServiceView) {
        let (key, uid, sharing) = (view.key.clone(), view.uid.clone(), view.sharing());
        let before = self.services.get(&key).cloned();
        let cluster_ips = view.cluster_ips.clone();
        if !self.services.apply(key.clone(), &uid, view.version, view) {
            return;
        }
        self.cluster_ips_changed(&key, before.as_ref(), &cluster_ips);
        self.at_nodes.service_changed(&key, self.services.get(&key), before.as_ref());
        if let Some(before) = before.filter(|before| before.uid != uid) {
            self.service_gone(&key, Some(before));
        }
        self.count(&key);
        self.mark_service(&key);
        self.mark_held(&uid);
        if self.allocator.set_sharing(&uid, sharing) {
            self.mark_sharers(&uid);
        }
    }

    fn service_gone(&mut self, key: &ServiceKey, view: Option<ServiceView>) {
        self.forget_standing(key);
        self.count(key);
        self.at_nodes.service_changed(key, None, view.as_ref());
        self.cluster_ips_changed(key, view.as_ref(), &[]);
        if let Some(view) = view {
            let subject = Subject::Service(view.created, key.clone());
            self.forget_retries(&subject);
            self.mark_held(&view.uid);
            self.dirty.extend(self.allocator.reservations_of(&view.uid).into_iter().map(Subject::Address));
            if self.allocator.set_sharing(&view.uid, None) {
                self.mark_sharers(&view.uid);
            }
        }
    }

    fn grant_changed(&mut self, view: GrantView) {
        let address = view.address;
        let known = self.grants.get(&address).cloned();
        if !self.grants.apply(address, &view.uid, view.version, view.clone()) {
            return;
        }
        // The owner reports itself in the status every now and then: nothing for us, except what it does not serve. An administrator may
        // move its Services to another pool.
        if let Some(known) = known
            && (known.uid == view.uid && known.pool == view.pool && known.services == view.services)
            && known.announced == view.announced
        {
            if (&known.partly, &known.move_to) != (&view.partly, &view.move_to) {
                view.services.iter().for_each(|service| self.mark_service(&ServiceKey::from(service)));
            }
            return;
        }
        self.mark_advertisements();
        self.probes.look();
        let before = self.allocator.granted(address, view.pool.clone(), view.services.clone());
        self.dirty.insert(Subject::Address(address));
        self.dirty.extend(self.allocator.taken(address).map(|taken| Subject::Pool(taken.pool.clone())));
        self.dirty.insert(Subject::Pool(view.pool));
        for service in before.iter().chain(&view.services) {
            self.count(&ServiceKey::from(service));
            self.mark_service(&ServiceKey::from(service));
        }
    }

    fn grant_gone(&mut self, address: IpAddr) {
        self.mark_advertisements();
        self.probes.look();
        let subject = Subject::Address(address);
        self.dirty.remove(&subject);
        self.unconfirmed.remove(&address);
        self.forget_retries(&subject);
        self.dirty.extend(self.allocator.taken(address).map(|taken| Subject::Pool(taken.pool.clone())));
        self.at_nodes.pooled_is_gone();
        for service in self.allocator.forget(address) {
            self.count(&ServiceKey::from(&service));
            self.mark_service(&ServiceKey::from(&service));
        }
        self.mark_reserved(address);
        self.mark_waiting();
    }

    fn pools_changed(&mut self) {
        self.allocator.set_pools(self.pools.iter().map(|(_, view)| view));
        self.guards_outdated = true;
        self.probes.look();
        self.look_at_everything();
    }

    /// Services that wait may be given an address now. What is granted stays.
    fn namespace_changed(&mut self, name: &str, labels: Option<Labels>) {
        if self.allocator.set_namespace(name, labels) {
            let waiting = self.waiting.keys().chain(&self.beside).filter(|key| key.namespace == name);
            let waiting: Vec<ServiceKey> = waiting.cloned().collect();
            waiting.iter().for_each(|service| self.mark_service(service));
        }
    }

    fn list_complete(&mut self, kind: Kind, version: u64) {
        match kind {
            Kind::Services => {
                for (key, view) in self.services.complete(version) {
                    self.forget_standing(&key);
                    self.count(&key);
                    self.at_nodes.service_changed(&key, None, Some(&view));
                    self.cluster_ips_changed(&key, Some(&view), &[]);
                }
                self.forget_sharing();
                // Grants of Services that are gone are marked here, because no event of their Service comes.
                self.dirty.extend(self.grants.iter().map(|(address, _)| Subject::Address(*address)));
                self.dirty.extend(self.allocator.reservations().map(Subject::Address));
            }
            Kind::Pools => {
                if !self.pools.complete(version).is_empty() {
                    self.pools_changed();
                }
            }
            Kind::Advertisements => {
                if !self.advertisements.complete(version).is_empty() {
                    self.advertisements_changed();
                }
            }
            Kind::Grants => {
                for (_, grant) in self.at_nodes.grants.complete(version) {
                    self.at_nodes.outdated = true;
                    grant.services.iter().for_each(|service| self.count(&ServiceKey::from(service)));
                }
                for (address, _) in self.grants.complete(version) {
                    self.grant_gone(address);
                }
            }
            Kind::Probes => drop(self.probes.objects.complete(version)),
            Kind::Namespaces => {
                for (name, _) in self.namespaces.complete(version) {
                    self.namespace_changed(&name, None);
                }
            }
        }
    }

    /// Of Services that are gone without an event.
    fn forget_sharing(&mut self) {
        let known: BTreeSet<&str> = self.services.iter().map(|(_, service)| service.uid.as_str()).collect();
        self.allocator.retain_sharing(|uid| known.contains(uid));
    }

    fn forget_standing(&mut self, service: &ServiceKey) {
        self.waiting.remove(service);
        self.partly.remove(service);
        self.left.remove(service);
        self.prepared.remove(service);
        self.beside.remove(service);
        self.corrections.remove(service);
    }

    fn forget_retries(&mut self, subject: &Subject) {
        self.failures.remove(subject);
        self.not_before.remove(subject);
    }
}
