//! AddressPool: a set of addresses that Services may be given. Field names are MetalLB's where the meaning is the same.

#![expect(clippy::duplicated_attributes, reason = "every printer column has a name and a type")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    printcolumn(name = "Assigned", type_ = "integer", json_path = ".status.assigned"),
    printcolumn(name = "Available", type_ = "integer", json_path = ".status.available"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolSpec {
    /// CIDRs ("192.0.2.0/28") and inclusive ranges ("192.0.2.10-192.0.2.20"), IPv4 in this version. Every address in
    /// them may be given to a Service.
    #[schemars(schema_with = "validate::addresses_schema")]
    pub addresses: Vec<String>,

    /// Whether Services that name neither a pool nor an address may be given one from here.
    #[serde(default = "yes")]
    pub auto_assign: bool,

    /// Leave out addresses that end in .0 or .255, which some old equipment mistakes for network or broadcast addresses.
    #[serde(default, rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,
}

/// What the controller found in a pool. Written by the controller only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AddressPoolStatus {
    /// `Ready`: whether new addresses are granted from this pool, with the reason (`Valid`, `Malformed`, `Overlapping`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "validate::conditions_schema")]
    pub conditions: Vec<Condition>,

    /// Addresses granted from this pool, those that it no longer contains included.
    pub assigned: i64,

    /// Addresses that are still free.
    pub available: i64,

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
        assert!(!spec.avoid_buggy_ips);
        let written = serde_json::to_string(&spec).unwrap();
        assert!(written.contains("avoidBuggyIPs") && written.contains("autoAssign"), "{written}");
    }
}
