use alloc::vec;

use super::*;
use crate::forwarding::maglev::{Members, fill};

const KEY: [u64; 2] = [1, 2];

/// Pods per node; 0: lost, with one pod.
fn ring(pods: &[(&str, u32)]) -> ByAddress<Ring> {
    let members = pods.iter().map(|(node, pods)| (String::from(*node), (*pods).max(1), *pods == 0));
    ByAddress(Arc::new(fill(&Members::new(members), &KEY)))
}

fn names(nodes: &[&str]) -> Vec<String> {
    nodes.iter().map(|node| String::from(*node)).collect()
}

fn held(node: &str, rows: impl IntoIterator<Item = u32>) -> (String, ByAddress<Rows>) {
    (node.into(), ByAddress(Arc::new(Rows::new(4093, rows))))
}

fn cause(ring: ByAddress<Ring>) -> Cause {
    let nothing = Arc::new(BTreeSet::new());
    let (reporters, superseded, unreported, late) = (vec![], vec![], nothing.clone(), nothing);
    Cause { ring, previous: vec![], reporters, superseded, upcoming: None, unreported, late, lost: Lost::default() }
}

fn of(alternates: &Alternates, row: u32) -> Vec<&str> {
    alternates.of(row).collect()
}

#[test]
fn former_primaries_of_rows_that_moved() {
    let (now, before) = (ring(&[("a", 1), ("b", 1), ("c", 1)]), ring(&[("a", 1), ("b", 1), ("c", 0)]));
    let previous = vec![(before.clone(), names(&["a", "b"]))];
    let alternates = Cause { previous, ..cause(now.clone()) }.alternates().unwrap();
    for row in 0..4093 {
        let (now, before) = (now.0.primary(row).unwrap(), before.0.primary(row).unwrap());
        let (found, moved) = (of(&alternates, row), now != before);
        assert!(!moved || found[0] == before);
        // The others of that ring have some places as well: there may have been a ring in between.
        let others = ["a", "b"].into_iter().filter(|node| *node != now);
        assert!(others.eq(found.into_iter().collect::<BTreeSet<_>>()));
    }
    assert_eq!(alternates.overflow, 0);
}

#[test]
fn nodes_with_complete_reports_are_alternates_of_reported_rows_only() {
    let (now, before) = (ring(&[("c", 1)]), ring(&[("a", 1), ("b", 1)]));
    let row_of = |node| (0..4093).find(|&row| before.0.primary(row) == Some(node)).unwrap();
    let (a, b) = (row_of("a"), row_of("b"));
    let previous = vec![(before.clone(), names(&["b"]))];
    let alternates = Cause { previous, reporters: vec![held("a", [b])], ..cause(now) }.alternates().unwrap();
    assert_eq!(of(&alternates, a), ["b"], "b may have anything");
    assert_eq!(of(&alternates, b), ["a", "b"]);
}

#[test]
fn no_more_than_fit_and_reporters_first() {
    let now = ring(&[("z", 1)]);
    let previous: Vec<_> = ["d", "c"].map(|node| (ring(&[(node, 1)]), names(&[node]))).into();
    let reporters = vec![held("a", [7]), held("b", [7]), held("y", [7, 8])];
    let late = Arc::new(names(&["a"]).into_iter().collect());
    let alternates = Cause { previous, reporters, late, ..cause(now) }.alternates().unwrap();
    assert_eq!(of(&alternates, 7), ["b", "y", "a"], "the node with a late report comes last");
    assert_eq!(of(&alternates, 8), ["y", "d", "c"], "the newest former ring first");
    assert_eq!(of(&alternates, 9), ["d", "c"]);
    assert_eq!(alternates.overflow, 1);
}

#[test]
fn rows_without_room_for_a_node_that_may_hold_any_flow_overflow() {
    let now = ring(&[("a", 1), ("b", 1)]);
    let primary_a = (0..4093).filter(|&row| now.0.primary(row) == Some("a")).count() as u32;
    let unreported = |nodes: &[&str]| Arc::new(names(nodes).into_iter().collect());
    let overflow = |unreported| Cause { unreported, ..cause(now.clone()) }.alternates().unwrap().overflow;
    assert_eq!(overflow(unreported(&["a", "c", "d"])), 0, "all have a place");
    assert_eq!(overflow(unreported(&["a", "c", "d", "e"])), 4093 - primary_a, "a has its own rows");
    assert_eq!(overflow(unreported(&["c", "d", "e", "f"])), 4093);
    // Nodes of previous rings get what places there are; their own rows have one.
    let previous = vec![(ring(&[("c", 1), ("d", 1), ("e", 1), ("f", 1)]), names(&["c", "d", "e", "f"]))];
    assert_eq!(Cause { previous, ..cause(now.clone()) }.alternates().unwrap().overflow, 0);
}

