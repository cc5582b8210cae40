//! Whose view of the cluster is out of date: nodes tell each other a digest of what the API server told them.
//!
//! A node whose connection to the API server hangs goes on serving by its last view, and does not know it: the watch is silent
//! either way. The others know: they go by another view than it, and it does not follow. Such a node asks the API server anew; if
//! that does not help it is *stale*: it gets no new flows (as if its speaker were absent, `presence`) and keeps those it has.
//!
//! The view of more than half of the nodes that speak counts as the present one. A node that follows late is not stale: it must have
//! gone by one and the same other view all the time. For [`Freshness::DOUBT`], and it is *in doubt* and asks the API server; for
//! [`Freshness::STALE`], and it is stale: rows move only if asking has not helped. Where no view has a majority (two nodes) all are
//! in doubt and nobody is stale.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::name::NodeName;
use crate::time::{Duration, Instant};

/// What the nodes say, this one included.
#[derive(Debug, Default)]
pub struct Freshness {
    nodes: BTreeMap<NodeName, Said>,
}

#[derive(Debug)]
struct Said {
    view: u64,
    spoke: Instant,
    /// Not the view that counts, since then.
    behind: Option<Instant>,
    /// Not a view that a majority has.
    doubted: Option<Instant>,
    stale: bool,
}

impl Freshness {
    /// For how long a node goes by another view than the others before it doubts its own.
    pub const DOUBT: Duration = Duration::from_secs(2);
    /// For how long before it gets no new flows.
    pub const STALE: Duration = Duration::from_secs(10);
    /// Whoever has not spoken for so long does not count.
    const SILENT: Duration = Duration::from_secs(3);

    /// A node goes by this view now; 0: by none yet. Whether that is news.
    pub fn says(&mut self, node: &NodeName, view: u64, now: Instant) -> bool {
        if view == 0 {
            return false;
        }
        let said = self.nodes.entry(node.clone()).or_insert_with(|| Said::new(now));
        said.spoke = now;
        let news = core::mem::replace(&mut said.view, view) != view;
        if news {
            // It hears the API server; whether it is behind is open again.
            (said.behind, said.doubted) = (None, None);
        }
        news
    }

    /// It is there, and has nothing new to say.
    pub fn speaks(&mut self, node: &NodeName, now: Instant) {
        if let Some(said) = self.nodes.get_mut(node) {
            said.spoke = now;
        }
    }

    /// It is no longer a node of this cluster. Whether it was stale.
    pub fn forget(&mut self, node: &NodeName) -> bool {
        self.nodes.remove(node).is_some_and(|said| said.stale)
    }

    /// By which this node goes; 0: by none yet.
    pub fn view(&self, node: &NodeName) -> u64 {
        self.nodes.get(node).map_or(0, |said| said.view)
    }

    /// To be called at least once a second. Who is stale from now on, and who no longer.
    pub fn judge(&mut self, now: Instant) -> (Vec<NodeName>, Vec<NodeName>) {
        let present = self.majority(now);
        let (mut stale, mut fresh) = (Vec::new(), Vec::new());
        for (node, said) in &mut self.nodes {
            match present {
                _ if !said.speaks(now) => (said.behind, said.doubted) = (None, None),
                Some(view) if view == said.view => (said.behind, said.doubted) = (None, None),
                Some(_) => {
                    said.behind.get_or_insert(now);
                    said.doubted.get_or_insert(now);
                }
                // Nobody knows; what was known holds.
                None => _ = said.doubted.get_or_insert(now),
            }
            let is_stale = said.behind.is_some_and(|since| now.since(since) >= Self::STALE);
            if core::mem::replace(&mut said.stale, is_stale) != is_stale {
                if is_stale { &mut stale } else { &mut fresh }.push(node.clone());
            }
        }
        (stale, fresh)
    }

    /// By the last judgement the view of this node is not known to be the present one, and has not been for a while.
    pub fn in_doubt(&self, node: &NodeName, now: Instant) -> bool {
        let doubted = self.nodes.get(node).and_then(|said| said.doubted);
        doubted.is_some_and(|since| now.since(since) >= Self::DOUBT)
    }

    /// The view of more than half of those that speak.
    fn majority(&self, now: Instant) -> Option<u64> {
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        for said in self.nodes.values().filter(|said| said.speaks(now)) {
            *counts.entry(said.view).or_default() += 1;
        }
        let all: usize = counts.values().sum();
        counts.into_iter().find(|(_, count)| 2 * count > all).map(|(view, _)| view)
    }
}

