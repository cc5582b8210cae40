//! Pure: the few fields of Kubernetes objects that decisions depend on. Everything else is dropped at the door, so a
//! thousand Services cost a megabyte, not ten.

mod clients;
mod grant;
mod port;
mod wishes;
mod writer;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::{Namespace, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use sheave_api::status::{CONDITION_ALLOCATED, REASON_GRANTING, REASON_RELEASING};
use sheave_api::{
    ADDRESS_ANNOTATIONS, AddressMode, AddressPool, AddressPoolSpec, AddressPoolStatus, CILIUM_SHARING_ANNOTATIONS,
    CLEANUP_FINALIZER, CONTROLLER_NAME, POOL_ANNOTATIONS, RETENTION_ANNOTATION, SHARING_ANNOTATIONS, ServiceRef,
    address_mode, startup_probe,
};

use crate::allocator::selection::Labels;
use crate::allocator::sharing::{Sharing, SharingKey};
use crate::family::Family;
use crate::guards::facts;

pub use clients::Clients;
pub use grant::GrantView;
pub use port::{Port, PortStatus, Protocol};
use wishes::Wishes;
pub use writer::Writer;

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl From<&ServiceRef> for ServiceKey {
    fn from(service: &ServiceRef) -> Self {
        ServiceKey { namespace: service.namespace.clone(), name: service.name.clone() }
    }
}

/// A Service as the allocation sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceView {
    pub key: ServiceKey,
    pub uid: String,
    pub version: u64,
    /// Seconds since 1970; orders Services that wait.
    pub created: i64,
    /// Its deletion was requested; it stays for as long as it has a finalizer.
    pub deleting: bool,
    /// It has [`CLEANUP_FINALIZER`], whoever set it.
    pub finalizer: bool,
    /// The API server has recorded that this controller set it.
    pub managed: bool,
    pub load_balancer: bool,
    pub labels: Labels,
    pub class: Option<String>,
    /// False if the Service wants IPv6 only.
    pub wants_ipv4: bool,
    pub wants_ipv6: bool,
    /// ipFamilyPolicy RequireDualStack.
    pub requires_both: bool,
    pub ports: Vec<Port>,
    pub clients: Clients,
    /// What is wrong with the annotation that turns probes of new pods off.
    pub startup_probe: Option<String>,
    /// Whether its ports are to be at addresses of nodes; `None` where no annotation says it. Or what is wrong with that.
    pub mode: Result<Option<AddressMode>, String>,
    /// externalTrafficPolicy Local.
    pub local: bool,
    /// NodePorts that it has, whatever its type.
    pub node_ports: Vec<Port>,
    pub pool: Option<String>,
    pub addresses: Option<String>,
    pub sharing_key: Option<SharingKey>,
    /// Annotations that are understood and have another name here, with that name.
    pub renamed: Vec<(&'static str, &'static str)>,
    /// Two sources name different pools or addresses: which ones.
    pub ambiguous: Option<String>,
    pub cluster_ips: Vec<IpAddr>,
    pub ingress: Vec<Ingress>,
    /// Who wrote the ingress last.
    pub writer: Writer,
    pub condition: Option<ConditionView>,
}

/// One entry of `status.loadBalancer.ingress`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ingress {
    /// An address with ipMode VIP (or none, as API servers before 1.29 have it), and its ports if they are listed.
    Vip(Ipv4Addr, Vec<PortStatus>),
    /// An IPv6 address, which we never write.
    V6(Ipv6Addr),
    /// Whatever else: a name, ipMode Proxy.
    Other,
}

/// Our condition on a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionView {
    pub allocated: bool,
    pub reason: String,
    pub message: String,
}

impl ServiceView {
    pub fn reference(&self) -> ServiceRef {
        ServiceRef { namespace: self.key.namespace.clone(), name: self.key.name.clone(), uid: self.uid.clone() }
    }

    /// With which Services it may share an address.
    pub fn sharing(&self) -> Option<Sharing> {
        let key = self.sharing_key.clone()?;
        Some(Sharing { key, ports: self.ports.iter().cloned().collect() })
    }

