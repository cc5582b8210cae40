//! View + this node -> what nftables does with packets that were dispatched here.
//!
//! [`Plan`] is the meaning, [`ruleset`] the text. Compare plans to learn whether anything changed.
//! Read first: docs/backend.md.

pub mod affinity;
pub mod flow;
pub mod lag;
pub mod parts;
pub mod place;
pub mod removal_grace;
pub mod ruleset;
pub mod udp_pin;
pub mod uncertainty;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use ebpf_common::ServiceKey;
use thiserror::Error;

use crate::forwarding::members::{has_started, is_last_resort, is_ready};
use crate::startup::Target;
use crate::view::endpoints::{Frontend, Pod, frontends};
use crate::view::{Protocol, ServiceAttributes, View};

pub use flow::{Destinations, Endpoints, Flow, TcpState};
pub use place::Place;
pub use removal_grace::RemovalGrace;
pub use udp_pin::UdpPins;
pub use uncertainty::Uncertainty;

/// Everything in the nftables table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub uplink: Uplink,
    /// Of this node on the segment, if the view has it: the origin of searches that begin here.
    pub address: Option<Ipv4Addr>,
    pub vips: BTreeSet<Ipv4Addr>,
    /// Service ports at addresses of nodes, whether a pod of this node serves them or not. Other ports of these addresses are the node's.
    pub node_ports: BTreeSet<ServiceKey>,
    /// Service ports with a pod on this node. All others of a VIP run into the guard.
    pub services: BTreeMap<ServiceKey, LocalPods>,
    /// Service ports that this node translates for its own clients, because kube-proxy does not ([`ruleset`]).
    pub inside: BTreeMap<ServiceKey, ClusterPods>,
    /// Those among them that no pod serves: the node's own clients are refused, as kube-proxy would.
    pub inside_refused: BTreeSet<ServiceKey>,
    /// Next hops for packets of flows that are unknown here, by the slot in the mark. Without this node.
    pub peers: BTreeMap<u16, Ipv4Addr>,
    /// The kernel can hand packets on (`CONFIG_NFT_DUP_IPV4`). If not, [`Plan::peers`] has no effect.
    pub second_chance: bool,
    /// UDP to an unserved port is dropped, not answered.
    pub udp_silent: bool,
    /// What kube-proxy in iptables mode accepts in the filter hook by this mark ([`ruleset::ACCEPT_MARK`] unless its rules have another).
    pub accept_mark: u32,
    /// UDP flows that keep their pod whatever conntrack has ([`udp_pin`]).
    pub udp_pins: udp_pin::Targets,
    /// Whose adverts and reports pass.
    pub adverts: Adverts,
    /// What is led to these is counted, by port of the addresses ([`ruleset::members`]).
    pub counted: BTreeSet<(u16, Ipv4Addr)>,
    /// The pods by which conntrack's flows are judged; not in the table.
    pub endpoints: Endpoints,
    /// New pods of this node that accept connections: they count as started once this plan is in force. Not in the table.
    pub starting: BTreeSet<Target>,
}

/// The UDP ports of the speakers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adverts {
    pub ports: BTreeSet<u16>,
    /// This cluster's id.
    pub cluster: u64,
    /// `None`: it is not known who the nodes are, and all may send.
    pub senders: Option<Senders>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Senders {
    pub addresses: BTreeSet<Ipv4Addr>,
    /// As nodes have stated them under their signature.
    pub macs: BTreeSet<[u8; 6]>,
}

/// The pods of this node that serve a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPods {
    pub attributes: ServiceAttributes,
    /// In order of address, never empty.
    pub pods: Vec<(Ipv4Addr, u16)>,
    /// None is ready and has started: these serve while they terminate, or have not started. New flows are theirs only where the ring
    /// names this node.
    pub last_resort: bool,
    /// Those that stand on no node: they get this node's address in place of the client's ([`crate::view::via`]).
    pub via: BTreeSet<(Ipv4Addr, u16)>,
    /// The Service, as its clients are recorded ([`affinity::service_hash`]).
    pub service: u64,
}

/// The pods of the cluster that serve a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterPods {
    pub attributes: ServiceAttributes,
    /// In order of address, never empty.
    pub pods: Vec<(Ipv4Addr, u16)>,
    /// Those that get this node's address in place of the client's, as in [`LocalPods::via`].
    pub via: BTreeSet<(Ipv4Addr, u16)>,
}

impl Plan {
    /// Chooses among this node's pods only: the dispatcher has already chosen the node. Ready pods that have started; if there are none,
    /// pods that serve while they terminate (KEP-1669): a dispatcher with an older view still sends new connections here. If there are none
    /// either, pods that have not started: no pod may have, anywhere.
    pub fn new(view: &View, node: &str, uplink: Uplink) -> Self {
        Self::of(view, &frontends(view).0, node, uplink)
    }

