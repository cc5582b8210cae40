//! Endpoints of no node: databases outside the cluster, slices written by hand (Services without selector), pods of nodes without a
//! speaker ([`super::place`]).
//!
//! No dispatcher can send them packets that are addressed to a VIP. So [`NODES`] nodes translate for each, and put their own address in
//! place of the client's: the answers come back to them. Which nodes is a function of the view, by rendezvous hashing: a node that
//! comes or goes changes the choice for those endpoints alone that get or had it.

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use ebpf_common::siphash13;

use super::{Node, View};
use crate::forwarding::maglev;

/// Nodes that translate for one endpoint, if the cluster has as many.
pub const NODES: usize = 2;

/// The nodes that may translate, each with the hash of its name.
pub(super) struct Via<'a>(Vec<(u64, &'a str)>);

impl<'a> Via<'a> {
    /// Those with a speaker. Excluded nodes only where there is no other.
    pub fn new(view: &'a View) -> Self {
        let chosen = |excluded| {
            let serves = move |name: &str, node: &Node| node.excluded == excluded && !view.lacks_speaker(name, node);
            let members = view.members().filter(move |(name, node)| serves(name, node));
            members.map(|(name, _)| (maglev::digest(&KEY, name.as_bytes()), name.as_str())).collect::<Vec<_>>()
        };
        let preferred = chosen(false);
        Self(if preferred.is_empty() { chosen(true) } else { preferred })
    }

    /// The nodes of this endpoint; none if the cluster has none.
    pub fn nodes(&self, endpoint: Ipv4Addr) -> impl Iterator<Item = &'a str> {
        let key = [u64::from(u32::from(endpoint)), 0];
        let mut nodes: Vec<_> = self.0.iter().map(|(hash, name)| (siphash13(&key, *hash, 0), *name)).collect();
        nodes.sort_unstable();
        nodes.into_iter().rev().take(NODES).map(|(_, name)| name)
    }
}

/// Every node has to choose alike.
const KEY: [u64; 2] = [0; 2];

#[cfg(test)]
mod tests {
    use alloc::collections::{BTreeMap, BTreeSet};
    use alloc::format;

    use super::super::place::SETTLING;
    use super::super::{Event, Key, Object, SpeakerState};
    use super::*;

    fn endpoints() -> impl Iterator<Item = Ipv4Addr> {
        (0..200).map(|n| Ipv4Addr::new(198, 51, 100, n))
    }

    fn choice(view: &View) -> BTreeMap<Ipv4Addr, BTreeSet<&str>> {
        let via = Via::new(view);
        endpoints().map(|endpoint| (endpoint, via.nodes(endpoint).collect())).collect()
    }

    fn cluster(nodes: u8) -> View {
        let node = |n| Object::Node(format!("n{n}"), Node::at(Ipv4Addr::new(192, 0, 2, n)));
        View::from((1..=nodes).map(node).collect::<Vec<_>>())
    }

    #[test]
    fn two_nodes_each_and_all_take_part() {
        let view = cluster(5);
        let choice = choice(&view);
        assert!(choice.values().all(|nodes| nodes.len() == NODES));
        for node in view.nodes().keys() {
            let share = choice.values().filter(|nodes| nodes.contains(node.as_str())).count();
            assert!((50..=110).contains(&share), "{node} translates for {share} of 200");
        }
        assert_eq!(self::choice(&cluster(1)).values().next().map(BTreeSet::len), Some(1));
        assert_eq!(Via::new(&cluster(0)).nodes(Ipv4Addr::new(198, 51, 100, 1)).next(), None);
    }

    #[test]
    fn a_node_that_goes_changes_only_its_own() {
        let before = cluster(6);
        let mut after = before.clone();
        after.handle(Event::Delete(Key::Node("n3".into())));
        let (before, after) = (choice(&before), choice(&after));
        for (endpoint, nodes) in &before {
            let kept = nodes.intersection(&after[endpoint]).count();
            assert_eq!(kept, NODES - usize::from(nodes.contains("n3")), "{endpoint}");
        }
    }

    #[test]
    fn an_excluded_node_only_where_there_is_no_other() {
        let exclude = |n: u8| {
            let node = Node { excluded: true, ..Node::at(Ipv4Addr::new(192, 0, 2, n)) };
            Event::Apply(Object::Node(format!("n{n}"), node))
        };
        let mut view = cluster(3);
        view.handle(exclude(1));
        assert!(choice(&view).values().all(|nodes| *nodes == ["n2", "n3"].into()));
        view.handle(exclude(2));
        view.handle(exclude(3));
        assert!(choice(&view).values().any(|nodes| nodes.contains("n1")));
    }

    #[test]
    fn a_node_without_a_speaker_translates_for_no_endpoint() {
        let mut view = cluster(3);
        for n in ["n1", "n2"] {
            view.handle(Event::Apply(Object::SpeakerState(n.into(), SpeakerState::default())));
        }
        assert!(choice(&view).values().any(|nodes| nodes.contains("n3")), "it may yet get one");
        let reported = i64::try_from(SETTLING.as_secs()).unwrap();
        let node = Node { reported, ..Node::at(Ipv4Addr::new(192, 0, 2, 3)) };
        view.handle(Event::Apply(Object::Node("n3".into(), node)));
        assert!(choice(&view).values().all(|nodes| *nodes == ["n1", "n2"].into()));
    }
}
