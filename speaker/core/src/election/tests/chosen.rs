//! Nodes that L2Advertisements choose: who may hold a VIP, who comes first, and what becomes of it when that changes.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use super::harness::*;
use super::*;

const NODES: usize = 4;

fn choose(cluster: &mut Cluster, chosen: &[(usize, Choice, u8)], receivers: &[usize]) {
    choose_with(cluster, chosen, None, receivers);
}

fn choose_with(cluster: &mut Cluster, chosen: &[(usize, Choice, u8)], failback: Option<Duration>, receivers: &[usize]) {
    let standing =
        |(node, choice, weight): &(usize, Choice, u8)| (name(*node), Standing { choice: *choice, weight: *weight });
    let nodes: BTreeMap<_, _> = chosen.iter().map(standing).collect();
    let eligible = Eligible::Chosen { nodes: Arc::new(nodes), failback };
    cluster.desired = (1..=6).map(|last| (vip(last), eligible.clone())).collect();
    for node in receivers {
        cluster.event(*node, Event::Desired(cluster.desired.clone()));
    }
}

fn all() -> Vec<usize> {
    (0..NODES).collect()
}

fn owners(cluster: &Cluster) -> BTreeSet<usize> {
    (1..=6).flat_map(|last| cluster.holders(vip(last))).collect()
}

/// The label moves from one node to another; they receive it one by one. At every moment one node answers.
#[test]
fn an_owner_that_is_chosen_no_more_hands_over() {
    let mut cluster = Cluster::settled(NODES, 0);
    choose(&mut cluster, &[(0, Choice::First, 0)], &all());
    cluster.run(ms(1000));
    assert_eq!(owners(&cluster), [0].into());
    for node in [0, 3, 1, 2] {
        choose(&mut cluster, &[(2, Choice::First, 0)], &[node]);
        for _ in 0..40 {
            cluster.run(ms(1));
            assert!((1..=6).all(|last| !cluster.holders(vip(last)).is_empty()), "{:?}", cluster.log);
        }
    }
    cluster.run(ms(200));
    assert_eq!(owners(&cluster), [2].into());
    assert!(cluster.released().iter().all(|released| released.contains("HandedOver")), "{:?}", cluster.log);
}

/// No node may: no owner. It comes back with the first that may.
#[test]
fn a_vip_without_chosen_nodes_has_no_owner() {
    let mut cluster = Cluster::settled(NODES, 0);
    choose(&mut cluster, &[(0, Choice::First, 0)], &all());
    cluster.run(ms(1000));
    cluster.log.clear();
    choose(&mut cluster, &[], &all());
    cluster.run(ms(1100));
    assert_eq!(owners(&cluster), [].into());
    assert!(cluster.released().iter().all(|released| released.starts_with("0 ") && released.contains("NoSuccessor")));
    cluster.run(ms(3000));
    assert_eq!(cluster.acquired(), nothing());
    choose(&mut cluster, &[(3, Choice::First, 0)], &all());
    cluster.run(ms(50));
    assert_eq!(owners(&cluster), [3].into());
}

/// The node that is chosen is down: the one that is not chosen any more gives up all the same; one that is excluded keeps it.
#[test]
fn only_a_node_that_may_keep_it_outlasts_the_wait_for_a_successor() {
    for keeps in [false, true] {
        let mut cluster = Cluster::settled(NODES, 0);
        choose(&mut cluster, &[(0, Choice::First, 0), (1, Choice::First, 0)], &all());
        cluster.run(ms(500));
        cluster.crash(1);
        cluster.run(ms(1000));
        assert_eq!(owners(&cluster), [0].into());
        let kept = [(1, Choice::First, 0), (0, Choice::Keeps, 0)];
        choose(&mut cluster, if keeps { &kept } else { &kept[..1] }, &all());
        cluster.run(ms(5000));
        assert_eq!(owners(&cluster), if keeps { [0].into() } else { BTreeSet::new() });
        cluster.restart(1, 200);
        cluster.run(ms(1500));
        assert_eq!(owners(&cluster), [1].into());
    }
}

