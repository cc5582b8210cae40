//! What this node knows of the cluster: nodes, services, endpoints, granted addresses.
//!
//! Plain types, free of Kubernetes crates; the daemon converts. `handle` is synchronous and idempotent: the same event twice
//! changes nothing the second time. Everything has a limit; what is beyond it is counted and left out, never half stored.
//! Serialised as a list of objects, so that the last known state on disk passes through the same limits when it is read.
//! Read first: docs/architecture.md, flow (ii).

mod advertisement;
pub mod endpoints;
pub mod labels;
mod limit;
mod object;
mod parts;
pub mod place;
mod placement;
mod shared;
mod taking_part;
pub mod via;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use serde::{Deserialize, Serialize, Serializer};

use labels::NodeLabels;
use parts::Parts;
use place::Speakers;
use shared::Shared;

pub use crate::attributes::{Affinity, Prefix, ServiceAttributes, SourceRanges, TrafficPolicy};
pub use advertisement::{L2Advertisement, Preferred, is_like};
use limit::LeftOut;
pub use limit::{Limit, Refused};
pub use object::{
    Conditions, Endpoint, EndpointSlice, Key, Kind, Node, Object, ObjectName, Port, Protocol, Service, SpeakerState,
    VirtualIp,
};
pub use parts::Part;
pub use place::Place;
pub use placement::{Order, Placed, Placement, PlacementMode};

/// The cluster as the API server last described it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "Vec<Object>")]
pub struct View {
    nodes: BTreeMap<String, Node>,
    services: Shared<ObjectName, Service>,
    slices: Shared<ObjectName, Arc<EndpointSlice>>,
    vips: Shared<Ipv4Addr, VirtualIp>,
    advertisements: BTreeMap<String, L2Advertisement>,
    placements: BTreeMap<String, Placement>,
    /// Nodes that have, or have had, a speaker.
    speakers: Speakers,
    /// Made from the nodes and their SpeakerStates.
    beyond: BTreeSet<String>,
    /// Not on disk: the nodes have those that count.
    labels: NodeLabels,
    /// What is left out of Services that are served. Not on disk: it moves no packet.
    parts: Parts,
    refused: Refused,
    /// Not on disk either.
    left_out: LeftOut,
    /// It was on disk: no API server has confirmed it since.
    saved: bool,
}

impl View {
    pub fn handle(&mut self, event: Event) -> Change {
        let change = match event {
            Event::Apply(object) => self.apply(object),
            Event::Delete(key) => Change::from_difference(self.remove(&key)),
            Event::Relisted(kind, objects) => self.relist(kind, objects),
        };
        if change != Change::None {
            self.choose_speakers();
        }
        change
    }

    pub fn nodes(&self) -> &BTreeMap<String, Node> {
        &self.nodes
    }

    pub fn services(&self) -> &BTreeMap<ObjectName, Service> {
        &self.services
    }

    pub fn slices(&self) -> &BTreeMap<ObjectName, Arc<EndpointSlice>> {
        &self.slices
    }

    pub fn vips(&self) -> &BTreeMap<Ipv4Addr, VirtualIp> {
        &self.vips
    }

    /// As it was read from disk.
    #[must_use]
    pub fn saved(self) -> Self {
        Self { saved: true, ..self }
    }

    pub fn is_saved(&self) -> bool {
        self.saved
    }

    /// How often a limit was reached, by limit.
    pub fn refused(&self) -> &Refused {
        &self.refused
    }

    /// Everything, in a fixed order.
    pub fn objects(&self) -> Vec<Object> {
        self.each_object().collect()
    }

