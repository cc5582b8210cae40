//! Flows to VIPs as this node's conntrack has them, and which entries this node has to delete.
//!
//! Conntrack keeps sending a flow to its first pod, whatever the rules are later. So a flow is judged by its pod: [`Endpoints`]
//! knows the pods of the view. What deletes an entry and when: docs/backend.md.

use alloc::collections::{BTreeMap, BTreeSet};
use core::net::Ipv4Addr;

use ebpf_common::{FlowTuple, ServiceKey};

use crate::view::endpoints::{Frontend, Pod, frontends};
use crate::view::{Place, Protocol, View};

/// One entry of conntrack: TCP or UDP, addressed to a VIP, translated to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// As the client sends it: the dispatcher's hash of it is the flow's row.
    pub tuple: FlowTuple,
    /// The pod that gets it.
    pub pod: (Ipv4Addr, u16),
    /// `None` for UDP.
    pub tcp: Option<TcpState>,
    /// Both ends have sent, and more than a question and its answer (UDP: for longer than two seconds).
    pub assured: bool,
}

/// What conntrack makes of a TCP connection. Read first: kernel include/uapi/linux/netfilter/nf_conntrack_tcp.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TcpState {
    SynSent,
    SynRecv,
    Established,
    FinWait,
    CloseWait,
    LastAck,
    TimeWait,
    Close,
    /// Both ends have sent a SYN, or an unknown state.
    Other,
}

impl TcpState {
    /// From `CTA_PROTOINFO_TCP_STATE`.
    pub const fn from_kernel(state: u8) -> Self {
        match state {
            1 => Self::SynSent,
            2 => Self::SynRecv,
            3 => Self::Established,
            4 => Self::FinWait,
            5 => Self::CloseWait,
            6 => Self::LastAck,
            7 => Self::TimeWait,
            8 => Self::Close,
            _ => Self::Other,
        }
    }

    /// No end sends any more; the entry waits for its timeout.
    pub const fn is_closed(self) -> bool {
        matches!(self, Self::TimeWait | Self::Close)
    }
}

impl Flow {
    pub fn vip(&self) -> Ipv4Addr {
        self.tuple.dst.into()
    }

    pub fn is_closed(&self) -> bool {
        self.tcp.is_some_and(TcpState::is_closed)
    }

    fn service(&self) -> ServiceKey {
        ServiceKey { addr: self.tuple.dst, port: self.tuple.dst_port, proto: self.tuple.proto, pad: 0 }
    }
}

/// Where flows that are ours are sent to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destinations {
    pub vips: BTreeSet<Ipv4Addr>,
    /// At addresses of nodes: flows to their other ports, NodePorts among them, are not ours.
    pub node_ports: BTreeSet<ServiceKey>,
}

impl Destinations {
    pub fn has(&self, flow: &Flow) -> bool {
        self.vips.contains(&flow.vip()) || !self.node_ports.is_empty() && self.node_ports.contains(&flow.service())
    }

    /// All addresses among them.
    pub fn addresses(&self) -> BTreeSet<Ipv4Addr> {
        let of_nodes = self.node_ports.iter().map(|key| Ipv4Addr::from(key.addr));
        self.vips.iter().copied().chain(of_nodes).collect()
    }
}

impl From<BTreeSet<Ipv4Addr>> for Destinations {
    fn from(vips: BTreeSet<Ipv4Addr>) -> Self {
        Self { vips, node_ports: BTreeSet::new() }
    }
}

/// The pods that flows may stay with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    destinations: Destinations,
    /// Every pod of every service on any node, ready or not: kube-proxy's flows to a VIP, of this node's own processes, go to
    /// pods elsewhere and stay.
    pods: BTreeSet<Ipv4Addr>,
    /// Pods that still answer, by UDP port of a VIP.
    udp: Targets,
    /// Whether it answers or not.
    udp_named: Targets,
    /// Addresses of this node's pods, and of those that nodes translate for ([`Place::Via`]): any node may.
    here: BTreeSet<Ipv4Addr>,
    /// Which of them are named for a TCP port of a VIP, ready or not.
    tcp_here: Targets,
    /// While it is uncertain whether a pod that does not answer has ended: see [`super::Uncertainty`].
    uncertainty: bool,
}

