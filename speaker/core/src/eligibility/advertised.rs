//! Which nodes may announce a VIP, by the L2Advertisements that it names. Every speaker comes to the same result: what counts are fields
//! of the API alone.
//!
//! Several L2Advertisements: a node that one of them selects may announce; its weight is the highest that these give it. The shortest time
//! of failback counts.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::election::{Choice, Eligible, Standing};
use crate::name::NodeName;
use crate::time::Duration;
use crate::view::{L2Advertisement, Node, View, VirtualIp};

/// The nodes among which a VIP is elected. `all`: those of a VIP that names no L2Advertisement. `None`: no node is to announce it.
pub fn eligible(view: &View, vip: &VirtualIp, all: &Eligible) -> Option<Eligible> {
    if vip.unannounced {
        return None;
    }
    let advertisements = view.advertisements_of(vip);
    if advertisements.is_empty() {
        return Some(all.clone());
    }
    let label_counts = view.members().any(|(_, node)| !node.excluded);
    let mut nodes = BTreeMap::new();
    for (name, node) in view.members() {
        let uplink = view.uplink(name);
        let selecting: Vec<&L2Advertisement> =
            advertisements.iter().copied().filter(|one| one.selects(&node.labels, uplink)).collect();
        if let Some(node_name) = NodeName::new(name).filter(|_| !selecting.is_empty()) {
            nodes.insert(node_name, standing(node, &selecting, label_counts));
        }
    }
    // Else the owner among them would seek a successor for ever.
    if nodes.values().all(|standing| standing.choice < Choice::First) {
        let second = nodes.values_mut().filter(|standing| standing.choice == Choice::Second);
        second.for_each(|standing| standing.choice = Choice::First);
    }
    let failback = advertisements.iter().filter_map(|one| one.failback_seconds).min().map(Duration::from_secs);
    Some(Eligible::Chosen { nodes: Arc::new(nodes), failback })
}

