//! What the election costs on this machine: nanoseconds per unit of work, as the simulator charges them (`sim::costs`).
//!
//! `make measure-election` prints the file that bench/costs/ keeps. Root: datagrams and frames cross a veth pair between two
//! network namespaces of its own, and the map is the kernel's.

mod beside;
mod io;
mod machine;

use anyhow::Result;
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

fn main() -> Result<()> {
    let mut cpu = CpuSet::new();
    cpu.set(sched_getcpu()?)?;
    sched_setaffinity(Pid::from_raw(0), &cpu)?;
    println!("# nanoseconds; printed by `make measure-election` (tests/src/bin/election_cost)");
    machine::print();
    beside::print();
    io::print()
}

/// The median of the rounds, each the mean of `repeat` calls, in nanoseconds.
fn time(rounds: usize, repeat: u32, mut call: impl FnMut()) -> f64 {
    let mut means: Vec<f64> = (0..rounds)
        .map(|_| {
            let start = std::time::Instant::now();
            (0..repeat).for_each(|_| call());
            start.elapsed().as_nanos() as f64 / f64::from(repeat)
        })
        .collect();
    means.sort_by(f64::total_cmp);
    means[rounds / 2]
}

fn cost(name: &str, nanos: f64) {
    println!("{name} {nanos:.1}");
}

/// With three and with two hundred nodes.
fn linear(name: &str, [short, long]: [f64; 2]) {
    let per_peer = (long - short) / 197.0;
    cost(name, short - 3.0 * per_peer);
    cost(&format!("{name}_per_peer"), per_peer);
}