    /// Whether the status shows this address, among others perhaps. Of IPv6 none counts: we write none.
    pub fn shows(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        self.ingress.iter().any(|entry| matches!(entry, Ingress::Vip(shown, _) if IpAddr::V4(*shown) == address))
    }

    /// Whether the finalizer is there because of us; its name is shared with other controllers. Either kind of evidence can be lost:
    /// our condition to a third party, the record in `managedFields` where more than ten managers have written.
    pub fn finalizer_is_ours(&self) -> bool {
        let is_ours =
            |c: &ConditionView| c.allocated || [REASON_GRANTING, REASON_RELEASING].contains(&c.reason.as_str());
        self.finalizer && (self.managed || self.condition.as_ref().is_some_and(is_ours))
    }

    /// The addresses that the status shows, if it shows nothing else.
    pub fn shown_alone(&self) -> Option<Vec<Ipv4Addr>> {
        let address = |entry: &Ingress| match entry {
            Ingress::Vip(address, _) => Some(*address),
            Ingress::V6(_) | Ingress::Other => None,
        };
        let shown: Option<Vec<Ipv4Addr>> = self.ingress.iter().map(address).collect();
        shown.filter(|shown| !shown.is_empty())
    }

    /// The one address that the status shows.
    #[cfg(test)]
    pub fn shown(&self) -> Option<Ipv4Addr> {
        self.shown_alone().filter(|shown| shown.len() == 1)?.first().copied()
    }

    /// Whether it has had all addresses that the ledger grants it, whatever the status shows: that is not as we wrote it.
    pub fn had_all(&self) -> bool {
        self.writer != Writer::Us && self.condition.as_ref().is_some_and(|condition| condition.allocated)
    }

    /// What it has had of the IPv4 addresses that the ledger grants it; of several that it is still to show, the lowest.
    pub fn had(&self, held: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
        let had = held.iter().copied().filter(|address| self.had_all() || self.shows(*address));
        let had: Vec<Ipv4Addr> = had.collect();
        if had.is_empty() { held.first().copied().into_iter().collect() } else { had }
    }

    /// The addresses of a family that the status shows; none if it shows anything that is no VIP.
    pub fn shown_of(&self, family: Family) -> Vec<IpAddr> {
        if self.ingress.contains(&Ingress::Other) {
            return Vec::new();
        }
        let address = |entry: &Ingress| match entry {
            Ingress::Vip(address, _) => Some(IpAddr::V4(*address)),
            Ingress::V6(address) => Some(IpAddr::V6(*address)),
            Ingress::Other => None,
        };
        self.ingress.iter().filter_map(address).filter(|address| Family::of(*address) == family).collect()
    }
}

impl From<&Service> for ServiceView {
    fn from(service: &Service) -> Self {
        let spec = service.spec.as_ref();
        let status = service.status.as_ref();
        let ingress = status.and_then(|s| s.load_balancer.as_ref()).and_then(|lb| lb.ingress.as_deref());
        let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let Wishes { pool, addresses, ambiguous } = Wishes::of(service);
        let families = spec.and_then(|s| s.ip_families.as_deref()).unwrap_or_default();
        let ports = spec.and_then(|s| s.ports.as_deref()).unwrap_or_default();
        ServiceView {
            key: ServiceKey { namespace: service.namespace().unwrap_or_default(), name: service.name_any() },
            uid: service.uid().unwrap_or_default(),
            version: version(service.resource_version()),
            created: service.creation_timestamp().map_or(0, |t| t.0.as_second()),
            deleting: service.metadata.deletion_timestamp.is_some(),
            finalizer: service.finalizers().iter().any(|name| name == CLEANUP_FINALIZER),
            managed: service.managed_fields().iter().any(has_set_finalizer),
            load_balancer: spec.and_then(|s| s.type_.as_deref()) == Some("LoadBalancer"),
            labels: service.labels().clone(),
            class: spec.and_then(|s| s.load_balancer_class.clone()),
            wants_ipv4: families.is_empty() || families.iter().any(|family| family == "IPv4"),
            wants_ipv6: families.iter().any(|family| family == "IPv6"),
            requires_both: spec.and_then(|s| s.ip_family_policy.as_deref()) == Some("RequireDualStack"),
            ports: ports.iter().map(|port| Port::new(port.port, port.protocol.as_deref())).collect(),
            clients: Clients::of(service),
            startup_probe: startup_probe::is_on(
                service.annotations().get(startup_probe::ANNOTATION).map(String::as_str),
            )
            .err()
            .map(|error| error.to_string()),
            mode: mode(service),
            local: spec.and_then(|s| s.external_traffic_policy.as_deref()) == Some("Local"),
            node_ports: node_ports(ports),
            pool,
            addresses,
            sharing_key: sharing_key(service),
            renamed: renamed(service),
            ambiguous,
            cluster_ips: facts::addresses(spec.and_then(|s| s.cluster_ips.as_deref()).unwrap_or_default()),
            writer: Writer::of(service.managed_fields()),
            ingress: ingress.unwrap_or_default().iter().map(ingress_view).collect(),
            condition: conditions.iter().find(|c| c.type_ == CONDITION_ALLOCATED).map(|c| ConditionView {
                allocated: c.status == "True",
                reason: c.reason.clone(),
                message: c.message.clone(),
            }),
        }
    }
}