fn standing(node: &Node, selecting: &[&L2Advertisement], label_counts: bool) -> Standing {
    let ignored = selecting.iter().any(|one| one.ignores_exclude_label);
    let choice = match (node.excluded && label_counts && !ignored, node.cordoned) {
        (true, _) => Choice::Keeps,
        (false, true) => Choice::Second,
        (false, false) => Choice::First,
    };
    Standing { choice, weight: selecting.iter().map(|one| one.weight(&node.labels)).max().unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;
    use alloc::vec;
    use core::net::Ipv4Addr;

    use super::*;
    use crate::view::labels::{Operator, Requirement, Selector};
    use crate::view::{Event, Key, Object, Preferred, SpeakerState};

    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    /// Nodes `a` to `d`, each with a label of its own name, and the VIP with these L2Advertisements.
    fn view(advertisements: &[(&str, L2Advertisement)]) -> View {
        let mut view = View::default();
        for name in ["a", "b", "c", "d"] {
            node(&mut view, name, |_| {});
        }
        for (name, advertisement) in advertisements {
            view.handle(Event::Apply(Object::L2Advertisement((*name).into(), advertisement.clone())));
        }
        let names = advertisements.iter().map(|(name, _)| String::from(*name)).collect();
        let vip = VirtualIp { pool: "p".into(), advertisements: names, ..VirtualIp::default() };
        view.handle(Event::Apply(Object::VirtualIp(VIP, vip)));
        view
    }

    fn node(view: &mut View, name: &str, change: fn(&mut Node)) {
        let mut node = Node::at(Ipv4Addr::new(192, 0, 2, name.as_bytes()[0]));
        node.labels.insert(name.into(), "".into());
        change(&mut node);
        view.handle(Event::Apply(Object::Node(name.into(), node)));
    }

    fn has(label: &str) -> Selector {
        Selector(vec![Requirement { label: label.into(), operator: Operator::Exists }])
    }

    fn of(nodes: &[&str]) -> L2Advertisement {
        L2Advertisement { nodes: nodes.iter().map(|label| has(label)).collect(), ..L2Advertisement::default() }
    }

    /// "name choice weight" of each.
    fn standings(view: &View) -> Vec<String> {
        match eligible(view, &view.vips()[&VIP], &Eligible::All) {
            Some(Eligible::Chosen { nodes, .. }) => {
                let one =
                    |(name, one): (&NodeName, &Standing)| alloc::format!("{name} {:?} {}", one.choice, one.weight);
                nodes.iter().map(one).collect()
            }
            other => vec![alloc::format!("{other:?}")],
        }
    }

    #[test]
    fn the_nodes_of_all_that_select_the_vip_may_announce() {
        assert_eq!(standings(&view(&[])), ["Some(All)"]);
        assert_eq!(standings(&view(&[("x", of(&["a", "b"]))])), ["a First 0", "b First 0"]);
        assert_eq!(standings(&view(&[("x", of(&["a"])), ("y", of(&["c"]))])), ["a First 0", "c First 0"]);
        let every = standings(&view(&[("x", of(&["a"])), ("y", of(&[]))]));
        assert_eq!(every, ["a First 0", "b First 0", "c First 0", "d First 0"]);
        let none = view(&[("x", of(&["z"]))]);
        assert_eq!(standings(&none), [""; 0]);
        assert!(eligible(&none, &none.vips()[&VIP], &Eligible::All).unwrap().is_nobodys());
    }

    /// As if it were not named: the controller takes it off the VirtualIP.
    #[test]
    fn one_that_is_gone_restricts_nothing() {
        let mut view = view(&[("x", of(&["a"])), ("y", of(&["b"]))]);
        view.handle(Event::Delete(Key::L2Advertisement("x".into())));
        assert_eq!(standings(&view), ["b First 0"]);
        view.handle(Event::Delete(Key::L2Advertisement("y".into())));
        assert_eq!(standings(&view), ["Some(All)"]);
    }

    #[test]
    fn an_unannounced_vip_has_no_nodes() {
        let view = view(&[("x", of(&["a"]))]);
        let vip = VirtualIp { unannounced: true, ..view.vips()[&VIP].clone() };
        assert_eq!(eligible(&view, &vip, &Eligible::All), None);
    }

    /// Only where the one that gives it selects the node as well.
    #[test]
    fn the_highest_weight_counts() {
        let with = |nodes: &[&str], preferred: &[(&str, u8)]| {
            let preferred = preferred.iter().map(|(label, weight)| Preferred { selector: has(label), weight: *weight });
            L2Advertisement { preferred: preferred.collect(), ..of(nodes) }
        };
        let view =
            view(&[("x", with(&["a", "b"], &[("a", 3), ("a", 7), ("c", 9)])), ("y", with(&["c"], &[("a", 50)]))]);
        assert_eq!(standings(&view), ["a First 7", "b First 0", "c First 0"]);
    }

    #[test]
    fn excluded_and_cordoned_nodes() {
        let ignoring = L2Advertisement { ignores_exclude_label: true, ..of(&["b"]) };
        for (other, b) in [(of(&["c"]), "b Keeps 0"), (ignoring, "b First 0")] {
            let mut view = view(&[("x", of(&["a", "b"])), ("y", other)]);
            node(&mut view, "b", |node| node.excluded = true);
            let c = if b.contains("Keeps") { &["c First 0"][..] } else { &[] };
            assert_eq!(standings(&view), [&["a First 0", b], c].concat());
            node(&mut view, "a", |node| node.cordoned = true);
            assert_eq!(standings(&view), [&["a Second 0", b], c].concat());
        }
        // The last ones that may: no first choice is sought in vain.
        let mut all = view(&[("x", of(&["a", "b"]))]);
        for name in ["a", "b"] {
            node(&mut all, name, |node| node.cordoned = true);
        }
        assert_eq!(standings(&all), ["a First 0", "b First 0"]);
        // All nodes of the cluster are excluded: the label is ignored, as without L2Advertisements.
        for name in ["a", "b", "c", "d"] {
            node(&mut all, name, |node| node.excluded = true);
        }
        assert_eq!(standings(&all), ["a First 0", "b First 0"]);
    }

    /// By what the nodes' speakers report.
    #[test]
    fn uplinks_are_compared_by_name() {
        let mut view = view(&[("x", L2Advertisement { interfaces: vec!["eth*".into()], ..of(&["a", "b", "c"]) })]);
        assert_eq!(standings(&view), [""; 0], "none has reported its uplink");
        for (name, uplink) in [("a", Some("eth0")), ("b", Some("bond0")), ("c", None), ("d", Some("eth0"))] {
            let state = SpeakerState { uplink: uplink.map(String::from), ..SpeakerState::default() };
            view.handle(Event::Apply(Object::SpeakerState(name.into(), state)));
        }
        assert_eq!(standings(&view), ["a First 0"]);
    }

    #[test]
    fn the_shortest_failback_counts() {
        let with = |failback_seconds| L2Advertisement { failback_seconds, ..of(&["a"]) };
        for (all, shortest) in [([None, None], None), ([Some(600), None], Some(600)), ([Some(600), Some(90)], Some(90))]
        {
            let view = view(&[("x", with(all[0])), ("y", with(all[1]))]);
            let eligible = eligible(&view, &view.vips()[&VIP], &Eligible::All).unwrap();
            assert_eq!(eligible.failback(), shortest.map(Duration::from_secs));
        }
    }

    /// A departed node announces nothing.
    #[test]
    fn a_deleted_node_is_none_of_them() {
        let mut view = view(&[("x", of(&["a", "b"]))]);
        view.handle(Event::Delete(Key::Node("a".into())));
        assert_eq!(standings(&view), ["b First 0"]);
    }
}
