//! Nodes of this cluster whose adverts cannot be verified: their keys or their cluster id are not ours. They are not silent, and this
//! node is not alone.
//!
//! Read first: docs/election.md section Keys. A node that has its cluster id and flow key from the Secret alone (no speaker ran
//! on it before) may have others than the running cluster: the Secret was lost and made anew. While it receives adverts that it
//! cannot verify from addresses of the cluster's nodes it must own nothing. The addresses prove nothing, so nothing else follows
//! from them.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::machine::Machine;
use crate::name::NodeName;
use crate::time::{Duration, Instant};
use crate::wire::advert::Reject;

/// A node counts for this long after such an advert.
const WINDOW: Duration = Duration::from_secs(2);
/// Without any for so long, the cluster id and the flow key of a new node are taken to be those of the cluster.
const PROBATION: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An advert from the address of this node was refused.
    Rejected {
        node: NodeName,
        reason: Reject,
    },
    /// An advert of this node was verified.
    Verified(NodeName),
    /// All other nodes of the cluster.
    Nodes(BTreeSet<NodeName>),
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Adverts of this node cannot be verified, for this reason.
    Unverified { node: NodeName, reason: Reject },
    /// No longer: they can, or they do not come any more.
    Resolved(NodeName),
    /// Whether this node must own nothing.
    Hold(bool),
    /// The cluster id and the flow key are those of the cluster.
    Confirmed,
}

#[derive(Debug)]
pub struct Unverified {
    /// Since when this node is on probation; `None`: it is not.
    probation: Option<Instant>,
    nodes: BTreeMap<NodeName, Instant>,
    known: BTreeSet<NodeName>,
    /// The nodes are known: before that nothing that comes is of one.
    viewed: bool,
    held: bool,
}

impl Unverified {
    /// `confirmed`: this node ran with its cluster id and flow key before.
    pub fn new(confirmed: bool, now: Instant) -> Self {
        Self {
            probation: (!confirmed).then_some(now),
            nodes: BTreeMap::new(),
            known: BTreeSet::new(),
            viewed: false,
            held: false,
        }
    }

    /// How many nodes there are whose adverts cannot be verified.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    fn forget(&mut self, gone: impl Fn(&NodeName, Instant) -> bool, actions: &mut Vec<Action>) {
        let gone: Vec<_> =
            self.nodes.iter().filter(|(node, at)| gone(node, **at)).map(|(node, _)| node.clone()).collect();
        for node in gone {
            self.nodes.remove(&node);
            actions.push(Action::Resolved(node));
        }
    }

    fn judge(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(since) = &mut self.probation else { return };
        let hold = !self.nodes.is_empty();
        if hold || self.held {
            *since = now;
        }
        let over = now.since(*since) >= PROBATION;
        if hold != self.held {
            self.held = hold;
            actions.push(Action::Hold(hold));
        }
        if over && self.viewed {
            self.probation = None;
            actions.push(Action::Confirmed);
        }
    }
}

impl Machine for Unverified {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Rejected { node, reason } => {
                let is_key = matches!(reason, Reject::UnknownKey | Reject::BadMac | Reject::WrongCluster);
                if is_key && self.known.contains(&node) && self.nodes.insert(node.clone(), now).is_none() {
                    actions.push(Action::Unverified { node, reason });
                }
            }
            Event::Verified(node) => self.forget(|other, _| *other == node, actions),
            Event::Nodes(nodes) => {
                self.forget(|node, _| !nodes.contains(node), actions);
                let first = !core::mem::replace(&mut self.viewed, true);
                self.probation = self.probation.map(|since| if first { now } else { since });
                self.known = nodes;
            }
            Event::Tick => {}
        }
        self.forget(|_, at| now.since(at) >= WINDOW, actions);
        self.judge(now, actions);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let expiry = self.nodes.values().min().map(|at| *at + WINDOW);
        let confirmed = self.probation.filter(|_| self.viewed && self.nodes.is_empty()).map(|since| since + PROBATION);
        [expiry, confirmed].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn node(name: &str) -> NodeName {
        NodeName::new(name).expect("a name")
    }

    fn seconds(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1000)
    }

    fn take(machine: &mut Unverified, event: Event, at: u64) -> Vec<Action> {
        let mut actions = vec![];
        machine.handle(event, seconds(at), &mut actions);
        actions
    }

    fn rejected(name: &str, reason: Reject) -> Event {
        Event::Rejected { node: node(name), reason }
    }

    /// A new node with the wrong identity beside a running cluster: it owns nothing for as long as it receives that cluster's
    /// adverts.
    #[test]
    fn a_new_node_among_unverified_peers_is_held() {
        let mut machine = Unverified::new(false, seconds(0));
        assert_eq!(take(&mut machine, Event::Nodes([node("a"), node("b")].into()), 1), []);
        let actions = take(&mut machine, rejected("a", Reject::WrongCluster), 1);
        assert_eq!(actions, [Action::Unverified { node: node("a"), reason: Reject::WrongCluster }, Action::Hold(true)]);
        // Another new node, with the same wrong identity, proves nothing.
        assert_eq!(take(&mut machine, Event::Verified(node("b")), 2), []);
        for at in 2..100 {
            assert_eq!(take(&mut machine, rejected("a", Reject::WrongCluster), at), [], "reported once");
        }
        assert_eq!(machine.count(), 1);
        assert_eq!(machine.next_deadline(), Some(seconds(101)));
        assert_eq!(take(&mut machine, Event::Tick, 101), [Action::Resolved(node("a")), Action::Hold(false)]);
        assert_eq!(take(&mut machine, Event::Tick, 110), []);
        assert_eq!(take(&mut machine, Event::Tick, 111), [Action::Confirmed]);
        assert_eq!(machine.next_deadline(), None);
    }

    #[test]
    fn a_node_that_ran_before_is_never_held() {
        let mut machine = Unverified::new(true, seconds(0));
        take(&mut machine, Event::Nodes([node("a")].into()), 0);
        let said = [Action::Unverified { node: node("a"), reason: Reject::UnknownKey }];
        assert_eq!(take(&mut machine, rejected("a", Reject::UnknownKey), 1), said);
        assert_eq!(take(&mut machine, Event::Verified(node("a")), 1), [Action::Resolved(node("a"))]);
        assert_eq!(machine.next_deadline(), None);
    }

    #[test]
    fn other_clusters_and_other_refusals_do_not_count() {
        let mut machine = Unverified::new(false, seconds(0));
        take(&mut machine, Event::Nodes([node("a")].into()), 0);
        assert_eq!(take(&mut machine, rejected("of-another-cluster", Reject::WrongCluster), 1), []);
        assert_eq!(take(&mut machine, rejected("a", Reject::Replayed), 1), []);
        take(&mut machine, rejected("a", Reject::BadMac), 2);
        let gone = [Action::Resolved(node("a")), Action::Hold(false)];
        assert_eq!(take(&mut machine, Event::Nodes([].into()), 3), gone, "the node left the cluster");
    }
}
