//! Where an endpoint stands, and which nodes are without a speaker.
//!
//! A node is without a speaker if its kubelet reports [`SETTLING`] after the Node was made, and as long after the cluster's first
//! SpeakerState, while no SpeakerState has its name. Such are nodes that the DaemonSet does not select, and virtual nodes.
//!
//! So is one whose speaker says that it stands by (`HostSpeaker`), from then on: the speaker of the API server endpoint serves that node, and
//! no Services.
//!
//! So are those for which the election has no place (taking_part.rs beside this file).
//!
//! Every term is a field of the API, so all nodes come to the same result, without a clock of their own, and a speaker that restarts
//! comes to it again. A speaker that is dead, restarted or upgraded keeps its SpeakerState, so its node keeps its rows and the flows in
//! its kernel. A node that joins has [`SETTLING`] for its first speaker. The second term is for the day on which Sheave is installed: no
//! node has a SpeakerState then. A SpeakerState that is deleted by hand is made anew by its speaker; until then the last report of its
//! node is not known here ([`Node::reported`]), and the node counts as before.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use core::net::Ipv4Addr;
use core::time::Duration;

use super::{Endpoint, Limit, Node, Object, SpeakerState, View, insert};

/// How long a node may take to get its first speaker: longer than pulling an image takes. Until then its pods are not served.
pub const SETTLING: Duration = Duration::from_secs(600);

/// Where an endpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// On this node, which translates.
    Node(&'a str),
    /// On no node, or on one without a speaker: others translate ([`super::via`]).
    Via,
    /// On a node that the view does not hold.
    Unknown,
}

impl View {
    /// An endpoint that names no node may have the address of one, as those of the API servers.
    pub fn place<'a>(&'a self, endpoint: &'a Endpoint) -> Place<'a> {
        let found = match &endpoint.node {
            Some(name) => match self.nodes.get_key_value(name) {
                None => return Place::Unknown,
                found => found,
            },
            None => self.members().find(|(_, node)| node.address == endpoint.address),
        };
        match found {
            Some((name, node)) if !self.lacks_speaker(name, node) => Place::Node(name),
            _ => Place::Via,
        }
    }

    /// Whether other nodes translate for the pods of this one. Of a departed node nothing is known any more: it keeps its flows.
    pub fn lacks_speaker(&self, name: &str, node: &Node) -> bool {
        self.has_no_speaker(name, node) || self.beyond.contains(name) && !node.departed
    }

    pub(super) fn has_no_speaker(&self, name: &str, node: &Node) -> bool {
        let settled = |since: i64| node.reported >= since.saturating_add(SETTLING.as_secs() as i64);
        let all_settled = self.speakers.first.is_some_and(settled) && settled(node.created);
        let lacks = self.speakers.stands_by(name) || all_settled && !self.speakers.has(name);
        lacks && !node.departed
    }

    /// Whether the node may yet get its first speaker, which would serve its pods. Not before the cluster's first SpeakerState:
    /// speakers of earlier versions write none.
    pub fn awaits_speaker(&self, name: &str) -> bool {
        let awaits = |node: &Node| !node.departed && !self.lacks_speaker(name, node);
        self.speakers.first.is_some() && !self.speakers.has(name) && self.nodes.get(name).is_some_and(awaits)
    }

    /// The addresses that speakers send from: of the nodes, and of their uplinks. `None` while they are not all known: the view is from disk, or
    /// a node may have a speaker that has reported no uplink yet.
    pub fn senders(&self) -> Option<BTreeSet<Ipv4Addr>> {
        let is_known = |(name, node): (&String, &Node)| {
            self.lacks_speaker(name, node) || !self.speakers.addresses(name).is_empty()
        };
        if self.saved || self.nodes.is_empty() || !self.members().all(is_known) {
            return None;
        }
        let uplinks = self.nodes.keys().flat_map(|name| self.speakers.addresses(name));
        Some(self.nodes.values().map(|node| &node.address).chain(uplinks).copied().collect())
    }

    /// Whether the node has a SpeakerState.
    pub fn has_speaker_state(&self, node: &str) -> bool {
        self.speakers.has(node)
    }
}

/// The SpeakerStates, by node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Speakers {
    states: BTreeMap<String, SpeakerState>,
    /// When the oldest was made.
    first: Option<i64>,
}

