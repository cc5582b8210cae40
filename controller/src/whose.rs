//! Pure: whether a Service of type LoadBalancer is ours. A class says it; without one, nobody else may be there who serves it too: two
//! controllers that rewrite each other's status help nobody.

use std::collections::BTreeSet;
use std::fmt;

use sheave_api::AddressMode;

use crate::view::{ServiceView, Writer};

/// Flags that say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Values of `spec.loadBalancerClass` that are ours.
    pub classes: Vec<String>,
    pub classless: Classless,
    /// Of Services that say nothing of it.
    pub address_mode: AddressMode,
}

/// Services without a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Classless {
    /// Ours, unless another owner of them was detected.
    Auto,
    /// Ours, whoever else is there.
    Always,
    /// Not ours.
    Never,
}

/// A sign in the whole cluster that somebody else serves Services without a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Evidence {
    /// The API server serves this group.
    ApiGroup(&'static str),
    /// `spec.providerID` of a node begins with it.
    Provider(&'static str),
    /// Nodes have labels of this domain.
    Label(&'static str),
}

/// What a Service is to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    Ours,
    /// Another type, another class, or being deleted.
    Foreign,
    /// Without a class, and somebody else serves it: the name of who, and how we know.
    Others(String),
}

/// All that decides it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Responsibility {
    policy: Policy,
    evidence: BTreeSet<Evidence>,
}

impl Default for Policy {
    fn default() -> Self {
        let classes = vec![sheave_api::LOAD_BALANCER_CLASS.to_string()];
        Policy { classes, classless: Classless::Auto, address_mode: AddressMode::Pool }
    }
}

impl Default for Responsibility {
    fn default() -> Self {
        Responsibility::new(Policy::default())
    }
}

impl Responsibility {
    pub fn new(policy: Policy) -> Self {
        Responsibility { policy, evidence: BTreeSet::new() }
    }

    /// True if it was otherwise before.
    pub fn set_evidence(&mut self, evidence: BTreeSet<Evidence>) -> bool {
        let changed = self.evidence != evidence;
        self.evidence = evidence;
        changed
    }

    /// Why Services without a class are left alone, all over the cluster.
    pub fn others(&self) -> impl Iterator<Item = Evidence> {
        let counts = self.policy.classless == Classless::Auto;
        self.evidence.iter().copied().filter(move |_| counts)
    }

    /// `listed`: the ledger names the Service. `adoptable`: the address in its status may be granted to it now.
    pub fn judge(&self, service: &ServiceView, listed: bool, adoptable: impl FnOnce() -> bool) -> Whose {
        if service.deleting || !service.load_balancer {
            return Whose::Foreign;
        }
        if let Some(class) = &service.class {
            return if self.policy.classes.contains(class) { Whose::Ours } else { Whose::Foreign };
        }
        match self.policy.classless {
            Classless::Always => return Whose::Ours,
            Classless::Never => return Whose::Foreign,
            Classless::Auto => {}
        }
        // What we serve already stays: nobody who comes later takes it from us.
        if listed && service.condition.as_ref().is_some_and(|condition| condition.allocated) {
            return Whose::Ours;
        }
        if let Some(evidence) = self.others().next() {
            return Whose::Others(evidence.to_string());
        }
        // An address that is in a pool of ours, and free, is of a controller that was here before us.
        if let Writer::Controller(name) = &service.writer
            && !service.ingress.is_empty()
            && !adoptable()
        {
            return Whose::Others(format!("field manager {name} of its status"));
        }
        Whose::Ours
    }

    /// Whether an address may be written into this Service's status over what is there. Of another controller only what is adopted, once.
    pub fn may_write(&self, service: &ServiceView) -> bool {
        let ours = service.class.is_some() || self.policy.classless == Classless::Always;
        let allocated = service.condition.as_ref().is_some_and(|condition| condition.allocated);
        let theirs = self.others().next().is_some() || allocated && matches!(service.writer, Writer::Controller(_));
        ours || service.writer == Writer::Us || !theirs
    }

    /// Whether a refusal may empty this Service's status: without a class only of what we wrote ourselves.
    pub fn may_empty(&self, service: &ServiceView) -> bool {
        service.class.is_some() || service.writer == Writer::Us
    }
}

impl Evidence {
    /// Of an API group that is served.
    pub fn of_group(name: &str) -> Option<Self> {
        GROUPS.into_iter().find(|group| *group == name).map(Evidence::ApiGroup)
    }

