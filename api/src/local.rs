//! What a speaker serves on its own node: HTTP on a Unix socket that root alone can open, for what must work without an API server.
//!
//! A request and its answer are one JSON object each. A further route is a constant and its types here, and a line in the speaker's router.

use std::net::Ipv4Addr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where it is.
pub const SOCKET: &str = "/run/sheave/speaker.sock";
/// GET: [`Drain`]. PUT with a [`DrainRequest`], DELETE: the same, afterwards.
pub const DRAIN: &str = "/v1/drain";
/// Bytes of a request's body.
pub const MAX_REQUEST: usize = 8 * 1024;

/// A drain that was made on the node itself. It stands on the node's disk, and ends only there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalDrain {
    /// Who wants it, by that user's own word.
    #[schemars(length(max = 253))]
    pub by: String,

    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,

    /// Since when.
    pub since: Time,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DrainRequest {
    pub by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl DrainRequest {
    /// `Err` names field, value and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        if self.by.is_empty() || self.by.len() > MOST_BY {
            return Err(format!("by: '{}' has {} bytes; 1 to {MOST_BY} are allowed", self.by, self.by.len()));
        }
        match self.reason.as_ref().map(String::len) {
            Some(length @ MORE_THAN_REASON..) => {
                Err(format!("reason: {length} bytes; at most {} are allowed", MORE_THAN_REASON - 1))
            }
            _ => Ok(()),
        }
    }
}

/// Whether the node is drained by this socket, and what it owns all the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    pub node: String,
    pub drained: Option<LocalDrain>,
    pub owned: Vec<Ipv4Addr>,
}

/// The answer to a request that is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub error: String,
}

/// Bytes of the fields, as the definition of SpeakerState admits them.
const MOST_BY: usize = 253;
const MORE_THAN_REASON: usize = 1025;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_bounded_and_has_known_fields() {
        let request = |by: &str, reason: Option<String>| DrainRequest { by: by.into(), reason };
        assert_eq!(request("root", None).check(), Ok(()));
        assert_eq!(request("root", Some("x".repeat(1024))).check(), Ok(()));
        assert_eq!(request("", None).check().unwrap_err(), "by: '' has 0 bytes; 1 to 253 are allowed");
        assert!(request(&"x".repeat(254), None).check().unwrap_err().contains("has 254 bytes"));
        let long = request("root", Some("x".repeat(1025))).check().unwrap_err();
        assert_eq!(long, "reason: 1025 bytes; at most 1024 are allowed");
        let unknown = serde_json::from_str::<DrainRequest>(r#"{"by":"root","until":"noon"}"#).unwrap_err().to_string();
        assert!(unknown.contains("unknown field `until`"), "{unknown}");
        // The longest, with every character escaped.
        let longest = DrainRequest { by: "\u{1}".repeat(253), reason: Some("\u{1}".repeat(1024)) };
        assert_eq!(longest.check(), Ok(()));
        assert!(serde_json::to_string(&longest).unwrap().len() <= MAX_REQUEST);
    }
}
