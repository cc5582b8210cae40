//! Whose view of the cluster is out of date: nodes tell each other a digest of what the API server told them.
//!
//! A node whose connection to the API server hangs goes on serving by its last view, and does not know it: the watch is silent
//! either way. The others know: they go by another view than it, and it does not follow. Such a node asks the API server anew; if
//! that does not help it is *stale*: it gets no new flows (as if its speaker were absent, `presence`) and keeps those it has.
//!
//! A node whose own pods have changed since it last went by the present view, and that says nothing new, hands new flows to pods that are
//! gone, be its speaker dead, begun without an API server, or cut off. It is stale after [`Freshness::OUTDATED`], or at once if it does not even speak,
//! until it goes by the present view again. (Where the view changes all the time two nodes may never be found with the same one; there whoever
//! says something new again and again knows what is older than that.)
//!
//! A node that leaves the view of the majority for one that none of the majority ever had is *ahead*: the watches of most nodes hang, as
//! when the API server that they are connected to is gone. It is not stale, and the majority is in doubt. For [`Freshness::AHEAD`]: by then
//! every watch has been renewed, and who still goes by another view is behind.
//!
//! The view of more than half of the nodes that speak counts as the present one. A node that follows late is not stale: it must have
//! gone by one and the same other view all the time. For [`Freshness::DOUBT`], and it is *in doubt* and asks the API server; for
//! [`Freshness::STALE`], and it is stale: rows move only if asking has not helped. Where no view has a majority (two nodes) all are
//! in doubt and nobody is stale.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use crate::name::NodeName;
use crate::time::{Duration, Instant};

/// What the nodes say, this one included.
#[derive(Debug, Default)]
pub struct Freshness {
    nodes: BTreeMap<NodeName, Said>,
    /// The digest of each node's pods as this node sees them, and since when.
    pods: BTreeMap<String, (u64, Instant)>,
}

#[derive(Debug)]
struct Said {
    view: u64,
    /// Since when.
    since: Instant,
    /// The views before it, the newest last.
    past: Vec<u64>,
    spoke: Instant,
    /// Not the view that counts, since then.
    behind: Option<Instant>,
    /// Not a view that a majority has.
    doubted: Option<Instant>,
    /// Began to say something new, and did so last: no longer than `OUTDATED` lies between two of these.
    news: Option<(Instant, Instant)>,
    /// The digest of its pods when it last went by the present view, or was first heard of.
    pods: u64,
    /// They are others now, and it has said nothing new since then; or it was stale when it did.
    outdated: Option<Instant>,
    stale: bool,
}

impl Freshness {
    /// For how long a node goes by another view than the others before it doubts its own.
    pub const DOUBT: Duration = Duration::from_secs(2);
    /// For how long before it gets no new flows.
    pub const STALE: Duration = Duration::from_secs(10);
    /// For how long it may say nothing new while its own pods are others.
    pub const OUTDATED: Duration = Duration::from_secs(2);
    /// For how much longer the majority waits for what a node that is ahead had first: an API server that is busy is not asked by all.
    const PATIENCE: Duration = Duration::from_secs(3);
    /// For how long a view that the majority never had may be newer than theirs: longer than a watch goes on without a sign of the API
    /// server, and the list that then follows.
    pub const AHEAD: Duration = Duration::from_secs(80);
    /// Views of each node that are remembered.
    const PAST: usize = 16;
    /// Whoever has not spoken for so long does not count.
    const SILENT: Duration = Duration::from_secs(3);

    /// `pods`: as the speaker before this one saw them last. Whoever is not heard any more goes by them.
    pub fn new(pods: BTreeMap<String, u64>, now: Instant) -> Self {
        let known = pods.iter().filter_map(|(node, digest)| Some((NodeName::new(node)?, Said::new(*digest, now))));
        let mut freshness = Self { nodes: known.collect(), pods: BTreeMap::new() };
        freshness.sees(pods, now);
        freshness
    }

    /// The digest of each node's pods by the view of this node; nodes without any are left out.
    pub fn sees(&mut self, pods: BTreeMap<String, u64>, now: Instant) {
        let known = core::mem::take(&mut self.pods);
        let since = |node: &String, digest| {
            known.get(node).filter(|(same, _)| *same == digest).map_or(now, |(_, since)| *since)
        };
        self.pods = pods.into_iter().map(|(node, digest)| (node.clone(), (digest, since(&node, digest)))).collect();
    }