    /// Of a node's `spec.providerID`.
    pub fn of_provider(id: &str) -> Option<Self> {
        let scheme = id.split_once("://")?.0;
        PROVIDERS.into_iter().find(|provider| *provider == scheme).map(Evidence::Provider)
    }

    /// Of the name of a node's label.
    pub fn of_label(name: &str) -> Option<Self> {
        let domain = name.split_once('/')?.0;
        LABELS.into_iter().find(|label| *label == domain).map(Evidence::Label)
    }

    /// Who it is; label of the metric.
    pub const fn owner(self) -> &'static str {
        match self {
            Evidence::ApiGroup(name) | Evidence::Provider(name) | Evidence::Label(name) => name,
        }
    }

    /// All of them, for metrics that must exist with value zero.
    pub fn all() -> impl Iterator<Item = Self> {
        let groups = GROUPS.into_iter().map(Evidence::ApiGroup);
        let providers = PROVIDERS.into_iter().map(Evidence::Provider);
        groups.chain(providers).chain(LABELS.into_iter().map(Evidence::Label))
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Evidence::ApiGroup(group) => write!(f, "API group {group}"),
            Evidence::Provider(provider) => write!(f, "spec.providerID {provider}:// of nodes"),
            Evidence::Label(domain) => write!(f, "labels {domain}/... of nodes"),
        }
    }
}

/// Of load balancers that serve Services without a class.
const GROUPS: [&str; 2] = ["metallb.io", "cilium.io"];

/// Of cloud controllers that do. Not those of machines without a load balancer (metal3, vsphere, kind, rke2).
const PROVIDERS: [&str; 16] = [
    "alicloud",
    "aws",
    "azure",
    "cloudstack",
    "digitalocean",
    "equinixmetal",
    "exoscale",
    "gce",
    "hcloud",
    "ibm",
    "k3s",
    "linode",
    "oci",
    "openstack",
    "scaleway",
    "vultr",
];

