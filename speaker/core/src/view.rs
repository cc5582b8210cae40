//! What this node knows of the cluster: nodes, services, endpoints, granted addresses.
//!
//! Plain types, free of Kubernetes crates; the daemon converts. `handle` is synchronous and idempotent: the same event twice
//! changes nothing the second time. Everything has a limit; what is beyond it is counted and left out, never half stored.
//! Serialised as a list of objects, so that the last known state on disk passes through the same limits when it is read.
//! Read first: docs/architecture.md, flow (ii).

pub mod endpoints;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// The cluster as the API server last described it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Object>", into = "Vec<Object>")]
pub struct View {
    nodes: BTreeMap<String, Node>,
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, EndpointSlice>,
    vips: BTreeMap<Ipv4Addr, VirtualIp>,
    refused: Refused,
}

impl View {
    pub fn handle(&mut self, event: Event) -> Change {
        match event {
            Event::Apply(object) => self.apply(object),
            Event::Delete(key) => Change::from_difference(self.remove(&key)),
            Event::Relisted(kind, objects) => self.relist(kind, objects),
        }
    }

    pub fn nodes(&self) -> &BTreeMap<String, Node> {
        &self.nodes
    }

    pub fn services(&self) -> &BTreeMap<ObjectName, Service> {
        &self.services
    }

    pub fn slices(&self) -> &BTreeMap<ObjectName, EndpointSlice> {
        &self.slices
    }

    pub fn vips(&self) -> &BTreeMap<Ipv4Addr, VirtualIp> {
        &self.vips
    }

    /// How often a limit was reached, by limit.
    pub fn refused(&self) -> &Refused {
        &self.refused
    }

    /// Everything, in a fixed order.
    pub fn objects(&self) -> Vec<Object> {
        let nodes = self.nodes.iter().map(|(name, node)| Object::Node(name.clone(), node.clone()));
        let services = self.services.iter().map(|(name, service)| Object::Service(name.clone(), service.clone()));
        let slices = self.slices.iter().map(|(name, slice)| Object::EndpointSlice(name.clone(), slice.clone()));
        let vips = self.vips.iter().map(|(address, vip)| Object::VirtualIp(*address, vip.clone()));
        nodes.chain(services).chain(slices).chain(vips).collect()
    }

    fn apply(&mut self, object: Object) -> Change {
        if let Some(limit) = object.oversized() {
            // What was known of it is out of date, and what is true does not fit: leave it out altogether.
            self.remove(&object.key());
            return self.refuse(limit);
        }
        let kept = match object {
            Object::Node(name, node) => insert(&mut self.nodes, name, node, Limit::Nodes),
            Object::Service(name, service) => insert(&mut self.services, name, service, Limit::Services),
            Object::EndpointSlice(name, slice) => insert(&mut self.slices, name, slice, Limit::EndpointSlices),
            Object::VirtualIp(address, vip) => insert(&mut self.vips, address, vip, Limit::VirtualIps),
        };
        match kept {
            Ok(changed) => Change::from_difference(changed),
            Err(limit) => self.refuse(limit),
        }
    }

    fn remove(&mut self, key: &Key) -> bool {
        match key {
            Key::Node(name) => self.nodes.remove(name).is_some(),
            Key::Service(name) => self.services.remove(name).is_some(),
            Key::EndpointSlice(name) => self.slices.remove(name).is_some(),
            Key::VirtualIp(address) => self.vips.remove(address).is_some(),
        }
    }

    /// Deletes first, so that a full view has room for what replaced it.
    fn relist(&mut self, kind: Kind, objects: Vec<Object>) -> Change {
        let listed: alloc::collections::BTreeSet<Key> = objects.iter().map(Object::key).collect();
        let gone: Vec<Key> = self.keys(kind).into_iter().filter(|key| !listed.contains(key)).collect();
        let mut change = Change::from_difference(!gone.is_empty());
        for key in &gone {
            self.remove(key);
        }
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
            Kind::EndpointSlice => self.slices.keys().cloned().map(Key::EndpointSlice).collect(),
            Kind::VirtualIp => self.vips.keys().copied().map(Key::VirtualIp).collect(),
        }
    }

    fn refuse(&mut self, limit: Limit) -> Change {
        self.refused.count(limit);
        Change::Refused(limit)
    }
}

/// What is known, not how often a limit was reached on the way there.
impl PartialEq for View {
    fn eq(&self, other: &Self) -> bool {
        self.nodes == other.nodes
            && self.services == other.services
            && self.slices == other.slices
            && self.vips == other.vips
    }
}

impl Eq for View {}

impl From<Vec<Object>> for View {
    fn from(objects: Vec<Object>) -> Self {
        let mut view = Self::default();
        for object in objects {
            view.apply(object);
        }
        view
    }
}

