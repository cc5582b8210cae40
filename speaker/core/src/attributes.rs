//! What a Service asks for beside its ports: the one place where an attribute is added.
//!
//! An attribute is a field here. What else knows of it is derived by the methods below: the digests by which nodes compare their
//! views and tables, the bits that the packet path reads, the row of a flow, the rules of nftables. The daemon reads the fields from
//! the Kubernetes object (speaker/src/attributes.rs). What each does: docs/services.md.

mod affinity;
mod source_ranges;

use alloc::format;
use alloc::string::String;

use ebpf_common::{FlowTuple, ServiceValue, siphash13};
use serde::{Deserialize, Serialize};

use crate::view::Protocol;

pub use affinity::{Affinity, AffinityTimeout, BadTimeout};
pub use source_ranges::{Prefix, SourceRanges};

/// The attributes of one Service. On disk its fields stand beside the ports, as they always have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAttributes {
    pub affinity: Affinity,
    /// The default without affinity.
    #[serde(default, skip_serializing_if = "AffinityTimeout::is_default")]
    pub affinity_timeout: AffinityTimeout,
    /// Which clients are admitted; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_ranges: Option<SourceRanges>,
    #[serde(default, skip_serializing_if = "TrafficPolicy::is_cluster")]
    pub traffic_policy: TrafficPolicy,
    /// kube-proxy does not translate for clients inside: each node does for its own ([`crate::backend::ruleset`]).
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub without_kube_proxy: bool,
    #[serde(default, skip_serializing_if = "StartupProbe::is_on")]
    pub startup_probe: StartupProbe,
}

/// externalTrafficPolicy of a Service. No packet takes another way for it: pods see the client's address anyway. Nodes with pods come first
/// where a VIP's owner is elected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

impl TrafficPolicy {
    fn is_cluster(&self) -> bool {
        *self == Self::Cluster
    }
}

/// Whether a new pod has to accept a connection of its node's speaker before it gets others ([`crate::startup`]). Digests lack it: it
/// decides for moments, and the rings that follow have digests of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartupProbe {
    #[default]
    On,
    Off,
}

impl StartupProbe {
    pub fn is_on(&self) -> bool {
        *self == Self::On
    }
}

/// What digests of views and tables have of a Service's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttributesDigest {
    /// sessionAffinity ClientIP.
    pub affinity: bool,
    /// Of all younger attributes, if the Service has any.
    pub more: Option<u64>,
}

impl ServiceAttributes {
    /// Two speakers compare digests, also during an upgrade: of a Service without an attribute that one of them does not know, both have
    /// the same. So an attribute that is added belongs to `more`, which is `None` for a Service that has none of them.
    pub fn digest(&self) -> AttributesDigest {
        let Self {
            affinity,
            affinity_timeout,
            source_ranges,
            traffic_policy: _,
            without_kube_proxy: _,
            startup_probe: _,
        } = self;
        let ranges = source_ranges.as_ref().map(SourceRanges::digest);
        let more = match affinity_timeout.is_default() {
            true => ranges,
            false => Some(siphash13(
                &[ranges.unwrap_or_default(), 2 + u64::from(ranges.is_some())],
                affinity_timeout.seconds().into(),
                0,
            )),
        };
        AttributesDigest { affinity: *affinity == Affinity::ClientIp, more }
    }

    /// In the value of `SERVICES`. (Where the source ranges are is the layout's to say: forwarding/restricted.rs.)
    pub fn flags(&self) -> u32 {
        let Self {
            affinity,
            affinity_timeout: _,
            source_ranges: _,
            traffic_policy: _,
            without_kube_proxy: _,
            startup_probe: _,
        } = self;
        if *affinity == Affinity::ClientIp { ServiceValue::CLIENT_AFFINITY } else { 0 }
    }

    /// What of a flow chooses its row, as in the packet path.
    pub fn hashed(&self, flow: FlowTuple) -> FlowTuple {
        match self.affinity {
            Affinity::None => flow,
            Affinity::ClientIp => flow.client_only(),
        }
    }

    /// Whether a client stays with its pod.
    pub fn keeps_clients(&self) -> bool {
        self.affinity == Affinity::ClientIp
    }

    /// Whether flows have other rows than with those attributes.
    pub fn moves_rows(&self, before: &Self) -> bool {
        self.affinity != before.affinity
    }

    /// The expression by which nftables chooses one of `pods` pods for a new flow; with affinity: of a client without a record.
    pub fn choice(&self, protocol: Protocol, pods: usize) -> String {
        match (self.affinity, protocol) {
            // A UDP flow whose conntrack entry expired finds its pod again. TCP signals its begin and end.
            (Affinity::None, Protocol::Udp) => format!("jhash ip saddr . udp sport mod {pods} seed {SEED:#x}"),
            (Affinity::None, Protocol::Tcp) => format!("numgen random mod {pods}"),
            (Affinity::ClientIp, _) => format!("jhash ip saddr mod {pods} seed {SEED:#x}"),
        }
    }
}

impl From<Affinity> for ServiceAttributes {
    fn from(affinity: Affinity) -> Self {
        Self { affinity, ..Self::default() }
    }
}

/// Fixed, so that a client stays with its pod when the table is built anew.
const SEED: u32 = 0x5368_6561;
