use alloc::string::String;

use super::*;

const KEY: [u64; 2] = [1, 2];
const START: Instant = Instant::from_millis(1_000_000);

fn port(port: u16) -> ServiceKey {
    ServiceKey { addr: [192, 0, 2, 1], port: port.to_be_bytes(), proto: 6, pad: 0 }
}

/// One pod on each of so many nodes.
fn pods(pods: u32) -> Members {
    Members::new((0..pods).map(|node| (alloc::format!("n{node:02}"), 1, false)))
}

/// A service port on one node.
struct Node {
    batches: Batches,
    current: Arc<Members>,
    changes: Vec<(Duration, u64)>,
}

impl Node {
    fn new(members: Members) -> Self {
        Self { batches: Batches::default(), current: Arc::new(members), changes: Vec::new() }
    }

    /// The pods that have rows after the view names these.
    fn see(&mut self, members: Members, after: Duration) -> u64 {
        self.see_again(members, None, after)
    }

    fn see_again(&mut self, members: Members, ended: Option<Instant>, after: Duration) -> u64 {
        let wanted = Wanted { members: members.into(), current: Some(&self.current), ended };
        let next = self.batches.next(&port(80), wanted, &KEY, START + after);
        if next != self.current {
            self.changes.push((after, next.pods()));
        }
        self.current = next;
        self.current.pods()
    }

    fn deadline(&self) -> Option<Duration> {
        self.batches.next_deadline().map(|deadline| deadline.since(START))
    }
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_lone_pod_waits_until_no_other_has_come_for_a_while() {
    let mut node = Node::new(pods(3));
    assert_eq!((node.see(pods(4), secs(0)), node.deadline()), (3, Some(QUIET)));
    assert_eq!(node.batches.waiting(), 1);
    // The table may be made for other reasons.
    assert_eq!((node.see(pods(4), secs(2)), node.deadline()), (3, Some(QUIET)));
    assert_eq!((node.see(pods(4), QUIET), node.deadline()), (4, None));
    assert_eq!(node.batches.waiting(), 0);
}

/// No pod waits longer than `LONGEST`, and batches are as far apart.
#[test]
fn pods_that_come_one_by_one_are_one_change_every_fifteen_seconds() {
    let mut node = Node::new(pods(20));
    for second in 0..41 {
        node.see(pods(21 + second), secs(second.into()));
    }
    // The second began to wait a second after the first was applied; the third is `LONGEST` behind it, although no addition came
    // lately.
    assert_eq!(node.deadline(), Some(secs(46)));
    assert_eq!(node.see(pods(61), secs(46)), 61);
    assert_eq!(node.changes, [(secs(15), 36), (secs(31), 52), (secs(46), 61)]);
}

#[test]
fn many_times_the_pods_that_have_rows_do_not_wait() {
    let mut node = Node::new(pods(3));
    assert_eq!(node.see(pods(14), secs(0)), 3);
    assert_eq!(node.see(pods(15), secs(1)), 15);
}

#[test]
fn the_first_pods_and_removals_do_not_wait_nor_does_what_comes_with_them() {
    let mut node = Node::new(pods(0));
    assert_eq!(node.see(pods(1), secs(0)), 1);
    assert_eq!(node.see(pods(3), secs(1)), 1);
    let rolled = Members::new([("n01", 1), ("n02", 1)].map(|(node, pods)| (String::from(node), pods, false)));
    assert_eq!((node.see(rolled, secs(2)), node.deadline()), (2, None), "n00 is gone, n01 and n02 are there");
    let lost = Members::new([("n01", 1, false), ("n02", 1, true), ("n03", 1, false)].map(|(n, p, d)| (n.into(), p, d)));
    assert_eq!(node.see(lost, secs(3)), 3);
    let back = Members::new(["n01", "n02", "n03"].map(|node| (node.into(), 1, false)));
    node.see(back.clone(), secs(4));
    assert_eq!(*node.current, back, "a node that is back has its rows back");
}

#[test]
fn a_pod_that_comes_and_goes_while_it_waits_changes_nothing() {
    let mut node = Node::new(pods(3));
    node.see(pods(4), secs(0));
    assert_eq!((node.see(pods(3), secs(1)), node.deadline()), (3, None));
    assert!(node.changes.is_empty());
}

#[test]
fn a_pod_that_is_ready_again_soon_does_not_wait() {
    let ended = Some(START);
    assert_eq!(Node::new(pods(3)).see_again(pods(4), ended, secs(60)), 4);
    assert_eq!(Node::new(pods(3)).see_again(pods(4), ended, secs(61)), 3);
}

/// Whether a peer has this table, for one with one service port.
fn theirs(members: Members) -> impl Fn(&BTreeMap<ServiceKey, u64>) -> bool {
    move |rings| rings.get(&port(80)) == Some(&members.digest(&KEY))
}

#[test]
fn a_node_follows_its_peer_into_a_state_of_the_batch() {
    let mut node = Node::new(pods(3));
    for (second, wanted) in [(0, 4), (2, 5), (4, 6)] {
        node.see(pods(wanted), secs(second));
    }
    assert!(node.batches.follow(theirs(pods(9)), START + secs(5)).is_empty());
    let [(key, members)] = &node.batches.follow(theirs(pods(5)), START + secs(5))[..] else { panic!("one port") };
    assert_eq!((*key, members.pods()), (port(80), 5));
    node.current = members.clone();
    assert_eq!(node.see(pods(6), secs(6)), 5);
    assert_eq!(node.deadline(), Some(secs(19)), "the sixth pod has waited since the fourth second");
    assert_eq!(node.see(pods(6), secs(19)), 6);
}

#[test]
fn a_node_follows_a_peer_that_has_applied_all() {
    let mut batches = Batches::default();
    let three = Arc::new(pods(3));
    for port_number in [80, 81] {
        let wanted = Wanted { members: pods(4).into(), current: Some(&three), ended: None };
        batches.next(&port(port_number), wanted, &KEY, START);
    }
    let all = |rings: &BTreeMap<ServiceKey, u64>| rings.len() == 2;
    assert_eq!(batches.follow(all, START).len(), 2);
    assert!(batches.is_empty());
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut node = Node::new(pods(100));
    for pod in 1..100 {
        node.see(pods(100 + pod), Duration::from_millis(100 * u64::from(pod)));
    }
    let waiting = node.batches.0[&port(80)].waiting.as_ref().unwrap();
    assert_eq!(waiting.states.len(), MAX_STATES);
    node.batches.retain(START + secs(100), |_| false);
    assert!(node.batches.0.is_empty());
}
