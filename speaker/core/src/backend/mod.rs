//! View + this node -> what nftables does with packets that were dispatched here.
//!
//! [`Plan`] is the meaning, [`ruleset`] the text. Compare plans to learn whether anything changed.
//! Read first: docs/backend.md.

pub mod affinity;
pub mod flow;
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

use crate::view::endpoints::{Frontend, Pod, frontends};
use crate::view::{ServiceAttributes, View};

pub use flow::{Endpoints, Flow, TcpState};
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
    /// Service ports with a pod on this node. All others of a VIP run into the guard.
    pub services: BTreeMap<ServiceKey, LocalPods>,
    /// Next hops for packets of flows that are unknown here, by the slot in the mark. Without this node.
    pub peers: BTreeMap<u16, Ipv4Addr>,
    /// The kernel can hand packets on (`CONFIG_NFT_DUP_IPV4`). If not, [`Plan::peers`] has no effect.
    pub second_chance: bool,
    /// UDP to an unserved port is dropped, not answered.
    pub udp_silent: bool,
    /// UDP flows that keep their pod whatever conntrack has ([`udp_pin`]).
    pub udp_pins: udp_pin::Targets,
    /// The pods by which conntrack's flows are judged; not in the table.
    pub endpoints: Endpoints,
}

/// The pods of this node that serve a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPods {
    pub attributes: ServiceAttributes,
    /// In order of address, never empty.
    pub pods: Vec<(Ipv4Addr, u16)>,
    /// None is ready: these serve while they terminate.
    pub last_resort: bool,
    /// Those that stand on no node: they get this node's address in place of the client's ([`crate::view::via`]).
    pub via: BTreeSet<(Ipv4Addr, u16)>,
    /// The Service, as its clients are recorded ([`affinity::service_hash`]).
    pub service: u64,
}

impl Plan {
    /// Chooses among this node's pods only: the dispatcher has already chosen the node. Ready pods; if there are none, pods that
    /// serve while they terminate (KEP-1669): a dispatcher with an older view still sends new connections here.
    pub fn new(view: &View, node: &str, uplink: Uplink) -> Self {
        Self::of(view, &frontends(view).0, node, uplink)
    }

    /// The same, of the frontends of the view.
    pub fn of(view: &View, frontends: &BTreeMap<ServiceKey, Frontend<'_>>, node: &str, uplink: Uplink) -> Self {
        let endpoints = Endpoints::from_frontends(view, node, frontends);
        let mut services = BTreeMap::new();
        for (key, frontend) in frontends {
            let local = || frontend.pods.iter().filter(|pod| pod.node == node);
            let ready = |pod: &&Pod<'_>| pod.conditions.ready && !pod.conditions.terminating;
            let last_resort = |pod: &&Pod<'_>| pod.conditions.serving && pod.conditions.terminating;
            let mut pods: Vec<_> = local().filter(ready).map(target).collect();
            let none_ready = pods.is_empty();
            if none_ready {
                pods = local().filter(last_resort).map(target).collect();
            }
            pods.truncate(MAX_LOCAL_PODS);
            if !pods.is_empty() {
                let via = local().filter(|pod| pod.via).map(target).filter(|pod| pods.contains(pod)).collect();
                let (attributes, service) = (frontend.attributes.clone(), affinity::service_hash(frontend.service));
                services.insert(*key, LocalPods { attributes, pods, last_resort: none_ready, via, service });
            }
        }
        Self {
            uplink,
            address: view.nodes().get(node).map(|node| node.address),
            vips: view.served_vips(),
            services,
            peers: BTreeMap::new(),
            second_chance: true,
            udp_silent: false,
            udp_pins: BTreeMap::new(),
            endpoints,
        }
    }

    /// Rules for no other VIPs than these: what the node does not serve it must not touch.
    pub fn serving(mut self, vips: &BTreeSet<Ipv4Addr>) -> Self {
        self.vips.retain(|vip| vips.contains(vip));
        self.services.retain(|key, _| vips.contains(&key.addr.into()));
        self.endpoints.retain_vips(vips);
        self
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
    /// TCP: answered with a reset.
    Reset,
    /// UDP: answered with ICMP port unreachable.
    Unreachable,
    /// UDP with [`Plan::udp_silent`]: dropped.
    Silent,
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
        Self::Reset,
        Self::Unreachable,
        Self::Silent,
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
            Self::Reset => "guard_reset",
            Self::Unreachable => "guard_unreachable",
            Self::Silent => "guard_silent",
            Self::Invalid => "guard_invalid",
            Self::Other => "guard_other",
        }
    }
}

fn target(pod: &Pod<'_>) -> (Ipv4Addr, u16) {
    (pod.address, pod.port)
}

/// Pods of one service port on one node; kubelet's own default is 110 pods in all.
const MAX_LOCAL_PODS: usize = 1024;

#[cfg(test)]
mod tests;
