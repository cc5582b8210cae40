//! `make bench-scale`: large clusters in simulation, with compute time from a measurement (bench/costs/).

use std::time::Duration;

use sheave_tests::sim::scale::{Cluster, Loop, Outcome, Shape};

const LIMIT: Duration = Duration::from_secs(10);

fn main() {
    let only: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let shapes = [3, 30, 60, 100, 256].into_iter().flat_map(|nodes| [200, 1000, 4096].map(|vips| (nodes, vips)));
    header();
    for (nodes, vips) in shapes.filter(|(nodes, _)| only.is_empty() || only.contains(nodes)) {
        play(&Shape::now(nodes, vips), "");
        play(&Shape { slow: 4, ..Shape::now(nodes, vips) }, ", a quarter of the speed");
    }
    if only.is_empty() || only == [0] {
        println!("\nThe loop and the decisions of commit f452a5a");
        header();
        for (nodes, vips, slow) in [(30, 1000, 1), (60, 1000, 1), (30, 4096, 1), (20, 500, 4)] {
            play(&Shape { slow, ..Shape::before(nodes, vips) }, if slow > 1 { ", a quarter of the speed" } else { "" });
        }
    }
}

fn header() {
    println!(
        "| nodes x VIPs | event | settled after | longest turn | released as frozen | held twice | dropped | busiest node | in | out |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
}

fn play(shape: &Shape, speed: &str) {
    let row = |event: &str, outcome: Outcome| {
        let settled = outcome
            .settled
            .map_or(format!("never, {} held", outcome.held), |after| format!("{:.2} s", after.as_secs_f64()));
        println!(
            "| {} x {}{speed} | {event} | {settled} | {:.1} ms | {} | {} | {} | {:.1} % | {:.0} kB/s | {:.0} kB/s |",
            shape.nodes,
            shape.vips,
            outcome.longest_turn.as_secs_f64() * 1e3,
            outcome.frozen,
            outcome.doubled,
            outcome.dropped,
            outcome.busy * 100.0,
            outcome.received / 1e3,
            outcome.sent / 1e3,
        );
    };
    let mut cluster = Cluster::new(shape.clone());
    cluster.start(0..shape.nodes);
    row("all start", cluster.settle(LIMIT));
    let mut cluster = Cluster::new(shape.clone());
    cluster.start(0..2);
    cluster.advance_by(Duration::from_secs(1));
    cluster.start(2..shape.nodes);
    let calm = cluster.settle(LIMIT);
    if shape.kind == Loop::Before && calm.settled.is_none() {
        return row("two start, then the others", calm);
    }
    let had = cluster.kill_largest_owner();
    row(&format!("owner of {had} lost"), cluster.settle(LIMIT));
    cluster.partition(true);
    cluster.advance_by(Duration::from_secs(2));
    cluster.partition(false);
    row("a partition of 2 s heals", cluster.settle(LIMIT));
    row("nothing", cluster.settle(LIMIT));
}
