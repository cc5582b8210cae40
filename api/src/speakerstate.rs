//! SpeakerState: a node as its speaker finds it. One object per node, named like it and owned by it, so that it goes with the Node.
//! The node's own speaker alone writes it (`manifests/base/speaker-policy.yaml`), and only when something has changed.

#![expect(clippy::duplicated_attributes, reason = "every printer column has a name and a type")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::local::LocalDrain;
use crate::validate;

/// Nothing is asked of a node here: what there is to read stands in the status.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "sheave.dev",
    version = "v1alpha1",
    kind = "SpeakerState",
    plural = "speakerstates",
    shortname = "spk",
    category = "sheave",
    doc = "A node as its speaker finds it: what runs there, how packets enter, what is in order and what is not. Written by that node's speaker alone, when something has changed; whether the speaker runs, its pod says.",
    status = "SpeakerStateStatus",
    derive = "PartialEq",
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Entry", type_ = "string", json_path = ".status.entry"),
    printcolumn(name = "Proxy", type_ = "string", json_path = ".status.serviceProxy"),
    printcolumn(name = "Uplink", type_ = "string", json_path = ".status.uplinks[*].name"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "CNI", type_ = "string", json_path = ".status.cni", priority = "1"),
    printcolumn(name = "Kernel", type_ = "string", json_path = ".status.kernel", priority = "1")
)]
#[serde(rename_all = "camelCase")]
pub struct SpeakerStateSpec {}

/// What the node's speaker finds there. Written by the speaker only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SpeakerStateStatus {
    /// Version of the speaker.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub version: Option<String>,

    /// Release of the node's kernel, as `uname -r` prints it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub kernel: Option<String>,

    /// How packets enter the packet path: `xdp-native` (the XDP program is attached in the uplink's driver), `xdp-generic` (before
    /// the stack), `none` (it is not attached).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub entry: Option<String>,

    /// Whose rules translate Services on this node, by what is in the kernel: kube-proxy's mode (`nftables`, `iptables`, `ipvs`), or
    /// `none`. Where rules of several modes are there, all of them, joined by `+`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub service_proxy: Option<String>,

    /// The CNI, by the names of the node's devices; absent where these do not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub cni: Option<String>,

    /// The devices that packets for VIPs enter and leave by.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub uplinks: Vec<UplinkState>,

    /// The ports on which something listens on the node, at another address than the loopback: at the node's addresses no Service has
    /// them. Absent if they could not be read, or are too many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listening: Option<Listening>,

    /// Services with externalTrafficPolicy Local that have ports at an address of this node, and ready pods on it: `namespace/name`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 127)))]
    pub local_services: Vec<String>,

    /// A drain that was made on the node itself (`sheave drain --local`): it owns addresses only while no other node can. Those by
    /// Placement do not stand here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drained: Option<LocalDrain>,

    /// Limits that this speaker has reached since it started, by their names in the metric `sheave_limits_reached_total`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 64)))]
    pub limits_reached: Vec<String>,

    /// What is in order (True) and what is not (False), with the reason under its name in `/readyz`, metrics and log. `Ready` sums up
    /// all that decides whether the node may own VIPs and get new flows. True with the reason
    /// `HostSpeaker`: the speaker of the API server endpoint has the node's packet path, and other nodes serve its pods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "validate::conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// A device that packets for VIPs enter and leave by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UplinkState {
    /// Name of the device.
    #[schemars(length(min = 1, max = 15))]
    pub name: String,

    /// Its Ethernet address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 17))]
    pub mac: Option<String>,

    /// Its MTU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub mtu: Option<i64>,

    /// Its IPv4 addresses, and those of the API server endpoint that a host speaker serves beside this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 45)))]
    pub addresses: Vec<String>,

    /// The IPv4 subnets of its addresses, as CIDRs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 45)))]
    pub subnets: Vec<String>,

    /// The IPv4 gateways of default routes over it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 45)))]
    pub gateways: Vec<String>,
}

/// Reasons of the condition `Ready` by which the speaker of this object serves nothing.
pub mod stands_by {
    /// The speaker of the API server endpoint serves the node.
    pub const HOST_SPEAKER: &str = "HostSpeaker";
    /// It has not run for a minute.
    pub const HOST_SPEAKER_STOPPED: &str = "HostSpeakerStopped";
    pub const ALL: [&str; 2] = [HOST_SPEAKER, HOST_SPEAKER_STOPPED];
}

impl SpeakerState {
    /// The node's speaker says that it serves nothing, and why.
    pub fn stands_by(&self) -> Option<&'static str> {
        let conditions = self.status.as_ref().map(|status| &status.conditions[..]).unwrap_or_default();
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
        stands_by::ALL.into_iter().find(|reason| *reason == ready.reason)
    }
}

/// Ports on which something listens, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Listening {
    /// Of TCP.
    #[schemars(length(max = 1024), inner(range(min = 0, max = 65535)))]
    pub tcp: Vec<i32>,
    /// Of UDP, by sockets without a peer.
    #[schemars(length(max = 1024), inner(range(min = 0, max = 65535)))]
    pub udp: Vec<i32>,
}

/// As many entries the lists of a [`SpeakerStateStatus`] have at most.
pub mod most {
    /// `uplinks[].addresses`, `uplinks[].subnets`, `uplinks[].gateways` and `limitsReached`.
    pub const ENTRIES: usize = 32;
    /// `listening.tcp` and `listening.udp`.
    pub const PORTS: usize = 1024;
    /// Bytes of a condition's message: the API server admits no more.
    pub const MESSAGE: usize = 32_768;
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;

    #[test]
    fn crd_is_cluster_scoped_and_its_lists_are_bounded() {
        let crd = SpeakerState::crd();
        assert_eq!(crd.metadata.name.as_deref(), Some("speakerstates.sheave.dev"));
        assert_eq!(crd.spec.scope, "Cluster");
        let crd = serde_json::to_value(crd).unwrap();
        let status = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"];
        assert_eq!(status["limitsReached"]["maxItems"], most::ENTRIES);
        for list in ["addresses", "subnets", "gateways"] {
            assert_eq!(status["uplinks"]["items"]["properties"][list]["maxItems"], most::ENTRIES, "{list}");
        }
        assert_eq!(status["uplinks"]["x-kubernetes-list-type"], "map");
        assert_eq!(status["conditions"]["maxItems"], 16);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        assert_eq!(serde_json::to_string(&SpeakerStateStatus::default()).unwrap(), "{}");
        let status: SpeakerStateStatus = serde_json::from_str(r#"{"uplinks":[{"name":"eth0"}],"later":1}"#).unwrap();
        assert_eq!(serde_json::to_string(&status).unwrap(), r#"{"uplinks":[{"name":"eth0"}]}"#);
    }
}