type Targets = BTreeMap<ServiceKey, BTreeSet<(Ipv4Addr, u16)>>;

impl Endpoints {
    pub fn new(view: &View, node: &str) -> Self {
        Self::from_frontends(view, node, &frontends(view).0)
    }

    pub(super) fn from_frontends(view: &View, node: &str, frontends: &BTreeMap<ServiceKey, Frontend<'_>>) -> Self {
        let endpoints = || view.slices().values().flat_map(|slice| &slice.endpoints);
        let here = endpoints().filter(|endpoint| match view.place(endpoint) {
            Place::Node(of) => of == node,
            Place::Via => true,
            Place::Unknown => false,
        });
        let targets = |protocol: Protocol, chosen: &dyn Fn(&Pod<'_>) -> bool| -> Targets {
            let ports = frontends.iter().filter(|(key, _)| key.proto == protocol.number());
            let pods = |frontend: &Frontend<'_>| {
                frontend.pods.iter().filter(|pod| chosen(pod)).map(|pod| (pod.address, pod.port)).collect()
            };
            ports.map(|(key, frontend)| (*key, pods(frontend))).collect()
        };
        Self {
            destinations: Destinations { vips: view.served_vips(), node_ports: super::node_ports(view, frontends) },
            pods: endpoints().map(|endpoint| endpoint.address).collect(),
            udp: targets(Protocol::Udp, &|pod| pod.conditions.ready || pod.conditions.serving),
            udp_named: targets(Protocol::Udp, &|_| true),
            here: here.map(|endpoint| endpoint.address).collect(),
            tcp_here: targets(Protocol::Tcp, &|pod| pod.node == node),
            uncertainty: false,
        }
    }

    pub fn uncertain(self, uncertainty: bool) -> Self {
        Self { uncertainty, ..self }
    }

    /// Flows to other addresses are none of ours.
    pub(super) fn retain_vips(&mut self, served: &BTreeSet<Ipv4Addr>) {
        self.destinations.vips.retain(|vip| served.contains(vip));
    }

    /// Flows to these are ours to judge.
    pub fn destinations(&self) -> &Destinations {
        &self.destinations
    }

    /// The flow has no pod left. TCP stays with a pod for as long as the view lists it: a pod that stops serving closes its
    /// connections itself. UDP does not close, so it leaves a pod that stops serving (without [`super::Uncertainty`] of that) or
    /// whose port changed.
    pub fn lost(&self, flow: &Flow) -> bool {
        let gone = !self.pods.contains(&flow.pod.0);
        let udp = if self.uncertainty { &self.udp_named } else { &self.udp };
        let left = || udp.get(&flow.service()).is_some_and(|pods| !pods.contains(&flow.pod));
        self.destinations.has(flow) && (gone || left())
    }

    /// The pod, one of this node, is named for this TCP port, ready or not.
    pub fn names(&self, key: &ServiceKey, pod: &(Ipv4Addr, u16)) -> bool {
        self.tcp_here.get(key).is_some_and(|pods| pods.contains(pod))
    }

    /// A flow to a VIP that has its pod on this node.
    pub fn serves_here(&self, flow: &Flow) -> bool {
        self.destinations.has(flow) && self.here.contains(&flow.pod.0) && !self.lost(flow)
    }

    /// Whether this change can have orphaned any flow. If not, conntrack need not be scanned.
    pub fn lost_since(&self, before: &Endpoints) -> bool {
        let fewer =
            |(key, pods): (&ServiceKey, &BTreeSet<_>)| before.udp.get(key).is_none_or(|before| !before.is_subset(pods));
        let certain = before.uncertainty && !self.uncertainty;
        certain
            || !before.pods.is_subset(&self.pods)
            || !self.destinations.vips.is_subset(&before.destinations.vips)
            || !self.destinations.node_ports.is_subset(&before.destinations.node_ports)
            || self.udp.iter().any(fewer)
    }
}
