//! `make bench-scale`: large clusters in simulation, with compute time from a measurement (bench/costs/).
//!
//! Ends with 0: all promises kept; 1: one is broken, and named; 2: it cannot be measured, since the simulator does not show the collapse of
//! commit f452a5a, or since the arguments are not understood.

use std::process::ExitCode;

use sheave_tests::sim::scale::promise::{Fault, broken, play};
use sheave_tests::sim::scale::{Loop, Outcome, Shape};

const NODES: [usize; 5] = [3, 30, 60, 100, 256];
const VIPS: [usize; 3] = [200, 1000, 4096];
/// In which commit f452a5a collapsed: nodes, VIPs, how many times slower.
const COLLAPSE: [(usize, usize, u32); 3] = [(60, 1000, 1), (30, 4096, 1), (20, 500, 4)];

fn main() -> ExitCode {
    let mut only = Vec::new();
    for arg in std::env::args().skip(1) {
        match arg.parse() {
            Ok(nodes) if nodes == 0 || NODES.contains(&nodes) => only.push(nodes),
            _ => {
                eprintln!("scale: {arg:?} is none of the sizes {NODES:?}, nor 0 for the loop of f452a5a");
                return ExitCode::from(2);
            }
        }
    }
    let wanted = |nodes: usize| only.is_empty() || only.contains(&nodes);
    let mut failures = Vec::new();
    header();
    for nodes in NODES.into_iter().filter(|nodes| wanted(*nodes)) {
        for vips in VIPS {
            for slow in [1, 4] {
                failures.extend(played(&Shape { slow, ..Shape::now(nodes, vips) }).1);
            }
        }
    }
    let mut blind = Vec::new();
    if wanted(0) {
        println!("\nThe loop of commit f452a5a, with what its decisions took");
        header();
        for (nodes, vips, slow) in COLLAPSE {
            let shape = Shape { slow, ..Shape::before(nodes, vips) };
            if !played(&shape).0 {
                blind.push(title(&shape));
            }
        }
    }
    failures.iter().for_each(|failure| eprintln!("scale: broken: {failure}"));
    blind.iter().for_each(|shape| {
        eprintln!("scale: {shape} of commit f452a5a does not collapse in the simulator, which it did")
    });
    match (failures.is_empty(), blind.is_empty()) {
        (_, false) => ExitCode::from(2),
        (false, true) => ExitCode::FAILURE,
        (true, true) => ExitCode::SUCCESS,
    }
}

fn header() {
    println!(
        "| nodes x VIPs | event | settled after | longest turn | wrong releases | released as frozen | held twice | dropped | busiest node | in | out |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
}

fn title(shape: &Shape) -> String {
    let speed = if shape.slow > 1 { ", a quarter of the speed" } else { "" };
    format!("{} x {}{speed}", shape.nodes, shape.vips)
}

/// Whether it collapsed (did not settle, or nodes took their own work for a freeze), and which promises are broken.
fn played(shape: &Shape) -> (bool, Vec<String>) {
    let (mut collapses, mut failures) = (false, Vec::new());
    play(shape, |fault, outcome| {
        row(shape, fault, outcome);
        collapses |= outcome.settled.is_none() || outcome.frozen > 0;
        failures.extend(broken(shape, fault, outcome).iter().map(|what| format!("{}, {fault}: {what}", title(shape))));
    });
    (collapses, failures)
}

fn row(shape: &Shape, fault: Fault, outcome: &Outcome) {
    let settled = outcome
        .settled
        .map_or(format!("never, {} held", outcome.held), |after| format!("{:.2} s", after.as_secs_f64()));
    // With two owners from the moment of the heal on: that says nothing.
    let doubled =
        if fault == Fault::Heal && shape.kind == Loop::Now { "–".to_owned() } else { outcome.doubled.to_string() };
    println!(
        "| {} | {fault} | {settled} | {:.1} ms | {} | {} | {doubled} | {} | {:.1} % | {:.0} kB/s | {:.0} kB/s |",
        title(shape),
        outcome.longest_turn.as_secs_f64() * 1e3,
        outcome.wrong,
        outcome.frozen,
        outcome.dropped,
        outcome.busy * 100.0,
        outcome.received / 1e3,
        outcome.sent / 1e3,
    );
}
