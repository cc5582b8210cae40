//! Placement: where an administrator wants addresses to be. Written by `sheave move`, `sheave prefer` and `sheave drain`, or by hand;
//! speakers follow it. Cluster scope.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::validate;

/// Where an administrator wants addresses to be.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "sheave.dev",
    version = "v1alpha1",
    kind = "Placement",
    plural = "placements",
    category = "sheave",
    doc = "Where an administrator wants an address to be, or not to be. Its name is its mode in lower case, '-', and its address, or the node where there is none.",
    derive = "PartialEq",
    validation = validate::placement_name(),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node"),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.by"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = validate::placement_is_of_address(),
    validation = validate::placement_is_of_node(),
    validation = validate::placement_has_owner(),
    validation = validate::placement_has_no_owner(),
    validation = validate::placement_moves()
)]
#[serde(rename_all = "camelCase")]
pub struct PlacementSpec {
    /// `Move`: the owner hands the address over to the node, once. `Prefer`: the node comes before all others when an owner of the
    /// address is chosen; the present owner keeps it. `Drain`: the node hands its addresses over, and owns some only while no other node
    /// can; pods on it go on serving.
    pub mode: PlacementMode,

    /// The address, as its VirtualIP is named. Not with `Drain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    #[x_kube(validation = validate::placement_address())]
    pub address: Option<String>,

    /// Name of the node.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,

    /// With `Move`: the owner that hands over, as `status.owner` of the VirtualIP names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub owner: Option<String>,

    /// With `Move`: the owner's term, as `status.term` of the VirtualIP has it. It rises with every change of owner: a move that was
    /// carried out, or comes too late, has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub term: Option<i64>,

    /// Who wants it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub by: Option<String>,

    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PlacementMode {
    Move,
    #[default]
    Prefer,
    Drain,
}

impl PlacementSpec {
    /// The name that its object must have.
    pub fn name(&self) -> String {
        let mode = match self.mode {
            PlacementMode::Move => "move",
            PlacementMode::Prefer => "prefer",
            PlacementMode::Drain => "drain",
        };
        format!("{mode}-{}", self.address.as_ref().unwrap_or(&self.node))
    }
}
