//! Which other nodes may get new flows, and which are searched for flows that are unknown here: the signals of `liveness`,
//! `readiness`, `staleness` and `reports`, joined.
//!
//! Read first: docs/decisions/0010 (unknown, silent, down) and 0011 (stale).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;

use crate::forwarding::TrafficStates;
use crate::name::NodeName;
use crate::time::{Duration, Instant};

#[derive(Debug)]
pub struct PeerSignals {
    /// How long no node answers for the flows of one that was lost: a switch may converge, or a virtual machine move to another host.
    /// Their clients retransmit meanwhile. Then the flows are reset. Zero: at once.
    return_window: Duration,
    down: BTreeSet<NodeName>,
    silent: BTreeSet<NodeName>,
    /// Since when it may be that there is no program of ours.
    unknown: BTreeMap<NodeName, Instant>,
    /// Nodes that are down, or have been and are unknown yet, and until when they may be back with their flows.
    lost: BTreeMap<NodeName, Instant>,
    stale: BTreeSet<NodeName>,
}

impl PeerSignals {
    pub fn new(return_window: Duration) -> Self {
        let (down, silent, unknown, lost, stale) = Default::default();
        Self { return_window, down, silent, unknown, lost, stale }
    }

    /// All nodes that are down (`liveness`), silent or unknown (`readiness`) now.
    pub fn set(
        &mut self,
        down: BTreeSet<NodeName>,
        silent: BTreeSet<NodeName>,
        unknown: BTreeSet<NodeName>,
        now: Instant,
    ) {
        // One that was unknown already has no flows of ours, as far as is known.
        for node in down.iter().filter(|node| !self.down.contains(*node) && !self.unknown.contains_key(*node)) {
            self.lost.entry(node.clone()).or_insert(now + self.return_window);
        }
        self.lost.retain(|node, until| *until > now && (down.contains(node) || unknown.contains(node)));
        self.unknown.retain(|node, _| unknown.contains(node));
        for node in unknown {
            // Its reports before it was down are of before its restart.
            let since = if down.contains(&node) { now } else { self.unknown.get(&node).copied().unwrap_or(now) };
            self.unknown.insert(node, since);
        }
        (self.down, self.silent) = (down, silent);
    }

    /// When the flows of a lost node are given up: make the table again then.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.lost.values().min().copied()
    }

    /// Time passes for lost nodes.
    pub fn tick(&mut self, now: Instant) {
        self.lost.retain(|_, until| *until > now);
    }

    pub fn set_stale(&mut self, node: NodeName, stale: bool) {
        if stale {
            self.stale.insert(node);
        } else {
            self.stale.remove(&node);
        }
    }

    pub fn stale(&self) -> usize {
        self.stale.len()
    }

    /// Its speaker has been ready since the node was last down or new, and is not silent.
    pub fn is_ready(&self, node: &NodeName) -> bool {
        !self.down.contains(node) && !self.silent.contains(node) && !self.unknown.contains_key(node)
    }

    /// For the next table. `has_reported`: this node has reported since then, so its packet path is in place (it was cut off and
    /// not restarted, or is nearly ready). On a node that has not, other rules than ours would answer.
    pub fn traffic_states(&self, has_reported: impl Fn(&NodeName, Instant) -> bool) -> TrafficStates {
        let name = |node: &NodeName| String::from(node.as_str());
        let mut no_flows: BTreeSet<String> = self.down.iter().map(name).collect();
        let mut existing_only: BTreeSet<String> = self.silent.union(&self.stale).map(name).collect();
        for (node, since) in &self.unknown {
            if has_reported(node, *since) { &mut existing_only } else { &mut no_flows }.insert(name(node));
        }
        let lost = self.lost.keys().map(name).filter(|node| no_flows.contains(node)).collect();
        TrafficStates { no_flows, existing_only, lost }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_millis(2500);

    fn names(nodes: &[&str]) -> BTreeSet<NodeName> {
        nodes.iter().filter_map(|node| NodeName::new(node)).collect()
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(1000 * seconds)
    }

    /// The node speaks at second 20.
    fn keeps_flows(signals: &PeerSignals) -> bool {
        let TrafficStates { no_flows, existing_only, .. } = signals.traffic_states(|_, since| at(20) >= since);
        assert!(no_flows.contains("a") != existing_only.contains("a"));
        existing_only.contains("a")
    }

    #[test]
    fn an_unknown_node_is_an_alternate_once_it_has_reported_and_not_after_it_was_down_again() {
        let mut signals = PeerSignals::new(WINDOW);
        let none = BTreeSet::new;
        signals.set(none(), none(), names(&["a"]), at(10));
        assert!(keeps_flows(&signals) && !signals.is_ready(&NodeName::new("a").unwrap()));
        signals.set(names(&["a"]), none(), names(&["a"]), at(30));
        signals.set(none(), none(), names(&["a"]), at(40));
        assert!(!keeps_flows(&signals), "its report is of before its restart");
        signals.set(none(), none(), none(), at(50));
        assert!(signals.is_ready(&NodeName::new("a").unwrap()));
    }

    #[test]
    fn a_node_that_had_our_program_may_return_for_a_while() {
        let (mut signals, none) = (PeerSignals::new(WINDOW), BTreeSet::new);
        let lost = |signals: &PeerSignals| signals.traffic_states(|_, _| false).lost.contains("a");
        signals.set(none(), none(), none(), at(1));
        signals.set(names(&["a"]), none(), names(&["a"]), at(10));
        assert!(lost(&signals) && signals.next_deadline() == Some(at(10) + WINDOW));
        signals.set(none(), none(), names(&["a"]), at(11));
        assert!(lost(&signals), "it answers, and its speaker has not spoken yet");
        signals.set(names(&["a"]), none(), names(&["a"]), at(12));
        assert_eq!(signals.next_deadline(), Some(at(10) + WINDOW), "lost again: the time does not begin anew");
        signals.tick(at(10) + WINDOW);
        assert!(!lost(&signals) && signals.next_deadline().is_none());
        signals.set(none(), none(), names(&["a"]), at(14));
        signals.set(names(&["a"]), none(), names(&["a"]), at(15));
        assert!(!lost(&signals), "its program was not seen since: it may have booted");
        signals.set(none(), none(), none(), at(16));
        signals.set(names(&["a"]), none(), names(&["a"]), at(17));
        assert!(lost(&signals), "it was ready again");
        signals.set(none(), none(), none(), at(18));
        assert!(!lost(&signals) && signals.is_ready(&NodeName::new("a").unwrap()));
        let mut at_once = PeerSignals::new(Duration::ZERO);
        at_once.set(none(), none(), none(), at(1));
        at_once.set(names(&["a"]), none(), names(&["a"]), at(10));
        assert!(!lost(&at_once) && at_once.next_deadline().is_none());
    }

    #[test]
    fn stale_nodes_get_no_new_flows_and_are_alternates() {
        let mut signals = PeerSignals::new(WINDOW);
        let a = NodeName::new("a").unwrap();
        signals.set_stale(a.clone(), true);
        assert!(keeps_flows(&signals) && signals.is_ready(&a) && signals.stale() == 1);
        signals.set_stale(a, false);
        assert_eq!(signals.traffic_states(|_, _| true), TrafficStates::default());
    }
}