/// After the first start of a large cluster.
#[test]
fn many_nodes_have_as_many_rows_each_and_few_rows_differ() {
    let many: Vec<String> = (0..100).map(|number| alloc::format!("n{number:02}")).collect();
    let unreported = Arc::new(many.iter().cloned().collect());
    let alternates = Cause { unreported, ..cause(ring(&[("a", 1), ("b", 1), ("c", 1)])) }.alternates().unwrap();
    assert_eq!((alternates.different.len(), alternates.overflow), (34, 4093));
    let rows_of = |node: &str| (0..4093).filter(|row| alternates.of(*row).any(|other| other == node)).count();
    // The last group of three has one node, and begins anew with two.
    let (first, others) = many.split_at(2);
    assert!(first.iter().all(|node| (240..=242).contains(&rows_of(node))));
    assert!(others.iter().all(|node| (120..=121).contains(&rows_of(node))));
}

/// Peers may have applied the next batch of additions already, or a part of it.
#[test]
fn the_next_primary_of_a_row_has_a_place_that_is_left() {
    let (now, next) = (ring(&[("a", 1)]), ring(&[("a", 1), ("b", 1), ("c", 1)]));
    let reporters = vec![held("d", [7, 8]), held("e", [7, 8]), held("f", [7, 8])];
    let alternates = Cause { reporters, upcoming: Some(next.clone()), ..cause(now) }.alternates().unwrap();
    for row in (0..4093).filter(|row| ![7, 8].contains(row)) {
        let next = next.0.primary(row).unwrap();
        assert!(next == "a" || of(&alternates, row)[0] == next);
        assert_eq!(of(&alternates, row).len(), 2, "the other as well");
    }
    assert!([7, 8].into_iter().all(|row| of(&alternates, row) == ["d", "e", "f"]));
    assert_eq!(alternates.overflow, 0);
}

#[test]
fn the_primary_is_no_alternate_and_nothing_is_none() {
    let now = ring(&[("a", 1)]);
    assert_eq!(Cause { reporters: vec![held("a", 0..4093)], ..cause(now.clone()) }.alternates(), None);
    let mut next = Cache::default();
    assert_eq!(Cache::default().get(cause(now), &mut next), None);
    assert!(next.causes.is_empty());
}

#[test]
fn the_same_cause_gives_the_same_allocation() {
    let cause = Cause { reporters: vec![held("b", [1])], ..cause(ring(&[("a", 1)])) };
    let (mut second, mut third) = (Cache::default(), Cache::default());
    let first = Cache::default().get(cause.clone(), &mut second).unwrap();
    assert!(Arc::ptr_eq(&first, &second.get(cause.clone(), &mut third).unwrap()));
    let other = Cause { reporters: vec![held("b", [1])], ..cause };
    assert!(!Arc::ptr_eq(&first, &third.get(other, &mut Cache::default()).unwrap()));
}

/// As the planner does it: no node's row is shared by several rows of the larger ring.
fn split_if_larger(mut cause: Cause) -> Cause {
    if cause.has_larger_rings() {
        cause.ring = ByAddress(Arc::new(cause.ring.0.split().unwrap()));
    }
    cause
}

/// A row of the small ring is sixteen of the large one: every node that may have a flow of a row is found.
#[test]
fn rings_of_other_sizes() {
    let small = ring(&[("a", 20), ("b", 20)]);
    let large = ring(&[("a", 20), ("b", 21)]);
    assert_eq!((small.0.rows.len(), large.0.rows.len()), (4093, 65488));
    for (now, before) in [(&small, &large), (&large, &small)] {
        let previous = vec![(before.clone(), names(&["a", "b"]))];
        let cause = split_if_larger(Cause { previous, ..cause(now.clone()) });
        assert_eq!(cause.ring.0.rows.len(), 65488);
        let alternates = cause.alternates().unwrap();
        for hash in (0..u64::from(u32::MAX)).step_by(1 << 20) {
            let row = |ring: &Ring| ebpf_common::row_of(hash << 32, ring.rows.len() as u32).unwrap();
            let (now_row, before) = (row(&cause.ring.0), before.0.primary(row(&before.0)).unwrap());
            assert!(cause.ring.0.primary(now_row) == Some(before) || of(&alternates, now_row)[0] == before);
        }
    }
}

