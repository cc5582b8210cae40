//! What the view is made of, free of Kubernetes crates.
//!
//! Read first: Kubernetes API, core/v1 Service and discovery/v1 EndpointSlice.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::labels::Labels;
use super::{L2Advertisement, Limit, Placement};
use crate::attributes::{ServiceAttributes, SourceRanges};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    Node(String, Node),
    Service(ObjectName, Service),
    EndpointSlice(ObjectName, EndpointSlice),
    /// An EndpointSlice of address type FQDN, and the Service that it is of. Nothing can be dispatched to a name.
    NameSlice(ObjectName, String),
    VirtualIp(Ipv4Addr, VirtualIp),
    L2Advertisement(String, L2Advertisement),
    Placement(String, Placement),
    /// Named like its node.
    SpeakerState(String, SpeakerState),
    /// One that is there, and that this version cannot read. What was read of it last stays.
    Unreadable(Key),
}

impl Object {
    pub fn key(&self) -> Key {
        match self {
            Self::Node(name, _) => Key::Node(name.clone()),
            Self::Service(name, _) => Key::Service(name.clone()),
            Self::EndpointSlice(name, _) | Self::NameSlice(name, _) => Key::EndpointSlice(name.clone()),
            Self::VirtualIp(address, _) => Key::VirtualIp(*address),
            Self::L2Advertisement(name, _) => Key::L2Advertisement(name.clone()),
            Self::Placement(name, _) => Key::Placement(name.clone()),
            Self::SpeakerState(name, _) => Key::SpeakerState(name.clone()),
            Self::Unreadable(key) => key.clone(),
        }
    }

    /// Leaves out what exceeds its limit where the rest is whole without it: one port too many never takes the others down, and one source
    /// range too many takes all of them away, as a list that cannot be read.
    pub(super) fn cut(&mut self) -> Option<Limit> {
        let exceeds = self.has_too_many_ports().then_some(Limit::PortsPerObject);
        match self {
            Self::Service(_, service) => {
                service.ports.truncate(Limit::PortsPerObject.value());
                cut_source_ranges(&mut service.attributes).or(exceeds)
            }
            Self::EndpointSlice(_, slice) => {
                slice.ports.truncate(Limit::PortsPerObject.value());
                exceeds
            }
            Self::Node(_, node) => cut_labels(&mut node.labels),
            _ => None,
        }
    }

    /// Of a Service or a slice.
    pub(super) fn has_too_many_ports(&self) -> bool {
        let ports = match self {
            Self::Service(_, service) => &service.ports,
            Self::EndpointSlice(_, slice) => &slice.ports,
            _ => return false,
        };
        ports.len() > Limit::PortsPerObject.value()
    }

    pub(super) fn oversized(&self) -> Option<Limit> {
        match self {
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
    SpeakerState(String),
    L2Advertisement(String),
    Placement(String),
}

impl Key {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Node(_) => Kind::Node,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::VirtualIp(_) => Kind::VirtualIp,
            Self::SpeakerState(_) => Kind::SpeakerState,
            Self::L2Advertisement(_) => Kind::L2Advertisement,
            Self::Placement(_) => Kind::Placement,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    Node,
    Service,
    EndpointSlice,
    VirtualIp,
    SpeakerState,
    L2Advertisement,
    Placement,
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
    /// When that changed last, in seconds of the API server's clock, which may be wrong: only whether it is another time counts.
    #[serde(default)]
    pub ready_since: i64,
    /// Label `node.kubernetes.io/exclude-from-external-load-balancers`: no new flows while another node serves.
    #[serde(default)]
    pub excluded: bool,
    /// `spec.unschedulable` (cordoned, being drained): it hands its VIPs over, and serves new flows for as long as it has ready pods.
    #[serde(default)]
    pub cordoned: bool,
    /// Its object was deleted. It gets no new flows and owns no VIP; flows that it has live on at the address it had last, until
    /// [`View::forget_node`](super::View::forget_node).
    #[serde(default)]
    pub departed: bool,
    /// All its other IPv4 addresses, of any type: no VIP may be one of them.
    #[serde(default)]
    pub aliases: BTreeSet<Ipv4Addr>,
    /// When its object was made, in seconds of the API server's clock.
    #[serde(default)]
    pub created: i64,
    /// When its kubelet reported last, in seconds of the kubelet's clock, coarsely. 0 for a node with a SpeakerState: it decides only
    /// about the others ([`super::place`]).
    #[serde(default)]
    pub reported: i64,
    /// Those that an L2Advertisement names; on the way into the view, all.
    #[serde(default)]
    pub labels: Labels,
}

impl Node {
    /// A Ready node.
    pub fn at(address: Ipv4Addr) -> Self {
        Self {
            address,
            ready: true,
            ready_since: 0,
            excluded: false,
            cordoned: false,
            departed: false,
            aliases: BTreeSet::new(),
            created: 0,
            reported: 0,
            labels: Labels::new(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub ports: Vec<Port>,
    #[serde(flatten)]
    pub attributes: ServiceAttributes,
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
    /// `nodeName`. Where the endpoint stands: [`View::place`](super::View::place).
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

    /// Missing conditions as discovery/v1 defines them: unknown readiness is ready, unknown serving is as ready, unknown
    /// terminating is not.
    pub fn from_optional(ready: Option<bool>, serving: Option<bool>, terminating: Option<bool>) -> Self {
        let ready = ready.unwrap_or(true);
        Self { ready, serving: serving.unwrap_or(ready), terminating: terminating.unwrap_or(false) }
    }
}

/// That the node has, or has had, a speaker: each speaker makes one for its node, and only the Node's own deletion removes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpeakerState {
    /// In seconds of the API server's clock.
    pub created: i64,
    /// It serves nothing: the speaker of the API server endpoint serves the node.
    #[serde(default)]
    pub stands_by: bool,
    /// The name of its uplink; `None` until it has reported one.
    #[serde(default)]
    pub uplink: Option<String>,
    /// Of its uplink: whence it sends.
    #[serde(default)]
    pub addresses: Vec<Ipv4Addr>,
}

/// A granted address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualIp {
    pub pool: String,
    pub services: Vec<ObjectName>,
    /// Of the object: an address that is taken back and granted again at once is another object, with an empty status.
    #[serde(default)]
    pub uid: String,
    /// Names of the L2Advertisements that select it.
    #[serde(default)]
    pub advertisements: Vec<String>,
    /// No node is to own it.
    #[serde(default)]
    pub unannounced: bool,
    /// It is an address of this node, and stays so: ports of it are granted, not the address.
    #[serde(default)]
    pub node: Option<String>,
}

/// Then no client is admitted: half a list helps nobody.
fn cut_source_ranges(attributes: &mut ServiceAttributes) -> Option<Limit> {
    let limit = Limit::RangesPerService;
    let ranges = attributes.source_ranges.as_mut().filter(|ranges| ranges.len() > limit.value())?;
    *ranges = SourceRanges::default();
    Some(limit)
}

/// The first ones in order, so that all nodes keep the same.
fn cut_labels(labels: &mut Labels) -> Option<Limit> {
    let limit = Limit::LabelsPerNode;
    let first = labels.keys().nth(limit.value()).cloned()?;
    labels.split_off(&first);
    Some(limit)
}
