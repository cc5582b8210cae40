//! R3: of a VIP whose Services are all Local, nodes with pods come first in rank, and nothing moves for them.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::harness::*;
use super::*;

const NODES: usize = 4;

fn set(cluster: &mut Cluster, vips: u8, pods: &[usize], receivers: &[usize]) {
    let nodes: Arc<BTreeSet<_>> = Arc::new(pods.iter().copied().map(name).collect());
    let of = Arc::new(Eligible::All);
    let eligible = Eligible::WithPods { nodes, of };
    cluster.desired = (1..=vips).map(|last| (vip(last), eligible.clone())).collect();
    for node in receivers {
        cluster.event(*node, Event::Desired(cluster.desired.clone()));
    }
}

fn all() -> Vec<usize> {
    (0..NODES).collect()
}

/// The node that would be first without pods, and the one that would be last.
fn first_and_last(last: u8) -> (usize, usize) {
    let names: Vec<_> = all().into_iter().map(name).collect();
    let mut order = all();
    order.sort_by_key(|node| rank::rank(vip(last), &name(*node), &names));
    (order[0], order[NODES - 1])
}

#[test]
fn a_new_vip_goes_to_a_node_with_a_pod_at_once() {
    let mut cluster = Cluster::settled(NODES, 0);
    let (_, last) = first_and_last(1);
    set(&mut cluster, 1, &[last], &all());
    cluster.run(ms(1));
    assert_eq!(cluster.holders(vip(1)), [last]);
    cluster.run(ms(1000));
    assert_eq!(cluster.acquired().len(), 1, "{:?}", cluster.log);
}

/// The pods of a new Service come after it, a node hears of them before the one that has them, and no node waits for ever.
#[test]
fn a_new_vip_waits_for_its_pods() {
    let (first, last) = first_and_last(1);
    let others: Vec<_> = all().into_iter().filter(|node| *node != last).collect();
    for (pods_after, heard_after) in [(0, 100), (100, 0), (300, 150), (1900, 150)] {
        let mut cluster = Cluster::settled(NODES, 0);
        set(&mut cluster, 1, &[], &all());
        cluster.run(ms(pods_after));
        assert_eq!(cluster.holders(vip(1)), []);
        set(&mut cluster, 1, &[last], &others);
        cluster.run(ms(heard_after));
        set(&mut cluster, 1, &[last], &[last]);
        cluster.run(ms(1));
        assert_eq!(cluster.holders(vip(1)), [last], "pods after {pods_after} ms, heard {heard_after} ms later");
    }

    // The pods come and go, and the node that has them is not able to claim: the wait begins anew once.
    let mut flapping = Cluster::settled(NODES, 0);
    set(&mut flapping, 1, &[], &all());
    flapping.event(last, Event::NotAcquired(vip(1)));
    for pods in core::iter::repeat_n([&[last][..], &[]], 4).flatten() {
        set(&mut flapping, 1, pods, &others);
        flapping.run(ms(20));
    }
    let took = flapping.run_until(ms(3000), |c| !c.holders(vip(1)).is_empty());
    assert_eq!(flapping.holders(vip(1)), [first], "{took:?}");

    let mut without = Cluster::settled(NODES, 0);
    set(&mut without, 1, &[], &all());
    let took = without.run_until(ms(3000), |c| !c.holders(vip(1)).is_empty());
    assert_eq!(without.holders(vip(1)), [first]);
    assert!((ms(2000)..=ms(2005)).contains(&took), "{took:?}");
}

/// Preferred, not preempted: pods that come, go and move move no VIP.
#[test]
fn no_pod_moves_a_vip() {
    let mut cluster = Cluster::settled(NODES, 0);
    set(&mut cluster, 6, &[0, 1], &all());
    cluster.run(ms(1000));
    assert!((1..=6).all(|last| cluster.owner(vip(last)) < 2), "{:?}", cluster.log);
    cluster.log.clear();
    for pods in [&[0][..], &[2], &[], &[1, 2, 3]] {
        // The nodes hear of it one by one.
        for node in all() {
            set(&mut cluster, 6, pods, &[node]);
            cluster.run(ms(70));
        }
    }
    assert_eq!(cluster.log, []);
}

