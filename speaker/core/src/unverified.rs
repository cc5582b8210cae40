//! Nodes of this cluster whose adverts cannot be verified, because their keys or their cluster id differ. They are not silent, so this
//! node is not alone.
//!
//! Read first: docs/election.md section Keys. A node that has its cluster id and flow key from the Secret alone (no speaker ran on it
//! before) may have others than the running cluster: the Secret was lost and made anew. While it receives adverts that it cannot verify
//! from addresses of the cluster's nodes it must own nothing.
//!
//! A node that ran before yields only to a side that is larger than its own (decision 14): the nodes that it cannot verify and that advertise
//! themselves as ready, against itself and those that it verifies. The addresses prove nothing, so this ends after a while.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::machine::Machine;
use crate::name::NodeName;
use crate::time::{Duration, Instant};
use crate::wire::advert::Reject;
use crate::wire::pace::Pace;

/// A node counts for this long after an advert, whether verified or refused; a slower one for as long as its silence is no death.
const WINDOW: Duration = Duration::from_secs(2);
/// Of a node's verified adverts one in so long is news.
const NEWS: Duration = Duration::from_millis(500);
/// A node that ran before yields for so long at most: what it receives may be forged.
const YIELD: Duration = Duration::from_secs(600);
/// Without any for so long, the cluster id and the flow key of a new node are taken to be those of the cluster.
const PROBATION: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An advert from the address of this node was refused.
    Rejected {
        node: NodeName,
        reason: Reject,
        /// The advert has READY: its sender may own VIPs.
        ready: bool,
        /// The pace that it states, if it is an advert that states one. It may be forged, and is within the bounds of the wire.
        pace: Option<Pace>,
    },
    /// An advert of this node, which has this pace, was verified.
    Verified {
        node: NodeName,
        pace: Option<Pace>,
    },
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
    /// Whether this node, which is new, must own nothing.
    Hold(bool),
    /// Whether this node, which ran before, must own nothing: the side that it cannot verify is larger.
    Yield(bool),
    /// The cluster id and the flow key are those of the cluster.
    Confirmed,
}

#[derive(Debug)]
pub struct Unverified {
    /// Since when this node is on probation; `None`: it is not.
    probation: Option<Instant>,
    own: NodeName,
    nodes: BTreeMap<NodeName, Refused>,
    /// Until when each node counts as verified, and when that was news.
    verified: BTreeMap<NodeName, Counted>,
    /// Since when the unverified side has been larger, without a pause.
    outnumbered: Option<Instant>,
    yields: bool,
    known: BTreeSet<NodeName>,
    /// The nodes are known: before that nothing that comes is of one.
    viewed: bool,
    held: bool,
}

#[derive(Debug)]
struct Refused {
    at: Instant,
    ready: bool,
    /// The last one that it stated.
    pace: Option<Pace>,
}

impl Refused {
    fn until(&self) -> Instant {
        self.at + window(self.pace)
    }
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    at: Instant,
    until: Instant,
}

/// Adverts of a slow node are further apart than [`WINDOW`], where one of them is lost.
fn window(pace: Option<Pace>) -> Duration {
    WINDOW.max(pace.map_or(WINDOW, Pace::dead))
}