/// Of nodes of k3s' klipper-lb and of managed clusters.
const LABELS: [&str; 6] = [
    "svccontroller.k3s.cattle.io",
    "eks.amazonaws.com",
    "cloud.google.com",
    "kubernetes.azure.com",
    "doks.digitalocean.com",
    "oci.oraclecloud.com",
];

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::view::{ConditionView, Ingress, example as service};

    fn others(evidence: &[Evidence]) -> Responsibility {
        let mut responsibility = Responsibility::default();
        responsibility.set_evidence(evidence.iter().copied().collect());
        responsibility
    }

    fn judge(responsibility: &Responsibility, service: &ServiceView) -> Whose {
        responsibility.judge(service, false, || false)
    }

    fn shown(writer: Writer) -> ServiceView {
        ServiceView { ingress: vec![Ingress::Vip(Ipv4Addr::new(192, 0, 2, 10), vec![])], writer, ..service() }
    }

    #[test]
    fn another_type_or_class_is_foreign_and_classes_are_a_list() {
        let classes = ["sheave.dev/sheave", "metallb.io/metallb"].map(String::from).to_vec();
        let ours = Responsibility::new(Policy { classes, ..Policy::default() });
        let of_class = |class: &str| ServiceView { class: Some(class.into()), ..service() };
        assert_eq!(judge(&ours, &of_class("example.com/lb")), Whose::Foreign);
        assert_eq!(judge(&ours, &of_class("sheave.dev/sheave")), Whose::Ours);
        assert_eq!(judge(&ours, &of_class("metallb.io/metallb")), Whose::Ours);
        assert_eq!(judge(&Responsibility::default(), &of_class("metallb.io/metallb")), Whose::Foreign);
        assert_eq!(judge(&ours, &ServiceView { load_balancer: false, ..service() }), Whose::Foreign);
        assert_eq!(judge(&ours, &ServiceView { deleting: true, ..of_class("sheave.dev/sheave") }), Whose::Foreign);
    }

    #[test]
    fn without_a_class_it_is_ours_unless_another_owner_was_detected() {
        assert_eq!(judge(&Responsibility::default(), &service()), Whose::Ours);
        for sign in [Evidence::ApiGroup("metallb.io"), Evidence::Provider("aws"), Evidence::Label("eks.amazonaws.com")]
        {
            let found = others(&[sign]);
            assert_eq!(judge(&found, &service()), Whose::Others(sign.to_string()));
            let ours = ServiceView { class: Some("sheave.dev/sheave".into()), ..service() };
            assert_eq!(judge(&found, &ours), Whose::Ours, "its class names us");
        }
    }

    #[test]
    fn what_we_serve_already_stays_ours() {
        let condition = ConditionView { allocated: true, reason: "AddressAllocated".into(), message: String::new() };
        let served = ServiceView { condition: Some(condition), ..service() };
        let found = others(&[Evidence::ApiGroup("cilium.io")]);
        assert_eq!(found.judge(&served, true, || false), Whose::Ours);
        assert_ne!(found.judge(&served, false, || false), Whose::Ours, "a condition alone is no grant");
        assert_ne!(found.judge(&service(), true, || false), Whose::Ours, "it was not shown yet");
    }

    /// C3 and C5 of November 2026: a status that another controller has set; one that a predecessor has left.
    #[test]
    fn a_status_of_another_controller_is_left_or_adopted() {
        let nobody = Responsibility::default();
        let theirs = shown(Writer::Controller("other".into()));
        assert_eq!(judge(&nobody, &theirs), Whose::Others("field manager other of its status".into()));
        assert_eq!(nobody.judge(&theirs, false, || true), Whose::Ours, "adopted");
        assert_eq!(judge(&nobody, &shown(Writer::Person)), Whose::Ours);
        assert_eq!(judge(&nobody, &shown(Writer::Us)), Whose::Ours);
        let emptied = ServiceView { ingress: vec![], ..theirs };
        assert_eq!(judge(&nobody, &emptied), Whose::Ours);
    }

    #[test]
    fn a_status_of_another_controller_is_never_overwritten_without_a_class() {
        let nobody = Responsibility::default();
        let condition = ConditionView { allocated: true, reason: "AddressAllocated".into(), message: String::new() };
        let adopted = shown(Writer::Controller("other".into()));
        let theirs = ServiceView { condition: Some(condition), ..adopted.clone() };
        assert!(nobody.may_write(&adopted), "it loses what is not served of it");
        assert!(!nobody.may_write(&theirs) && nobody.may_write(&shown(Writer::Us)));
        assert!(nobody.may_write(&shown(Writer::Person)), "a person's mistake is corrected");
        assert!(!others(&[Evidence::Provider("k3s")]).may_write(&shown(Writer::Person)));
        assert!(!others(&[Evidence::Provider("k3s")]).may_write(&service()), "it may be emptied every second");
        for writer in [Writer::Person, Writer::Controller("other".into()), Writer::Nobody] {
            assert!(!nobody.may_empty(&shown(writer)));
        }
        let classed = ServiceView { class: Some("sheave.dev/sheave".into()), ..theirs };
        assert!(nobody.may_write(&classed) && nobody.may_empty(&classed) && nobody.may_empty(&shown(Writer::Us)));
    }

    #[test]
    fn the_flag_decides_where_signs_are_wrong() {
        let with = |classless| {
            let mut found = Responsibility::new(Policy { classless, ..Policy::default() });
            found.set_evidence(BTreeSet::from([Evidence::ApiGroup("cilium.io")]));
            found
        };
        assert_eq!(judge(&with(Classless::Always), &service()), Whose::Ours);
        assert_eq!(with(Classless::Always).others().count(), 0);
        assert_eq!(judge(&with(Classless::Never), &service()), Whose::Foreign);
    }

    #[test]
    fn signs_are_read_from_groups_nodes_and_labels() {
        assert_eq!(Evidence::of_group("metallb.io"), Some(Evidence::ApiGroup("metallb.io")));
        assert_eq!(Evidence::of_group("apps"), None);
        assert_eq!(Evidence::of_provider("k3s://node1"), Some(Evidence::Provider("k3s")));
        assert_eq!(Evidence::of_provider("aws:///eu-1a/i-0"), Some(Evidence::Provider("aws")));
        for id in ["kind://docker/kind/kind-control-plane", "metal3://x", "", "k3s"] {
            assert_eq!(Evidence::of_provider(id), None, "{id}");
        }
        assert!(Evidence::of_label("svccontroller.k3s.cattle.io/enablelb").is_some());
        assert!(Evidence::of_label("kubernetes.io/os").is_none() && Evidence::of_label("plain").is_none());
    }
}
