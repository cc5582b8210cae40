//! AddressPool: a set of addresses that Services may be given. Field names are MetalLB's where the meaning is the same.

#![expect(clippy::duplicated_attributes, reason = "every printer column has a name and a type")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::excluded::{self, Excluded};
use crate::validate;

/// Addresses that the network's owner has set aside for Services of type LoadBalancer.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "sheave.dev",
    version = "v1alpha1",
    kind = "AddressPool",
    plural = "addresspools",
    shortname = "pool",
    category = "sheave",
    doc = "Addresses that the network's owner has set aside for Services of type LoadBalancer.",
    status = "AddressPoolStatus",
    derive = "PartialEq",
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.addresses"),
    printcolumn(name = "Auto", type_ = "boolean", json_path = ".spec.autoAssign"),
    printcolumn(name = "Total", type_ = "integer", json_path = ".status.total"),
    printcolumn(name = "Used", type_ = "integer", json_path = ".status.used"),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.free"),
    printcolumn(name = "Excluded", type_ = "integer", json_path = ".status.excluded"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority", priority = "1"),
    printcolumn(name = "Disabled", type_ = "boolean", json_path = ".spec.disabled", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolSpec {
    /// Addresses ("192.0.2.10"), CIDRs ("192.0.2.0/28") and inclusive ranges ("192.0.2.10-192.0.2.20", blanks around "-" allowed), of
    /// IPv4 and IPv6. Every address in them may be given to a Service, except those of `exclusions`. IPv6 is not served yet: such
    /// addresses are reserved for dual-stack Services, and stand in no Service's status.
    #[schemars(schema_with = "validate::addresses_schema")]
    pub addresses: Vec<String>,

    /// Addresses that are never given, written as those of `addresses`. What is granted already stays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "validate::exclusions_schema")]
    pub exclusions: Vec<String>,

    /// Whether Services that name neither a pool nor an address may be given one from here.
    #[serde(default = "yes")]
    pub auto_assign: bool,

    /// Leave out IPv4 addresses that end in .0 or .255, which some old equipment mistakes for network or broadcast addresses.
    #[serde(default, rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,

    /// Which pool a Service is given an address from that names none: the lowest number first, pools without a number last. Of equal
    /// ones those first that select Services or namespaces, then in the order of their names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub priority: Option<i32>,

    /// Names of namespaces whose Services may be given an address from here, whether they name the pool or not. With neither these nor
    /// `namespaceSelectors` Services of every namespace may. A Service that is not selected any more keeps its address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "validate::namespaces_schema")]
    pub namespaces: Vec<String>,

    /// Labels of namespaces whose Services may be given an address from here: one of the selectors must match, unless `namespaces`
    /// has the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "validate::selectors_schema")]
    pub namespace_selectors: Vec<LabelSelector>,

    /// Labels of Services that may be given an address from here: one of the selectors must match, and the namespace be selected as
    /// well. Without any, all Services of these namespaces may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "validate::selectors_schema")]
    pub service_selectors: Vec<LabelSelector>,

    /// Drains the pool: no address is given from it any more, also to Services that ask for one. Services keep what they have.
    #[serde(default)]
    pub disabled: bool,

    /// How its addresses are announced. `L2`: by ARP, from the nodes of the L2Advertisements that select them; from all nodes where none
    /// does. `None`: not at all, whatever selects them. It counts at once, also for addresses that are granted.
    #[serde(default, skip_serializing_if = "Announce::is_l2")]
    pub announce: Announce,
}

/// How addresses are announced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Announce {
    /// By ARP.
    #[default]
    L2,
    /// Not at all.
    None,
}

impl Announce {
    pub fn is_l2(&self) -> bool {
        *self == Self::L2
    }
}

/// What the controller found in a pool. Written by the controller only. Counts end at 2^63 - 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AddressPoolStatus {
    /// `Ready`: whether new addresses are granted from this pool, with the reason (`Valid`, `Malformed`, `Overlapping`, `Disabled`).
    /// `Conflict`: whether it shares addresses with another pool; the younger one is not ready. `Malformed`: whether an entry cannot be
    /// read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "validate::conditions_schema")]
    pub conditions: Vec<Condition>,

    /// Addresses of all entries, each counted once.
    pub total: i64,

    /// Addresses granted from this pool, those that it no longer contains included.
    pub used: i64,

    /// Addresses that can still be given, of both families. 0 while the pool is not ready.
    pub free: i64,

    /// What `free` has of IPv4.
    #[serde(rename = "availableIPv4")]
    pub available_ipv4: i64,

    /// What `free` has of IPv6.
    #[serde(rename = "availableIPv6")]
    pub available_ipv6: i64,

    /// Addresses of the entries that are never given: `exclusions`, those that `avoidBuggyIPs` leaves out, and those that no Service
    /// may have, whoever asks (of nodes, gateways, API servers and others).
    pub excluded: i64,

    /// The same by reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "excluded::schema")]
    pub excluded_by: Vec<Excluded>,

    /// Addresses that were granted from this pool and are outside it since it was changed. They stay with their Services.
    pub outside: i64,
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;

    #[test]
    fn crd_is_built_without_panic_and_is_cluster_scoped() {
        let crd = AddressPool::crd();
        assert_eq!(crd.metadata.name.as_deref(), Some("addresspools.sheave.dev"));
        assert_eq!(crd.spec.scope, "Cluster");
    }

    #[test]
    fn fields_left_out_have_the_documented_defaults() {
        let spec: AddressPoolSpec = serde_json::from_str(r#"{"addresses":["192.0.2.0/28"]}"#).unwrap();
        assert!(spec.auto_assign);
        assert!(!spec.avoid_buggy_ips && !spec.disabled && spec.priority.is_none() && spec.exclusions.is_empty());
        let written = serde_json::to_string(&spec).unwrap();
        let expected = r#"{"addresses":["192.0.2.0/28"],"autoAssign":true,"avoidBuggyIPs":false,"disabled":false}"#;
        assert_eq!(written, expected);
    }
}
