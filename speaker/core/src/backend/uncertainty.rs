//! When Kubernetes calls the pods of this node unready because the API server did not receive the node's status.
//!
//! The node controller sets every pod of an unreachable node to "not ready", and kubelet corrects them some seconds after the
//! node is reachable again. On the node itself the pods serve all the while: their UDP flows stay.

use crate::time::{Duration, Instant};
use crate::view::Node;

#[derive(Debug, Default)]
pub struct Uncertainty {
    /// Condition Ready of this node, as the view had it last, and since when: another value whenever it changed, also where the view
    /// missed that.
    node: Option<(bool, i64)>,
    /// Whether the view of this node lags ([`crate::staleness`]).
    view: bool,
    until: Option<Instant>,
}

impl Uncertainty {
    /// This node as the view has it now; `None`: it is not in it.
    pub fn set_node(&mut self, node: Option<&Node>, now: Instant) {
        let Some(node) = node.map(|node| (node.ready, node.ready_since)) else { return };
        let before = self.node.replace(node);
        if node.0 && before.is_some_and(|before| before != node) {
            self.until = Some(now + STATUS_SYNC);
        }
    }

    /// Whether the view lags. When it no longer does, the node may be listed later than its pods. Returns whether that changed.
    pub fn set_lagging(&mut self, lagging: bool, now: Instant) -> bool {
        let changes = core::mem::replace(&mut self.view, lagging) != lagging;
        if changes && !lagging {
            self.until = Some(now + STATUS_SYNC);
        }
        changes
    }

    /// An unready condition of a pod of this node is no evidence about the pod.
    pub fn holds(&self, now: Instant) -> bool {
        self.view || self.node.is_some_and(|(ready, _)| !ready) || self.until.is_some_and(|until| now < until)
    }
}

/// kubelet compares its pods with the API server's every 10 s (`syncPeriod`, pkg/kubelet/status), once it reaches the server
/// again.
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
        // It was cut off itself, and missed the status changes of that time.
        uncertainty.set_node(Some(&node(true, 5)), at(100));
        assert!(uncertainty.holds(at(129)) && !uncertainty.holds(at(130)));
        // Not ready again before that.
        uncertainty.set_node(Some(&node(false, 6)), at(110));
        assert!(uncertainty.holds(at(140)));
        uncertainty.set_node(None, at(150));
        assert!(uncertainty.holds(at(150)), "the last known status counts");
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