    /// A node goes by this view now; 0: by none yet. Whether that is news.
    pub fn says(&mut self, node: &NodeName, view: u64, now: Instant) -> bool {
        if view == 0 {
            return false;
        }
        let (pods, _) = pods_of(&self.pods, node);
        let said = self.nodes.entry(node.clone()).or_insert_with(|| Said::new(pods, now));
        said.spoke = now;
        let before = core::mem::replace(&mut said.view, view);
        let news = before != view;
        if news {
            said.since = now;
            said.remember(before);
            // It hears the API server; whether it is behind is open again. One that was given up has to agree first.
            (said.behind, said.doubted) = (None, None);
            said.outdated = said.outdated.filter(|_| said.stale);
            let began = said.news.filter(|(_, last)| now.since(*last) < Self::OUTDATED).map_or(now, |(began, _)| began);
            said.news = Some((began, now));
        }
        news
    }

    /// It is there, and has nothing new to say.
    pub fn speaks(&mut self, node: &NodeName, now: Instant) {
        if let Some(said) = self.nodes.get_mut(node) {
            said.spoke = now;
        }
    }

    /// These are the nodes of the cluster, beside this one. Who was stale and is none of them.
    pub fn retain(&mut self, own: &NodeName, nodes: &BTreeSet<NodeName>) -> Vec<NodeName> {
        let gone = self.nodes.extract_if(.., |node, _| node != own && !nodes.contains(node));
        gone.filter(|(_, said)| said.stale).map(|(node, _)| node).collect()
    }

    /// By which this node goes; 0: by none yet.
    pub fn view(&self, node: &NodeName) -> u64 {
        self.nodes.get(node).map_or(0, |said| said.view)
    }

