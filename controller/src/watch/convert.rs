//! Objects of the API server → facts. One that cannot be read is reported by name, and skipped.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::ResourceExt;
use kube::api::Object;
use kube::core::DeserializeGuard;
use serde_json::Value;
use sheave_api::kubernetes::Watched;
use sheave_api::{
    AddressPool, AddressPoolSpec, AddressProbe, L2Advertisement, SpeakerStateSpec, VirtualIP, virtual_ip_address,
};
use tracing::warn;

use crate::advertisements::AdvertisementView;
use crate::guards::facts::{
    Facts, NodeFacts, NodeSpec, NodeStatus, SpeakerFacts, SpeakerStatus, api_servers as addresses, networks,
};
use crate::guards::{Fact, Source};
use crate::index::{Kind, Observed};
use crate::probes::ProbeView;
use crate::view::{GrantView, NamespaceMeta, NamespaceView, PoolView, ServiceKey, ServiceView, version};

/// A pool whose status may be anything: the controller writes it anew.
pub type PoolObject = Object<AddressPoolSpec, Value>;
/// The fields of a Node that guards need.
pub type NodeObject = Object<Option<NodeSpec>, NodeStatus>;
/// The fields of a SpeakerState that guards need.
pub type SpeakerObject = Object<Option<SpeakerStateSpec>, SpeakerStatus>;

/// Something that was seen, or is gone: of that its name counts, which can be read of any object.
pub enum Seen<K> {
    Here(K),
    Gone(Gone),
}

/// Its name, and the version at which it was gone.
pub struct Gone {
    pub namespace: String,
    pub name: String,
    pub version: u64,
}

/// Converts an object that can be read, and reports one that cannot.
pub fn object<K: Watched>(
    kind: Kind,
    DeserializeGuard(object): DeserializeGuard<K>,
    convert: fn(Seen<K>) -> Option<Observed>,
) -> Option<Observed> {
    match object {
        Ok(object) => convert(Seen::Here(object)),
        Err(invalid) => {
            let namespace = invalid.metadata.namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default();
            let name = format!("{namespace}{}", invalid.metadata.name.unwrap_or_default());
            warn!(kind = kind.as_str(), name, error = invalid.error, "object cannot be read; skipped");
            Some(Observed::Unreadable(kind, name))
        }
    }
}

pub fn gone<K: Watched>(object: &DeserializeGuard<K>, convert: fn(Seen<K>) -> Option<Observed>) -> Option<Observed> {
    let namespace = object.namespace().unwrap_or_default();
    convert(Seen::Gone(Gone { namespace, name: object.name_any(), version: version(object.resource_version()) }))
}

pub fn service(seen: Seen<Service>) -> Option<Observed> {
    Some(match seen {
        Seen::Here(service) => Observed::Service(ServiceView::from(&service)),
        Seen::Gone(Gone { namespace, name, version }) => Observed::ServiceGone(ServiceKey { namespace, name }, version),
    })
}

pub fn pool(seen: Seen<PoolObject>) -> Option<Observed> {
    Some(match seen {
        Seen::Here(Object { metadata, spec, status, .. }) => {
            let status = status.and_then(|status| serde_json::from_value(status).ok());
            Observed::Pool(PoolView::from(&AddressPool { metadata, spec, status }))
        }
        Seen::Gone(gone) => Observed::PoolGone(gone.name, gone.version),
    })
}

pub fn namespace(seen: Seen<NamespaceMeta>) -> Option<Observed> {
    Some(match seen {
        Seen::Here(namespace) => Observed::Namespace(NamespaceView::from(&namespace)),
        Seen::Gone(gone) => Observed::NamespaceGone(gone.name, gone.version),
    })
}

pub fn advertisement(seen: Seen<L2Advertisement>) -> Option<Observed> {
    Some(match seen {
        Seen::Here(object) => Observed::Advertisement(AdvertisementView::from(&object)),
        Seen::Gone(gone) => Observed::AdvertisementGone(gone.name, gone.version),
    })
}

