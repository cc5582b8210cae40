//! What an administrator wants of VIPs and nodes: one hand-over (R16), a node that comes first, a node that comes last (R4, R14).

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::harness::*;
use super::*;
use crate::name::Term;

const NODES: usize = 4;

fn all() -> Vec<usize> {
    (0..NODES).collect()
}

/// The owner of the only VIP, its term, and the others.
fn owned() -> (Cluster, usize, Term, [usize; 3]) {
    let cluster = Cluster::settled(NODES, 1);
    let owner = cluster.owner(vip(1));
    let term = cluster.nodes[owner].own[&vip(1)];
    let [b, c, d] = cluster.others(owner)[..] else { panic!("four nodes") };
    (cluster, owner, term, [b, c, d])
}

fn order(to: usize, from: usize, term: Term) -> Option<Order> {
    Some(Order { to: name(to), from: name(from), term })
}

fn place(cluster: &mut Cluster, preferred: Option<usize>, order: Option<Order>, receivers: &[usize]) {
    let eligible = Eligible::Placed { preferred: preferred.map(name), order, of: Arc::new(Eligible::All) };
    cluster.desired = [(vip(1), eligible)].into();
    for node in receivers {
        cluster.event(*node, Event::Desired(cluster.desired.clone()));
    }
}

/// At every moment one node answers.
fn run_without_gap(cluster: &mut Cluster, time: u64) {
    for _ in 0..time {
        cluster.run(ms(1));
        assert!(!cluster.holders(vip(1)).is_empty(), "{:?}", cluster.log);
    }
}

fn moved_nothing(cluster: &Cluster) {
    assert_eq!((cluster.acquired(), cluster.released()), (nothing(), nothing()));
}

/// To this node and no other, with no moment without an owner; an order to another owner, or of another term, is void.
#[test]
fn an_owner_hands_over_once_as_it_is_ordered() {
    let (mut cluster, from, term, [to, other, last]) = owned();
    for void in
        [order(to, from, Term(term.0 + 1)), order(to, other, term), order(from, from, term), order(9, from, term)]
    {
        place(&mut cluster, None, void, &all());
        cluster.run(ms(3000));
        moved_nothing(&cluster);
    }
    // They receive it one by one, the one that is to take the VIP last.
    for node in [from, last, other, to] {
        place(&mut cluster, None, order(to, from, term), &[node]);
        run_without_gap(&mut cluster, 100);
    }
    assert_eq!(cluster.owner(vip(1)), to);
    assert_eq!((cluster.acquired().len(), cluster.released().len()), (1, 1), "{:?}", cluster.log);
    // The order is still there, and is carried out: it does not bring the VIP back.
    cluster.crash(to);
    cluster.run(ms(1000));
    let next = cluster.owner(vip(1));
    cluster.restart(to, 200);
    cluster.run(ms(5000));
    assert_eq!(cluster.owner(vip(1)), next);
}

/// The node that is named cannot take the VIP, or does not: its owner goes on. The order is tried once, and may be given again.
#[test]
fn an_order_that_is_not_followed_costs_nothing() {
    let (mut cluster, from, term, [to, other, last]) = owned();
    cluster.event(to, Event::Ready(false));
    cluster.run(ms(100));
    cluster.log.clear();
    place(&mut cluster, None, order(to, from, term), &[from, other, last]);
    cluster.run(ms(5000));
    moved_nothing(&cluster);
    // It is ready, but does not receive the order in time.
    cluster.event(to, Event::Ready(true));
    cluster.run(ms(1500));
    place(&mut cluster, None, order(to, from, term), &[to]);
    cluster.run(ms(5000));
    moved_nothing(&cluster);
    place(&mut cluster, None, None, &all());
    place(&mut cluster, None, order(to, from, term), &all());
    run_without_gap(&mut cluster, 100);
    assert_eq!(cluster.owner(vip(1)), to);
}

/// Nothing moves for it; when the owner is gone it claims first, by whatever rank.
#[test]
fn a_preferred_node_is_the_next_one() {
    for index in 0..3 {
        let (mut cluster, owner, _, others) = owned();
        let preferred = others[index];
        place(&mut cluster, Some(preferred), None, &all());
        cluster.run(ms(5000));
        moved_nothing(&cluster);
        cluster.crash(owner);
        cluster.run(ms(600));
        assert_eq!(cluster.owner(vip(1)), preferred);
        assert_eq!(cluster.acquired().len(), 1, "{:?}", cluster.log);
    }
}

/// Not even to one that was ordered, and not by being preferred.
#[test]
fn a_drained_node_takes_nothing_while_another_one_can() {
    let (mut cluster, from, term, [to, other, last]) = owned();
    cluster.event(to, Event::Drained(true));
    place(&mut cluster, Some(to), order(to, from, term), &all());
    cluster.run(ms(5000));
    moved_nothing(&cluster);
    for gone in [from, other] {
        cluster.crash(gone);
        cluster.run(ms(600));
        assert_ne!(cluster.owner(vip(1)), to);
    }
    cluster.crash(last);
    cluster.run(ms(600));
    assert_eq!(cluster.owner(vip(1)), to);
}

/// It hands over with no moment without an owner, and is the last that is left: without another node that can it goes on.
#[test]
fn a_drained_owner_hands_over_as_soon_as_another_node_can() {
    let (mut cluster, owner, _, others) = owned();
    cluster.event(owner, Event::Drained(true));
    run_without_gap(&mut cluster, 100);
    let next = cluster.owner(vip(1));
    assert_ne!(next, owner);
    for node in others {
        cluster.event(node, Event::Ready(false));
        run_without_gap(&mut cluster, 100);
    }
    assert_eq!(cluster.owner(vip(1)), owner);
    cluster.log.clear();
    run_without_gap(&mut cluster, 5000);
    moved_nothing(&cluster);
    cluster.event(others[1], Event::Ready(true));
    run_without_gap(&mut cluster, 100);
    assert_eq!(cluster.owner(vip(1)), others[1]);
    // The end of a drain moves nothing.
    cluster.log.clear();
    cluster.event(owner, Event::Drained(false));
    cluster.run(ms(5000));
    moved_nothing(&cluster);
}

/// All are: as if none were. One that is back takes what it can.
#[test]
fn nodes_that_are_all_drained_leave_one_another_alone() {
    let (mut cluster, owner, _, others) = owned();
    for node in others {
        cluster.event(node, Event::Drained(true));
    }
    cluster.run(ms(100));
    cluster.event(owner, Event::Drained(true));
    cluster.run(ms(5000));
    moved_nothing(&cluster);
    cluster.event(others[2], Event::Drained(false));
    run_without_gap(&mut cluster, 100);
    assert_eq!(cluster.owner(vip(1)), others[2]);
}

/// The other nodes have not received the VIP yet, or never claim it: the owner that is drained does not let it go.
#[test]
fn a_drained_owner_waits_for_its_successor() {
    let (mut cluster, owner, _, others) = owned();
    for node in others {
        cluster.event(node, Event::Desired(BTreeMap::new()));
    }
    cluster.event(owner, Event::Drained(true));
    run_without_gap(&mut cluster, 5000);
    assert_eq!(cluster.owner(vip(1)), owner);
    moved_nothing(&cluster);
    cluster.event(others[0], Event::Desired(cluster.desired.clone()));
    run_without_gap(&mut cluster, 100);
    assert_eq!(cluster.owner(vip(1)), others[0]);
}
