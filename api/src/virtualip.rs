//! VirtualIP: the ledger. One object per granted address, named like the address ([`virtual_ip_name`]). The controller alone writes the spec, which is
//! the grant; the speaker that holds the address writes the status. Speakers act on these objects only, so a third-party change
//! of a Service's status cannot make them claim anything.

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{CustomResource, KubeSchema, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::pool::Announce;
use crate::validate;

/// An address that was granted to Services, and from where.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "sheave.dev",
    version = "v1alpha1",
    kind = "VirtualIP",
    plural = "virtualips",
    shortname = "vip",
    category = "sheave",
    doc = "An address that was granted to Services (spec, written by the controller) and the node that holds it (status, written by its speaker).",
    status = "VirtualIPStatus",
    derive = "PartialEq",
    validation = validate::name_is_address(),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.services[*].namespace"),
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.services[*].name"),
    printcolumn(name = "Owner", type_ = "string", json_path = ".status.owner"),
    printcolumn(name = "Since", type_ = "date", json_path = ".status.since"),
    printcolumn(name = "Term", type_ = "integer", json_path = ".status.term"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", priority = "1")
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualIPSpec {
    /// The address. IPv4: the object's name is the same. IPv6: in canonical notation (2001:db8::10); the name has all of its digits,
    /// and - for : (2001-0db8-0000-0000-0000-0000-0000-0010). It is reserved and not served.
    #[schemars(length(min = 6, max = 45))]
    #[x_kube(validation = validate::address_never_changes())]
    pub address: String,

    /// The AddressPool it was taken from.
    #[schemars(length(min = 1, max = 253))]
    pub pool: String,

    /// The Services that it was granted to, the one that had it first in front.
    #[schemars(length(min = 1, max = 64))]
    pub services: Vec<ServiceRef>,

    /// Names of the L2Advertisements that select the address, in order. Absent if none does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "validate::advertisements_schema")]
    pub l2_advertisements: Vec<String>,

    /// `None`: no node announces it, because its pool says so. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announce: Option<Announce>,

    /// The node whose address it is: the ports of the Services are granted there, not the address. Absent for an address from a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub node: Option<String>,
}

/// A Service, with the uid that separates it from others of the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// Namespace of the Service.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name of the Service.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// `metadata.uid` of the Service: a Service that was deleted and created again is another one.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// The node that holds the address. Written by the speaker that won it or released it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualIPStatus {
    /// Name of the node that answers for the address; empty if none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub owner: Option<String>,

    /// Since when. The API server admits times that no clock has: such a one is none, and the object stays readable.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "readable_time")]
    pub since: Option<MicroTime>,

    /// The term of the election that the owner won; rises as long as one speaker is left. A writer leaves a status with a higher
    /// term and a later time alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub term: Option<i64>,

    /// Why no node owns it (`HandingOver`, `NoEligibleNode`, ...), or which part of it the owner does not serve (`FQDNNotServed`, ...).
    /// A string, so that an older controller reads the reasons of a newer speaker.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
}

fn readable_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<MicroTime>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.and_then(|text| text.parse().ok()).map(MicroTime))
}

impl VirtualIP {
    /// The address, if the object is as the controller writes it (name and spec agree).
    pub fn address(&self) -> Option<IpAddr> {
        let address: IpAddr = self.spec.address.parse().ok()?;
        (self.name_any() == virtual_ip_name(address) && self.spec.address == address.to_string()).then_some(address)
    }
}

/// The name of the VirtualIP of an address. No object's name has a colon, or ends with a dash: of IPv6 it has all digits.
pub fn virtual_ip_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => address.segments().map(|segment| format!("{segment:04x}")).join("-"),
    }
}

/// The address of the VirtualIP with this name.
pub fn virtual_ip_address(name: &str) -> Option<IpAddr> {
    let address = name.replace('-', ":").parse().ok()?;
    (virtual_ip_name(address) == name).then_some(address)
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;

    fn vip(name: &str, address: &str) -> VirtualIP {
        VirtualIP::new(name, VirtualIPSpec { address: address.into(), ..VirtualIPSpec::default() })
    }

    #[test]
    fn crd_is_built_without_panic_and_is_cluster_scoped() {
        let crd = VirtualIP::crd();
        assert_eq!(crd.metadata.name.as_deref(), Some("virtualips.sheave.dev"));
        assert_eq!(crd.spec.scope, "Cluster");
        assert_eq!(crd.spec.names.short_names, Some(vec!["vip".to_string()]));
    }

    #[test]
    fn an_address_counts_only_if_name_and_spec_agree() {
        assert_eq!(vip("192.0.2.1", "192.0.2.1").address(), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(vip("192.0.2.2", "192.0.2.1").address(), None);
        assert_eq!(vip("nonsense", "nonsense").address(), None);
        let name = "2001-0db8-0000-0000-0000-0000-0000-0010";
        assert_eq!(vip(name, "2001:db8::10").address(), Some("2001:db8::10".parse().unwrap()));
        assert_eq!(vip(name, "2001:db8:0::10").address(), None, "another notation");
        assert_eq!(vip(name, "2001:db8::11").address(), None);
    }

    #[test]
    fn every_address_has_one_name_and_every_name_one_address() {
        for (address, name) in [
            ("192.0.2.1", "192.0.2.1"),
            ("2001:db8::", "2001-0db8-0000-0000-0000-0000-0000-0000"),
            ("fd00::1", "fd00-0000-0000-0000-0000-0000-0000-0001"),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!((virtual_ip_name(address).as_str(), virtual_ip_address(name)), (name, Some(address)));
        }
        for other in ["", "2001-db8--1", "2001:0db8:0000:0000:0000:0000:0000:0010", "192-0-2-1", "nonsense"] {
            assert_eq!(virtual_ip_address(other), None, "{other}");
        }
    }

    #[test]
    fn since_is_rfc3339() {
        let status: VirtualIPStatus =
            serde_json::from_str(r#"{"owner":"n1","since":"2026-11-21T09:00:00.123456Z","term":7}"#).unwrap();
        assert_eq!(status.term, Some(7));
        let odd: VirtualIPStatus =
            serde_json::from_str(r#"{"owner":"n1","since":"2026-01-01T00:00:00+99:99","term":7}"#).unwrap();
        assert_eq!((odd.owner.as_deref(), odd.since), (Some("n1"), None), "one bad time hides no object");
        assert!(serde_json::to_string(&status).unwrap().contains("2026-11-21T09:00:00.123456Z"));
    }
}
