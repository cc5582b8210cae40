//! L2Advertisements in the view: which nodes may announce the VIPs that name them.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::labels::{Labels, Selector};
use super::{Node, View, VirtualIp};

/// Which nodes may announce.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct L2Advertisement {
    /// One must match. None: all nodes.
    pub nodes: Vec<Selector>,
    pub preferred: Vec<Preferred>,
    /// Names or patterns of uplinks, one of which must match. None: all.
    pub interfaces: Vec<String>,
    /// The same, none of which may match.
    pub excluded_interfaces: Vec<String>,
    /// Nodes with the exclude label may announce as well, and have rows.
    pub ignores_exclude_label: bool,
    /// How long a node of more weight must have been ready before an owner hands over to it; `None`: never.
    #[serde(default)]
    pub failback_seconds: Option<u64>,
}

/// Nodes that come before others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preferred {
    pub selector: Selector,
    pub weight: u8,
}

impl L2Advertisement {
    /// `uplink`: the name of the node's device, if it is known.
    pub fn selects(&self, labels: &Labels, uplink: Option<&str>) -> bool {
        let selected = self.nodes.is_empty() || self.nodes.iter().any(|selector| selector.matches(labels));
        selected && self.takes(uplink)
    }

    /// Of a node that is selected: the highest that it is given.
    pub fn weight(&self, labels: &Labels) -> u8 {
        let matching = self.preferred.iter().filter(|preferred| preferred.selector.matches(labels));
        matching.map(|preferred| preferred.weight).max().unwrap_or_default()
    }

    fn takes(&self, uplink: Option<&str>) -> bool {
        if self.interfaces.is_empty() && self.excluded_interfaces.is_empty() {
            return true;
        }
        let Some(uplink) = uplink else { return false };
        let matches = |patterns: &[String]| patterns.iter().any(|pattern| is_like(uplink, pattern));
        (self.interfaces.is_empty() || matches(&self.interfaces)) && !matches(&self.excluded_interfaces)
    }

    fn label_names(&self) -> impl Iterator<Item = &String> {
        let preferred = self.preferred.iter().map(|preferred| &preferred.selector);
        self.nodes.iter().chain(preferred).flat_map(Selector::names)
    }
}

/// `*` stands for any characters, `?` for one.
pub fn is_like(name: &str, pattern: &str) -> bool {
    let mut rest = pattern.chars();
    match rest.next() {
        None => name.is_empty(),
        Some('*') => {
            name.char_indices().map(|(at, _)| at).chain([name.len()]).any(|at| is_like(&name[at..], rest.as_str()))
        }
        Some(first) => {
            let mut others = name.chars();
            others.next().is_some_and(|one| first == '?' || one == first) && is_like(others.as_str(), rest.as_str())
        }
    }
}

impl View {
    /// Those that the VIP names. One that is not there any more is as if it were not named; the controller is about to take it off.
    pub fn advertisements_of(&self, vip: &VirtualIp) -> Vec<&L2Advertisement> {
        vip.advertisements.iter().filter_map(|name| self.advertisements.get(name)).collect()
    }

    /// Whether nodes with the exclude label have rows of this VIP as others have.
    pub fn ignores_exclude_label(&self, vip: Ipv4Addr) -> bool {
        let named = self.vips.get(&vip).into_iter().flat_map(|vip| self.advertisements_of(vip));
        named.into_iter().any(|advertisement| advertisement.ignores_exclude_label)
    }

    /// The name of the device that packets for VIPs enter the node by, as its speaker has reported it.
    pub fn uplink(&self, node: &str) -> Option<&str> {
        self.speakers.uplink(node)
    }

    /// The nodes keep the labels that these name.
    pub(super) fn follow_advertisements(&mut self) {
        let named: BTreeSet<String> =
            self.advertisements.values().flat_map(L2Advertisement::label_names).cloned().collect();
        if self.labels.name(named) {
            for (name, node) in &mut self.nodes {
                node.labels = self.labels.of(name);
            }
        }
    }