impl Speakers {
    pub fn has(&self, node: &str) -> bool {
        self.states.contains_key(node)
    }

    pub fn stands_by(&self, node: &str) -> bool {
        self.states.get(node).is_some_and(|state| state.stands_by)
    }

    pub fn created(&self, node: &str) -> Option<i64> {
        self.states.get(node).map(|state| state.created)
    }

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.states.keys()
    }

    pub fn objects(&self) -> impl Iterator<Item = Object> {
        self.states.iter().map(|(name, state)| Object::SpeakerState(name.clone(), state.clone()))
    }

    pub fn uplink(&self, node: &str) -> Option<&str> {
        self.states.get(node)?.uplink.as_deref()
    }

    fn addresses(&self, node: &str) -> &[Ipv4Addr] {
        self.states.get(node).map_or(&[], |state| &state.addresses)
    }

    /// Whether that changed something.
    pub fn insert(&mut self, node: String, state: SpeakerState) -> Result<bool, Limit> {
        let changed = insert(&mut self.states, node, state, Limit::Nodes);
        self.find_first();
        changed
    }

    pub fn remove(&mut self, node: &str) -> bool {
        let removed = self.states.remove(node).is_some();
        self.find_first();
        removed
    }

    fn find_first(&mut self) {
        self.first = self.states.values().map(|state| state.created).min();
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::super::example::{VIP, pod, view};
    use super::super::{Change, Conditions, Event, Key, Kind, Part};
    use super::*;

    /// When node `c` was made.
    const MADE: i64 = 1_000_000;
    const SETTLED: i64 = MADE + SETTLING.as_secs() as i64;

    fn node_c(reported: i64) -> Event {
        let node = Node { created: MADE, reported, ..Node::at(Ipv4Addr::new(192, 0, 2, b'c')) };
        Event::Apply(Object::Node("c".into(), node))
    }

    fn speaker(node: &str, created: i64) -> Object {
        Object::SpeakerState(node.into(), SpeakerState { created, ..SpeakerState::default() })
    }

    /// A pod on each of the nodes; `a` and `b` have had speakers for long.
    fn cluster() -> View {
        let mut view = view(["a", "b", "c"].map(|node| pod(node, 1, Conditions::READY)));
        for node in ["a", "b"] {
            view.handle(Event::Apply(speaker(node, MADE - 1_000_000)));
        }
        view
    }

    fn place(view: &View, node: &str) -> bool {
        view.place(&pod(node, 1, Conditions::READY)) == Place::Via
    }

    #[test]
    fn a_node_that_reports_for_long_and_never_had_a_speaker_is_without_one() {
        let mut view = cluster();
        for reported in [MADE, SETTLED - 1] {
            view.handle(node_c(reported));
            assert!(!place(&view, "c"), "it may yet get one, {reported}");
        }
        assert_eq!((view.handle(node_c(SETTLED)), view.parts(VIP).contains(&Part::Via)), (Change::Changed, true));
        assert!(place(&view, "c") && !place(&view, "a") && !place(&view, "b"));
        assert_eq!(View::from(view.objects()), view, "the same from disk");
        // Pods on the host's network, with and without the name of the node.
        let host = |node: Option<&str>| Endpoint {
            address: Ipv4Addr::new(192, 0, 2, b'c'),
            node: node.map(String::from),
            conditions: Conditions::READY,
        };
        assert_eq!([view.place(&host(Some("c"))), view.place(&host(None))], [Place::Via; 2]);

        view.handle(Event::Apply(speaker("c", SETTLED)));
        assert!(!place(&view, "c") && !view.parts(VIP).contains(&Part::Via));
        assert_eq!(view.handle(node_c(SETTLED + 300)), Change::None, "reports of a node with a speaker are no news");
    }

    /// Whether its speaker runs, restarts or is dead for long: its SpeakerState stays.
    #[test]
    fn a_node_that_had_a_speaker_is_never_without() {
        let mut view = cluster();
        let node = |reported| {
            Event::Apply(Object::Node("a".into(), Node { reported, ..Node::at(Ipv4Addr::new(192, 0, 2, b'a')) }))
        };
        view.handle(node(SETTLED));
        assert!(!place(&view, "a"));
        // Deleted by hand; its speaker makes it anew before its kubelet reports.
        view.handle(Event::Delete(Key::SpeakerState("a".into())));
        assert!(!place(&view, "a"), "not at once");
        view.handle(Event::Apply(speaker("a", SETTLED)));
        view.handle(node(SETTLED + 300));
        assert!(!place(&view, "a"));
        // Its Node is deleted, and then what belonged to it.
        let mut deleted = view.clone();
        deleted.handle(Event::Delete(Key::Node("a".into())));
        deleted.handle(Event::Delete(Key::SpeakerState("a".into())));
        assert!(!place(&deleted, "a"), "departed: its flows live on");
        // Taken off the DaemonSet for good.
        view.handle(Event::Delete(Key::SpeakerState("a".into())));
        view.handle(node(SETTLED + 600));
        assert!(place(&view, "a"));
    }

    /// At once, and only for as long as its speaker says so.
    #[test]
    fn a_node_whose_speaker_stands_by_is_without_one() {
        let mut view = cluster();
        let says = |stands_by| {
            let state = SpeakerState { created: MADE, stands_by, ..SpeakerState::default() };
            Event::Apply(Object::SpeakerState("a".into(), state))
        };
        assert_eq!((view.handle(says(true)), view.parts(VIP).contains(&Part::Via)), (Change::Changed, true));
        assert!(place(&view, "a") && !place(&view, "b"));
        assert_eq!(View::from(view.objects()), view, "the same from disk");
        view.handle(says(false));
        assert!(!place(&view, "a") && !view.parts(VIP).contains(&Part::Via));
    }

    /// Nothing waits for flows that no kernel has.
    #[test]
    fn a_deleted_node_that_never_had_a_speaker_does_not_depart() {
        let mut known = cluster();
        known.handle(node_c(SETTLED));
        let mut listed = cluster().objects();
        listed.retain(|object| object.key() != Key::Node("c".into()));
        let mut restarted = View::from(listed);
        restarted.carry_departed(&known);
        assert_eq!(known.handle(Event::Delete(Key::Node("c".into()))), Change::Changed);
        for view in [known, restarted] {
            assert!(view.nodes().keys().eq(["a", "b"]), "{:?}", view.nodes());
        }
    }

    /// No node has a SpeakerState on the day Sheave is installed, and none after all were deleted.
    #[test]
    fn without_any_speaker_state_or_with_new_ones_alone_no_node_is_without() {
        let mut view = cluster();
        view.handle(node_c(SETTLED));
        view.handle(Event::Relisted(Kind::SpeakerState, vec![]));
        assert!(!place(&view, "c"));
        view.handle(Event::Relisted(Kind::SpeakerState, vec![speaker("a", SETTLED - 1)]));
        assert!(!place(&view, "c"), "the others have ten minutes from the first on");
        view.handle(node_c(SETTLED - 1 + SETTLING.as_secs() as i64));
        assert!(place(&view, "c"));
    }

    #[test]
    fn an_endpoint_on_a_node_that_is_not_listed_has_no_place() {
        assert_eq!(cluster().place(&pod("z", 1, Conditions::READY)), Place::Unknown);
    }

    /// Ports are closed to others only where the addresses of all nodes are known.
    #[test]
    fn senders_are_known_when_every_speaker_has_reported_its_uplink() {
        let mut view = cluster();
        let address = |last| Ipv4Addr::new(198, 51, 100, last);
        let reports = |node: &str, last| {
            let state = SpeakerState { created: MADE, addresses: vec![address(last)], ..SpeakerState::default() };
            Event::Apply(Object::SpeakerState(node.into(), state))
        };
        for (node, last) in [("a", 1), ("b", 2)] {
            assert_eq!(view.senders(), None);
            view.handle(reports(node, last));
        }
        assert_eq!(view.senders(), None, "node c may have a speaker soon");
        let nodes = [b'a', b'b', b'c'].map(|last| Ipv4Addr::new(192, 0, 2, last));
        let expected: BTreeSet<_> = nodes.into_iter().chain([address(1), address(2)]).collect();
        view.handle(node_c(SETTLED));
        assert_eq!(view.senders(), Some(expected.clone()), "it has none");
        view.handle(reports("c", 3));
        let with_c = expected.iter().copied().chain([address(3)]).collect();
        assert_eq!(view.senders(), Some(with_c));
        assert_eq!(view.saved().senders(), None, "nodes may have joined since");
        assert_eq!(View::default().senders(), None);
    }
}
