//! SubnetScan: which addresses of a node's subnet hosts use, and which DHCP servers give out addresses there. Made by `sheave init`, named
//! like the node whose speaker is to look, and deleted when the command ends. That node's speaker alone writes the status
//! (`manifests/base/speaker-policy.yaml`). Apart from AddressProbe, which is the controller's.

#![expect(clippy::duplicated_attributes, reason = "every printer column has a name and a type")]

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::addressprobe::ProbeResult;

/// What the node's speaker is to look for.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "sheave.dev",
    version = "v1alpha1",
    kind = "SubnetScan",
    plural = "subnetscans",
    shortname = "sscan",
    category = "sheave",
    doc = "Which addresses of a node's subnet hosts use, and which DHCP servers answer there: asked by `sheave init` (spec), answered by that node's speaker alone (status). It is deleted when the command ends.",
    status = "SubnetScanStatus",
    derive = "PartialEq",
    printcolumn(name = "Round", type_ = "integer", json_path = ".spec.round"),
    printcolumn(name = "Observed", type_ = "integer", json_path = ".status.observedRound"),
    printcolumn(name = "DHCP", type_ = "string", json_path = ".status.dhcpServers[*].server"),
    printcolumn(name = "Problem", type_ = "string", json_path = ".status.problem"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SubnetScanSpec {
    /// The number of the request: every one has a higher number than the one before, and replaces it.
    #[schemars(range(min = 1))]
    pub round: i64,

    /// IPv4 addresses to probe by ARP on the node's uplink (RFC 5227 section 2.1.1).
    #[schemars(length(max = 128), inner(length(min = 7, max = 15)))]
    pub addresses: Vec<String>,

    /// Whether to look for DHCP servers: two DHCPDISCOVER (RFC 2131) within 4 s. No offer is taken up.
    #[serde(default)]
    pub dhcp: bool,
}

/// What the node's speaker found. Written by that speaker only, once per request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SubnetScanStatus {
    /// The request that this answers: `spec.round` as it was then.
    #[schemars(range(min = 0))]
    pub observed_round: i64,

    /// The addresses of that request, each with the hosts that answered for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub results: Vec<ProbeResult>,

    /// Ethernet addresses that answered for each of eight random addresses of the subnet: proxy ARP.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 17, max = 17)))]
    pub proxies: Vec<String>,

    /// DHCP servers that offered an address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub dhcp_servers: Vec<DhcpServer>,

    /// Why the request could not be carried out, or only in part: a name that the speaker's log has too.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub problem: Option<String>,
}

/// A DHCP server that offered an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DhcpServer {
    /// Its address, as it names itself (option 54).
    #[schemars(length(min = 7, max = 15))]
    pub server: String,

    /// The Ethernet address that the offer came from: the server's, or that of a relay.
    #[schemars(length(min = 17, max = 17))]
    pub mac: String,

    /// The address that it offered: it gives out this one, and others that nobody knows but the server.
    #[schemars(length(min = 7, max = 15))]
    pub offered: String,
}

/// As many entries the lists have at most.
pub mod most {
    /// `spec.addresses` and `status.results`.
    pub const ADDRESSES: usize = 128;
    /// `status.dhcpServers`.
    pub const SERVERS: usize = 8;
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;

    #[test]
    fn crd_is_cluster_scoped_and_its_lists_are_bounded() {
        let crd = SubnetScan::crd();
        assert_eq!(crd.metadata.name.as_deref(), Some("subnetscans.sheave.dev"));
        assert_eq!(crd.spec.scope, "Cluster");
        let crd = serde_json::to_value(crd).unwrap();
        let fields = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        assert_eq!(fields["spec"]["properties"]["addresses"]["maxItems"], most::ADDRESSES);
        let status = &fields["status"]["properties"];
        assert_eq!(status["results"]["maxItems"], most::ADDRESSES);
        assert_eq!(status["dhcpServers"]["maxItems"], most::SERVERS);
        assert_eq!(status["proxies"]["maxItems"], crate::addressprobe::most::MACS);
    }
}
