//! The view, joined: which service port each VIP serves, and the pods behind it.
//!
//! One place for what both the dispatcher (which node?) and the backend (which pod?) must agree on.
//! Read first: KEP-1669 (terminating endpoints), discovery/v1 EndpointSlice ("consumers must de-duplicate").

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::{Ipv4Addr, SocketAddrV4};

use ebpf_common::ServiceKey;
use sha2::{Digest, Sha256};

use super::via::Via;
use super::{Conditions, Endpoint, EndpointSlice, ObjectName, Place, Port, Protocol, ServiceAttributes, View};
use crate::attributes::AttributesDigest;

/// One port of one VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend<'a> {
    pub service: &'a ObjectName,
    pub attributes: &'a ServiceAttributes,
    pub pods: Vec<Pod<'a>>,
}

/// A pod that serves a port, ready or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pod<'a> {
    pub address: Ipv4Addr,
    pub port: u16,
    pub node: &'a str,
    pub conditions: Conditions,
    /// It stands on no node, or on one without a speaker: this one translates for it, with its own address ([`super::via`]).
    pub via: bool,
    /// False for a new pod that has not accepted a connection yet ([`crate::startup`]). The view itself does not know.
    pub started: bool,
}

/// Why a service port or an endpoint has no part in it. The label is log field and metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The VirtualIP names a service that the view does not hold (yet).
    ServiceUnknown,
    /// Another service has this port of this VIP; the first in order of namespace and name keeps it.
    PortTaken,
    /// A pod's address that is no unicast address, or a VIP: nothing may be sent there.
    EndpointAddress,
    /// The endpoint names a node that the view does not hold, or none and there is no node to translate for it.
    EndpointNode,
    /// The VIP is an address of a node: serving it would take that node off the network.
    AddressOfNode,
    /// The VIP is an address of this host, though no node's object names it.
    AddressOfHost,
    /// The VIP is a gateway of this host.
    AddressOfGateway,
    /// Ports are granted at an address that its node does not have.
    NotAddressOfNode,
}

impl Reason {
    /// Not a service port or an endpoint is left out, but the VIP as such.
    pub const fn bars_vip(self) -> bool {
        matches!(self, Self::AddressOfNode | Self::AddressOfHost | Self::AddressOfGateway)
    }

    pub const fn label(self) -> &'static str {
        match self {
            Self::ServiceUnknown => "service_unknown",
            Self::PortTaken => "port_taken",
            Self::EndpointAddress => "endpoint_address",
            Self::EndpointNode => "endpoint_node",
            Self::AddressOfNode => "address_of_node",
            Self::AddressOfHost => "address_of_host",
            Self::AddressOfGateway => "address_of_gateway",
            Self::NotAddressOfNode => "not_address_of_node",
        }
    }
}

/// Something that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    pub vip: Ipv4Addr,
    pub service: ObjectName,
    pub reason: Reason,
    /// The port number or the endpoint's address.
    pub subject: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} ({}): {}", self.service, self.vip, self.subject, self.reason.label())
    }
}

