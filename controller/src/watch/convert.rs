//! Objects of the API server → facts. One that cannot be read is reported by name, and skipped.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::ResourceExt;
use kube::api::Object;
use kube::core::DeserializeGuard;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sheave_api::{AddressPool, AddressPoolSpec, AddressProbe, L2Advertisement, SpeakerStateSpec, VirtualIP};
use tracing::warn;

use crate::advertisements::AdvertisementView;
use crate::guards::facts::{
    Facts, NodeFacts, NodeSpec, NodeStatus, SpeakerFacts, SpeakerStatus, api_servers as addresses, networks,
};
use crate::guards::{Fact, Source};
use crate::index::{Kind, Observed};
use crate::probes::ProbeView;
use crate::view::{GrantView, NamespaceMeta, NamespaceView, PoolView, ServiceKey, ServiceView, version};

/// What an object must be to be watched.
pub trait Known: kube::Resource + Clone + Debug + DeserializeOwned + Send + 'static {}
impl<K: kube::Resource + Clone + Debug + DeserializeOwned + Send + 'static> Known for K {}

/// A pool whose status may be anything: the controller writes it anew.
pub type PoolObject = Object<AddressPoolSpec, Value>;
/// The fields of a Node that guards need.
pub type NodeObject = Object<Option<NodeSpec>, NodeStatus>;
/// The fields of a SpeakerState that guards need.
pub type SpeakerObject = Object<Option<SpeakerStateSpec>, SpeakerStatus>;

/// Something that was seen, or is gone.
pub enum Seen<K> {
    Here(K),
    Gone(K),
}

/// Converts an object that can be read, and reports one that cannot.
pub fn object<K: Known>(
    kind: Kind,
    DeserializeGuard(object): DeserializeGuard<K>,
    seen: fn(K) -> Seen<K>,
    convert: fn(Seen<K>) -> Option<Observed>,
) -> Option<Observed> {
    match object {
        Ok(object) => convert(seen(object)),
        Err(invalid) => {
            let namespace = invalid.metadata.namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default();
            let name = format!("{namespace}{}", invalid.metadata.name.unwrap_or_default());
            warn!(kind = kind.as_str(), name, error = invalid.error, "object cannot be read; skipped");
            Some(Observed::Unreadable(kind, name))
        }
    }
}

pub fn service(seen: Seen<Service>) -> Option<Observed> {
    Some(match seen {
        Seen::Here(service) => Observed::Service(ServiceView::from(&service)),
        Seen::Gone(service) => {
            let key = ServiceKey { namespace: service.namespace().unwrap_or_default(), name: service.name_any() };
            Observed::ServiceGone(key, version(service.resource_version()))
        }
    })
}

pub fn pool(seen: Seen<PoolObject>) -> Option<Observed> {
    Some(match seen {
        Seen::Here(Object { metadata, spec, status, .. }) => {
            let status = status.and_then(|status| serde_json::from_value(status).ok());
            Observed::Pool(PoolView::from(&AddressPool { metadata, spec, status }))
        }
        Seen::Gone(pool) => Observed::PoolGone(pool.name_any(), version(pool.resource_version())),
    })
}

pub fn namespace(seen: Seen<NamespaceMeta>) -> Option<Observed> {
    Some(match seen {
        Seen::Here(namespace) => Observed::Namespace(NamespaceView::from(&namespace)),
        Seen::Gone(namespace) => Observed::NamespaceGone(namespace.name_any(), version(namespace.resource_version())),
    })
}

pub fn advertisement(seen: Seen<L2Advertisement>) -> Option<Observed> {
    Some(match seen {
        Seen::Here(object) => Observed::Advertisement(AdvertisementView::from(&object)),
        Seen::Gone(object) => Observed::AdvertisementGone(object.name_any(), version(object.resource_version())),
    })
}

pub fn probe(seen: Seen<AddressProbe>) -> Option<Observed> {
    Some(match seen {
        Seen::Here(object) => Observed::Probe(ProbeView::from(&object)),
        Seen::Gone(object) => Observed::ProbeGone(object.name_any(), version(object.resource_version())),
    })
}

pub fn grant(seen: Seen<VirtualIP>) -> Option<Observed> {
    let (Seen::Here(vip) | Seen::Gone(vip)) = &seen;
    let Some(view) = GrantView::new(vip) else {
        warn!(name = %vip.name_any(), "name and address of the VirtualIP differ; ignored");
        return None;
    };
    Some(match seen {
        Seen::Here(_) => Observed::Grant(view),
        Seen::Gone(_) => Observed::GrantGone(view.address, view.version),
    })
}

/// A fact of an object that can be read. One that cannot be is reported, and guards what it guarded until the next full list.
pub fn fact<K: Known>(
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

pub fn fact_gone<K: Known>(source: Source, object: &DeserializeGuard<K>) -> Fact {
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
