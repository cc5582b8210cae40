//! What a Service asks for beside its ports: the one place where an attribute is added.
//!
//! An attribute is a field here. What else knows of it is derived by the methods below: the digests by which nodes compare their
//! views and tables, the bits that the packet path reads, the row of a flow, the rule that chooses a pod. The daemon reads the fields
//! from the Kubernetes object (speaker/src/attributes.rs).

use alloc::format;
use alloc::string::String;

use ebpf_common::{FlowTuple, ServiceValue};
use serde::{Deserialize, Serialize};

use crate::view::Protocol;

/// The attributes of one Service. On disk its fields stand beside the ports, as they always have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAttributes {
    pub affinity: Affinity,
}

/// sessionAffinity of a Service. Its timeout is not used: the choice is a hash, so it holds as long as the pods stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Affinity {
    #[default]
    None,
    ClientIp,
}

impl ServiceAttributes {
    /// For the digests of views and tables. Two speakers compare these, also during an upgrade: a Service without an attribute that
    /// one of them does not know has the same byte on both.
    pub fn digest(&self) -> u8 {
        let Self { affinity } = self;
        u8::from(*affinity == Affinity::ClientIp)
    }

    /// In the value of `SERVICES`.
    pub fn flags(&self) -> u32 {
        let Self { affinity } = self;
        if *affinity == Affinity::ClientIp { ServiceValue::CLIENT_AFFINITY } else { 0 }
    }

    /// What of a flow chooses its row, as in the packet path.
    pub fn hashed(&self, flow: FlowTuple) -> FlowTuple {
        match self.affinity {
            Affinity::None => flow,
            Affinity::ClientIp => flow.client_only(),
        }
    }

    /// Whether flows have other rows than with those attributes.
    pub fn moves_rows(&self, before: &Self) -> bool {
        self.affinity != before.affinity
    }

    /// The expression by which nftables chooses one of `pods` pods for a new flow.
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
        Self { affinity }
    }
}

/// Fixed, so that a client stays with its pod when the table is built anew.
const SEED: u32 = 0x5368_6561;