    /// The same, of the frontends of the view.
    pub fn of(view: &View, frontends: &BTreeMap<ServiceKey, Frontend<'_>>, node: &str, uplink: Uplink) -> Self {
        let endpoints = Endpoints::from_frontends(view, node, frontends);
        let mut services = BTreeMap::new();
        for (key, frontend) in frontends {
            let local = || frontend.pods.iter().filter(|pod| pod.node == node);
            let (pods, last_resort) = first_serving(local);
            if !pods.is_empty() {
                let via = local().filter(|pod| pod.via).map(target).filter(|pod| pods.contains(pod)).collect();
                let (attributes, service) = (frontend.attributes.clone(), affinity::service_hash(frontend.service));
                services.insert(*key, LocalPods { attributes, pods, last_resort, via, service });
            }
        }
        Self {
            uplink,
            address: view.nodes().get(node).map(|node| node.address),
            vips: view.served_vips(),
            node_ports: node_ports(view, frontends),
            services,
            inside: inside(frontends, |attributes| attributes.without_kube_proxy),
            inside_refused: inside_refused(frontends, |attributes| attributes.without_kube_proxy),
            peers: BTreeMap::new(),
            second_chance: true,
            udp_silent: false,
            accept_mark: ruleset::ACCEPT_MARK,
            udp_pins: BTreeMap::new(),
            adverts: Adverts::default(),
            counted: BTreeSet::new(),
            endpoints,
            starting: BTreeSet::new(),
        }
    }

    /// The same on a node that has no kube-proxy.
    pub fn without_kube_proxy(self, frontends: &BTreeMap<ServiceKey, Frontend<'_>>) -> Self {
        let (inside, inside_refused) = (inside(frontends, |_| true), inside_refused(frontends, |_| true));
        Self { inside, inside_refused, ..self }
    }

    /// Rules for no other VIPs than these, beside nodes' ports: what the node does not serve it must not touch.
    pub fn serving(mut self, vips: &BTreeSet<Ipv4Addr>) -> Self {
        let serves = |key: &ServiceKey| vips.contains(&key.addr.into()) || self.node_ports.contains(key);
        self.services.retain(|key, _| serves(key));
        self.inside.retain(|key, _| serves(key));
        self.inside_refused.retain(serves);
        self.vips.retain(|vip| vips.contains(vip));
        self.endpoints.retain_vips(vips);
        self
    }

    /// Whether packets to this service port are ours.
    pub fn has(&self, key: &ServiceKey) -> bool {
        self.vips.contains(&key.addr.into()) || self.node_ports.contains(key)
    }

    /// What is led to any of these, from here, is counted.
    pub fn counting(self, frontends: &BTreeMap<ServiceKey, Frontend<'_>>) -> Self {
        let of_port = |(key, frontend): (&ServiceKey, &Frontend<'_>)| {
            let port = u16::from_be_bytes(key.port);
            frontend.pods.iter().map(move |pod| (port, pod.address)).collect::<Vec<_>>()
        };
        let counted =
            frontends.iter().filter(|(key, _)| key.proto == Protocol::Tcp.number()).flat_map(of_port).collect();
        Self { counted, ..self }
    }

    pub fn with_peers(self, peers: BTreeMap<u16, Ipv4Addr>) -> Self {
        Self { peers, ..self }
    }
}

/// Name of a network interface that may stand in a ruleset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink(String);

/// Our own misuse: the name is configuration or comes from the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no interface name: 1 to 15 of A-Z a-z 0-9 . _ - @ : +, not \".\" or \"..\"")]
pub struct BadInterfaceName(String);

impl Uplink {
    /// Narrower than the kernel's rule (`dev_valid_name`, net/core/dev.c), which also lets pass what ends a quoted string.
    pub fn new(name: &str) -> Result<Self, BadInterfaceName> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@:+".contains(&byte);
        let valid = (1..=15).contains(&name.len()) && name.bytes().all(allowed) && name != "." && name != "..";
        if valid { Ok(Self(name.into())) } else { Err(BadInterfaceName(name.into())) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A packet that begins a flow or is of one that this node does not know, by what became of it. The label is the counter in nftables
/// and the metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guard {
    /// Begins a flow of a client outside the Service's source ranges: dropped.
    Source,
    /// Begins a flow of a client that could not be recorded ([`affinity::MAX_CLIENTS`]): its pod is the one of its hash.
    Unrecorded,
    /// Handed to the node that its mark names.
    Forwarded,
    /// No node knows the flow, and conntrack called the packet invalid where its search began: dropped.
    NoReset,
    /// Without a mark (XDP is not attached) and no beginning of a flow: dropped. It may be another node's.
    Unmarked,
    /// A SYN that another node dispatched here, and no rule: one of the tables is behind. Dropped; the client repeats it.
    Behind,
    /// TCP: answered with a reset.
    Reset,
    /// UDP: answered with ICMP port unreachable.
    Unreachable,
    /// UDP with [`Plan::udp_silent`]: dropped.
    Silent,
    /// An advert or report that no node has sent: dropped.
    Stranger,
    /// Conntrack cannot place it (bad checksum, contradictory state): dropped.
    Invalid,
    /// Anything else: dropped.
    Other,
}

impl Guard {
    pub const ALL: &'static [Guard] = &[
        Self::Source,
        Self::Unrecorded,
        Self::Forwarded,
        Self::NoReset,
        Self::Unmarked,
        Self::Behind,
        Self::Reset,
        Self::Unreachable,
        Self::Silent,
        Self::Stranger,
        Self::Invalid,
        Self::Other,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Source => "source_denied",
            Self::Unrecorded => "affinity_unrecorded",
            Self::Forwarded => "second_chance",
            Self::NoReset => "second_chance_no_reset",
            Self::Unmarked => "guard_unmarked",
            Self::Behind => "guard_behind",
            Self::Reset => "guard_reset",
            Self::Unreachable => "guard_unreachable",
            Self::Silent => "guard_silent",
            Self::Stranger => "advert_stranger",
            Self::Invalid => "guard_invalid",
            Self::Other => "guard_other",
        }
    }
}