    fn each_object(&self) -> impl Iterator<Item = Object> {
        let nodes = self.nodes.iter().map(|(name, node)| Object::Node(name.clone(), node.clone()));
        let services = self.services.iter().map(|(name, service)| Object::Service(name.clone(), service.clone()));
        let slices =
            self.slices.iter().map(|(name, slice)| Object::EndpointSlice(name.clone(), EndpointSlice::clone(slice)));
        let vips = self.vips.iter().map(|(address, vip)| Object::VirtualIp(*address, vip.clone()));
        let advertisements = self.advertisements.iter();
        let advertisements = advertisements.map(|(name, one)| Object::L2Advertisement(name.clone(), one.clone()));
        let placements = self.placements.iter().map(|(name, one)| Object::Placement(name.clone(), one.clone()));
        let objects = nodes.chain(services).chain(slices).chain(vips).chain(advertisements);
        objects.chain(placements).chain(self.speakers.objects())
    }

    /// Limits for which something is left out now.
    pub fn limits_reached(&self) -> impl Iterator<Item = Limit> {
        self.left_out.limits()
    }

    fn apply(&mut self, object: Object) -> Change {
        if matches!(object, Object::Unreadable(_)) {
            return Change::None;
        }
        let key = object.key();
        let service = match &object {
            Object::EndpointSlice(_, slice) => Some(slice.service.clone()),
            _ => None,
        };
        let change = self.keep(object);
        match change {
            // One that is cut is there.
            Change::Refused(Limit::PortsPerObject) => self.left_out.insert(key, Limit::PortsPerObject, None),
            Change::Refused(limit) => self.left_out.insert(key, limit, service),
            Change::None | Change::Changed => drop(self.left_out.remove(&key)),
        }
        change
    }

    fn keep(&mut self, mut object: Object) -> Change {
        let too_many_ports = object.has_too_many_ports();
        let cut = object.cut();
        if let Some(limit) = object.oversized() {
            // What was known of it is out of date, and what is true does not fit: leave it out altogether.
            self.remove(&object.key());
            return self.refuse(limit);
        }
        let noted = match self.parts.note(&object, too_many_ports) {
            Ok(noted) => noted,
            Err(limit) => return self.refuse(limit),
        };
        let kept = match object {
            Object::Node(name, mut node) => {
                if self.speakers.has(&name) {
                    node.reported = 0;
                }
                let node = self.with_named_labels(&name, node);
                self.make_room(&name, &node);
                insert(&mut self.nodes, name, node, Limit::Nodes)
            }
            Object::Service(name, service) => self.services.insert(name, service, Limit::Services),
            Object::EndpointSlice(name, slice) => self.slices.insert(name, slice.into(), Limit::EndpointSlices),
            Object::NameSlice(name, _) => Ok(self.slices.remove(&name)),
            Object::VirtualIp(address, vip) => self.vips.insert(address, vip, Limit::VirtualIps),
            Object::L2Advertisement(name, advertisement) => {
                let kept = insert(&mut self.advertisements, name, advertisement, Limit::L2Advertisements);
                self.follow_advertisements();
                kept
            }
            Object::Placement(name, placement) => insert(&mut self.placements, name, placement, Limit::Placements),
            Object::SpeakerState(name, state) => {
                if let Some(node) = self.nodes.get_mut(&name) {
                    node.reported = 0;
                }
                self.speakers.insert(name, state)
            }
            Object::Unreadable(_) => Ok(false),
        };
        match kept.map_or_else(Some, |_| cut) {
            None => Change::from_difference(noted | kept.unwrap_or_default()),
            Some(limit) => self.refuse(limit),
        }
    }

    /// VIPs that may be served, and those that are addresses of nodes: no VIP may take a node off the network.
    pub fn divided_vips(&self) -> (Vec<Granted<'_>>, Vec<Granted<'_>>) {
        // Of one that was deleted the controller guards none either.
        let mut taken: BTreeSet<Ipv4Addr> = self.members().map(|(_, node)| node.address).collect();
        taken.extend(self.members().flat_map(|(_, node)| &node.aliases));
        let vips = self.vips.iter().filter(|(_, granted)| granted.node.is_none());
        vips.map(|(vip, granted)| (*vip, granted)).partition(|(vip, _)| !taken.contains(vip))
    }

