//! When Kubernetes calls the pods of this node unready because it did not hear the node.
//!
//! The node controller sets every pod of a node that is not heard to "not ready", and kubelet sets them right some seconds after it is
//! heard again. On the node itself the pods serve all the while: their UDP flows stay.

use crate::time::{Duration, Instant};
use crate::view::Node;

#[derive(Debug, Default)]
pub struct Uncertainty {
    /// Condition Ready of this node, as the view had it last, and since when: another value whenever it changed, also where the view
    /// missed that.
    node: Option<(bool, i64)>,
    /// It is in doubt whether this node hears the API server ([`crate::staleness`]).
    view: bool,
    until: Option<Instant>,
}

impl Uncertainty {
    /// What the view says now of this node. Nothing: it is not in it.
    pub fn set_node(&mut self, node: Option<&Node>, now: Instant) {
        let Some(node) = node.map(|node| (node.ready, node.ready_since)) else { return };
        let before = self.node.replace(node);
        if node.0 && before.is_some_and(|before| before != node) {
            self.until = Some(now + STATUS_SYNC);
        }
    }

    /// Whether the view itself is in doubt. When it no longer is, the node may be listed later than its pods. Returns whether that is news.
    pub fn set_lagging(&mut self, lagging: bool, now: Instant) -> bool {
        let changes = core::mem::replace(&mut self.view, lagging) != lagging;
        if changes && !lagging {
            self.until = Some(now + STATUS_SYNC);
        }
        changes
    }

    /// That a pod of this node does not serve says nothing of the pod.
    pub fn holds(&self, now: Instant) -> bool {
        self.view || self.node.is_some_and(|(ready, _)| !ready) || self.until.is_some_and(|until| now < until)
    }
}

/// kubelet compares its pods with the API server's every 10 s (`syncPeriod`, pkg/kubelet/status), when it hears it again.
const STATUS_SYNC: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn uncertainty_outlasts_the_return_of_the_node() {
        let node = |ready, ready_since| Node { ready, ready_since, ..Node::at([192, 0, 2, 11].into()) };
        let mut uncertainty = Uncertainty::default();
        uncertainty.set_node(Some(&node(true, 1)), at(0));
        assert!(!uncertainty.holds(at(0)), "a speaker that starts");
        uncertainty.set_node(Some(&node(false, 2)), at(10));
        assert!(uncertainty.holds(at(10_000)));
        uncertainty.set_node(Some(&node(true, 3)), at(20));
        uncertainty.set_node(Some(&node(true, 3)), at(49));
        assert!(uncertainty.holds(at(49)) && !uncertainty.holds(at(50)));
        // It was cut off itself, and has seen nothing of what was said of it meanwhile.
        uncertainty.set_node(Some(&node(true, 5)), at(100));
        assert!(uncertainty.holds(at(129)) && !uncertainty.holds(at(130)));
        // Not ready again before that.
        uncertainty.set_node(Some(&node(false, 6)), at(110));
        assert!(uncertainty.holds(at(140)));
        uncertainty.set_node(None, at(150));
        assert!(uncertainty.holds(at(150)), "it is the last that was said");
    }

    #[test]
    fn uncertainty_outlasts_a_lagging_view() {
        let mut uncertainty = Uncertainty::default();
        assert!(!uncertainty.set_lagging(false, at(0)) && !uncertainty.holds(at(0)));
        assert!(uncertainty.set_lagging(true, at(10)) && !uncertainty.set_lagging(true, at(100)));
        assert!(uncertainty.holds(at(100)));
        assert!(uncertainty.set_lagging(false, at(110)) && !uncertainty.set_lagging(false, at(111)));
        assert!(uncertainty.holds(at(139)) && !uncertainty.holds(at(140)));
    }
}