fn mode(service: &Service) -> Result<Option<AddressMode>, String> {
    let said = service.annotations().get(address_mode::ANNOTATION).map(|value| address_mode::of(Some(value)));
    said.transpose().map_err(|error| error.to_string())
}

fn node_ports(ports: &[ServicePort]) -> Vec<Port> {
    let number = |port: &ServicePort| port.node_port.filter(|number| *number != 0);
    ports.iter().filter_map(|port| Some(Port::new(number(port)?, port.protocol.as_deref()))).collect()
}

/// An empty key asks for nothing. Cilium's is confined to the Service's namespace.
fn sharing_key(service: &Service) -> Option<SharingKey> {
    let value = |names: &[&str]| {
        let keys = names.iter().filter_map(|name| service.annotations().get(*name)).map(|key| key.trim());
        keys.map(str::to_string).find(|key| !key.is_empty())
    };
    let anywhere = value(&SHARING_ANNOTATIONS).map(|key| SharingKey { key, namespace: None });
    anywhere.or_else(|| Some(SharingKey { key: value(&CILIUM_SHARING_ANNOTATIONS)?, namespace: service.namespace() }))
}

fn renamed(service: &Service) -> Vec<(&'static str, &'static str)> {
    let kinds: [&[&'static str]; 3] = [&POOL_ANNOTATIONS, &ADDRESS_ANNOTATIONS, &SHARING_ANNOTATIONS];
    let all = kinds.into_iter().filter_map(<[_]>::split_first);
    let pairs = all.flat_map(|(ours, others)| others.iter().map(|other| (*other, *ours)));
    pairs.filter(|(other, _)| service.annotations().contains_key(*other)).collect()
}

fn ingress_view(entry: &k8s_openapi::api::core::v1::LoadBalancerIngress) -> Ingress {
    let plain =
        entry.hostname.as_deref().unwrap_or_default().is_empty() && entry.ip_mode.as_deref().unwrap_or("VIP") == "VIP";
    let ports = entry.ports.as_deref().unwrap_or_default().iter();
    let ports = ports.map(|status| PortStatus {
        port: Port::new(status.port, Some(&status.protocol)),
        error: status.error.clone().filter(|error| !error.is_empty()),
    });
    match entry.ip.as_deref().map(str::parse) {
        Some(Ok(IpAddr::V4(address))) if plain => Ingress::Vip(address, ports.collect()),
        Some(Ok(IpAddr::V6(address))) if plain => Ingress::V6(address),
        _ => Ingress::Other,
    }
}

/// Whether an entry of `managedFields` says that this controller set the finalizer.
fn has_set_finalizer(entry: &ManagedFieldsEntry) -> bool {
    let field = format!("v:\"{CLEANUP_FINALIZER}\"");
    let fields = entry.fields_v1.as_ref().map(|fields| &fields.0["f:metadata"]["f:finalizers"][&field]);
    entry.manager.as_deref() == Some(CONTROLLER_NAME) && fields.is_some_and(|field| !field.is_null())
}

/// A pool as the allocation sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolView {
    pub name: String,
    pub uid: String,
    pub version: u64,
    pub created: i64,
    pub generation: i64,
    pub labels: Labels,
    pub spec: AddressPoolSpec,
    /// The annotation [`RETENTION_ANNOTATION`].
    pub retention: Option<String>,
    pub status: AddressPoolStatus,
}

impl From<&AddressPool> for PoolView {
    fn from(pool: &AddressPool) -> Self {
        PoolView {
            name: pool.name_any(),
            uid: pool.uid().unwrap_or_default(),
            version: version(pool.resource_version()),
            created: pool.creation_timestamp().map_or(0, |t| t.0.as_second()),
            generation: pool.metadata.generation.unwrap_or_default(),
            labels: pool.labels().clone(),
            spec: pool.spec.clone(),
            retention: pool.annotations().get(RETENTION_ANNOTATION).cloned(),
            status: pool.status.clone().unwrap_or_default(),
        }
    }
}

/// A namespace without spec and status: requests for it are for metadata only.
pub type NamespaceMeta = PartialObjectMeta<Namespace>;

/// A namespace, of which only its labels matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceView {
    pub name: String,
    pub uid: String,
    pub version: u64,
    pub labels: Labels,
}