    /// Addresses of nodes at which ports are granted, and those among them that the node does not have (any more).
    pub fn divided_node_addresses(&self) -> (Vec<Granted<'_>>, Vec<Granted<'_>>) {
        let has = |node: &String, address: &Ipv4Addr| {
            let node = self.nodes.get(node).filter(|node| !node.departed);
            node.is_some_and(|node| node.address == *address || node.aliases.contains(address))
        };
        let granted =
            self.vips.iter().filter_map(|(address, granted)| Some((*address, granted, granted.node.as_ref()?)));
        let (served, others): (Vec<_>, Vec<_>) = granted.partition(|(address, _, node)| has(node, address));
        let without_node = |all: Vec<(Ipv4Addr, _, _)>| all.into_iter().map(|(address, granted, _)| (address, granted));
        (without_node(served).collect(), without_node(others).collect())
    }

    /// Whether the address was granted as such, to Services.
    pub fn is_vip(&self, address: Ipv4Addr) -> bool {
        self.vips.get(&address).is_some_and(|granted| granted.node.is_none())
    }

    /// The first of [`Self::divided_vips`], without their grants.
    pub fn served_vips(&self) -> BTreeSet<Ipv4Addr> {
        self.divided_vips().0.into_iter().map(|(vip, _)| vip).collect()
    }

    /// A view that holds nothing but the SpeakerStates, L2Advertisements and Placements of this one.
    #[must_use]
    pub fn without_wait(&self) -> Self {
        let mut view = Self {
            speakers: self.speakers.clone(),
            advertisements: self.advertisements.clone(),
            placements: self.placements.clone(),
            ..Self::default()
        };
        view.follow_advertisements();
        view
    }

    /// Nodes that are in the cluster.
    pub fn members(&self) -> impl Iterator<Item = (&String, &Node)> {
        self.nodes.iter().filter(|(_, node)| !node.departed)
    }