/// Every port of every VIP, and of every address of a node where ports are granted, with its pods in order of address.
pub fn frontends(view: &View) -> (BTreeMap<ServiceKey, Frontend<'_>>, Vec<Refusal>) {
    let mut slices: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for (name, slice) in view.slices() {
        slices.entry((&name.namespace, &slice.service)).or_default().push(slice);
    }
    let candidates = Candidates { view, via: Via::new(view) };
    let mut frontends = BTreeMap::new();
    let mut refusals = BTreeSet::new();
    let (served, taken) = view.divided_vips();
    let (of_nodes, not_of_nodes) = view.divided_node_addresses();
    for (reason, refused) in [(Reason::AddressOfNode, taken), (Reason::NotAddressOfNode, not_of_nodes)] {
        for (vip, granted) in refused {
            let subject = alloc::format!("{vip}");
            let services = granted.services.iter().cloned();
            refusals.extend(services.map(|service| Refusal { vip, service, reason, subject: subject.clone() }));
        }
    }
    for (vip, granted) in served.into_iter().chain(of_nodes) {
        let names: BTreeSet<&ObjectName> = granted.services.iter().collect();
        for name in names {
            let mut refuse = |reason, subject: &dyn fmt::Display| {
                let subject = alloc::format!("{subject}");
                refusals.insert(Refusal { vip, service: name.clone(), reason, subject });
            };
            let Some(service) = view.services().get(name) else {
                refuse(Reason::ServiceUnknown, &vip);
                continue;
            };
            let slices = slices.get(&(name.namespace.as_str(), name.name.as_str())).map_or(&[][..], Vec::as_slice);
            for port in &service.ports {
                let key = service_key(vip, port.port, port.protocol);
                if frontends.contains_key(&key) {
                    refuse(Reason::PortTaken, &port.port);
                    continue;
                }
                let pods = candidates.pods(slices, port, &mut refuse);
                frontends.insert(key, Frontend { service: name, attributes: &service.attributes, pods });
            }
        }
    }
    (frontends, refusals.into_iter().collect())
}

/// Whether these stand on the same nodes, in the same condition, one for one: then they make the same members of a ring.
pub fn same_places(pods: &[Pod<'_>], others: &[Pod<'_>]) -> bool {
    let same = |(pod, other): (&Pod<'_>, &Pod<'_>)| {
        let alike = pod.conditions == other.conditions && pod.started == other.started;
        alike && (core::ptr::eq(pod.node, other.node) || pod.node == other.node)
    };
    pods.len() == others.len() && pods.iter().zip(others).all(same)
}

/// Where API servers listen: the endpoints of the Service `default/kubernetes`, which they write themselves. Ready ones only.
pub fn api_servers(view: &View) -> Vec<SocketAddrV4> {
    let slices =
        view.slices().iter().filter(|(name, slice)| name.namespace == "default" && slice.service == "kubernetes");
    let servers: BTreeSet<SocketAddrV4> = slices
        .flat_map(|(_, slice)| {
            let ports = slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
            let ready = slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready);
            ready.flat_map(move |endpoint| ports.clone().map(|port| SocketAddrV4::new(endpoint.address, port.port)))
        })
        .collect();
    servers.into_iter().collect()
}

/// Of what the view says about packets. Nodes compare it (`staleness`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// The nodes, and every frontend with its pods. Never 0. It travels: a change of what is hashed changes
    /// `wire::report::VERSION` as well, so that two versions are not compared.
    pub view: u64,
    /// The pods of each node that has any, with what they serve. These do not travel.
    pub pods: BTreeMap<String, u64>,
}

pub fn digests(view: &View, frontends: &BTreeMap<ServiceKey, Frontend<'_>>) -> Digests {
    let mut hash = Sha256::new();
    let mut pods_of: BTreeMap<&str, Sha256> = BTreeMap::new();
    for (name, node) in view.members() {
        hash.update(name);
        // No name has a 0 in it.
        hash.update([0]);
        hash.update(node.address.octets());
        hash.update([node.excluded.into()]);
    }
    for (key, Frontend { attributes, pods, .. }) in frontends {
        let (frontend, more) = frontend_bytes(key, attributes);
        hash.update(frontend);
        hash.update(&more);
        // Departed nodes are known only to those that have seen them go.
        let pods = || pods.iter().filter(|pod| view.is_member(pod.node));
        hash.update((pods().count() as u64).to_be_bytes());
        for pod in pods() {
            let bytes = pod_bytes(pod);
            let of_node = pods_of.entry(pod.node).or_default();
            of_node.update(frontend);
            of_node.update(&more);
            of_node.update(bytes);
            hash.update(bytes);
            hash.update(pod.node);
            hash.update([0]);
        }
    }
    let pods = pods_of.into_iter().map(|(node, hash)| (String::from(node), first_bytes(hash))).collect();
    Digests { view: first_bytes(hash).max(1), pods }
}