    /// To be called at least once a second, and after every `sees`, by the node of this name. Who is stale from now on, and who no longer.
    pub fn judge(&mut self, own: &NodeName, now: Instant) -> (Vec<NodeName>, Vec<NodeName>) {
        // Whoever hears nobody may itself be the one that did not run.
        let hears = self.nodes.iter().any(|(node, said)| node != own && said.speaks(now));
        let (present, own) = (self.majority(now), self.view(own));
        let ahead = present.map(|view| self.ahead(view, now)).unwrap_or_default();
        let (mut stale, mut fresh) = (Vec::new(), Vec::new());
        for (node, said) in &mut self.nodes {
            match present {
                _ if !said.speaks(now) || ahead.contains(node) => (said.behind, said.doubted) = (None, None),
                Some(view) if view == said.view => {
                    said.behind = None;
                    said.doubted = said.doubted.or(Some(now + Self::PATIENCE)).filter(|_| !ahead.is_empty());
                }
                Some(_) => {
                    said.behind.get_or_insert(now);
                    said.doubted.get_or_insert(now);
                }
                // Nobody knows; what was known holds.
                None => _ = said.doubted.get_or_insert(now),
            }
            let (pods, since) = pods_of(&self.pods, node);
            let agrees = said.view == own || said.speaks(now) && Some(said.view) == present;
            if agrees || said.follows(now) && now.since(since) >= Self::OUTDATED {
                (said.pods, said.outdated) = (pods, None);
            } else if said.pods == pods {
                said.outdated = None;
            } else {
                said.outdated.get_or_insert(now);
            }
            let behind = said.behind.is_some_and(|since| now.since(since) >= Self::STALE);
            let at_once = said.stale || hears && !said.speaks(now);
            let outdated = said.outdated.is_some_and(|since| at_once || now.since(since) >= Self::OUTDATED);
            let is_stale = behind || outdated;
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

    /// Nodes that had the view of the majority and left it for one that none of the majority has had, after they all had come to it.
    fn ahead(&self, present: u64, now: Instant) -> BTreeSet<NodeName> {
        let speak = || self.nodes.iter().filter(|(_, said)| said.speaks(now));
        let follow = || speak().filter(|(_, said)| said.view == present).map(|(_, said)| said);
        let known: BTreeSet<u64> = follow().flat_map(|said| &said.past).copied().collect();
        let settled = follow().map(|said| said.since).max().unwrap_or(now);
        let left = |said: &Said| said.view != present && said.past.contains(&present) && said.since > settled;
        let news = |said: &Said| !known.contains(&said.view) && now.since(said.since) < Self::AHEAD;
        speak().filter(|(_, said)| left(said) && news(said)).map(|(node, _)| node.clone()).collect()
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

fn pods_of(pods: &BTreeMap<String, (u64, Instant)>, node: &NodeName) -> (u64, Instant) {
    pods.get(node.as_str()).copied().unwrap_or((0, Instant::ZERO))
}

impl Said {
    fn new(pods: u64, now: Instant) -> Self {
        Self {
            view: 0,
            since: now,
            past: Vec::new(),
            spoke: now,
            behind: None,
            doubted: None,
            news: None,
            pods,
            outdated: None,
            stale: false,
        }
    }

    fn remember(&mut self, view: u64) {
        self.past.retain(|known| *known != view && *known != self.view);
        if view != 0 {
            self.past.push(view);
        }
        if self.past.len() > Freshness::PAST {
            self.past.remove(0);
        }
    }

    /// It has said something new again and again for `OUTDATED`, up to now.
    fn follows(&self, now: Instant) -> bool {
        self.news.is_some_and(|(began, last)| {
            now.since(began) >= Freshness::OUTDATED && now.since(last) < Freshness::OUTDATED
        })
    }

    fn speaks(&self, now: Instant) -> bool {
        self.view != 0 && now.since(self.spoke) <= Freshness::SILENT
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
                let (stale, fresh) = self.freshness.judge(&name(0), self.now);
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

    /// The watches of most nodes hang together; the pods go on changing (audit C9).
    #[test]
    fn whoever_leaves_the_view_of_most_for_a_new_one_is_not_stale_and_the_others_doubt() {
        let mut lab = Lab::new();
        lab.run(60, |_| vec![1, 1, 1, 1, 1]);
        lab.run(5, |_| vec![2, 1, 1, 1, 1]);
        assert!(!lab.doubts(4), "it may be on its way to them");
        lab.run(20, |second| vec![3 + second as u64 / 3, 1, 1, 1, 1]);
        assert_eq!((&lab.stale, lab.doubts(0)), (&vec![], false));
        assert!((1..5).all(|node| lab.doubts(node)));
        // They hear the API server again, one after the other, and one by one the new view is that of most.
        lab.run(2, |_| vec![9, 9, 1, 1, 1]);
        assert!(!lab.doubts(1) && lab.doubts(2));
        lab.run(2, |_| vec![9, 9, 9, 1, 1]);
        assert_eq!((&lab.stale, [2, 3, 4].map(|node| lab.doubts(node))), (&vec![], [false, true, true]));
        lab.run(10, |_| vec![9, 9, 9, 9, 1]);
        assert_eq!(lab.stale, [name(4)]);
    }

    /// It goes by what most had before, or by what only it has made of old news: nobody has a reason to ask.
    #[test]
    fn whoever_comes_to_another_view_late_or_goes_back_is_behind() {
        let mut lab = Lab::new();
        lab.run(10, |_| vec![1, 1, 1, 1]);
        lab.run(10, |_| vec![2, 2, 2, 2]);
        // Its speaker began anew, by the view on its disk.
        lab.run(11, |_| vec![2, 2, 2, 1]);
        assert_eq!((&lab.stale, lab.doubts(0)), (&vec![name(3)], false));
        lab.run(10, |_| vec![2, 2, 2, 2]);
        lab.run(5, |_| vec![3, 3, 3, 2]);
        lab.run(11, |_| vec![3, 3, 3, 7]);
        assert_eq!((&lab.stale, lab.doubts(0)), (&vec![name(3)], false));
        // Most went to another view and came back, while it hung at one that only it has had.
        lab.run(10, |_| vec![3, 3, 3, 3]);
        lab.run(2, |_| vec![4, 4, 4, 8]);
        lab.run(11, |_| vec![3, 3, 3, 8]);
        assert_eq!((&lab.stale, lab.doubts(0)), (&vec![name(3)], false));
    }

    /// Every watch has been renewed since, and nobody has followed: it is the one that is wrong.
    #[test]
    fn nobody_is_ahead_for_ever() {
        let mut lab = Lab::new();
        lab.run(10, |_| vec![1, 1, 1]);
        lab.run(Freshness::AHEAD.as_secs() as usize, |_| vec![2, 1, 1]);
        assert_eq!((&lab.stale, lab.doubts(1)), (&vec![], true));
        lab.run(12, |_| vec![2, 1, 1]);
        assert_eq!((&lab.stale, lab.doubts(0), lab.doubts(1)), (&vec![name(0)], true, false));
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

    /// Node 2 is silent from second 10; one of its pods goes at second 20.
    #[test]
    fn whoever_is_silent_while_its_pods_change_is_stale_until_it_follows() {
        let mut lab = Lab::new();
        let pods = |lab: &mut Lab, digest| lab.freshness.sees([("n2".into(), digest)].into(), lab.now);
        pods(&mut lab, 7);
        lab.run(10, |_| vec![1, 1, 1]);
        lab.run(10, |_| vec![2, 2]);
        assert_eq!(lab.stale, [], "other pods have changed");
        pods(&mut lab, 8);
        lab.run(1, |_| vec![3, 3]);
        assert_eq!(lab.stale, [name(2)]);
        // It begins without an API server, by what it knew, or reads what waited for it, one thing after the other.
        lab.run(5, |_| vec![3, 3, 1]);
        lab.run(2, |second| vec![3, 3, 11 + second as u64]);
        assert_eq!(lab.stale, [name(2)]);
        lab.run(1, |_| vec![3, 3, 3]);
        assert_eq!(lab.stale, []);
        // It has just ended, and may be on its way: but what went is there again in time.
        pods(&mut lab, 9);
        lab.run(2, |_| vec![4, 4]);
        assert_eq!(lab.stale, []);
        pods(&mut lab, 8);
        lab.run(9, |_| vec![5, 5]);
        assert_eq!(lab.stale, []);
    }

    /// No two nodes are ever found with the same view, and every one's pods change now and then.
    #[test]
    fn whoever_follows_a_view_that_changes_all_the_time_is_not_stale() {
        let mut lab = Lab::new();
        for round in 0..20 {
            lab.freshness.sees([("n1".into(), round), ("n2".into(), round)].into(), lab.now);
            lab.run(5, |second| {
                let view = 100 * round + 10 * second as u64;
                vec![view + 1, view + 2, view + 3]
            });
            assert_eq!(lab.stale, []);
        }
        // Its speaker begins anew, which takes five seconds; its pods are those that it knew.
        lab.run(5, |second| vec![5001 + 10 * second as u64, 5002 + 10 * second as u64]);
        assert_eq!(lab.stale, []);
        // One of them goes meanwhile: then it is stale until it has followed for a while.
        lab.freshness.sees([("n1".into(), 20), ("n2".into(), 21)].into(), lab.now);
        let follow = |second: usize| [1, 2, 3].map(|node| 6000 + 10 * second as u64 + node).to_vec();
        lab.run(1, |second| follow(second)[..2].to_vec());
        assert_eq!(lab.stale, [name(2)]);
        lab.run(2, |second| follow(second + 1));
        assert_eq!(lab.stale, [name(2)]);
        lab.run(1, |second| follow(second + 3));
        assert_eq!(lab.stale, []);
    }

    /// Node 2 fell silent before this speaker began, and its pods changed while there was none here.
    #[test]
    fn whoever_is_not_heard_any_more_goes_by_the_pods_of_before() {
        let mut lab = Lab::new();
        lab.freshness = Freshness::new([("n1".into(), 1), ("n2".into(), 1)].into(), lab.now);
        lab.freshness.sees([("n1".into(), 1), ("n2".into(), 1)].into(), lab.now);
        lab.run(60, |_| vec![1, 1]);
        assert_eq!(lab.stale, []);
        lab.freshness.sees([("n1".into(), 2), ("n2".into(), 2)].into(), lab.now);
        lab.run(1, |_| vec![2, 2]);
        assert_eq!(lab.stale, [name(2)]);
    }

    /// Everybody seems to have fallen silent: this node was asleep, and what they said waits to be read.
    #[test]
    fn whoever_slept_holds_nobody_for_stale_at_once() {
        let mut lab = Lab::new();
        lab.run(10, |_| vec![1, 1, 1]);
        lab.now += Duration::from_secs(60);
        lab.freshness.sees([("n1".into(), 1), ("n2".into(), 1)].into(), lab.now);
        lab.freshness.says(&name(0), 2, lab.now);
        assert_eq!(lab.freshness.judge(&name(0), lab.now), (vec![], vec![]));
        lab.run(5, |_| vec![2, 2, 2]);
        assert_eq!(lab.stale, []);
    }

    /// It speaks, and says the same as before.
    #[test]
    fn whoever_does_not_follow_while_its_pods_change_is_stale_soon() {
        let mut lab = Lab::new();
        lab.run(10, |_| vec![1, 1, 1]);
        lab.freshness.sees([("n2".into(), 1)].into(), lab.now);
        lab.run(2, |_| vec![2, 2, 1]);
        assert_eq!(lab.stale, []);
        lab.run(1, |_| vec![2, 2, 1]);
        assert_eq!(lab.stale, [name(2)]);
    }

    /// Our own view is the old one: others are not held for stale because they go by another.
    #[test]
    fn whoever_goes_by_the_view_of_most_is_not_outdated() {
        let mut lab = Lab::new();
        lab.freshness.sees([("n1".into(), 1), ("n2".into(), 1)].into(), lab.now);
        lab.run(5, |_| vec![1, 1, 1]);
        lab.run(5, |_| vec![1, 2, 2]);
        // Now we hear of pods that both have long had, and of a later change that they have not said yet.
        lab.freshness.sees([("n1".into(), 2), ("n2".into(), 2)].into(), lab.now);
        lab.run(5, |_| vec![3, 2, 2]);
        assert_eq!(lab.stale, []);
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
        let others = [name(1)].into();
        assert_eq!(lab.freshness.retain(&name(0), &others), [name(2)]);
        assert_eq!(lab.freshness.retain(&name(0), &others), []);
        lab.run(10, |_| vec![2, 2]);
        assert_eq!((lab.freshness.view(&name(2)), lab.freshness.judge(&name(0), lab.now)), (0, (vec![], vec![])));
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