pub fn probe(seen: Seen<AddressProbe>) -> Option<Observed> {
    Some(match seen {
        Seen::Here(object) => Observed::Probe(ProbeView::from(&object)),
        Seen::Gone(gone) => Observed::ProbeGone(gone.name, gone.version),
    })
}

pub fn grant(seen: Seen<VirtualIP>) -> Option<Observed> {
    match seen {
        Seen::Here(vip) => {
            let view = GrantView::new(&vip);
            if view.is_none() {
                warn!(name = %vip.name_any(), "name and address of the VirtualIP differ; ignored");
            }
            view.map(Observed::Grant)
        }
        // Of others none was kept.
        Seen::Gone(gone) => virtual_ip_address(&gone.name).map(|address| Observed::GrantGone(address, gone.version)),
    }
}

/// A fact of an object that can be read. One that cannot be is reported, and guards what it guarded until the next full list.
pub fn fact<K: Watched>(
    source: Source,
    DeserializeGuard(object): DeserializeGuard<K>,
    convert: fn(K) -> Facts,
) -> Option<Fact> {
    match object {
        Ok(object) => {
            let (name, uid) = (object.name_any(), object.uid().unwrap_or_default());
            let version = version(object.resource_version());
            Some(Fact::Here { source, name, uid, version, facts: convert(object) })
        }
        Err(invalid) => {
            let name = invalid.metadata.name.unwrap_or_default();
            warn!(kind = source.as_str(), name, error = invalid.error, "object cannot be read; skipped");
            None
        }
    }
}

pub fn fact_gone<K: Watched>(source: Source, object: &DeserializeGuard<K>) -> Fact {
    Fact::Gone { source, name: object.name_any(), version: version(object.resource_version()) }
}

pub fn node(node: NodeObject) -> Facts {
    Facts::Node(NodeFacts::new(&node.metadata, node.spec.unwrap_or_default(), node.status.unwrap_or_default()))
}

pub fn speaker(state: SpeakerObject) -> Facts {
    Facts::Speaker(SpeakerFacts::new(state.status.unwrap_or_default()))
}

pub fn service_range(range: ServiceCIDR) -> Facts {
    Facts::ServiceRanges(networks(range.spec.and_then(|spec| spec.cidrs).unwrap_or_default()))
}

pub fn api_servers(slice: EndpointSlice) -> Facts {
    Facts::ApiServers(addresses(&slice.endpoints))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_be_read_is_gone_by_its_name() {
        let text = json!({
            "apiVersion": "sheave.dev/v1alpha1", "kind": "AddressPool",
            "metadata": {"name": "odd", "resourceVersion": "7"},
            "spec": {"addresses": ["198.51.100.0/30"], "autoAssign": "perhaps"},
        });
        let odd: DeserializeGuard<PoolObject> = serde_json::from_value(text).expect("its metadata can be read");
        let seen = gone(&odd, pool);
        assert!(matches!(&seen, Some(Observed::PoolGone(name, 7)) if name == "odd"), "{seen:?}");
        let seen = object(Kind::Pools, odd, pool);
        assert!(matches!(&seen, Some(Observed::Unreadable(Kind::Pools, name)) if name == "odd"), "{seen:?}");
    }

    #[test]
    fn a_virtualip_that_is_gone_frees_its_address() {
        let gone = |name: &str| grant(Seen::Gone(Gone { namespace: String::new(), name: name.into(), version: 7 }));
        let seen = gone("192.0.2.1");
        assert!(
            matches!(&seen, Some(Observed::GrantGone(address, 7)) if address.to_string() == "192.0.2.1"),
            "{seen:?}"
        );
        let seen = gone("2001-0db8-0000-0000-0000-0000-0000-0010");
        assert!(
            matches!(&seen, Some(Observed::GrantGone(address, 7)) if address.to_string() == "2001:db8::10"),
            "{seen:?}"
        );
        assert!(gone("2001:db8::1").is_none() && gone("2001-db8--1").is_none() && gone("other").is_none());
    }
}