impl From<&NamespaceMeta> for NamespaceView {
    fn from(namespace: &NamespaceMeta) -> Self {
        NamespaceView {
            name: namespace.name_any(),
            uid: namespace.uid().unwrap_or_default(),
            version: version(namespace.resource_version()),
            labels: namespace.labels().clone(),
        }
    }
}

/// Kubernetes promises since 1.35 what has been true of etcd all along: versions of one kind compare as numbers.
pub fn version(text: Option<String>) -> u64 {
    text.and_then(|v| v.parse().ok()).unwrap_or_default()
}

/// A Service of ours that has nothing yet.
#[cfg(test)]
pub fn example() -> ServiceView {
    ServiceView {
        key: ServiceKey { namespace: "default".into(), name: "web".into() },
        uid: "u".into(),
        version: 7,
        created: 0,
        deleting: false,
        finalizer: false,
        managed: false,
        load_balancer: true,
        labels: Labels::new(),
        class: None,
        wants_ipv4: true,
        wants_ipv6: false,
        requires_both: false,
        ports: vec![Port::new(80, None)],
        clients: Clients::All,
        startup_probe: None,
        mode: Ok(None),
        local: false,
        node_ports: vec![],
        pool: None,
        addresses: None,
        sharing_key: None,
        renamed: vec![],
        ambiguous: None,
        cluster_ips: vec![],
        ingress: vec![],
        writer: Writer::Nobody,
        condition: None,
    }
}

