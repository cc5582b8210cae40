//! What a pool contains and never gives out, as its status counts it.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Addresses of a pool that no Service gets, for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Excluded {
    /// Why: the name that a Service which asks for such an address is refused with (`AddressOfNode`, `NetworkAddress`, ...), or
    /// `ExcludedBySpec` for `exclusions` and `avoidBuggyIPs`.
    #[schemars(length(max = 64))]
    pub reason: String,

    /// How many of the pool's addresses.
    pub count: i64,
}

impl Excluded {
    /// Reason of what the pool's own settings leave out.
    pub const SPEC: &'static str = "ExcludedBySpec";
}

/// Schema of the list, merged by reason.
pub(crate) fn schema(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["reason"],
        "items": generator.subschema_for::<Excluded>(),
    })
}
