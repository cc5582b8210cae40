//! Pure: Services whose ports are at addresses of nodes, among all that is known. What is to be follows from all of them together
//! ([`node_mode`]); here it meets the ledger: first that changes, then what Services show.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use sheave_api::{AddressMode, ServiceRef};

use super::{Entry, Index, SeenEntry, Subject, Write};
use crate::advertisements::Announced;
use crate::cache::Cache;
use crate::node_mode::{self, Granted, Held, Hosts, NODE_POOL, Outcome, Wanting};
use crate::request::Claim;
use crate::status;
use crate::view::{GrantView, Port, ServiceKey, ServiceView};

#[derive(Debug, Default)]
pub struct AtNodes {
    /// The ledger's entries for addresses of nodes.
    pub grants: Cache<Ipv4Addr, GrantView>,
    hosts: Hosts,
    /// What Services have that say nothing.
    pub unsaid: AddressMode,
    /// Services that ask for it, or say nothing where the cluster says it.
    services: BTreeSet<ServiceKey>,
    /// What follows from what was known when it was made.
    granted: Granted,
    /// It follows from what was known before.
    pub outdated: bool,
}

impl AtNodes {
    pub fn new(unsaid: AddressMode) -> Self {
        AtNodes { unsaid, ..AtNodes::default() }
    }

    /// Services that have no address from a pool any more may be at nodes, where the cluster says it.
    pub fn pooled_is_gone(&mut self) {
        self.outdated |= self.unsaid == AddressMode::Node;
    }

    pub fn set_hosts(&mut self, hosts: Hosts) {
        self.outdated |= self.hosts != hosts;
        self.hosts = hosts;
    }

    /// The Services that the ledger names at an address.
    fn named_at(&self, address: Ipv4Addr) -> Vec<ServiceRef> {
        self.grants.get(&address).map(|grant| grant.services.clone()).unwrap_or_default()
    }

    /// Whether the ledger names the Service at a node.
    pub fn is_listed(&self, uid: &str) -> bool {
        self.grants.iter().any(|(_, grant)| names(grant, uid))
    }

    pub fn service_changed(&mut self, key: &ServiceKey, now: Option<&ServiceView>, before: Option<&ServiceView>) {
        let asks = |view: &ServiceView| {
            let said = view.mode.as_ref().is_ok_and(|mode| mode.unwrap_or(self.unsaid) == AddressMode::Node);
            said && view.load_balancer
        };
        let is_there = now.is_some_and(asks);
        let known = if is_there { !self.services.insert(key.clone()) } else { self.services.remove(key) };
        let node_ports = |view: Option<&ServiceView>| view.map_or(Vec::new(), |view| view.node_ports.clone());
        // NodePorts of others count only where they can be in the way.
        self.outdated |= is_there || known || !self.services.is_empty() && node_ports(now) != node_ports(before);
    }

    /// Whether the status shows addresses of nodes alone, and the cluster says that it may: klipper-lb's.
    pub fn are_of_nodes(&self, service: &ServiceView) -> bool {
        let of_node = |address: &Ipv4Addr| {
            self.hosts.values().any(|host| host.internal.contains(address) || host.external.contains(address))
        };
        let shown = service.shown_alone().filter(|_| self.unsaid == AddressMode::Node && service.mode == Ok(None));
        shown.is_some_and(|shown| shown.iter().all(of_node))
    }

    /// The entry of this address is still there, if it was.
    pub fn touch(&mut self, address: IpAddr) -> bool {
        let IpAddr::V4(address) = address else { return false };
        self.grants.touch(&address);
        self.grants.get(&address).is_some()
    }

    /// The addresses at which the ledger names the Service with this uid.
    pub fn listing(&self, uid: &str) -> impl Iterator<Item = Ipv4Addr> {
        self.grants.iter().filter(move |(_, grant)| names(grant, uid)).map(|(address, _)| *address)
    }

    /// What the status of a Service shows of addresses at which the ledger names it. `None`: the ledger names it nowhere.
    pub fn shown(&self, service: &ServiceView) -> Option<Vec<Ipv4Addr>> {
        let listed: Vec<Ipv4Addr> = self.listing(&service.uid).collect();
        (!listed.is_empty()).then(|| listed.into_iter().filter(|address| service.shows(*address)).collect())
    }

    /// What the ledger is to say of an address: its node, and the Services.
    fn wanted(&self, address: Ipv4Addr) -> Option<(&String, &Vec<ServiceRef>)> {
        let has = |host: &node_mode::Host| host.internal.contains(&address) || host.external.contains(&address);
        let (node, _) = self.hosts.iter().find(|(_, host)| has(host))?;
        Some((node, self.granted.nodes.get(node)?))
    }

    /// As the ledger has them, by node.
    fn held(&self) -> Held {
        let mut held = Held::new();
        for (_, grant) in self.grants.iter() {
            let Some(node) = &grant.node else { continue };
            let services = held.entry(node.clone()).or_default();
            services.extend(grant.services.iter().filter(|one| !services.contains(one)).cloned().collect::<Vec<_>>());
        }
        held
    }
}

impl Index {
    pub(super) fn node_grant_changed(&mut self, view: GrantView) {
        // None is written by us.
        let IpAddr::V4(address) = view.address else { return };
        let before = self.at_nodes.named_at(address);
        if self.at_nodes.grants.apply(address, &view.uid.clone(), view.version, view) {
            self.node_ledger_changed(address, before);
        }
    }

