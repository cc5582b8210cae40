//! Pure: what guards are made of: the few fields of nodes, SpeakerStates, ServiceCIDRs and of the API servers' EndpointSlice. A
//! heartbeat changes none of them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::NodeAddress;
use k8s_openapi::api::discovery::v1::Endpoint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use sheave_api::{Listening, UplinkState};

use crate::node_mode::{ENABLE_LABEL, POOL_LABEL};
use crate::view::{Port, ServiceKey};
use crate::whose::Evidence;

/// What one object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Facts {
    Node(NodeFacts),
    Speaker(SpeakerFacts),
    ServiceRanges(BTreeSet<IpNet>),
    ApiServers(BTreeSet<IpAddr>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    pub addresses: BTreeSet<IpAddr>,
    pub pod_ranges: BTreeSet<IpNet>,
    /// What `spec.providerID` and labels say about who else serves Services here.
    pub owners: BTreeSet<Evidence>,
    /// What node-address mode goes by, which knows IPv4.
    pub internal: Vec<Ipv4Addr>,
    pub external: Vec<Ipv4Addr>,
    pub ready: bool,
    /// Labels of klipper-lb ([`node_mode`](crate::node_mode)).
    pub enabled: bool,
    pub pool: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpeakerFacts {
    pub addresses: BTreeSet<IpAddr>,
    pub subnets: BTreeSet<IpNet>,
    pub gateways: BTreeSet<IpAddr>,
    /// In lower case.
    pub macs: BTreeSet<String>,
    /// Ports on which something listens; `None`: the speaker does not say.
    pub listening: Option<BTreeSet<Port>>,
    /// Services with policy Local that have pods there.
    pub local_services: BTreeSet<ServiceKey>,
}

/// The fields of a Node that are read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    #[serde(rename = "providerID")]
    provider_id: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    addresses: Option<Vec<NodeAddress>>,
    conditions: Option<Vec<NodeReadiness>>,
}

/// The fields of a Node's condition that are read: a bad time hides no node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeReadiness {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// The fields of a SpeakerState that are read: one bad condition hides no gateway.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SpeakerStatus {
    uplinks: Option<Vec<UplinkState>>,
    listening: Option<Listening>,
    local_services: Option<Vec<String>>,
}

impl NodeFacts {
    pub fn new(metadata: &ObjectMeta, spec: NodeSpec, status: NodeStatus) -> Self {
        let ranges = spec.pod_cidrs.unwrap_or_default().into_iter().chain(spec.pod_cidr);
        let addresses = status.addresses.unwrap_or_default();
        let label = |name: &str| metadata.labels.as_ref().and_then(|labels| labels.get(name)).cloned();
        let of_type = |kind: &str| -> Vec<Ipv4Addr> {
            let entries = addresses.iter().filter(|entry| entry.type_ == kind);
            entries.filter_map(|entry| entry.address.parse().ok()).collect()
        };
        let is_ready = |one: &NodeReadiness| one.kind == "Ready" && one.status == "True";
        let evidence = metadata.labels.iter().flatten().filter_map(|(name, _)| Evidence::of_label(name));
        let provider = spec.provider_id.as_deref().and_then(Evidence::of_provider);
        NodeFacts {
            addresses: addresses.iter().filter_map(|entry| entry.address.parse().ok()).collect(),
            pod_ranges: networks(ranges),
            owners: evidence.chain(provider).collect(),
            internal: of_type("InternalIP"),
            external: of_type("ExternalIP"),
            ready: status.conditions.unwrap_or_default().iter().any(is_ready),
            enabled: label(ENABLE_LABEL).as_deref() == Some("true"),
            pool: label(POOL_LABEL),
        }
    }
}

impl SpeakerFacts {
    pub fn new(status: SpeakerStatus) -> Self {
        let ports = |numbers: Vec<i32>, protocol| numbers.into_iter().map(move |port| Port::new(port, Some(protocol)));
        let listening =
            status.listening.map(|Listening { tcp, udp }| ports(tcp, "TCP").chain(ports(udp, "UDP")).collect());
        let key = |name: String| {
            let (namespace, name) = name.split_once('/')?;
            Some(ServiceKey { namespace: namespace.into(), name: name.into() })
        };
        let local_services = status.local_services.unwrap_or_default().into_iter().filter_map(key).collect();
        let mut facts = SpeakerFacts { listening, local_services, ..SpeakerFacts::default() };
        for uplink in status.uplinks.unwrap_or_default() {
            facts.addresses.extend(uplink.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok()));
            facts.gateways.extend(uplink.gateways.iter().filter_map(|text| text.parse::<IpAddr>().ok()));
            facts.subnets.extend(networks(uplink.subnets));
            facts.macs.extend(uplink.mac.map(|mac| mac.to_ascii_lowercase()));
        }
        facts
    }
}

