//! AddressProbe: whether a host of the segment uses an address that a Service may get. One object per node that probes, named like it and
//! owned by its SpeakerState. The controller writes the spec, which is the request; the node's own speaker alone writes the status, which
//! is the answer (`manifests/base/speaker-policy.yaml`). So the controller needs no socket, and no node answers for another one.

#![expect(clippy::duplicated_attributes, reason = "every printer column has a name and a type")]

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The addresses that the node's speaker is to probe.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "sheave.dev",
    version = "v1alpha1",
    kind = "AddressProbe",
    plural = "addressprobes",
    shortname = "aprobe",
    category = "sheave",
    doc = "Whether hosts of a node's segment use addresses that Services may get: asked by the controller (spec), answered by that node's speaker alone (status).",
    status = "AddressProbeStatus",
    derive = "PartialEq",
    printcolumn(name = "Round", type_ = "integer", json_path = ".spec.round"),
    printcolumn(name = "Observed", type_ = "integer", json_path = ".status.observedRound"),
    printcolumn(name = "Proxies", type_ = "string", json_path = ".status.proxies"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AddressProbeSpec {
    /// The number of the request: every one has a higher number than the one before, and replaces it.
    #[schemars(range(min = 1))]
    pub round: i64,

    /// IPv4 addresses to probe by ARP on the node's uplink (RFC 5227 section 2.1.1). One that was probed within the last second is not
    /// probed again.
    #[schemars(length(max = 64), inner(length(min = 7, max = 15)))]
    pub addresses: Vec<String>,
}

/// What the node's speaker found. Written by that speaker only, once per request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AddressProbeStatus {
    /// The request that this answers: `spec.round` as it was then.
    #[schemars(range(min = 0))]
    pub observed_round: i64,

    /// The addresses of that request, each with the hosts that answered for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub results: Vec<ProbeResult>,

    /// Ethernet addresses of the gateways of the uplink's default routes. What they answer for is taken for proxy ARP.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 17, max = 17)))]
    pub gateways: Vec<String>,

    /// Ethernet addresses that answered for each of eight random addresses of the subnet: proxy ARP.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 17, max = 17)))]
    pub proxies: Vec<String>,
}

/// An address that was probed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProbeResult {
    /// The address.
    #[schemars(length(min = 7, max = 15))]
    pub address: String,

    /// Ethernet addresses of the hosts that answered, in lower case. None answered: absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), inner(length(min = 17, max = 17)))]
    pub macs: Vec<String>,
}

/// As many entries the lists have at most.
pub mod most {
    /// `spec.addresses` and `status.results`.
    pub const ADDRESSES: usize = 64;
    /// `status.results[].macs`.
    pub const ANSWERS: usize = 4;
    /// `status.gateways` and `status.proxies`.
    pub const MACS: usize = 8;
}

/// What an answer to a probe means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeVerdict {
    /// Another host has the address: it is given to no Service ([`Refusal::AnsweredByHost`](crate::Refusal)).
    AnsweredByHost,
    /// The answer is a node's: a predecessor or an old speaker. The address is free for Services.
    AnsweredByNode,
    /// The answer is a gateway's, or of a host that answers for every address. The address is free for Services.
    ProxyArp,
}

impl ProbeVerdict {
    pub const ALL: [Self; 3] = [Self::AnsweredByHost, Self::AnsweredByNode, Self::ProxyArp];

    /// The one name.
    pub const fn as_str(self) -> &'static str {
        match self {
            ProbeVerdict::AnsweredByHost => "AnsweredByHost",
            ProbeVerdict::AnsweredByNode => "AnsweredByNode",
            ProbeVerdict::ProxyArp => "ProxyArp",
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;
    use crate::Refusal;

    #[test]
    fn crd_is_cluster_scoped_and_its_lists_are_bounded() {
        let crd = AddressProbe::crd();
        assert_eq!(crd.metadata.name.as_deref(), Some("addressprobes.sheave.dev"));
        assert_eq!(crd.spec.scope, "Cluster");
        let crd = serde_json::to_value(crd).unwrap();
        let fields = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        assert_eq!(fields["spec"]["properties"]["addresses"]["maxItems"], most::ADDRESSES);
        let status = &fields["status"]["properties"];
        assert_eq!(status["results"]["maxItems"], most::ADDRESSES);
        assert_eq!(status["results"]["items"]["properties"]["macs"]["maxItems"], most::ANSWERS);
        assert_eq!(status["gateways"]["maxItems"], most::MACS);
        assert_eq!(status["proxies"]["maxItems"], most::MACS);
    }

    #[test]
    fn verdicts_have_the_names_of_what_follows_from_them() {
        for verdict in ProbeVerdict::ALL {
            assert_eq!(verdict.as_str(), format!("{verdict:?}"));
        }
        assert_eq!(ProbeVerdict::AnsweredByHost.as_str(), Refusal::AnsweredByHost.as_str());
    }
}
