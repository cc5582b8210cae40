//! How long the table of a service port takes to fill, beside a plain pass over memory of its size.
//!
//! `cargo run --release -p sheave-bench --bin maglev`

use std::hint::black_box;
use std::time::{Duration, Instant};

use speaker_core::forwarding::maglev::{Members, fill};

fn main() {
    sheave_bench::pipe::end_without_reader();
    println!("{:>6} {:>6} {:>6} {:>7} {:>10} {:>10} {:>7}", "nodes", "pods", "lost", "rows", "fill", "pass", "ratio");
    for (nodes, pods, lost) in [(3, 2, 0), (3, 2, 1), (40, 1, 0), (100, 10, 0), (1000, 6, 0), (1000, 6, 300)] {
        let members = Members::new((0..nodes).map(|n| (format!("node{n:04}"), pods, n < lost)));
        let rows = fill(&members, &KEY).rows.len();
        let filled = median(|| drop(black_box(fill(&members, &KEY))));
        let passed = median(|| drop(black_box(vec![1_u16; rows])));
        let ratio = filled.as_secs_f64() / passed.as_secs_f64();
        println!("{nodes:>6} {pods:>6} {lost:>6} {rows:>7} {filled:>10.1?} {passed:>10.1?} {ratio:>7.0}");
    }
}

fn median(run: impl Fn()) -> Duration {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let started = Instant::now();
            run();
            started.elapsed()
        })
        .collect();
    times.sort();
    times[RUNS / 2]
}

const RUNS: usize = 21;
const KEY: [u64; 2] = [1, 2];
