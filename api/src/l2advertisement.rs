//! L2Advertisement: which addresses are announced by ARP, and from which nodes. Field names are MetalLB's where the meaning is the same. Cluster scope.

#![expect(clippy::duplicated_attributes, reason = "every printer column has a name and a type")]

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::validate;

/// Which addresses are announced by ARP, and from which nodes.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "sheave.dev",
    version = "v1alpha1",
    kind = "L2Advertisement",
    plural = "l2advertisements",
    shortname = "l2adv",
    category = "sheave",
    doc = "Which addresses are announced by ARP, and from which nodes. Of several that select one address, the nodes of all of them announce it. An address that no L2Advertisement selects is announced on all nodes.",
    status = "L2AdvertisementStatus",
    derive = "PartialEq",
    printcolumn(name = "Pools", type_ = "string", json_path = ".spec.pools"),
    printcolumn(name = "Interfaces", type_ = "string", json_path = ".spec.interfaces"),
    printcolumn(name = "Failback", type_ = "string", json_path = ".spec.failback", priority = "1"),
    printcolumn(name = "Addresses", type_ = "integer", json_path = ".status.addresses"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct L2AdvertisementSpec {
    /// Names of AddressPools whose addresses it selects. With neither these nor `poolSelectors` it selects those of every pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "validate::pools_schema")]
    pub pools: Vec<String>,

    /// Labels of AddressPools whose addresses it selects: one of the selectors must match, unless `pools` has the pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "validate::selectors_schema")]
    pub pool_selectors: Vec<LabelSelector>,

    /// Labels of Services whose addresses it selects: one of the selectors must match one of the Services that have the address, and the
    /// pool be selected as well. Without any, the addresses of all Services.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "validate::selectors_schema")]
    pub service_selectors: Vec<LabelSelector>,

    /// Labels of nodes that may announce these addresses: one of the selectors must match. Without any, all nodes may. An address that no
    /// node may announce has no owner, for the reason `NoEligibleNode`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "validate::selectors_schema")]
    pub node_selectors: Vec<LabelSelector>,

    /// Nodes, among those that may, that come before others when a new owner is chosen. An owner that works keeps its addresses,
    /// whatever weight others have, unless `failback` says otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub preferred_nodes: Vec<PreferredNodes>,

    /// Names of uplinks, or patterns in which `*` stands for any characters and `?` for one: a node may announce if the name of its
    /// uplink (`status.uplinks` of its SpeakerState) is like one of them. Without any, every uplink is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "validate::interfaces_schema")]
    pub interfaces: Vec<String>,

    /// Names or patterns of uplinks: a node must not announce if the name of its uplink is like one of them, whatever `interfaces` has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "validate::interfaces_schema")]
    pub excluded_interfaces: Vec<String>,

    /// Whether nodes with the label `node.kubernetes.io/exclude-from-external-load-balancers` may announce these addresses, and serve
    /// their new connections, as others do.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ignore_exclude_label: bool,

    /// Whether an owner hands over to a node with more weight (`preferredNodes`) that has come back. `Never` (the default), or how long
    /// that node must have been ready before: 1s to 24h, as 90s, 10m or 1h. Of several L2Advertisements that select an address the
    /// shortest time counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "validate::failback_schema")]
    pub failback: Option<String>,
}

impl L2AdvertisementSpec {
    /// How long a node must have been ready before an owner hands over to it; `None`: never. `Err` names field, value and what is allowed.
    pub fn failback(&self) -> Result<Option<Duration>, String> {
        let text = self.failback.as_deref().unwrap_or(NEVER);
        if text == NEVER {
            return Ok(None);
        }
        let unit = |suffix: char| match suffix {
            's' => Some(1),
            'm' => Some(60),
            'h' => Some(3600),
            _ => None,
        };
        let parsed = text.chars().last().and_then(unit).and_then(|seconds: u64| {
            let number = &text[..text.len() - 1];
            let digits = number.bytes().all(|byte| byte.is_ascii_digit());
            number.parse::<u64>().ok().filter(|_| digits)?.checked_mul(seconds)
        });
        let allowed = parsed.filter(|seconds| (1..=MOST_FAILBACK).contains(seconds)).map(Duration::from_secs);
        allowed.map(Some).ok_or_else(|| {
            format!("spec.failback: '{text}' is neither Never nor a time; allowed are 1s to 24h, as 90s, 10m or 1h")
        })
    }
}

const NEVER: &str = "Never";
/// Seconds.
const MOST_FAILBACK: u64 = 24 * 60 * 60;

/// Nodes that come before others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreferredNodes {
    /// Labels of these nodes.
    #[schemars(schema_with = "validate::selector_schema")]
    pub selector: LabelSelector,

    /// Nodes with more weight come first. Of a node that several selectors match, the highest counts.
    #[schemars(range(min = 1, max = 100))]
    pub weight: i32,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// What the controller found. Written by the controller only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct L2AdvertisementStatus {
    /// `Ready`: whether it is followed as it is written, with the reason (`Valid`, `Malformed`, `UnknownPool`,
    /// `TooManyAdvertisements`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "validate::conditions_schema")]
    pub conditions: Vec<Condition>,

    /// Granted addresses that it selects.
    pub addresses: i64,
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;

    #[test]
    fn crd_is_cluster_scoped_and_every_field_is_described() {
        let crd = L2Advertisement::crd();
        assert_eq!(crd.metadata.name.as_deref(), Some("l2advertisements.sheave.dev"));
        assert_eq!(crd.spec.scope, "Cluster");
        let crd = serde_json::to_value(crd).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        for part in ["spec", "status"] {
            for (name, field) in schema[part]["properties"].as_object().unwrap() {
                assert!(field["description"].is_string(), "{part}.{name} has no description: {field}");
            }
        }
    }

    #[test]
    fn failback_is_never_or_a_time() {
        let of = |text: Option<&str>| {
            let spec = L2AdvertisementSpec { failback: text.map(String::from), ..L2AdvertisementSpec::default() };
            spec.failback().map(|span| span.map(|span| span.as_secs()))
        };
        assert_eq!([of(None), of(Some("Never"))], [Ok(None), Ok(None)]);
        for (text, seconds) in [("1s", 1), ("90s", 90), ("10m", 600), ("24h", 86400)] {
            assert_eq!(of(Some(text)), Ok(Some(seconds)), "{text}");
        }
        for text in ["", "never", "0s", "10", "-1s", "+1s", "1d", "25h", "1.5m", "99999999999999999999s", "é"] {
            let said = of(Some(text)).expect_err(text);
            assert!(said.starts_with(&format!("spec.failback: '{text}' is neither")) && said.contains("24h"), "{said}");
        }
    }

    #[test]
    fn what_is_left_out_restricts_nothing() {
        let spec: L2AdvertisementSpec = serde_json::from_str("{}").unwrap();
        assert_eq!(spec, L2AdvertisementSpec::default());
        assert_eq!(serde_json::to_string(&spec).unwrap(), "{}");
    }
}