impl Unverified {
    /// `confirmed`: this node ran with its cluster id and flow key before.
    pub fn new(own: NodeName, confirmed: bool, now: Instant) -> Self {
        Self {
            probation: (!confirmed).then_some(now),
            own,
            verified: BTreeMap::new(),
            outnumbered: None,
            yields: false,
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

    /// Whether [`Event::Verified`] of this node changes anything: not every heartbeat does.
    pub fn is_news(&self, node: &NodeName, now: Instant) -> bool {
        self.nodes.contains_key(node) || self.verified.get(node).is_none_or(|counted| now.since(counted.at) >= NEWS)
    }

    fn is_verified(&self, node: &NodeName, now: Instant) -> bool {
        self.verified.get(node).is_some_and(|counted| now < counted.until)
    }

    fn refused(&mut self, node: NodeName, reason: Reject, refused: Refused, now: Instant, actions: &mut Vec<Action>) {
        let is_key = matches!(reason, Reject::UnknownKey | Reject::BadMac | Reject::WrongCluster);
        // The node itself is received, so another machine uses its address.
        if !is_key || !self.known.contains(&node) || self.is_verified(&node, now) {
            return;
        }
        match self.nodes.get_mut(&node) {
            // Most adverts state none.
            Some(known) => *known = Refused { pace: refused.pace.or(known.pace), ..refused },
            None => {
                self.nodes.insert(node.clone(), refused);
                actions.push(Action::Unverified { node, reason });
            }
        }
    }

    /// Of sides that are equally large, the one with the first name serves.
    fn is_outnumbered(&self, now: Instant) -> bool {
        let theirs: BTreeSet<&NodeName> =
            self.nodes.iter().filter(|(_, refused)| refused.ready).map(|(node, _)| node).collect();
        let verified = self.known.iter().filter(|node| self.is_verified(node, now));
        let ours: BTreeSet<&NodeName> = verified.chain([&self.own]).collect();
        (theirs.len(), ours.first()) > (ours.len(), theirs.first())
    }

    fn judge_sides(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let outnumbered = !self.nodes.is_empty() && self.probation.is_none() && self.is_outnumbered(now);
        self.outnumbered = self.outnumbered.or(Some(now)).filter(|_| outnumbered);
        let yields = self.outnumbered.is_some_and(|since| now.since(since) < YIELD);
        if core::mem::replace(&mut self.yields, yields) != yields {
            actions.push(Action::Yield(yields));
        }
    }

    fn forget(&mut self, gone: impl Fn(&NodeName, &Refused) -> bool, actions: &mut Vec<Action>) {
        let gone: Vec<_> =
            self.nodes.iter().filter(|(node, refused)| gone(node, refused)).map(|(node, _)| node.clone()).collect();
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
            Event::Rejected { node, reason, ready, pace } => {
                self.refused(node, reason, Refused { at: now, ready, pace }, now, actions);
            }
            Event::Verified { node, pace } => {
                self.forget(|other, _| *other == node, actions);
                self.verified.insert(node, Counted { at: now, until: now + window(pace) });
            }
            Event::Nodes(nodes) => {
                self.forget(|node, _| !nodes.contains(node), actions);
                let first = !core::mem::replace(&mut self.viewed, true);
                self.probation = self.probation.map(|since| if first { now } else { since });
                self.verified.retain(|node, _| nodes.contains(node));
                self.known = nodes;
            }
            Event::Tick => {}
        }
        self.forget(|_, refused| now >= refused.until(), actions);
        self.judge(now, actions);
        self.judge_sides(now, actions);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let expiry = self.nodes.values().map(Refused::until).min();
        let confirmed = self.probation.filter(|_| self.viewed && self.nodes.is_empty()).map(|since| since + PROBATION);
        let yielded = self.outnumbered.filter(|_| self.yields).map(|since| since + YIELD);
        [expiry, confirmed, yielded].into_iter().flatten().min()
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
        Event::Rejected { node: node(name), reason, ready: true, pace: None }
    }

    fn verified(name: &str) -> Event {
        Event::Verified { node: node(name), pace: None }
    }

    /// A new node with the wrong identity beside a running cluster: it owns nothing for as long as it receives that cluster's
    /// adverts.
    #[test]
    fn a_new_node_among_unverified_peers_is_held() {
        let mut machine = Unverified::new(node("0"), false, seconds(0));
        assert_eq!(take(&mut machine, Event::Nodes([node("a"), node("b")].into()), 1), []);
        let actions = take(&mut machine, rejected("a", Reject::WrongCluster), 1);
        assert_eq!(actions, [Action::Unverified { node: node("a"), reason: Reject::WrongCluster }, Action::Hold(true)]);
        // Another new node, with the same wrong identity, proves nothing.
        assert_eq!(take(&mut machine, verified("b"), 2), []);
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
        let mut machine = Unverified::new(node("0"), true, seconds(0));
        take(&mut machine, Event::Nodes([node("a")].into()), 0);
        let unverified = [Action::Unverified { node: node("a"), reason: Reject::UnknownKey }];
        assert_eq!(take(&mut machine, rejected("a", Reject::UnknownKey), 1), unverified);
        assert_eq!(take(&mut machine, verified("a"), 1), [Action::Resolved(node("a"))]);
        assert_eq!(machine.next_deadline(), None);
    }

    /// Node c boots with old keys beside a and b, which run on.
    #[test]
    fn a_node_that_ran_before_yields_to_the_larger_side_for_ten_minutes() {
        let mut machine = Unverified::new(node("c"), true, seconds(0));
        take(&mut machine, Event::Nodes(["a", "b", "d"].map(node).into()), 0);
        take(&mut machine, verified("d"), 1);
        let unverified = |name| Action::Unverified { node: node(name), reason: Reject::UnknownKey };
        // Two against c and d, whose first name is a.
        assert_eq!(take(&mut machine, rejected("b", Reject::UnknownKey), 1), [unverified("b")]);
        assert_eq!(take(&mut machine, rejected("a", Reject::UnknownKey), 1), [unverified("a"), Action::Yield(true)]);
        assert_eq!(machine.next_deadline(), Some(seconds(3)));
        for at in 2..601 {
            take(&mut machine, verified("d"), at);
            assert_eq!(take(&mut machine, rejected("a", Reject::UnknownKey), at), []);
            assert_eq!(take(&mut machine, rejected("b", Reject::UnknownKey), at), []);
        }
        assert_eq!(take(&mut machine, verified("d"), 601), [Action::Yield(false)], "or no node would serve");
        assert_eq!(take(&mut machine, rejected("a", Reject::UnknownKey), 601), []);
        let gone = [Action::Resolved(node("a")), Action::Resolved(node("b"))];
        assert_eq!(take(&mut machine, Event::Tick, 604), gone);
        assert_eq!(
            take(&mut machine, rejected("a", Reject::UnknownKey), 605),
            [unverified("a"), Action::Yield(true)],
            "c alone, after a"
        );
        assert_eq!(take(&mut machine, verified("a"), 605), [Action::Resolved(node("a")), Action::Yield(false)]);
    }

    /// Of two nodes exactly one serves; nodes on probation, and addresses of nodes that are received, do not count.
    #[test]
    fn sides_are_counted_alike_from_both() {
        let serves = |own: &str, other: &str, ready| {
            let mut machine = Unverified::new(node(own), true, seconds(0));
            take(&mut machine, Event::Nodes([node(other)].into()), 0);
            let event = Event::Rejected { node: node(other), reason: Reject::BadMac, ready, pace: None };
            !take(&mut machine, event, 1).contains(&Action::Yield(true))
        };
        assert!(serves("a", "b", true) && !serves("b", "a", true));
        assert!(serves("b", "a", false), "it is new, and owns nothing");
        let mut machine = Unverified::new(node("b"), true, seconds(0));
        take(&mut machine, verified("a"), 0);
        take(&mut machine, Event::Nodes([node("a")].into()), 0);
        assert_eq!(take(&mut machine, rejected("a", Reject::BadMac), 1), [], "another machine uses its address");
    }

    /// Node c, and d, whose heartbeats come once a second, beside a, which has other keys: two of d's are lost.
    #[test]
    fn a_slow_peer_counts_while_its_silence_is_no_death() {
        let slow = Some(Pace { interval: Duration::from_secs(1), dead_intervals: 3 });
        let yields = |pace| {
            let mut machine = Unverified::new(node("c"), true, seconds(0));
            take(&mut machine, Event::Nodes(["a", "d"].map(node).into()), 0);
            take(&mut machine, Event::Verified { node: node("d"), pace }, 1);
            take(&mut machine, rejected("a", Reject::UnknownKey), 3).contains(&Action::Yield(true))
        };
        assert!(!yields(slow), "two against one");
        assert!(yields(None), "as fast as others, d is gone");
    }

    /// Its adverts come once a second, and it states its pace in some of them: all that were lost in between say nothing.
    #[test]
    fn a_slow_unverified_node_counts_while_its_silence_is_no_death() {
        let slow = Some(Pace { interval: Duration::from_secs(1), dead_intervals: 5 });
        let mut machine = Unverified::new(node("b"), true, seconds(0));
        take(&mut machine, Event::Nodes([node("a")].into()), 0);
        let stated = Event::Rejected { node: node("a"), reason: Reject::BadMac, ready: true, pace: slow };
        let unverified = Action::Unverified { node: node("a"), reason: Reject::BadMac };
        assert_eq!(take(&mut machine, stated, 1), [unverified, Action::Yield(true)]);
        assert_eq!(take(&mut machine, rejected("a", Reject::BadMac), 2), []);
        assert_eq!(take(&mut machine, Event::Tick, 7), [], "5.2 s after the last one");
        assert_eq!(machine.next_deadline(), Some(Instant::from_millis(7200)));
        assert_eq!(take(&mut machine, Event::Tick, 8), [Action::Resolved(node("a")), Action::Yield(false)]);
    }

    #[test]
    fn other_clusters_and_other_refusals_do_not_count() {
        let mut machine = Unverified::new(node("0"), false, seconds(0));
        take(&mut machine, Event::Nodes([node("a")].into()), 0);
        assert_eq!(take(&mut machine, rejected("of-another-cluster", Reject::WrongCluster), 1), []);
        assert_eq!(take(&mut machine, rejected("a", Reject::Replayed), 1), []);
        take(&mut machine, rejected("a", Reject::BadMac), 2);
        let gone = [Action::Resolved(node("a")), Action::Hold(false)];
        assert_eq!(take(&mut machine, Event::Nodes([].into()), 3), gone, "the node left the cluster");
    }
}