impl From<View> for Vec<Object> {
    fn from(view: View) -> Self {
        view.objects()
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
    /// A limit was reached: the object is not in the view. Something else may have changed too.
    Refused(Limit),
}

impl Change {
    fn from_difference(different: bool) -> Self {
        if different { Self::Changed } else { Self::None }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    Node(String, Node),
    Service(ObjectName, Service),
    EndpointSlice(ObjectName, EndpointSlice),
    VirtualIp(Ipv4Addr, VirtualIp),
}

impl Object {
    pub fn key(&self) -> Key {
        match self {
            Self::Node(name, _) => Key::Node(name.clone()),
            Self::Service(name, _) => Key::Service(name.clone()),
            Self::EndpointSlice(name, _) => Key::EndpointSlice(name.clone()),
            Self::VirtualIp(address, _) => Key::VirtualIp(*address),
        }
    }

    fn oversized(&self) -> Option<Limit> {
        match self {
            Self::Service(_, service) if service.ports.len() > Limit::PortsPerObject.value() => {
                Some(Limit::PortsPerObject)
            }
            Self::EndpointSlice(_, slice) if slice.ports.len() > Limit::PortsPerObject.value() => {
                Some(Limit::PortsPerObject)
            }
            Self::EndpointSlice(_, slice) if slice.endpoints.len() > Limit::EndpointsPerSlice.value() => {
                Some(Limit::EndpointsPerSlice)
            }
            Self::VirtualIp(_, vip) if vip.services.len() > Limit::ServicesPerVip.value() => {
                Some(Limit::ServicesPerVip)
            }
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    Node(String),
    Service(ObjectName),
    EndpointSlice(ObjectName),
    VirtualIp(Ipv4Addr),
}

impl Key {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Node(_) => Kind::Node,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::VirtualIp(_) => Kind::VirtualIp,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    Node,
    Service,
    EndpointSlice,
    VirtualIp,
}

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectName {
    pub namespace: String,
    pub name: String,
}

impl ObjectName {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The first IPv4 address of type InternalIP.
    pub address: Ipv4Addr,
    /// Condition Ready. For people; it moves no row (the API server learns of a loss after 40 s).
    pub ready: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub ports: Vec<Port>,
    pub affinity: Affinity,
}

/// A port of a Service (`port`, what clients use) or of an EndpointSlice (`port`, where the pod listens). The names match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Empty for the only port of a Service.
    pub name: String,
    pub port: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// As Kubernetes writes it; `None` for SCTP and what is not known.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            _ => None,
        }
    }

    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// sessionAffinity of a Service. Its timeout is not used: the choice is a hash, so it holds as long as the pods stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Affinity {
    #[default]
    None,
    ClientIp,
}

/// One EndpointSlice of address type IPv4.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Label `kubernetes.io/service-name`; the namespace is the slice's.
    pub service: String,
    pub ports: Vec<Port>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub address: Ipv4Addr,
    /// `nodeName`; an endpoint without one cannot be dispatched to.
    pub node: Option<String>,
    pub conditions: Conditions,
}

/// Conditions of an endpoint (KEP-1669, KEP-1672).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conditions {
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

impl Conditions {
    pub const READY: Self = Self { ready: true, serving: true, terminating: false };

    /// Absent conditions as discovery/v1 defines them: unknown readiness is ready, unknown serving is as ready, unknown
    /// terminating is not.
    pub fn from_optional(ready: Option<bool>, serving: Option<bool>, terminating: Option<bool>) -> Self {
        let ready = ready.unwrap_or(true);
        Self { ready, serving: serving.unwrap_or(ready), terminating: terminating.unwrap_or(false) }
    }
}

/// A granted address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualIp {
    pub pool: String,
    pub services: Vec<ObjectName>,
}

macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident, $label:literal, $value:expr;)*) => {
        /// What the view holds at most. The label is the metric label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Limit { $($(#[$doc])* $name,)* }

        impl Limit {
            pub const ALL: &'static [Limit] = &[$(Limit::$name),*];
            pub const fn label(self) -> &'static str { match self { $(Limit::$name => $label),* } }
            pub const fn value(self) -> usize { match self { $(Limit::$name => $value),* } }
        }
    };
}

limits! {
    /// Slot 0 of `NODES` is reserved.
    Nodes, "nodes", ebpf_common::MAX_NODES as usize - 1;
    Services, "services", ebpf_common::MAX_SERVICES as usize;
    EndpointSlices, "endpoint_slices", 4 * ebpf_common::MAX_SERVICES as usize;
    VirtualIps, "virtual_ips", ebpf_common::MAX_VIPS as usize;
    /// discovery/v1 allows 1000.
    EndpointsPerSlice, "endpoints_per_slice", 1000;
    /// discovery/v1 allows 20000 in a slice; nobody runs that many.
    PortsPerObject, "ports_per_object", 250;
    ServicesPerVip, "services_per_vip", 64;
}

/// How often each limit was reached.
#[derive(Clone, Debug, Default)]
pub struct Refused([u64; Limit::ALL.len()]);

impl Refused {
    pub fn get(&self, limit: Limit) -> u64 {
        self.0[limit as usize]
    }

    fn count(&mut self, limit: Limit) {
        self.0[limit as usize] += 1;
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