    pub(super) fn with_named_labels(&mut self, name: &str, node: Node) -> Node {
        let labels = self.labels.set(name, node.labels);
        Node { labels, ..node }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::super::labels::{Operator, Requirement};
    use super::super::{Change, Event, Key, Limit, Object};
    use super::*;

    fn exists(label: &str) -> Selector {
        Selector(vec![Requirement { label: label.into(), operator: Operator::Exists }])
    }

    fn named(label: &str) -> Object {
        Object::L2Advertisement(
            label.into(),
            L2Advertisement { nodes: vec![exists(label)], ..L2Advertisement::default() },
        )
    }

    fn labels(names: &[&str]) -> Labels {
        names.iter().map(|name| (String::from(*name), String::from("1"))).collect()
    }

    #[test]
    fn patterns_of_interfaces() {
        for (name, pattern, like) in [
            ("eth0", "eth0", true),
            ("eth0", "eth", false),
            ("eth0", "eth*", true),
            ("eth0.100", "*.100", true),
            ("eth0", "*", true),
            ("eth0", "eth?", true),
            ("eth10", "eth?", false),
            ("bond0", "e*", false),
            ("enp3s0f1", "enp*f?", true),
            ("", "*", true),
        ] {
            assert_eq!(is_like(name, pattern), like, "{name} {pattern}");
        }
        let takes = |interfaces: &[&str], excluded: &[&str], uplink| {
            let list = |names: &[&str]| names.iter().map(|name| String::from(*name)).collect();
            let (interfaces, excluded_interfaces) = (list(interfaces), list(excluded));
            L2Advertisement { interfaces, excluded_interfaces, ..L2Advertisement::default() }.takes(uplink)
        };
        assert!(takes(&[], &[], None), "an old speaker");
        assert!(!takes(&["*"], &[], None) && !takes(&[], &["x"], None));
        assert!(takes(&["eth*"], &["eth9"], Some("eth0")) && !takes(&["eth*"], &["eth9"], Some("eth9")));
        assert!(takes(&[], &["eth9"], Some("eth0")) && !takes(&["bond0"], &[], Some("eth0")));
    }

    /// A view stays small, and what it does not name is no news.
    #[test]
    fn a_node_keeps_the_labels_that_are_named() {
        let node = |names: &[&str]| {
            let node = Node { labels: labels(names), ..Node::at(Ipv4Addr::new(192, 0, 2, 11)) };
            Event::Apply(Object::Node("a".into(), node))
        };
        let mut view = View::default();
        let kept = |view: &View| view.nodes()["a"].labels.keys().cloned().collect::<Vec<_>>();
        view.handle(node(&["x", "y", "z"]));
        assert_eq!(kept(&view), [""; 0]);
        assert_eq!(view.handle(node(&["x", "y"])), Change::None, "no label is named");
        view.handle(Event::Apply(named("y")));
        assert_eq!(kept(&view), ["y"]);
        view.handle(Event::Apply(named("x")));
        assert_eq!(kept(&view), ["x", "y"]);
        assert_eq!(view.handle(node(&["x"])), Change::Changed);
        assert_eq!(View::from(view.objects()), view, "the same from disk");
        view.handle(Event::Delete(Key::L2Advertisement("x".into())));
        assert_eq!(kept(&view), [""; 0]);
        let most = Limit::LabelsPerNode.value();
        let many = (0..=most).map(|n| (alloc::format!("l{n}"), String::new())).collect();
        let many = Node { labels: many, ..Node::at(Ipv4Addr::new(192, 0, 2, 11)) };
        let change = view.handle(Event::Apply(Object::Node("a".into(), many)));
        assert_eq!(change, Change::Refused(Limit::LabelsPerNode));
        assert!(view.nodes().contains_key("a"), "the node itself is there");
    }
}