impl Said {
    fn new(now: Instant) -> Self {
        Self { view: 0, spoke: now, behind: None, doubted: None, stale: false }
    }

    fn speaks(&self, now: Instant) -> bool {
        now.since(self.spoke) <= Freshness::SILENT
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec;

    use super::*;

    fn name(node: usize) -> NodeName {
        NodeName::new(&format!("n{node}")).unwrap()
    }

    struct Lab {
        now: Instant,
        freshness: Freshness,
        stale: Vec<NodeName>,
    }

    impl Lab {
        fn new() -> Self {
            Self { now: Instant::from_millis(10_000), freshness: Freshness::default(), stale: vec![] }
        }

        /// Every second of these the nodes say their views.
        fn run(&mut self, seconds: usize, views: impl Fn(usize) -> Vec<u64>) {
            for second in 0..seconds {
                self.now += Duration::from_secs(1);
                for (node, view) in views(second).into_iter().enumerate() {
                    self.freshness.says(&name(node), view, self.now);
                }
                let (stale, fresh) = self.freshness.judge(self.now);
                self.stale.extend(stale);
                self.stale.retain(|node| !fresh.contains(node));
            }
        }

        fn doubts(&self, node: usize) -> bool {
            self.freshness.in_doubt(&name(node), self.now)
        }
    }

    #[test]
    fn a_node_that_does_not_follow_is_stale_until_it_does() {
        let mut lab = Lab::new();
        lab.run(60, |_| vec![1, 1, 1]);
        lab.run(2, |_| vec![2, 2, 1]);
        assert_eq!((&lab.stale, lab.doubts(2)), (&vec![], false), "it may be on its way");
        lab.run(8, |_| vec![2, 2, 1]);
        assert_eq!((&lab.stale, lab.doubts(0), lab.doubts(2)), (&vec![], false, true));
        lab.run(1, |_| vec![2, 2, 1]);
        assert_eq!((&lab.stale, lab.doubts(0), lab.doubts(2)), (&vec![name(2)], false, true));
        lab.run(1, |_| vec![2, 2, 2]);
        assert_eq!((lab.stale.len(), lab.doubts(2)), (0, false));
    }

    /// During an update of many pods there is a new view all the time, and not everybody is equally quick.
    #[test]
    fn whoever_follows_late_is_not_stale_and_whoever_does_not_is() {
        let mut lab = Lab::new();
        lab.run(30, |second| {
            let second = second as u64;
            vec![100 + second, 100 + second, 99 + second, 100 + second, 100]
        });
        assert_eq!(lab.stale, [name(4)]);
        // A moment without a majority changes nothing.
        lab.run(1, |_| vec![200, 201, 202, 203, 100]);
        assert_eq!(lab.stale, [name(4)]);
    }

    #[test]
    fn two_nodes_doubt_both_and_neither_is_stale() {
        let mut lab = Lab::new();
        lab.run(10, |_| vec![1, 2]);
        assert_eq!((&lab.stale, lab.doubts(0), lab.doubts(1)), (&vec![], true, true));
        lab.run(1, |_| vec![2, 2]);
        assert!(!lab.doubts(0) && !lab.doubts(1));
    }

    #[test]
    fn nodes_that_are_gone_have_no_vote() {
        let mut lab = Lab::new();
        lab.run(10, |_| vec![1, 1, 1, 1, 1]);
        lab.run(14, |_| vec![2, 2, 1]);
        assert_eq!(lab.stale, [name(2)]);
        assert!(lab.freshness.forget(&name(2)) && !lab.freshness.forget(&name(2)));
        lab.run(10, |_| vec![2, 2]);
        assert_eq!((lab.freshness.view(&name(2)), lab.freshness.judge(lab.now)), (0, (vec![], vec![])));
    }

    #[test]
    fn a_node_alone_and_one_without_a_view_are_neither() {
        let mut lab = Lab::new();
        lab.run(10, |_| vec![1]);
        assert!(lab.stale.is_empty() && !lab.doubts(0));
        lab.run(10, |_| vec![1, 0, 0]);
        assert!(lab.stale.is_empty() && !lab.doubts(0) && !lab.doubts(1));
    }
}