/// The addresses of API servers in one of their EndpointSlices.
pub fn api_servers(endpoints: &[Endpoint]) -> BTreeSet<IpAddr> {
    endpoints.iter().flat_map(|endpoint| &endpoint.addresses).filter_map(|text| text.parse().ok()).collect()
}

/// Without host bits. One that cannot be read guards nothing.
pub fn networks(texts: impl IntoIterator<Item = String>) -> BTreeSet<IpNet> {
    texts.into_iter().filter_map(|text| text.parse().ok()).map(|network: IpNet| network.trunc()).collect()
}

/// The addresses among these: `None` and an empty ClusterIP are none.
pub fn addresses(texts: &[String]) -> Vec<IpAddr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_cut_down_to_what_guards_need() {
        let node = json!({
            "metadata": {"name": "a", "labels": {"kubernetes.io/os": "linux", "svccontroller.k3s.cattle.io/lbpool": "x"}},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00::/64"], "providerID": "k3s://a"},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "a"},
                              {"type": "ExternalIP", "address": "198.51.100.1"}, {"type": "InternalIP", "address": "fd00::1"}],
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "nonsense"}],
            },
        });
        let metadata: ObjectMeta = serde_json::from_value(node["metadata"].clone()).unwrap();
        let spec = serde_json::from_value(node["spec"].clone()).unwrap();
        let facts = NodeFacts::new(&metadata, spec, serde_json::from_value(node["status"].clone()).unwrap());
        let addresses = ["192.0.2.1", "198.51.100.1", "fd00::1"].map(|text| text.parse().unwrap());
        assert_eq!(facts.addresses, BTreeSet::from(addresses));
        let ranges = ["10.244.1.0/24", "fd00::/64"].map(|text| text.parse().unwrap());
        assert_eq!(facts.pod_ranges, BTreeSet::from(ranges));
        let owners = [Evidence::Provider("k3s"), Evidence::Label("svccontroller.k3s.cattle.io")];
        assert_eq!(facts.owners, BTreeSet::from(owners));
        assert_eq!(facts.internal, [Ipv4Addr::new(192, 0, 2, 1)]);
        assert_eq!(facts.external, [Ipv4Addr::new(198, 51, 100, 1)]);
        assert_eq!((facts.ready, facts.enabled, facts.pool.as_deref()), (true, false, Some("x")));
    }

    #[test]
    fn a_speaker_says_what_lies_around_its_node() {
        let status: SpeakerStatus = serde_json::from_value(json!({
            "uplinks": [{"name": "eth0", "mac": "02:00:00:00:00:AB", "addresses": ["192.0.2.1", "bad"], "subnets": ["192.0.2.1/24"], "gateways": ["192.0.2.254"]}],
            "conditions": [{"lastTransitionTime": "2026-01-01T00:00:00+99:99"}],
            "listening": {"tcp": [22], "udp": [53]}, "localServices": ["default/web", "nonsense"],
        }))
        .unwrap();
        let facts = SpeakerFacts::new(status);
        let listening = BTreeSet::from([Port::new(22, None), Port::new(53, Some("UDP"))]);
        assert_eq!((facts.listening, facts.local_services.len()), (Some(listening), 1));
        assert_eq!(SpeakerFacts::new(SpeakerStatus::default()).listening, None);
        assert_eq!(facts.subnets, BTreeSet::from(["192.0.2.0/24".parse().unwrap()]));
        assert_eq!(facts.gateways, BTreeSet::from([[192, 0, 2, 254].into()]));
        assert_eq!(facts.addresses, BTreeSet::from([[192, 0, 2, 1].into()]));
        assert_eq!(facts.macs, BTreeSet::from(["02:00:00:00:00:ab".into()]));
    }
}
