//! Whose view is out of date.

use super::*;

/// All nodes agree on which node is stale, the stale one included, although none of its flows has changed.
#[test]
fn a_node_that_does_not_follow_the_view_is_stale_for_all() {
    let mut wire = Wire::new(3);
    for node in 0..3 {
        wire.event(node, view(1, []));
        wire.local(node, &report(7, []));
    }
    wire.run(10 * SECOND);
    let lagging = |wire: &Wire| [0, 1, 2].map(|node: usize| wire.nodes[&node].is_lagging(wire.now));
    assert_eq!(lagging(&wire), [false; 3]);
    wire.log.clear();
    (0..2).for_each(|node| wire.event(node, view(2, [])));
    wire.run(12 * SECOND);
    wire.log.sort_by_key(|(node, _)| *node);
    assert_eq!(wire.log, [0, 1, 2].map(|node| (node, Action::Stale(name(2)))));
    assert_eq!(lagging(&wire), [false, false, true]);
    wire.log.clear();
    wire.event(2, view(2, []));
    wire.run(SECOND);
    wire.log.sort_by_key(|(node, _)| *node);
    assert_eq!(wire.log, [0, 1, 2].map(|node| (node, Action::UpToDate(name(2)))));
    assert_eq!(lagging(&wire), [false; 3]);
}

/// Its speaker is gone, and so is a pod that its table names.
#[test]
fn a_silent_node_whose_pods_are_others_is_stale() {
    let mut wire = Wire::new(3);
    (0..3).for_each(|node| wire.event(node, view(1, [("n1", 1), ("n2", 1)])));
    wire.run(10 * SECOND);
    wire.nodes.remove(&2);
    (0..2).for_each(|node| wire.event(node, view(2, [("n1", 2), ("n2", 1)])));
    wire.run(60 * SECOND);
    assert_eq!(wire.log, [], "its table is right");
    (0..2).for_each(|node| wire.event(node, view(3, [("n1", 2)])));
    wire.run(4 * SECOND);
    wire.log.sort_by_key(|(node, _)| *node);
    assert_eq!(wire.log, [0, 1].map(|node| (node, Action::Stale(name(2)))));
}

#[test]
fn a_node_that_left_the_cluster_is_not_stale() {
    let mut wire = Wire::new(4);
    (0..4).for_each(|node| wire.event(node, view(1, [])));
    wire.run(SECOND);
    (0..3).for_each(|node| wire.event(node, view(2, [])));
    wire.run(12 * SECOND);
    wire.log.clear();
    wire.event(0, Event::Nodes([name(1), name(2)].into()));
    assert_eq!(wire.log, [(0, Action::UpToDate(name(3)))]);
}