/// An owner that dies, and one that leaves, is followed by a node with a pod; by another one where that does not claim.
#[test]
fn nodes_with_pods_follow_first() {
    for leaves in [false, true] {
        let mut cluster = Cluster::settled(NODES, 0);
        let (first, last) = first_and_last(1);
        set(&mut cluster, 1, &[first], &all());
        cluster.run(ms(500));
        set(&mut cluster, 1, &[last], &all());
        cluster.run(ms(500));
        assert_eq!(cluster.holders(vip(1)), [first]);
        cluster.log.clear();
        if leaves {
            cluster.event(first, Event::Leave);
        } else {
            cluster.crash(first);
        }
        cluster.run(ms(400));
        assert_eq!(cluster.holders(vip(1)), [last], "{:?}", cluster.log);
        assert_eq!(cluster.acquired().len(), 1, "{:?}", cluster.log);
    }
}

/// The kernel of the only node with a pod refuses the VIP's entry: another node claims within two skews.
#[test]
fn a_node_with_a_pod_that_cannot_claim_delays_no_other() {
    let mut cluster = Cluster::settled(NODES, 0);
    let (first, last) = first_and_last(1);
    set(&mut cluster, 1, &[last], &all());
    cluster.run(ms(50));
    assert_eq!(cluster.holders(vip(1)), [last]);
    cluster.event(last, Event::NotAcquired(vip(1)));
    cluster.log.clear();
    cluster.run(ms(400));
    assert_eq!(cluster.holders(vip(1)), [first], "{:?}", cluster.log);
}

/// A cordoned node with a pod comes after nodes that are not cordoned.
#[test]
fn a_first_choice_comes_before_a_pod() {
    let mut cluster = Cluster::settled(NODES, 0);
    let nodes = |nodes: &[usize]| Arc::new(nodes.iter().map(|node| name(*node)).collect::<BTreeSet<_>>());
    let of = Arc::new(Eligible::Preferred { nodes: nodes(&[0, 1]), others: nodes(&[2, 3]) });
    let eligible = Eligible::WithPods { nodes: nodes(&[1, 2]), of };
    cluster.desired = (1..=6).map(|last| (vip(last), eligible.clone())).collect();
    for node in all() {
        cluster.event(node, Event::Desired(cluster.desired.clone()));
    }
    cluster.run(ms(500));
    assert!((1..=6).all(|last| cluster.owner(vip(last)) == 1), "{:?}", cluster.log);
    cluster.crash(1);
    cluster.run(ms(500));
    assert!((1..=6).all(|last| cluster.owner(vip(last)) == 0), "{:?}", cluster.log);
    cluster.crash(0);
    cluster.run(ms(500));
    assert!((1..=6).all(|last| cluster.holders(vip(last)) == [2]), "{:?}", cluster.log);
}

/// Nodes see pods at different moments: each thinks of itself as the one with the pod. One keeps the VIP.
#[test]
fn nodes_that_disagree_about_pods_agree_about_the_owner() {
    let mut cluster = Cluster::settled(NODES, 0);
    for node in all() {
        set(&mut cluster, 6, &[node], &[node]);
    }
    cluster.run(ms(1000));
    assert!((1..=6).all(|last| cluster.holders(vip(last)).len() == 1), "{:?}", cluster.log);
    cluster.log.clear();
    set(&mut cluster, 6, &[3], &all());
    cluster.run(ms(5000));
    assert_eq!(cluster.log, []);
}

/// The tables of the node with the pod are behind: another one serves the new VIP meanwhile, and hands it over once, without a gap.
#[test]
fn a_node_with_a_pod_whose_tables_are_behind_gets_a_new_vip_later() {
    for behind in [0, 300, 5_000, 25_000] {
        let mut cluster = Cluster::settled(NODES, 0);
        let (first, last) = first_and_last(1);
        let others: Vec<_> = all().into_iter().filter(|node| *node != last).collect();
        set(&mut cluster, 1, &[last], &others);
        cluster.run(ms(behind));
        if behind > 0 {
            assert_eq!(cluster.holders(vip(1)), [first]);
        }
        set(&mut cluster, 1, &[last], &[last]);
        for _ in 0..100 {
            cluster.run(ms(1));
            assert!(!cluster.holders(vip(1)).is_empty(), "{:?}", cluster.log);
        }
        assert_eq!(cluster.holders(vip(1)), [last], "{behind} ms behind");
        assert_eq!(cluster.acquired().len(), if behind > 0 { 2 } else { 1 }, "{:?}", cluster.log);
        cluster.log.clear();
        cluster.run(ms(60_000));
        set(&mut cluster, 1, &[first], &all());
        cluster.run(ms(60_000));
        assert_eq!(cluster.log, []);
    }
}