/// The pods of these that serve, and whether they do as a last resort: none is ready and has started.
fn serving<'a, 'b: 'a, I: Iterator<Item = &'a Pod<'b>>>(pods: impl Fn() -> I) -> (Vec<(Ipv4Addr, u16)>, bool) {
    let chosen = |takes: fn(&Pod<'_>) -> bool| -> Vec<_> { pods().filter(|pod| takes(pod)).map(target).collect() };
    let mut serving = chosen(has_started);
    let last_resort = serving.is_empty();
    for takes in [is_last_resort, is_ready] {
        if serving.is_empty() {
            serving = chosen(takes);
        }
    }
    // Two nodes translate for an endpoint of no node; the pods are in order.
    serving.dedup();
    (serving, last_resort)
}

/// The same, as many as a chain takes.
fn first_serving<'a, 'b: 'a, I: Iterator<Item = &'a Pod<'b>>>(pods: impl Fn() -> I) -> (Vec<(Ipv4Addr, u16)>, bool) {
    let (mut serving, last_resort) = serving(pods);
    serving.truncate(MAX_PODS);
    (serving, last_resort)
}

/// Service ports of which a chain has the first [`MAX_PODS`] pods and others serve as well: on this node, or in the cluster where the
/// node translates for its own clients. Those others get no new flow from it.
pub fn crowded(
    frontends: &BTreeMap<ServiceKey, Frontend<'_>>,
    node: &str,
    no_kube_proxy: bool,
) -> BTreeSet<ServiceKey> {
    let exceeds = |frontend: &Frontend<'_>| {
        let local = || serving(|| frontend.pods.iter().filter(|pod| pod.node == node)).0.len() > MAX_PODS;
        let has_inside = no_kube_proxy || frontend.attributes.without_kube_proxy;
        let inside = || has_inside && serving(|| frontend.pods.iter()).0.len() > MAX_PODS;
        frontend.pods.len() > MAX_PODS && (local() || inside())
    };
    frontends.iter().filter(|(_, frontend)| exceeds(frontend)).map(|(key, _)| *key).collect()
}

fn node_ports(view: &View, frontends: &BTreeMap<ServiceKey, Frontend<'_>>) -> BTreeSet<ServiceKey> {
    let addresses: BTreeSet<Ipv4Addr> =
        view.divided_node_addresses().0.into_iter().map(|(address, _)| address).collect();
    frontends.keys().filter(|key| addresses.contains(&key.addr.into())).copied().collect()
}

fn inside(
    frontends: &BTreeMap<ServiceKey, Frontend<'_>>,
    chosen: impl Fn(&ServiceAttributes) -> bool,
) -> BTreeMap<ServiceKey, ClusterPods> {
    let of_service = |(key, frontend): (&ServiceKey, &Frontend<'_>)| {
        let (pods, _) = first_serving(|| frontend.pods.iter());
        let via = frontend.pods.iter().filter(|pod| pod.via).map(target).filter(|pod| pods.contains(pod)).collect();
        (!pods.is_empty()).then(|| (*key, ClusterPods { attributes: frontend.attributes.clone(), pods, via }))
    };
    frontends.iter().filter(|(_, frontend)| chosen(frontend.attributes)).filter_map(of_service).collect()
}

fn inside_refused(
    frontends: &BTreeMap<ServiceKey, Frontend<'_>>,
    chosen: impl Fn(&ServiceAttributes) -> bool,
) -> BTreeSet<ServiceKey> {
    let is_refused =
        |frontend: &Frontend<'_>| chosen(frontend.attributes) && serving(|| frontend.pods.iter()).0.is_empty();
    frontends.iter().filter(|(_, frontend)| is_refused(frontend)).map(|(key, _)| *key).collect()
}

fn target(pod: &Pod<'_>) -> (Ipv4Addr, u16) {
    (pod.address, pod.port)
}

/// Pods of one service port in one chain, in order of address. On one node kubelet's own default is 110 pods in all; a chain for clients
/// inside has those of the whole cluster.
pub const MAX_PODS: usize = 1024;

#[cfg(test)]
mod tests;
