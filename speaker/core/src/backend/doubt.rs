//! When Kubernetes calls the pods of this node unready because it did not hear the node.
//!
//! The node controller sets every pod of a node that is not heard to "not ready", and kubelet sets them right some seconds after it is
//! heard again. On the node itself the pods serve all the while: their UDP flows stay.

use crate::time::{Duration, Instant};

/// Condition Ready of this node, as the view has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeReady {
    pub ready: bool,
    /// Another value whenever it changed, also where the view missed that.
    pub since: i64,
}

#[derive(Debug, Default)]
pub struct Doubt {
    seen: Option<NodeReady>,
    until: Option<Instant>,
}

impl Doubt {
    /// What the view says now. Nothing: this node is not in it.
    pub fn see(&mut self, node: Option<NodeReady>, now: Instant) {
        let Some(node) = node else { return };
        let before = self.seen.replace(node);
        if node.ready && before.is_some_and(|before| before != node) {
            self.until = Some(now + SET_RIGHT);
        }
    }

    /// That a pod of this node does not serve says nothing of the pod.
    pub fn holds(&self, now: Instant) -> bool {
        self.seen.is_some_and(|node| !node.ready) || self.until.is_some_and(|until| now < until)
    }

    /// When it ends, if nothing happens: whoever was spared is to be looked at again.
    pub fn ends(&self) -> Option<Instant> {
        self.until.filter(|_| self.seen.is_some_and(|node| node.ready))
    }

    /// The end has been taken note of.
    pub fn ended(&mut self) {
        self.until = None;
    }
}

/// kubelet compares its pods with the API server's every 10 s (`syncPeriod`, pkg/kubelet/status), when it hears it again.
const SET_RIGHT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_was_not_heard_is_believed_a_while_after_it_is_heard() {
        let at = |seconds| Instant::ZERO + Duration::from_secs(seconds);
        let node = |ready, since| Some(NodeReady { ready, since });
        let mut doubt = Doubt::default();
        doubt.see(node(true, 1), at(0));
        assert!(!doubt.holds(at(0)), "a speaker that starts");
        doubt.see(node(false, 2), at(10));
        assert!(doubt.holds(at(10_000)) && doubt.ends().is_none());
        doubt.see(node(true, 3), at(20));
        doubt.see(node(true, 3), at(49));
        assert!(doubt.holds(at(49)) && !doubt.holds(at(50)));
        assert_eq!(doubt.ends(), Some(at(50)));
        doubt.ended();
        assert_eq!(doubt.ends(), None);
        // It was cut off itself, and has seen nothing of what was said of it meanwhile.
        doubt.see(node(true, 5), at(100));
        assert!(doubt.holds(at(129)) && !doubt.holds(at(130)));
        // Not ready again before that.
        doubt.see(node(false, 6), at(110));
        assert!(doubt.holds(at(140)) && doubt.ends().is_none());
        doubt.see(None, at(150));
        assert!(doubt.holds(at(150)), "it is the last that was said");
    }
}