/// Rows reported in the size of the larger ring keep the ring split; reports of a smaller one do not.
#[test]
fn a_ring_is_split_for_as_long_as_a_node_reports_larger_rows() {
    let (small, large) = (ring(&[("a", 20), ("b", 20)]), ring(&[("a", 20), ("b", 21)]));
    let reported = |of| vec![(String::from("a"), ByAddress(Arc::new(Rows::new(of, [5]))))];
    assert!(Cause { reporters: reported(65488), ..cause(small.clone()) }.has_larger_rings());
    assert!(Cause { superseded: reported(65488), ..cause(small.clone()) }.has_larger_rings());
    assert!(Cause { previous: vec![(large.clone(), names(&["a"]))], ..cause(small.clone()) }.has_larger_rings());
    // A size that no ring of ours has.
    assert!(
        ![4093, 65487]
            .into_iter()
            .any(|of| Cause { reporters: reported(of), ..cause(small.clone()) }.has_larger_rings())
    );
    assert!(!Cause { reporters: reported(65488), ..cause(large) }.has_larger_rings());
}

/// Flows that a ring of another size leaves without a way to their node: right after the change (previous primaries are
/// alternates), and once nodes have reported. Of `flows` flows to `nodes` nodes when the pods go from `from` to `to`.
fn lost_at_the_boundary(nodes: u32, from: u32, to: u32, flows: u64) -> (u64, u64) {
    let name = |node: u32| alloc::format!("n{node:02}");
    let with_pods = |pods: u32| {
        let of = |node: u32| (name(node), pods / nodes + u32::from(node < pods % nodes), false);
        ByAddress(Arc::new(fill(&Members::new((0..nodes).map(of)), &KEY)))
    };
    let row = |ring: &Ring, flow: u64| {
        ebpf_common::row_of(ebpf_common::siphash13(&KEY, flow, 1), ring.rows.len() as u32).unwrap()
    };
    let (before, now) = (with_pods(from), with_pods(to));
    let previous = vec![(before.clone(), (0..nodes).map(name).collect())];
    let by_cause = split_if_larger(Cause { previous, ..cause(now) });
    let now = by_cause.ring.clone();
    let mut held: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for flow in 0..flows {
        let before_primary = before.0.primary(row(&before.0, flow)).unwrap();
        let row = row(&now.0, flow);
        if now.0.primary(row) != Some(before_primary) {
            held.entry(before_primary).or_default().push(row);
        }
    }
    let reported = |(node, rows): (&&str, &Vec<u32>)| {
        (String::from(*node), ByAddress(Arc::new(Rows::new(now.0.rows.len() as u32, rows.iter().copied()))))
    };
    let reported = Cause { reporters: held.iter().map(reported).collect(), ..cause(now.clone()) };
    let lost = |alternates: Option<Alternates>| {
        let reached = |flow: &u64| {
            let (before_primary, row) = (before.0.primary(row(&before.0, *flow)).unwrap(), row(&now.0, *flow));
            let others = alternates.as_ref();
            now.0.primary(row) == Some(before_primary)
                || others.is_some_and(|others| others.of(row).any(|node| node == before_primary))
        };
        (0..flows).filter(|flow| !reached(flow)).count() as u64
    };
    (lost(by_cause.alternates()), lost(reported.alternates()))
}

/// The one change that moves nearly every row, and the other way merges sixteen of them into one.
#[test]
fn the_boundary_of_sizes_costs_no_flow() {
    for nodes in [3, 4, 5, 10, 20] {
        for flows in [200, 2_000, 20_000] {
            for (from, to) in [(40, 41), (41, 40), (60, 5)] {
                assert_eq!(lost_at_the_boundary(nodes, from, to, flows), (0, 0), "{nodes} nodes, {from} to {to}");
            }
        }
    }
}

/// Its packets go nowhere, so every node that may have a flow comes before it; and it takes no place from them.
#[test]
fn a_lost_node_comes_last_where_there_is_room() {
    let mut cause = cause(ring(&[("a", 1), ("b", 1), ("lost", 0)]));
    let row = (0..4093).find(|row| cause.ring.0.primary(*row) == Some("a")).unwrap();
    cause.lost.reporters = vec![held("lost", [row])];
    let alternates = cause.alternates().unwrap();
    assert_eq!((of(&alternates, row), alternates.overflow), (vec!["lost"], 0));
    cause.reporters = vec![held("x", [row]), held("y", [row])];
    cause.late = Arc::new(["y".into()].into());
    assert_eq!(of(&cause.alternates().unwrap(), row), ["x", "y", "lost"]);
    cause.reporters.push(held("z", [row]));
    let alternates = cause.alternates().unwrap();
    assert_eq!((of(&alternates, row), alternates.overflow), (vec!["x", "z", "y"], 0));
    cause.reporters.clear();
    cause.unreported = Arc::new(["m".into(), "n".into(), "o".into()].into());
    let alternates = cause.alternates().unwrap();
    let found = of(&alternates, row);
    assert!(found.len() == 3 && found.contains(&"lost"), "before those that are guessed: {found:?}");
}
