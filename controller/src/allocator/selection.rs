//! Pure: which Services a pool may give addresses to, as MetalLB's `serviceAllocation` has it: the namespace must be named or match
//! a selector of namespaces, and the Service match a selector of Services; a list that is empty restricts nothing.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};
use sheave_api::AddressPoolSpec;

use crate::request::Request;

pub type Labels = BTreeMap<String, String>;

/// Labels of the namespaces that are known. A namespace that is not is selected by its name only.
pub type Namespaces = BTreeMap<String, Labels>;

/// The selectors of a pool.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    namespaces: BTreeSet<String>,
    by_labels: Vec<Selector>,
    services: Vec<Selector>,
}

impl Selection {
    /// `Err`: why a selector cannot be read. The API server admits no such selector.
    pub fn new(spec: &AddressPoolSpec) -> Result<Self, String> {
        Ok(Selection {
            namespaces: spec.namespaces.iter().cloned().collect(),
            by_labels: selectors("spec.namespaceSelectors", &spec.namespace_selectors)?,
            services: selectors("spec.serviceSelectors", &spec.service_selectors)?,
        })
    }

    /// Whether it restricts anything.
    pub fn is_restricted(&self) -> bool {
        !self.namespaces.is_empty() || !self.by_labels.is_empty() || !self.services.is_empty()
    }

    /// Whether labels of namespaces count.
    pub fn reads_namespaces(&self) -> bool {
        !self.by_labels.is_empty()
    }

    /// What is not selected, as an object of a sentence.
    pub fn rejects(&self, request: &Request, namespaces: &Namespaces) -> Option<String> {
        let rejected = self.rejects_namespace(&request.service.namespace, namespaces);
        let selected = self.services.is_empty() || self.services.iter().any(|s| s.matches(&request.labels));
        rejected.or_else(|| (!selected).then(|| "the Service's labels".to_string()))
    }

    /// The same for the namespace alone.
    pub fn rejects_namespace(&self, namespace: &str, namespaces: &Namespaces) -> Option<String> {
        let labels = namespaces.get(namespace);
        let matches = |selector: &Selector| labels.is_some_and(|labels| selector.matches(labels));
        let every = self.namespaces.is_empty() && self.by_labels.is_empty();
        let selected = every || self.namespaces.contains(namespace) || self.by_labels.iter().any(matches);
        (!selected).then(|| format!("namespace '{namespace}'"))
    }
}

/// `Err`: which one of the field cannot be read, and what is allowed.
pub fn selectors(field: &str, list: &[LabelSelector]) -> Result<Vec<Selector>, String> {
    let parse = |selector: &LabelSelector| {
        Selector::try_from(selector.clone()).map_err(|error| {
            let operators = "operators In, NotIn (both with values), Exists and DoesNotExist are allowed";
            format!("{field}: {error}; {operators}")
        })
    };
    list.iter().map(parse).collect()
}
