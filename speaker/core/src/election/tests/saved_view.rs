//! R14: nodes that serve the view on their disk beside nodes whose view an API server has confirmed.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use super::*;

/// A speaker that reaches no API server: the saved view has the VIPs 192.0.2.1 to .`vips`, and these other nodes.
fn boot(cluster: &mut Cluster, node: usize, vips: u8, others: &[usize]) {
    cluster.restart(node, 200);
    cluster.event(node, Event::SavedView(true));
    cluster.event(node, Event::Nodes(others.iter().map(|other| name(*other)).collect()));
    let desired = (1..=vips).map(|last| (vip(last), Eligible::All)).collect();
    cluster.event(node, Event::Desired(desired));
}

/// An API server answers.
fn confirm(cluster: &mut Cluster, node: usize) {
    let others = cluster.others(node).into_iter().map(name).collect();
    cluster.event(node, Event::Nodes(others));
    cluster.event(node, Event::Desired(cluster.desired.clone()));
    cluster.event(node, Event::SavedView(false));
}

/// A node is off while a VIP is taken back, and boots without an API server.
#[test]
fn an_address_that_was_taken_back_is_not_claimed_by_a_saved_view() {
    let mut cluster = Cluster::settled(3, 2);
    cluster.crash(2);
    cluster.run(ms(1000));
    cluster.desire(&[1], &[0, 1]);
    boot(&mut cluster, 2, 2, &[0, 1]);
    cluster.log.clear();
    cluster.run(ms(60_000));
    assert_eq!(cluster.acquired(), nothing());
    confirm(&mut cluster, 2);
    cluster.run(ms(60_000));
    assert_eq!(cluster.acquired(), nothing());
    assert_eq!(cluster.holders(vip(1)).len(), 1);
}

/// All nodes of the saved view were replaced since.
#[test]
fn nodes_that_the_saved_view_does_not_have_are_newer_than_it() {
    let mut cluster = Cluster::settled(3, 2);
    cluster.crash(2);
    cluster.run(ms(1000));
    cluster.desire(&[1], &[0, 1]);
    boot(&mut cluster, 2, 2, &[7, 8]);
    cluster.log.clear();
    cluster.run(ms(60_000));
    assert_eq!(cluster.acquired(), nothing());
    confirm(&mut cluster, 2);
    cluster.run(ms(1000));
    assert_eq!(cluster.acquired(), nothing());
}

/// The VIP may be the API server's own: it needs an owner first.
#[test]
fn nodes_that_all_boot_without_an_api_server_serve_their_saved_views() {
    let mut cluster = Cluster::settled(3, 6);
    (0..3).for_each(|node| cluster.crash(node));
    cluster.run(ms(1000));
    (0..3).for_each(|node| boot(&mut cluster, node, 6, &[0, 1, 2]));
    cluster.run_until(ms(1500), |c| (1..=6).all(|last| c.holders(vip(last)).len() == 1));
    cluster.run(ms(60_000));
    // One node after the other reaches it: no node releases a VIP.
    cluster.log.clear();
    for node in [1, 0, 2] {
        confirm(&mut cluster, node);
        cluster.run(ms(3000));
    }
    assert_eq!((cluster.acquired(), cluster.released()), (nothing(), nothing()));
    assert!((1..=6).all(|last| cluster.holders(vip(last)).len() == 1));
}

#[test]
fn a_saved_view_serves_when_no_confirmed_one_can() {
    let mut cluster = Cluster::settled(3, 1);
    cluster.crash(2);
    boot(&mut cluster, 2, 1, &[0, 1]);
    cluster.run(ms(3000));
    let owner = cluster.owner(vip(1));
    cluster.crash(owner);
    cluster.run(ms(400));
    assert_eq!(cluster.owner(vip(1)), 1 - owner, "the other node with a confirmed view");
    cluster.crash(1 - owner);
    cluster.run(ms(400));
    assert_eq!(cluster.owner(vip(1)), 2, "no other node is there");
}

/// Two nodes started while the third, whose view is confirmed, was cut off from them.
#[test]
fn what_a_saved_view_holds_goes_to_a_confirmed_one_after_a_while() {
    let mut cluster = Cluster::settled(3, 2);
    cluster.crash(1);
    cluster.crash(2);
    cluster.desire(&[1], &[0]);
    cluster.isolate(0);
    cluster.run(ms(1000));
    cluster.event(0, Event::Ready(false));
    cluster.run(ms(2000));
    boot(&mut cluster, 1, 2, &[0, 2]);
    boot(&mut cluster, 2, 2, &[0, 1]);
    cluster.run(ms(3000));
    assert!([1, 2].iter().all(|last| cluster.holders(vip(*last)).len() == 1), "nodes 1 and 2 receive no other node");
    cluster.cut.clear();
    cluster.run(ms(3000));
    cluster.event(0, Event::Ready(true));
    cluster.log.clear();
    cluster.run(ms(9000));
    assert_eq!(cluster.released(), nothing(), "they may be confirmed in a moment");
    while cluster.holders(vip(1)) != [0] {
        assert!(!cluster.holders(vip(1)).is_empty() && cluster.log.len() < 20, "made before broken");
        cluster.run(ms(1));
    }
    cluster.run(ms(2000));
    assert_eq!(cluster.holders(vip(2)), [], "it was taken back");
    assert!(cluster.released().iter().any(|released| released.contains("SavedView")));
    cluster.log.clear();
    cluster.run(ms(60_000));
    assert_eq!(cluster.acquired(), nothing());
}

/// Neither waits for the other: the cordoned node has the confirmed view.
#[test]
fn a_cordoned_node_with_a_confirmed_view_comes_before_a_first_choice_with_a_saved_one() {
    let mut cluster = Cluster::settled(2, 1);
    let (first, cordoned) = ([name(1)].into(), [name(0)].into());
    let preferred = Eligible::Preferred { nodes: Arc::new(first), others: Arc::new(cordoned) };
    cluster.desired = BTreeMap::from([(vip(1), preferred.clone())]);
    cluster.crash(1);
    cluster.event(0, Event::Desired(cluster.desired.clone()));
    cluster.run(ms(1000));
    assert_eq!(cluster.owner(vip(1)), 0);
    boot(&mut cluster, 1, 0, &[0]);
    cluster.event(1, Event::Desired(cluster.desired.clone()));
    cluster.log.clear();
    cluster.run(ms(60_000));
    assert_eq!((cluster.owner(vip(1)), cluster.released()), (0, nothing()));
    confirm(&mut cluster, 1);
    cluster.run(ms(2000));
    assert_eq!(cluster.owner(vip(1)), 1, "a first choice with a confirmed view as well");
}