/// The second part is empty for a Service without younger attributes, and the first one says so.
fn frontend_bytes(key: &ServiceKey, attributes: &ServiceAttributes) -> ([u8; 8], Vec<u8>) {
    let ServiceKey { addr: [a, b, c, d], port: [high, low], proto, pad: _ } = *key;
    let AttributesDigest { affinity, more } = attributes.digest();
    let bits = u8::from(affinity) | u8::from(more.is_some()) << 1;
    ([a, b, c, d, high, low, proto, bits], more.map_or(Vec::new(), |more| more.to_be_bytes().into()))
}

fn pod_bytes(pod: &Pod<'_>) -> [u8; 9] {
    let Pod { address, port, conditions, node: _, via: _, started: _ } = pod;
    let ([a, b, c, d], [high, low]) = (address.octets(), port.to_be_bytes());
    let [ready, serving, terminating] = [conditions.ready, conditions.serving, conditions.terminating].map(u8::from);
    [a, b, c, d, high, low, ready, serving, terminating]
}

fn first_bytes(hash: Sha256) -> u64 {
    let digest: [u8; 32] = hash.finalize().into();
    let [a, b, c, d, e, f, g, h, ..] = digest;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

pub fn service_key(vip: Ipv4Addr, port: u16, protocol: Protocol) -> ServiceKey {
    ServiceKey { addr: vip.octets(), port: port.to_be_bytes(), proto: protocol.number(), pad: 0 }
}

/// Endpoints, and the nodes that serve them.
struct Candidates<'a> {
    view: &'a View,
    via: Via<'a>,
}

impl<'a> Candidates<'a> {
    fn pods(
        &self,
        slices: &[&'a EndpointSlice],
        port: &Port,
        refuse: &mut dyn FnMut(Reason, &dyn fmt::Display),
    ) -> Vec<Pod<'a>> {
        let mut endpoints: BTreeMap<(Ipv4Addr, u16), &Endpoint> = BTreeMap::new();
        for slice in slices {
            let listens = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            for listen in listens.map(|p| p.port) {
                for endpoint in &slice.endpoints {
                    let address = endpoint.address;
                    if !self.view.may_be_sent_to(address) || listen == 0 {
                        refuse(Reason::EndpointAddress, &address);
                        continue;
                    }
                    if self.view.place(endpoint) == Place::Unknown {
                        refuse(Reason::EndpointNode, &address);
                        continue;
                    }
                    // A pod may stand in two slices while the control plane moves it; the better state counts.
                    let known = endpoints.entry((address, listen)).or_insert(endpoint);
                    if self.rank(endpoint) > self.rank(known) {
                        *known = endpoint;
                    }
                }
            }
        }
        let mut pods = Vec::with_capacity(endpoints.len());
        for ((address, port), endpoint) in endpoints {
            let pod = |node, via| Pod { address, port, node, conditions: endpoint.conditions, via, started: true };
            match self.view.place(endpoint) {
                Place::Node(node) => pods.push(pod(node, false)),
                Place::Unknown => {}
                Place::Via => {
                    let before = pods.len();
                    pods.extend(self.via.nodes(address).map(|node| pod(node, true)));
                    if pods.len() == before {
                        refuse(Reason::EndpointNode, &address);
                    }
                }
            }
        }
        pods
    }

    fn rank(&self, endpoint: &'a Endpoint) -> (bool, bool, bool, bool) {
        let conditions = endpoint.conditions;
        let has_node = matches!(self.view.place(endpoint), Place::Node(_));
        (conditions.ready, conditions.serving, !conditions.terminating, has_node)
    }
}

impl View {
    /// Whether the address may be a pod's.
    pub(super) fn may_be_sent_to(&self, address: Ipv4Addr) -> bool {
        is_pod_address(address) && !self.is_vip(address)
    }
}

/// Kubernetes refuses these too (validation of EndpointSlice); what reaches the kernel's tables is checked here again.
fn is_pod_address(address: Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast())
}
