//! Labels of nodes, and selectors of them. Of each node the view keeps the labels that an L2Advertisement names, and no others: a node
//! has dozens, and some change all the time.
//!
//! Read first: Kubernetes API, meta/v1 LabelSelector.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

pub type Labels = BTreeMap<String, String>;

/// All requirements must be met. One without requirements selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector(pub Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirement {
    pub label: String,
    pub operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
}

impl Selector {
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.is_met(labels.get(&requirement.label)))
    }

    /// The labels that it depends on.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.0.iter().map(|requirement| &requirement.label)
    }
}

impl Requirement {
    fn is_met(&self, value: Option<&String>) -> bool {
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// The labels of all nodes, and those that are named. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeLabels {
    all: BTreeMap<String, Arc<Labels>>,
    named: BTreeSet<String>,
}

impl NodeLabels {
    /// Those of a node; what is returned is for the view.
    pub fn set(&mut self, node: &str, labels: Labels) -> Labels {
        self.all.insert(node.into(), Arc::new(labels));
        self.of(node)
    }

    pub fn forget(&mut self, node: &str) {
        self.all.remove(node);
    }

    /// Whether these are others than before.
    pub fn name(&mut self, named: BTreeSet<String>) -> bool {
        let changed = self.named != named;
        self.named = named;
        changed
    }

    pub fn of(&self, node: &str) -> Labels {
        let labels = self.all.get(node).into_iter().flat_map(|labels| labels.iter());
        labels
            .filter(|(name, _)| self.named.contains(*name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_matches_as_kubernetes_has_it() {
        let labels: Labels = [("zone", "a"), ("empty", "")].map(|(name, value)| (name.into(), value.into())).into();
        let values = |values: &[&str]| values.iter().map(|value| String::from(*value)).collect::<BTreeSet<_>>();
        let one = |label: &str, operator| Selector([Requirement { label: label.into(), operator }].into());
        for (selector, matches) in [
            (one("zone", Operator::In(values(&["a", "b"]))), true),
            (one("zone", Operator::In(values(&["b"]))), false),
            (one("none", Operator::In(values(&["a"]))), false),
            (one("zone", Operator::NotIn(values(&["a"]))), false),
            (one("none", Operator::NotIn(values(&["a"]))), true),
            (one("empty", Operator::Exists), true),
            (one("none", Operator::Exists), false),
            (one("empty", Operator::DoesNotExist), false),
            (one("none", Operator::DoesNotExist), true),
            (Selector::default(), true),
        ] {
            assert_eq!(selector.matches(&labels), matches, "{selector:?}");
        }
        let both = [one("zone", Operator::Exists).0, one("none", Operator::Exists).0].concat();
        assert!(!Selector(both).matches(&labels), "all must be met");
    }
}