/// The owner does not wait for ever, nor for pods that came later, nor for a node of less weight, and offers what it got from no one.
#[test]
fn only_a_node_that_had_a_pod_when_the_vip_was_new_gets_it() {
    let (first, last) = first_and_last(1);
    let others: Vec<_> = all().into_iter().filter(|node| *node != last).collect();
    let stays = |cluster: &mut Cluster, owner: usize| {
        cluster.log.clear();
        cluster.run(ms(5_000));
        assert_eq!((cluster.holders(vip(1)), cluster.log.len()), (alloc::vec![owner], 0), "{:?}", cluster.log);
    };
    // Later than the owner waits.
    let mut late = Cluster::settled(NODES, 0);
    set(&mut late, 1, &[last], &others);
    late.run(pods::PATIENCE + ms(1000));
    set(&mut late, 1, &[last], &[last]);
    stays(&mut late, first);

    // No node had a pod.
    let mut without = Cluster::settled(NODES, 0);
    set(&mut without, 1, &[], &all());
    without.run(ms(3000));
    set(&mut without, 1, &[last], &all());
    stays(&mut without, first);

    // Its kernel refuses the entry: once is enough.
    let mut refused = Cluster::settled(NODES, 0);
    set(&mut refused, 1, &[last], &all());
    refused.event(last, Event::NotAcquired(vip(1)));
    refused.run(ms(400));
    assert_eq!(refused.holders(vip(1)), [first]);
    for _ in 0..12 {
        stays(&mut refused, first);
    }

    // The owner died, and the node with the pod cannot claim when it should.
    let mut died = Cluster::settled(NODES, 0);
    set(&mut died, 1, &[first], &all());
    died.run(ms(500));
    died.event(last, Event::Ready(false));
    set(&mut died, 1, &[last], &all());
    died.crash(first);
    died.run(ms(1000));
    let owner = died.owner(vip(1));
    died.event(last, Event::Ready(true));
    stays(&mut died, owner);
}

/// R15: what an owner offers to a heavier node is not for a node with a pod.
#[test]
fn a_pod_takes_nothing_that_is_offered_to_a_heavier_node() {
    let (_, last) = first_and_last(1);
    let mut cluster = Cluster::settled(NODES, 0);
    let [heavy, owner, ..] = cluster.others(last)[..] else { panic!("four nodes") };
    let weight = |node: usize| if node == heavy { 50 } else { 0 };
    let standing = |node| (name(node), Standing { choice: Choice::First, weight: weight(node) });
    let of = |failback| {
        let nodes = Arc::new(all().into_iter().map(standing).collect());
        Arc::new(Eligible::Chosen { nodes, failback })
    };
    let with_pods = |nodes: &[usize], failback| {
        let nodes: Arc<BTreeSet<_>> = Arc::new(nodes.iter().copied().map(name).collect());
        BTreeMap::from([(vip(1), Eligible::WithPods { nodes, of: of(failback) })])
    };
    cluster.event(heavy, Event::Ready(false));
    cluster.run(ms(200));
    for node in all() {
        cluster.event(node, Event::Desired(with_pods(&[owner], None)));
    }
    cluster.run(ms(500));
    assert_eq!(cluster.holders(vip(1)), [owner]);
    // The heavier node has an older view, in which nobody offers anything.
    for node in cluster.others(heavy) {
        cluster.event(node, Event::Desired(with_pods(&[last], Some(ms(1000)))));
    }
    cluster.event(heavy, Event::Ready(true));
    cluster.log.clear();
    cluster.run(ms(10_000));
    assert_eq!(cluster.holders(vip(1)), [owner], "{:?}", cluster.log);
    cluster.event(heavy, Event::Desired(with_pods(&[last], Some(ms(1000)))));
    cluster.run(ms(5_000));
    assert_eq!(cluster.holders(vip(1)), [heavy], "{:?}", cluster.log);
}