/// Weights order the claims, and move nothing.
#[test]
fn the_heaviest_node_that_can_claims_and_none_preempts() {
    let mut cluster = Cluster::settled(NODES, 0);
    let chosen = [(0, Choice::First, 0), (1, Choice::First, 50), (2, Choice::First, 100), (3, Choice::Second, 100)];
    choose(&mut cluster, &chosen, &all());
    cluster.run(ms(1000));
    assert_eq!(owners(&cluster), [2].into());
    for (dead, next) in [(2, 1), (1, 0), (0, 3)] {
        cluster.crash(dead);
        cluster.run(ms(600));
        assert_eq!(owners(&cluster), [next].into(), "{:?}", cluster.log);
    }
    cluster.restart(1, 200);
    cluster.run(ms(1500));
    assert_eq!(owners(&cluster), [1].into(), "a first choice takes over from a second one");
    cluster.log.clear();
    cluster.restart(2, 200);
    cluster.run(ms(5000));
    assert_eq!(owners(&cluster), [1].into());
    assert_eq!((cluster.acquired(), cluster.released()), (nothing(), nothing()));
}

/// Second choices do not take a VIP from one another while the first choice is away.
#[test]
fn second_choices_leave_one_another_alone() {
    let mut cluster = Cluster::settled(NODES, 0);
    let second = [(1, Choice::Second, 0), (2, Choice::Second, 0), (3, Choice::Second, 0)];
    choose(&mut cluster, &[&[(0, Choice::First, 0)], &second[..]].concat(), &all());
    cluster.run(ms(1000));
    cluster.crash(0);
    cluster.run(ms(1000));
    assert!(!owners(&cluster).is_empty() && !owners(&cluster).contains(&0));
    cluster.log.clear();
    cluster.run(ms(5000));
    assert_eq!(cluster.log, [], "nothing moves");
}

/// R15: the heavier node is back, and gets its VIPs once it has been ready for long enough; with no moment without an owner.
#[test]
fn an_owner_hands_back_after_the_time_and_not_before() {
    let mut cluster = Cluster::settled(NODES, 0);
    let chosen = [(0, Choice::First, 0), (1, Choice::First, 50), (2, Choice::First, 100), (3, Choice::First, 0)];
    choose_with(&mut cluster, &chosen, Some(ms(60_000)), &all());
    cluster.run(ms(1000));
    assert_eq!(owners(&cluster), [2].into());
    cluster.crash(2);
    cluster.run(ms(1000));
    assert_eq!(owners(&cluster), [1].into());
    cluster.restart(2, 200);
    cluster.run(ms(30_000));
    // Not ready for a moment: the time begins anew.
    cluster.event(2, Event::Ready(false));
    cluster.run(ms(1000));
    cluster.event(2, Event::Ready(true));
    cluster.log.clear();
    cluster.run(ms(59_000));
    assert_eq!((owners(&cluster), cluster.acquired()), ([1].into(), nothing()));
    for _ in 0..1500 {
        cluster.run(ms(1));
        assert!((1..=6).all(|last| !cluster.holders(vip(last)).is_empty()), "{:?}", cluster.log);
    }
    assert_eq!(owners(&cluster), [2].into());
    assert!(cluster.released().iter().all(|released| released.contains("HandedOver")), "{:?}", cluster.log);
    cluster.log.clear();
    cluster.run(ms(120_000));
    assert_eq!(cluster.log, [], "and stays there");
}

/// R15: the heavier node is ready and does not claim. The owner goes on, and no lighter node takes the VIP from it.
#[test]
fn a_heavier_node_that_does_not_claim_costs_nothing() {
    let mut cluster = Cluster::settled(NODES, 0);
    let chosen = [(0, Choice::First, 10), (1, Choice::First, 0), (2, Choice::First, 100), (3, Choice::First, 0)];
    choose_with(&mut cluster, &chosen, Some(ms(5000)), &[0, 1, 3]);
    // The heavier node has an older view, in which it may own nothing.
    choose(&mut cluster, &chosen[..2], &[2]);
    choose_with(&mut cluster, &chosen, Some(ms(5000)), &[]);
    cluster.run(ms(1000));
    assert_eq!(owners(&cluster), [0].into());
    cluster.log.clear();
    cluster.run(ms(20_000));
    assert_eq!((owners(&cluster), cluster.acquired(), cluster.released()), ([0].into(), nothing(), nothing()));
    cluster.event(2, Event::Desired(cluster.desired.clone()));
    cluster.run(ms(11_000));
    assert_eq!(owners(&cluster), [2].into(), "tried again");
}

/// Without failback, and where none is heavier, nothing moves.
#[test]
fn equal_weights_move_nothing() {
    let mut cluster = Cluster::settled(NODES, 0);
    let chosen = all().into_iter().map(|node| (node, Choice::First, 7)).collect::<alloc::vec::Vec<_>>();
    choose_with(&mut cluster, &chosen, Some(ms(1000)), &all());
    cluster.run(ms(1000));
    cluster.log.clear();
    cluster.run(ms(10_000));
    assert_eq!(cluster.log, []);
}
