//! Which nodes take part in the election, where there are more than it holds.
//!
//! A heartbeat names every peer that its sender receives, in one datagram: at most [`Limit::Speakers`] take part. Each node makes the
//! same choice from the view: nodes with the oldest SpeakerStates, then those without one, the oldest first; of two as old the first by
//! name. So a node that joins takes no place of one that serves. The others count as nodes without a speaker (place.rs beside this
//! file): they own no VIP, no packet is dispatched to them, and two other nodes translate for their pods.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Limit, View};

impl View {
    /// Nodes that would have a place if there were fewer.
    pub fn beyond_limit(&self) -> &BTreeSet<String> {
        &self.beyond
    }

    /// After a change of nodes or SpeakerStates.
    pub(super) fn choose_speakers(&mut self) {
        self.beyond.clear();
        if self.nodes.len() <= Limit::Speakers.value() {
            return;
        }
        let speaking = self.members().filter(|(name, node)| !self.has_no_speaker(name, node));
        let mut speaking: Vec<_> = speaking
            .map(|(name, node)| (self.speakers.created(name).unwrap_or(i64::MAX), node.created, name))
            .collect();
        speaking.sort_unstable();
        self.beyond = speaking.into_iter().skip(Limit::Speakers.value()).map(|(.., name)| name.clone()).collect();
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec;
    use core::net::Ipv4Addr;

    use super::super::place::SETTLING;
    use super::super::{Change, Conditions, Endpoint, Event, Key, Node, Object, Place, SpeakerState};
    use super::*;

    const LIMIT: usize = Limit::Speakers.value();

    fn name(n: usize) -> String {
        format!("n{n:03}")
    }

    fn node(n: usize) -> Object {
        let address = Ipv4Addr::new(192, 0, (n / 200) as u8, (n % 200) as u8);
        Object::Node(name(n), Node { created: 1_000 + n as i64, ..Node::at(address) })
    }

    fn speaker(n: usize, created: i64) -> Object {
        Object::SpeakerState(name(n), SpeakerState { created, ..SpeakerState::default() })
    }

    /// All as old.
    fn cluster(nodes: usize) -> View {
        View::from((0..nodes).flat_map(|n| [node(n), speaker(n, 5_000)]).collect::<Vec<_>>())
    }

    fn beyond(view: &View) -> Vec<&str> {
        view.beyond_limit().iter().map(String::as_str).collect()
    }

    #[test]
    fn of_nodes_as_old_the_first_by_name_take_part() {
        assert_eq!(beyond(&cluster(LIMIT)), [""; 0]);
        let view = cluster(LIMIT + 2);
        assert_eq!(beyond(&view), ["n256", "n257"]);
        let pod =
            |n| Endpoint { address: Ipv4Addr::new(10, 0, 0, 1), node: Some(name(n)), conditions: Conditions::READY };
        assert_eq!(view.place(&pod(256)), Place::Via, "others translate for its pods");
        assert_eq!(view.place(&pod(255)), Place::Node("n255"));
        let mut objects = view.objects();
        objects.reverse();
        assert_eq!(beyond(&View::from(objects)), ["n256", "n257"], "in whatever order the view was made");
    }

    /// Whatever its name.
    #[test]
    fn a_node_that_joins_takes_nobody_s_place_and_gets_one_that_is_free() {
        let mut view = cluster(LIMIT + 1);
        view.handle(Event::Delete(Key::Node(name(256))));
        view.handle(Event::Delete(Key::SpeakerState(name(0))));
        view.handle(Event::Delete(Key::Node(name(0))));
        assert_eq!(beyond(&view), [""; 0], "departed nodes need no place");
        for n in [0, 300] {
            assert_eq!(view.handle(Event::Apply(node(n))), Change::Changed);
        }
        assert_eq!(beyond(&view), ["n300"], "neither has a SpeakerState yet: the older node");
        view.handle(Event::Apply(speaker(300, 6_000)));
        assert_eq!(beyond(&view), ["n000"]);
        view.handle(Event::Apply(speaker(0, 7_000)));
        assert_eq!(beyond(&view), ["n000"]);
        view.handle(Event::Delete(Key::Node(name(7))));
        assert_eq!(beyond(&view), [""; 0]);
    }

    /// A cluster may have more nodes than speakers.
    #[test]
    fn nodes_without_a_speaker_need_no_place() {
        let mut view = cluster(LIMIT);
        let settled = 5_000 + SETTLING.as_secs() as i64;
        for n in 300..400 {
            let Object::Node(name, node) = node(n) else { unreachable!("a node") };
            view.handle(Event::Apply(Object::Node(name, Node { created: 1_000, reported: settled, ..node })));
        }
        assert_eq!((view.nodes().len(), beyond(&view)), (LIMIT + 100, vec![]));
    }
}
