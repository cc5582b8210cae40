use alloc::format;
use alloc::vec;

use super::*;

fn name(node: usize) -> NodeName {
    NodeName::new(&format!("n{node}")).unwrap()
}

struct Lab {
    now: Instant,
    staleness: Staleness,
    stale: Vec<NodeName>,
}

impl Lab {
    fn new() -> Self {
        Self { now: Instant::from_millis(10_000), staleness: Staleness::default(), stale: vec![] }
    }

    /// Every second the nodes report these views.
    fn run(&mut self, seconds: usize, views: impl Fn(usize) -> Vec<u64>) {
        for second in 0..seconds {
            self.now += Duration::from_secs(1);
            for (node, view) in views(second).into_iter().enumerate() {
                self.staleness.applied(&name(node), view, self.now);
            }
            let (stale, up_to_date) = self.staleness.judge(&name(0), self.now);
            self.stale.extend(stale);
            self.stale.retain(|node| !up_to_date.contains(node));
        }
    }

    fn lagging(&self, node: usize) -> bool {
        self.staleness.is_lagging(&name(node), self.now)
    }
}

#[test]
fn a_node_that_does_not_follow_is_stale_until_it_does() {
    let mut lab = Lab::new();
    lab.run(60, |_| vec![1, 1, 1]);
    lab.run(2, |_| vec![2, 2, 1]);
    assert_eq!((&lab.stale, lab.lagging(2)), (&vec![], false), "it may be on its way");
    lab.run(8, |_| vec![2, 2, 1]);
    assert_eq!((&lab.stale, lab.lagging(0), lab.lagging(2)), (&vec![], false, true));
    lab.run(1, |_| vec![2, 2, 1]);
    assert_eq!((&lab.stale, lab.lagging(0), lab.lagging(2)), (&vec![name(2)], false, true));
    lab.run(1, |_| vec![2, 2, 2]);
    assert_eq!((lab.stale.len(), lab.lagging(2)), (0, false));
}

/// The watches of most nodes hang together; the pods go on changing.
#[test]
fn a_node_that_leaves_the_majority_for_a_new_view_is_not_stale_and_the_majority_lags() {
    let mut lab = Lab::new();
    lab.run(60, |_| vec![1, 1, 1, 1, 1]);
    lab.run(5, |_| vec![2, 1, 1, 1, 1]);
    assert!(!lab.lagging(4), "it may be on its way to them");
    lab.run(20, |second| vec![3 + second as u64 / 3, 1, 1, 1, 1]);
    assert_eq!((&lab.stale, lab.lagging(0)), (&vec![], false));
    assert!((1..5).all(|node| lab.lagging(node)));
    // They reach the API server again, one after the other, until a majority has the new view.
    lab.run(2, |_| vec![9, 9, 1, 1, 1]);
    assert!(!lab.lagging(1) && lab.lagging(2));
    lab.run(2, |_| vec![9, 9, 9, 1, 1]);
    assert_eq!((&lab.stale, [2, 3, 4].map(|node| lab.lagging(node))), (&vec![], [false, true, true]));
    lab.run(10, |_| vec![9, 9, 9, 9, 1]);
    assert_eq!(lab.stale, [name(4)]);
}

/// Its view is an earlier one of the majority, or one that it made of old events: no other node needs to connect anew.
#[test]
fn a_node_that_comes_to_another_view_late_or_goes_back_lags() {
    let mut lab = Lab::new();
    lab.run(10, |_| vec![1, 1, 1, 1]);
    lab.run(10, |_| vec![2, 2, 2, 2]);
    // Its speaker restarted with the view on its disk.
    lab.run(11, |_| vec![2, 2, 2, 1]);
    assert_eq!((&lab.stale, lab.lagging(0)), (&vec![name(3)], false));
    lab.run(10, |_| vec![2, 2, 2, 2]);
    lab.run(5, |_| vec![3, 3, 3, 2]);
    lab.run(11, |_| vec![3, 3, 3, 7]);
    assert_eq!((&lab.stale, lab.lagging(0)), (&vec![name(3)], false));
    // Most applied another view and returned to the last one, while node 3 kept one that only it has had.
    lab.run(10, |_| vec![3, 3, 3, 3]);
    lab.run(2, |_| vec![4, 4, 4, 8]);
    lab.run(11, |_| vec![3, 3, 3, 8]);
    assert_eq!((&lab.stale, lab.lagging(0)), (&vec![name(3)], false));
}

/// Every watch has been renewed since, and no node has followed: the node that was ahead is wrong.
#[test]
fn no_node_is_ahead_for_ever() {
    let mut lab = Lab::new();
    lab.run(10, |_| vec![1, 1, 1]);
    lab.run(Staleness::AHEAD.as_secs() as usize, |_| vec![2, 1, 1]);
    assert_eq!((&lab.stale, lab.lagging(1)), (&vec![], true));
    lab.run(12, |_| vec![2, 1, 1]);
    assert_eq!((&lab.stale, lab.lagging(0), lab.lagging(1)), (&vec![name(0)], true, false));
}