    pub(super) fn node_grant_gone(
        &mut self,
        address: IpAddr,
        remove: impl FnOnce(&mut Cache<Ipv4Addr, GrantView>, &Ipv4Addr) -> bool,
    ) {
        if let IpAddr::V4(address) = address {
            let before = self.at_nodes.named_at(address);
            if remove(&mut self.at_nodes.grants, &address) {
                self.at_nodes.outdated = true;
                self.node_ledger_changed(address, before);
            }
        }
    }

    fn node_ledger_changed(&mut self, address: Ipv4Addr, before: Vec<ServiceRef>) {
        let now = self.at_nodes.named_at(address);
        if now != before {
            self.at_nodes.outdated = true;
            before.iter().chain(&now).for_each(|service| self.count(&ServiceKey::from(service)));
        }
    }

    /// Makes anew what follows from Services, nodes and ledger, and marks whatever may be otherwise.
    pub(crate) fn refresh_at_nodes(&mut self) {
        if !std::mem::take(&mut self.at_nodes.outdated) {
            return;
        }
        let known = self.at_nodes.services.iter().filter_map(|key| self.services.get(key));
        let wanting: Vec<Wanting> = known
            .filter_map(|service| match self.claim(service) {
                Claim::AtNodes(wanting) => Some(wanting),
                _ => None,
            })
            .collect();
        if wanting.is_empty() && self.at_nodes.grants.len() == 0 && self.at_nodes.granted == Granted::default() {
            return;
        }
        let node_ports: BTreeSet<Port> =
            self.services.iter().flat_map(|(_, service)| service.node_ports.iter().cloned()).collect();
        let room = self.room_at_nodes();
        let granted = node_mode::grant(&wanting, &self.at_nodes.hosts, &self.at_nodes.held(), &node_ports, room);
        self.at_nodes.granted = granted;
        let of_hosts = self.at_nodes.hosts.values().flat_map(|host| host.internal.iter().chain(&host.external));
        let addresses: BTreeSet<Ipv4Addr> =
            of_hosts.copied().chain(self.at_nodes.grants.iter().map(|(address, _)| *address)).collect();
        self.dirty.extend(addresses.into_iter().map(Subject::NodeAddress));
        let holders = self.at_nodes.grants.iter().flat_map(|(_, grant)| &grant.services).map(ServiceKey::from);
        let services: BTreeSet<ServiceKey> = holders.chain(self.at_nodes.services.iter().cloned()).collect();
        services.iter().for_each(|service| self.mark_service(service));
    }

    /// An entry of the ledger for an address of a node. What goes goes at once: a port is the node's again, whatever a status shows.
    pub(crate) fn plan_node_address(&mut self, address: Ipv4Addr) -> Option<Write> {
        let wanted = self.at_nodes.wanted(address).map(|(node, services)| (node.clone(), services.clone()));
        let Some(grant) = self.at_nodes.grants.get(&address) else {
            let (node, services) = wanted?;
            // An entry of another kind goes first.
            let taken = self.grants.get(&IpAddr::V4(address)).is_some();
            return (!taken).then_some(Write::GrantAtNode { address, node, services });
        };
        let entry = SeenEntry::from(grant);
        match wanted {
            Some((node, services)) if grant.node.as_ref() == Some(&node) => {
                let of = |services: Vec<ServiceRef>| Entry {
                    pool: NODE_POOL.to_string(),
                    services,
                    announced: Announced::default(),
                };
                let (from, to) = (of(grant.services.clone()), of(services));
                (from != to).then_some(Write::Amend { entry, from, to })
            }
            _ => Some(Write::Release(entry)),
        }
    }

    /// What a Service shows: of its addresses those that the ledger has.
    pub(crate) fn plan_at_nodes(&mut self, service: &ServiceView) -> Option<Write> {
        let outcome = self.at_nodes.granted.services.get(&service.key)?;
        let Outcome { addresses, refused } = outcome.clone();
        let refused = refused.or_else(|| self.without_place(&service.key).0);
        let is_listed =
            |address: &Ipv4Addr| self.at_nodes.grants.get(address).is_some_and(|grant| names(grant, &service.uid));
        let anywhere = self.at_nodes.granted.nodes.values().flatten().any(|one| one.uid == service.uid);
        let listed: Vec<Ipv4Addr> = addresses.iter().copied().filter(is_listed).collect();
        match &refused {
            Some(refused) => drop(self.waiting.insert(service.key.clone(), refused.reason)),
            None => drop(self.waiting.remove(&service.key)),
        }
        self.partly.remove(&service.key);
        self.beside.remove(&service.key);
        // An address from a pool that it had goes when the status shows it no more.
        self.mark_held(&service.uid);
        let may_empty = self.whose.may_empty(service);
        let still_listed = self.allocator.is_listed(&service.uid);
        if !anywhere {
            let refused = refused?;
            return status::refused(service, &refused, may_empty).map(Write::Status);
        }
        let is_new = service.condition.as_ref().is_none_or(|condition| !condition.allocated);
        if listed.len() < addresses.len() && (is_new || listed.is_empty()) {
            // Planned again when the ledger has them.
            return None;
        }
        let nodes = self.at_nodes.granted.nodes.values().filter(|all| all.iter().any(|one| one.uid == service.uid));
        let write = status::at_nodes(service, &listed, nodes.count(), refused.as_ref(), still_listed)?;
        let write = if self.whose.may_write(service) { Some(write) } else { write.without_ingress() };
        write.map(Write::Status)
    }
}

fn names(grant: &GrantView, uid: &str) -> bool {
    grant.services.iter().any(|service| service.uid == uid)
}