/// A pool with these entries.
#[cfg(test)]
pub fn example_pool(name: &str, entries: &[&str]) -> PoolView {
    let addresses = entries.iter().map(|entry| entry.to_string()).collect();
    PoolView {
        name: name.into(),
        uid: format!("uid of {name}"),
        version: 1,
        created: 0,
        generation: 1,
        labels: Labels::new(),
        spec: AddressPoolSpec { addresses, auto_assign: true, ..AddressPoolSpec::default() },
        retention: None,
        status: AddressPoolStatus::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(json: serde_json::Value) -> ServiceView {
        ServiceView::from(&serde_json::from_value::<Service>(json).unwrap())
    }

    #[test]
    fn an_empty_service_is_not_ours_and_does_not_panic() {
        let view = service(serde_json::json!({"metadata": {"name": "a", "namespace": "b"}}));
        assert!(!view.load_balancer && view.wants_ipv4 && view.ingress.is_empty());
    }

    #[test]
    fn our_annotation_comes_before_metallbs_and_the_old_field() {
        let view = service(serde_json::json!({
            "metadata": {"name": "a", "namespace": "b", "annotations": {
                "metallb.universe.tf/loadBalancerIPs": "192.0.2.9", "sheave.dev/addresses": "192.0.2.1",
                "metallb.io/address-pool": "p",
            }},
            "spec": {"type": "LoadBalancer", "loadBalancerIP": "192.0.2.8"},
        }));
        assert_eq!(view.addresses.as_deref(), Some("192.0.2.1"));
        assert_eq!(view.pool.as_deref(), Some("p"));
        let ours = ["sheave.dev/address-pool", "sheave.dev/addresses"];
        assert_eq!(
            view.renamed,
            [("metallb.io/address-pool", ours[0]), ("metallb.universe.tf/loadBalancerIPs", ours[1])]
        );
    }

    /// Every annotation that is understood, alone.
    #[test]
    fn each_annotation_has_its_meaning() {
        let with = |name: &str, value: &str| {
            service(serde_json::json!({ "metadata": {"name": "a", "namespace": "b", "annotations": { name: value }} }))
        };
        for name in POOL_ANNOTATIONS {
            assert_eq!(with(name, "p").pool.as_deref(), Some("p"), "{name}");
        }
        for name in ADDRESS_ANNOTATIONS {
            assert_eq!(with(name, "192.0.2.1").addresses.as_deref(), Some("192.0.2.1"), "{name}");
        }
        for (value, mode) in [("node", AddressMode::Node), ("pool", AddressMode::Pool)] {
            assert_eq!(with(address_mode::ANNOTATION, value).mode, Ok(Some(mode)));
        }
        assert_eq!(with("another", "node").mode, Ok(None));
        assert!(with(address_mode::ANNOTATION, "x").mode.unwrap_err().contains("'x'"));
        for name in SHARING_ANNOTATIONS {
            let key = SharingKey { key: "k".into(), namespace: None };
            assert_eq!((with(name, " k ").sharing_key, with(name, " ").sharing_key), (Some(key), None), "{name}");
        }
        for name in CILIUM_SHARING_ANNOTATIONS {
            let key = SharingKey { key: "k".into(), namespace: Some("b".into()) };
            assert_eq!(with(name, "k").sharing_key, Some(key), "{name}");
        }
    }

    /// The name of the finalizer is shared; who set it is recorded.
    #[test]
    fn a_finalizer_is_ours_if_we_have_set_it() {
        let set_by = |manager: &str| {
            let view = service(serde_json::json!({
                "metadata": {"name": "a", "namespace": "b", "finalizers": ["x", CLEANUP_FINALIZER], "managedFields": [
                    {"manager": CONTROLLER_NAME, "operation": "Update", "fieldsV1": {"f:status": {}}},
                    {"manager": manager, "operation": "Update", "subresource": "status", "fieldsV1": {"f:metadata": {
                        "f:finalizers": {".": {}, "v:\"service.kubernetes.io/load-balancer-cleanup\"": {}}
                    }}},
                ]},
            }));
            assert!(view.finalizer && !view.deleting);
            view.finalizer_is_ours()
        };
        assert!(set_by("sheave.dev/controller") && !set_by("cloud-controller-manager"));
    }

    #[test]
    fn an_ingress_is_a_vip_or_something_else() {
        let view = service(serde_json::json!({
            "metadata": {"name": "a", "namespace": "b"},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "192.0.2.1", "ipMode": "VIP"}, {"ip": "192.0.2.2"}, {"ip": "192.0.2.3", "ipMode": "Proxy"},
                {"hostname": "x"}, {"ip": "2001:db8::1", "ipMode": "VIP"},
                {"ip": "192.0.2.4", "ipMode": "VIP", "ports": [{"port": 9, "protocol": "SCTP", "error": "example.com/No"}]}
            ]}},
        }));
        let vip = |n, ports| Ingress::Vip(Ipv4Addr::new(192, 0, 2, n), ports);
        let refused = PortStatus { port: Port::new(9, Some("SCTP")), error: Some("example.com/No".into()) };
        let (first, second, fourth) = (vip(1, vec![]), vip(2, vec![]), vip(4, vec![refused]));
        let v6 = Ingress::V6("2001:db8::1".parse().unwrap());
        assert_eq!(view.ingress, [first, second, Ingress::Other, Ingress::Other, v6, fourth]);
        assert!(view.shows(Ipv4Addr::new(192, 0, 2, 4)) && view.shown().is_none());
        assert!(view.shows(Ipv4Addr::new(192, 0, 2, 2)));
    }
}