/// During an update of many pods there is a new view all the time, and not all nodes are equally quick.
#[test]
fn a_node_that_follows_late_is_not_stale_and_one_that_does_not_is() {
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
fn a_node_that_is_silent_while_its_pods_change_is_stale_until_it_follows() {
    let mut lab = Lab::new();
    let pods = |lab: &mut Lab, digest| lab.staleness.set_pods([("n2".into(), digest)].into(), lab.now);
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
fn a_node_that_follows_a_view_that_changes_all_the_time_is_not_stale() {
    let mut lab = Lab::new();
    for round in 0..20 {
        lab.staleness.set_pods([("n1".into(), round), ("n2".into(), round)].into(), lab.now);
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
    lab.staleness.set_pods([("n1".into(), 20), ("n2".into(), 21)].into(), lab.now);
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
fn a_node_that_reports_no_more_keeps_its_saved_pods() {
    let mut lab = Lab::new();
    lab.staleness = Staleness::new([("n1".into(), 1), ("n2".into(), 1)].into(), lab.now);
    lab.staleness.set_pods([("n1".into(), 1), ("n2".into(), 1)].into(), lab.now);
    lab.run(60, |_| vec![1, 1]);
    assert_eq!(lab.stale, []);
    lab.staleness.set_pods([("n1".into(), 2), ("n2".into(), 2)].into(), lab.now);
    lab.run(1, |_| vec![2, 2]);
    assert_eq!(lab.stale, [name(2)]);
}

/// All nodes seem to have fallen silent: this node was asleep, and their reports wait to be read.
#[test]
fn a_node_that_slept_finds_no_other_stale_at_once() {
    let mut lab = Lab::new();
    lab.run(10, |_| vec![1, 1, 1]);
    lab.now += Duration::from_secs(60);
    lab.staleness.set_pods([("n1".into(), 1), ("n2".into(), 1)].into(), lab.now);
    lab.staleness.applied(&name(0), 2, lab.now);
    assert_eq!(lab.staleness.judge(&name(0), lab.now), (vec![], vec![]));
    lab.run(5, |_| vec![2, 2, 2]);
    assert_eq!(lab.stale, []);
}

/// It reports the same view as before.
#[test]
fn a_node_that_lags_while_its_pods_change_is_stale_soon() {
    let mut lab = Lab::new();
    lab.run(10, |_| vec![1, 1, 1]);
    lab.staleness.set_pods([("n2".into(), 1)].into(), lab.now);
    lab.run(2, |_| vec![2, 2, 1]);
    assert_eq!(lab.stale, []);
    lab.run(1, |_| vec![2, 2, 1]);
    assert_eq!(lab.stale, [name(2)]);
}

/// Our own view is the old one: others do not count as stale because they have applied another.
#[test]
fn a_node_with_the_view_of_the_majority_is_not_stale() {
    let mut lab = Lab::new();
    lab.staleness.set_pods([("n1".into(), 1), ("n2".into(), 1)].into(), lab.now);
    lab.run(5, |_| vec![1, 1, 1]);
    lab.run(5, |_| vec![1, 2, 2]);
    // Now this node receives pods that both have long had, and a later change that they have not reported yet.
    lab.staleness.set_pods([("n1".into(), 2), ("n2".into(), 2)].into(), lab.now);
    lab.run(5, |_| vec![3, 2, 2]);
    assert_eq!(lab.stale, []);
}

#[test]
fn two_nodes_both_lag_and_neither_is_stale() {
    let mut lab = Lab::new();
    lab.run(10, |_| vec![1, 2]);
    assert_eq!((&lab.stale, lab.lagging(0), lab.lagging(1)), (&vec![], true, true));
    lab.run(1, |_| vec![2, 2]);
    assert!(!lab.lagging(0) && !lab.lagging(1));
}

#[test]
fn nodes_that_are_gone_have_no_vote() {
    let mut lab = Lab::new();
    lab.run(10, |_| vec![1, 1, 1, 1, 1]);
    lab.run(14, |_| vec![2, 2, 1]);
    assert_eq!(lab.stale, [name(2)]);
    let others = [name(1)].into();
    assert_eq!(lab.staleness.retain(&name(0), &others), [name(2)]);
    assert_eq!(lab.staleness.retain(&name(0), &others), []);
    lab.run(10, |_| vec![2, 2]);
    assert_eq!((lab.staleness.view(&name(2)), lab.staleness.judge(&name(0), lab.now)), (0, (vec![], vec![])));
}

#[test]
fn a_node_alone_and_one_without_a_view_are_neither() {
    let mut lab = Lab::new();
    lab.run(10, |_| vec![1]);
    assert!(lab.stale.is_empty() && !lab.lagging(0));
    lab.run(10, |_| vec![1, 0, 0]);
    assert!(lab.stale.is_empty() && !lab.lagging(0) && !lab.lagging(1));
}
