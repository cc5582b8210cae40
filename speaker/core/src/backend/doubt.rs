//! When Kubernetes calls the pods of this node unready because it did not hear the node.
//!
//! The node controller sets every pod of a node that is not heard to "not ready", and kubelet sets them right some seconds after it is
//! heard again. On the node itself the pods serve all the while: their UDP flows stay.

use crate::time::{Duration, Instant};
use crate::view::Node;

#[derive(Debug, Default)]
pub struct Doubt {
    /// Condition Ready of this node, as the view had it last, and since when: another value whenever it changed, also where the view
    /// missed that.
    node: Option<(bool, i64)>,
    /// It is in doubt whether this node hears the API server ([`crate::staleness`]).
    view: bool,
    until: Option<Instant>,
}

impl Doubt {
    /// What the view says now of this node. Nothing: it is not in it.
    pub fn see_node(&mut self, node: Option<&Node>, now: Instant) {
        let Some(node) = node.map(|node| (node.ready, node.ready_since)) else { return };
        let before = self.node.replace(node);
        if node.0 && before.is_some_and(|before| before != node) {
            self.until = Some(now + SET_RIGHT);
        }
    }

    /// Whether the view itself is in doubt. When it no longer is, the node may be listed later than its pods. Returns whether that is news.
    pub fn see_view(&mut self, in_doubt: bool, now: Instant) -> bool {
        let news = core::mem::replace(&mut self.view, in_doubt) != in_doubt;
        if news && !in_doubt {
            self.until = Some(now + SET_RIGHT);
        }
        news
    }

    /// That a pod of this node does not serve says nothing of the pod.
    pub fn holds(&self, now: Instant) -> bool {
        self.view || self.node.is_some_and(|(ready, _)| !ready) || self.until.is_some_and(|until| now < until)
    }
}

/// kubelet compares its pods with the API server's every 10 s (`syncPeriod`, pkg/kubelet/status), when it hears it again.
const SET_RIGHT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_node_that_was_not_heard_is_believed_a_while_after_it_is_heard() {
        let node = |ready, ready_since| Node { ready, ready_since, ..Node::at([192, 0, 2, 11].into()) };
        let mut doubt = Doubt::default();
        doubt.see_node(Some(&node(true, 1)), at(0));
        assert!(!doubt.holds(at(0)), "a speaker that starts");
        doubt.see_node(Some(&node(false, 2)), at(10));
        assert!(doubt.holds(at(10_000)));
        doubt.see_node(Some(&node(true, 3)), at(20));
        doubt.see_node(Some(&node(true, 3)), at(49));
        assert!(doubt.holds(at(49)) && !doubt.holds(at(50)));
        // It was cut off itself, and has seen nothing of what was said of it meanwhile.
        doubt.see_node(Some(&node(true, 5)), at(100));
        assert!(doubt.holds(at(129)) && !doubt.holds(at(130)));
        // Not ready again before that.
        doubt.see_node(Some(&node(false, 6)), at(110));
        assert!(doubt.holds(at(140)));
        doubt.see_node(None, at(150));
        assert!(doubt.holds(at(150)), "it is the last that was said");
    }

    #[test]
    fn a_view_that_was_in_doubt_is_doubted_a_while_longer() {
        let mut doubt = Doubt::default();
        assert!(!doubt.see_view(false, at(0)) && !doubt.holds(at(0)));
        assert!(doubt.see_view(true, at(10)) && !doubt.see_view(true, at(100)));
        assert!(doubt.holds(at(100)));
        assert!(doubt.see_view(false, at(110)) && !doubt.see_view(false, at(111)));
        assert!(doubt.holds(at(139)) && !doubt.holds(at(140)));
    }
}