    /// Whether this node is in the cluster.
    pub fn is_member(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|node| !node.departed)
    }

    /// Nodes of an earlier view that this one does not have are departed: their flows may live.
    pub fn carry_departed(&mut self, earlier: &Self) {
        for (name, node) in earlier.nodes.iter().filter(|(name, node)| !earlier.lacks_speaker(name, node)) {
            let taken = self.nodes.iter().any(|(known, at)| known == name || at.address == node.address);
            if !taken && self.nodes.len() < Limit::Nodes.value() {
                self.nodes.insert(name.clone(), Node { departed: true, ..node.clone() });
            }
        }
    }

    /// A node that is deleted keeps its place for its flows; one without a speaker has none. Whether that changed something.
    fn depart(&mut self, name: &str) -> bool {
        self.labels.forget(name);
        if self.nodes.get(name).is_some_and(|node| self.lacks_speaker(name, node)) {
            return self.nodes.remove(name).is_some();
        }
        self.nodes.get_mut(name).is_some_and(|node| !core::mem::replace(&mut node.departed, true))
    }

    /// The flows of a departed node are over. Whether there was such a node.
    pub fn forget_node(&mut self, name: &str) -> bool {
        let departed = self.nodes.get(name).is_some_and(|node| node.departed);
        departed && self.nodes.remove(name).is_some()
    }

    /// A departed node gives way to a new one, above all to one that has its address now.
    fn make_room(&mut self, name: &str, node: &Node) {
        let gives_way = |(other, known): (&String, &Node)| {
            (known.departed && known.address == node.address && other != name).then(|| other.clone())
        };
        let same_address = self.nodes.iter().find_map(gives_way);
        let full = self.nodes.len() >= Limit::Nodes.value() && !self.nodes.contains_key(name);
        let oldest = || self.nodes.iter().find(|(_, known)| known.departed).map(|(name, _)| name.clone());
        if let Some(gone) = same_address.or_else(|| oldest().filter(|_| full)) {
            self.nodes.remove(&gone);
        }
    }

    fn remove(&mut self, key: &Key) -> bool {
        let noted = self.parts.forget(key) | self.left_out.remove(key);
        noted
            | match key {
                Key::Node(name) => self.depart(name),
                Key::Service(name) => self.services.remove(name),
                Key::EndpointSlice(name) => self.slices.remove(name),
                Key::VirtualIp(address) => self.vips.remove(address),
                Key::L2Advertisement(name) => {
                    let removed = self.advertisements.remove(name).is_some();
                    self.follow_advertisements();
                    removed
                }
                Key::Placement(name) => self.placements.remove(name).is_some(),
                Key::SpeakerState(name) => self.speakers.remove(name),
            }
    }

    /// Deletes first, so that a full view has room for what replaced it.
    fn relist(&mut self, kind: Kind, objects: Vec<Object>) -> Change {
        let listed: alloc::collections::BTreeSet<Key> = objects.iter().map(Object::key).collect();
        let gone: Vec<Key> = self.keys(kind).into_iter().filter(|key| !listed.contains(key)).collect();
        let mut removed = self.left_out.retain(kind, &listed);
        for key in &gone {
            removed |= self.remove(key);
        }
        let mut change = Change::from_difference(removed);
        for object in objects {
            if object.key().kind() == kind {
                change = change.max(self.apply(object));
            }
        }
        change
    }

    fn keys(&self, kind: Kind) -> Vec<Key> {
        match kind {
            Kind::Node => self.nodes.keys().cloned().map(Key::Node).collect(),
            Kind::Service => self.services.keys().cloned().map(Key::Service).collect(),
            Kind::EndpointSlice => {
                let names = self.slices.keys().chain(self.parts.name_slices());
                names.cloned().map(Key::EndpointSlice).collect()
            }
            Kind::VirtualIp => self.vips.keys().copied().map(Key::VirtualIp).collect(),
            Kind::L2Advertisement => self.advertisements.keys().cloned().map(Key::L2Advertisement).collect(),
            Kind::Placement => self.placements.keys().cloned().map(Key::Placement).collect(),
            Kind::SpeakerState => self.speakers.names().cloned().map(Key::SpeakerState).collect(),
        }
    }

    fn refuse(&mut self, limit: Limit) -> Change {
        self.refused.count(limit);
        Change::Refused(limit)
    }
}

/// A VIP with its grant.
pub type Granted<'a> = (Ipv4Addr, &'a VirtualIp);

/// What is known, not how often a limit was reached on the way there, nor from where.
impl PartialEq for View {
    fn eq(&self, other: &Self) -> bool {
        self.nodes == other.nodes
            && self.services == other.services
            && self.slices == other.slices
            && self.vips == other.vips
            && self.advertisements == other.advertisements
            && self.placements == other.placements
            && self.speakers == other.speakers
    }
}

impl Eq for View {}

impl From<Vec<Object>> for View {
    fn from(objects: Vec<Object>) -> Self {
        let mut view = Self::default();
        for object in objects {
            view.apply(object);
        }
        view.choose_speakers();
        view
    }
}

/// One object after the other: a second copy of all is never in memory.
impl Serialize for View {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.each_object())
    }
}

/// What a watch reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Apply(Object),
    Delete(Key),
    /// A complete list of one kind: what is not in it is gone.
    Relisted(Kind, Vec<Object>),
}

/// What an event did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    None,
    Changed,
    /// A limit was reached: the object, or a part of it, is not in the view. Something else may have changed too.
    Refused(Limit),
}

impl Change {
    fn from_difference(different: bool) -> Self {
        if different { Self::Changed } else { Self::None }
    }
}

/// Whether this changed the map; `Err` if there is no room for a new key.
fn insert<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V, limit: Limit) -> Result<bool, Limit> {
    if let Some(known) = map.get_mut(&key) {
        let changed = *known != value;
        *known = value;
        return Ok(changed);
    }
    if map.len() >= limit.value() {
        return Err(limit);
    }
    map.insert(key, value);
    Ok(true)
}

#[cfg(test)]
pub(crate) mod example;
#[cfg(test)]
mod tests;
