//! Large clusters in which work takes time (bench/README.md, Scale; `make bench-scale` plays more of them).

use std::time::Duration;

use sheave_tests::sim::scale::{Cluster, Outcome, Shape};

/// What the issue allows after any single fault.
const SETTLE: Duration = Duration::from_secs(3);

/// Two start and share the VIPs, the others join; then the larger owner is lost.
fn owner_lost(shape: Shape, limit: Duration) -> (Outcome, Option<Outcome>) {
    let nodes = shape.nodes;
    let mut cluster = Cluster::new(shape);
    cluster.start(0..2);
    cluster.advance_by(Duration::from_millis(500));
    cluster.start(2..nodes);
    let joined = cluster.settle(limit);
    if joined.settled.is_none() {
        return (joined, None);
    }
    cluster.kill_largest_owner();
    (joined, Some(cluster.settle(limit)))
}

fn shapes(of: fn(usize, usize) -> Shape) -> [Shape; 3] {
    [of(60, 1000), of(30, 4096), Shape { slow: 4, ..of(20, 500) }]
}

/// The simulator shows what was found at commit f452a5a: with its loop, its costs and its receive buffer these clusters do not
/// settle, and the nodes take themselves for frozen.
#[test]
fn the_election_of_f452a5a_collapses() {
    for shape in shapes(Shape::before) {
        let (joined, lost) = owner_lost(shape.clone(), Duration::from_millis(1500));
        let last = lost.unwrap_or(joined);
        println!("{} x {}: {last:?}", shape.nodes, shape.vips);
        assert_eq!(last.settled, None, "{shape:?}");
        // Longer than the dead interval by its own work alone.
        assert!(last.frozen > 100 && last.longest_turn > Duration::from_millis(160), "{shape:?}: {last:?}");
    }
}

/// The same clusters settle, and no node takes itself for frozen.
#[test]
fn the_election_settles() {
    for shape in shapes(Shape::now) {
        let (joined, lost) = owner_lost(shape.clone(), SETTLE + Duration::from_secs(1));
        println!("{} x {}: {lost:?}", shape.nodes, shape.vips);
        for outcome in [joined, lost.expect("they have joined")] {
            assert!(outcome.settled.is_some_and(|after| after <= SETTLE), "{shape:?}: {outcome:?}");
            assert_eq!((outcome.frozen, outcome.held), (0, shape.vips), "{shape:?}: {outcome:?}");
        }
    }
}
