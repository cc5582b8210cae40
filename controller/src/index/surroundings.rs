//! Pure: what lies around Services and pools: guards, other owners, objects that cannot be read. All of it must be known before anything
//! is planned, and everything is planned anew when it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sheave_api::{AddressMode, MOVE_ANNOTATION, Refusal, excerpt, virtual_ip_address, virtual_ip_name};

use super::{Index, Kind, Observed};
use crate::family::Family;
use crate::guards::Source;
use crate::request::{self, Claim, Refused};
use crate::view::{ServiceKey, ServiceView};
use crate::whose::{Evidence, Whose};

impl Index {
    /// Whether a full list of every kind was seen.
    pub fn is_synced(&self) -> bool {
        self.unread().is_none()
    }

    /// The first kind of objects of which no full list was seen.
    pub fn unread(&self) -> Option<&'static str> {
        self.all_unread().next()
    }

    fn all_unread(&self) -> impl Iterator<Item = &'static str> {
        let kinds = Kind::ALL.into_iter().filter(|kind| !self.is_listed(*kind)).map(Kind::as_str);
        let groups = self.api_groups.is_none().then_some("API groups");
        kinds.chain(self.guards.unread().map(Source::as_str)).chain(groups)
    }

    /// Whether a full list of this kind was seen.
    pub(super) fn is_listed(&self, kind: Kind) -> bool {
        match kind {
            Kind::Services => self.services.is_synced(),
            Kind::Pools => self.pools.is_synced(),
            Kind::Grants => self.grants.is_synced(),
            Kind::Namespaces => self.namespaces.is_synced(),
            Kind::Advertisements => self.advertisements.is_synced(),
            Kind::Probes => self.probes.objects.is_synced(),
        }
    }

    /// Whether this is the end of a list of unknown age: a watch was begun anew, perhaps with another API server, whose state may be older
    /// than what is known. Nothing is gone because it is not in there.
    pub(super) fn leaves_doubt(&self, fact: &Observed) -> bool {
        matches!(fact, Observed::Complete(kind, 0) if *kind != Kind::Probes && self.is_listed(*kind))
    }

    /// Kinds of objects that this replica's account may not read and that were never read, with what the API server says. One that is
    /// taken away later is in the log: what was read stays known.
    pub fn denied(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.all_unread().filter_map(|kind| Some((kind, self.denied.get(kind)?.as_str())))
    }

    /// What a Service is to us, and what it wants.
    pub(crate) fn claim(&self, service: &ServiceView) -> Claim {
        let listed = self.allocator.is_listed(&service.uid) || self.at_nodes.is_listed(&service.uid);
        // An annotation of ours asks for us: klipper-lb's status, if it was there before, is none of another owner's.
        let asked = service.mode == Ok(Some(AddressMode::Node));
        let adoptable = || asked || self.at_nodes.are_of_nodes(service) || self.is_adoptable(service);
        match self.whose.judge(service, listed, adoptable) {
            Whose::Foreign => Claim::Foreign,
            Whose::Others(who) => Claim::Others(who),
            Whose::Ours => self.moved(service, request::claim(service, self.unsaid_mode(service))),
        }
    }

    /// The mode of a Service without the annotation: the cluster's. Not of one that names a pool or an address, nor of one that has an
    /// address from a pool, or is to have it back: a flag moves nothing.
    fn unsaid_mode(&self, service: &ServiceView) -> AddressMode {
        let pooled = || {
            let named = service.pool.is_some() || service.addresses.is_some() || service.ambiguous.is_some();
            named || self.allocator.is_listed(&service.uid) || self.is_adoptable(service)
        };
        match self.at_nodes.unsaid {
            AddressMode::Node if !pooled() => AddressMode::Node,
            AddressMode::Node | AddressMode::Pool => AddressMode::Pool,
        }
    }

    /// What the Service wants, where the ledger has it moved to another pool. What the Service itself names stays so.
    fn moved(&self, service: &ServiceView, claim: Claim) -> Claim {
        let Claim::Wanted(mut requests) = claim else { return claim };
        for request in &mut requests {
            let held = self.allocator.held_by(&service.uid).filter(|address| Family::of(*address) == request.family);
            let mut ordered = held.filter_map(|address| Some((address, self.grants.get(&address)?.move_to.clone()?)));
            let Some((address, to)) = ordered.next() else { continue };
            let named = match (&request.address, &request.pool) {
                (Some(wanted), _) if *wanted == address => format!("address {wanted}"),
                // It moves there by itself.
                (Some(_), _) => continue,
                (None, Some(pool)) if *pool != to => format!("pool '{}'", excerpt(pool)),
                (None, _) => {
                    request.pool = Some(to);
                    continue;
                }
            };
            let message = format!(
                "{MOVE_ANNOTATION} of VirtualIP {} moves it to pool '{}', and the Service names {named}",
                virtual_ip_name(address),
                excerpt(&to)
            );
            return Claim::Refused(Refused { reason: Refusal::AddressAmbiguous, message });
        }
        Claim::Wanted(requests)
    }

    /// Whether the Service gets, or has, the addresses that its status shows.
    fn is_adoptable(&self, service: &ServiceView) -> bool {
        let Claim::Wanted(requests) = request::claim(service, AddressMode::Pool) else { return false };
        let has: BTreeSet<IpAddr> = self.allocator.decide_all(&requests).has().collect();
        has == service.shown_of(Family::V4).into_iter().collect() && !has.is_empty()
    }

    /// Makes the guards anew if something about them has changed, and marks everything if that matters.
    pub(crate) fn refresh_surroundings(&mut self) {
        if !std::mem::take(&mut self.guards_outdated) {
            return;
        }
        self.at_nodes.set_hosts(self.guards.hosts());
        let mut set = self.guards.set(&self.allocator.entries());
        self.probes.set_segments(self.guards.segments());
        self.probes.guard(&mut set);
        let groups = self.api_groups.iter().flatten().copied();
        let evidence = groups.chain(self.guards.other_owners()).collect();
        if self.allocator.set_guards(set) | self.whose.set_evidence(evidence) {
            self.look_at_everything();
        }
    }

    pub(super) fn cluster_ips_changed(&mut self, key: &ServiceKey, before: Option<&ServiceView>, now: &[IpAddr]) {
        let before = before.map_or(&[][..], |view| &view.cluster_ips);
        self.guards_outdated |= self.guards.set_cluster_ips(key, before, now);
    }

    /// The object stays as it was known, and is reported.
    pub(super) fn cannot_read(&mut self, kind: Kind, name: String) {
        match kind {
            Kind::Services => {
                if let Some((namespace, name)) = name.split_once('/') {
                    self.services.touch(&ServiceKey { namespace: namespace.into(), name: name.into() });
                }
            }
            Kind::Pools => self.pools.touch(&name),
            Kind::Namespaces => self.namespaces.touch(&name),
            Kind::Advertisements => self.advertisements.touch(&name),
            Kind::Probes => self.probes.objects.touch(&name),
            Kind::Grants => {
                if let Some(address) = virtual_ip_address(&name) {
                    self.grants.touch(&address);
                    if self.allocator.taken(address).is_none() && !self.at_nodes.touch(address) {
                        // Whoever has it.
                        self.allocator.granted(address, String::new(), vec![]);
                    }
                }
            }
        }
        self.unreadable.insert((kind, name), true);
    }

    /// Takes an object off the list of those that cannot be read when it can be, or is gone.
    pub(super) fn now_readable(&mut self, fact: &Observed) {
        if self.unreadable.is_empty() {
            return;
        }
        let readable = match fact {
            Observed::Service(ServiceView { key, .. }) | Observed::ServiceGone(key, _) => {
                (Kind::Services, key.to_string())
            }
            Observed::Pool(view) => (Kind::Pools, view.name.clone()),
            Observed::PoolGone(name, _) => (Kind::Pools, name.clone()),
            Observed::Namespace(view) => (Kind::Namespaces, view.name.clone()),
            Observed::NamespaceGone(name, _) => (Kind::Namespaces, name.clone()),
            Observed::Advertisement(view) => (Kind::Advertisements, view.name.clone()),
            Observed::AdvertisementGone(name, _) => (Kind::Advertisements, name.clone()),
            Observed::Probe(view) => (Kind::Probes, view.node.clone()),
            Observed::ProbeGone(node, _) => (Kind::Probes, node.clone()),
            Observed::Grant(view) => (Kind::Grants, virtual_ip_name(view.address)),
            Observed::GrantGone(address, _) | Observed::Released(address, _) => {
                (Kind::Grants, virtual_ip_name(*address))
            }
            Observed::Begin(kind) => {
                self.unreadable
                    .iter_mut()
                    .filter(|((other, _), _)| other == kind)
                    .for_each(|(_, listed)| *listed = false);
                return;
            }
            Observed::Complete(kind, _) => return self.drop_unlisted(*kind),
            Observed::Unreadable(..) | Observed::Denied(..) | Observed::Guard(_) | Observed::ApiGroups(_) => return,
        };
        if self.unreadable.remove(&readable).is_some() {
            self.free_if_unknown(&readable);
        }
    }

    /// The full list is complete, and these were not in it.
    fn drop_unlisted(&mut self, kind: Kind) {
        let unlisted = self.unreadable.extract_if(.., |(other, _), listed| *other == kind && !*listed);
        let gone: Vec<(Kind, String)> = unlisted.map(|(object, _)| object).collect();
        gone.iter().for_each(|object| self.free_if_unknown(object));
    }

    /// An entry of the ledger that could not be read held its address.
    fn free_if_unknown(&mut self, (kind, name): &(Kind, String)) {
        if *kind == Kind::Grants
            && let Some(address) = virtual_ip_address(name)
            && self.grants.get(&address).is_none()
        {
            self.allocator.forget(address);
        }
    }

    pub(crate) fn is_unreadable(&self, service: &ServiceKey) -> bool {
        !self.unreadable.is_empty() && self.unreadable.contains_key(&(Kind::Services, service.to_string()))
    }

    /// How many objects of each kind cannot be read.
    pub fn unreadable(&self) -> BTreeMap<Kind, i64> {
        let mut counts: BTreeMap<Kind, i64> = Kind::ALL.into_iter().map(|kind| (kind, 0)).collect();
        self.unreadable.keys().for_each(|(kind, _)| *counts.entry(*kind).or_default() += 1);
        counts
    }

    /// Signs in the whole cluster that somebody else serves Services without a class.
    pub fn other_owners(&self) -> impl Iterator<Item = Evidence> {
        self.whose.others()
    }

    /// How many addresses of all pools are guarded, by reason.
    pub fn guarded(&self) -> BTreeMap<Refusal, u128> {
        let mut counts: BTreeMap<Refusal, u128> = BTreeMap::new();
        for (reason, count) in self.pools.iter().flat_map(|(name, _)| self.allocator.guarded(name)) {
            *counts.entry(reason).or_default() += count;
        }
        counts
    }

    /// What an operator is to know, each a line of `/readyz`.
    pub fn notes(&self) -> Vec<String> {
        let denied = self.denied().map(|(kind, said)| {
            format!(
                "not allowed to read {kind}, so no address is granted and this replica does not lead: {said}; \
                 the ClusterRole of this version has the right"
            )
        });
        let others = self.other_owners().map(|evidence| {
            format!(
                "Services without a class are left to another owner: {evidence} (--classless-services=always overrides)"
            )
        });
        let unreadable = self.unreadable.keys().take(NAMED);
        let unreadable = unreadable.map(|(kind, name)| format!("{} {name} cannot be read; skipped", kind.as_str()));
        denied.chain(others).chain(unreadable).chain(self.probes.notes()).collect()
    }
}

/// Unreadable objects that notes name; the metric counts all.
const NAMED: usize = 5;
