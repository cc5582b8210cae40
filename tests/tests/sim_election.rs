//! The election in simulation: hundreds of clusters with faults from seeds.
//!
//! `SHEAVE_SIM_SEEDS=n` runs n seeds of each profile (CI: the default), `SHEAVE_SIM_SEED=n` one seed of each and all it does.

use std::time::{Duration, Instant};

use sheave_tests::sim::{Profile, Report, run};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn all_hold(profile: Profile, default: u64) -> Vec<Report> {
    let seeds = match number("SHEAVE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SHEAVE_SIM_SEEDS").unwrap_or(default),
    };
    let start = Instant::now();
    let mut reports = Vec::new();
    for seed in seeds {
        match run(seed, profile) {
            Ok(report) => reports.push(report),
            Err(violation) => panic!("{violation}\nagain: SHEAVE_SIM_SEED={seed} SHEAVE_SIM_VERBOSE=1"),
        }
    }
    let most = |of: fn(&Report) -> Duration| reports.iter().map(of).max().unwrap_or_default();
    println!(
        "{profile:?}: {} seeds in {:.1?}; {} datagrams, {} faults, {} moves, {} overlaps; longest: overlap {:.1?}, of two that \
         hear each other {:.1?}, gap {:.1?}, takeover {:.1?}, until in order {:.1?}",
        reports.len(),
        start.elapsed(),
        reports.iter().map(|report| report.datagrams).sum::<u64>(),
        reports.iter().map(|report| report.faults).sum::<usize>(),
        reports.iter().map(|report| report.moves).sum::<u64>(),
        reports.iter().map(|report| report.overlaps).sum::<u64>(),
        most(|report| report.longest_overlap),
        most(|report| report.longest_connected_overlap),
        most(|report| report.longest_gap),
        most(|report| report.longest_takeover),
        most(|report| report.settled_after),
    );
    reports
}

#[test]
fn calm() {
    all_hold(Profile::Calm, 50);
}

#[test]
fn crashes() {
    let reports = all_hold(Profile::Crashes, 50);
    // The dead interval, one interval in which a witness still names the dead, the skew by rank, the scheduler.
    let worst = reports.iter().map(|report| report.longest_takeover).max().unwrap_or_default();
    assert!(worst <= Duration::from_millis(160 + 50 + 40 + 10), "{worst:?}");
    // Ranks keep successors from claiming at the same time.
    let overlaps: u64 = reports.iter().map(|report| report.overlaps).sum();
    assert!(overlaps * 100 <= reports.iter().map(|report| report.moves).sum(), "{overlaps} overlaps");
}

#[test]
fn hand_overs() {
    all_hold(Profile::HandOvers, 50);
}

#[test]
fn cut_offs() {
    all_hold(Profile::CutOffs, 50);
}

#[test]
fn one_ways() {
    all_hold(Profile::OneWays, 50);
}

#[test]
fn stalls() {
    all_hold(Profile::Stalls, 50);
}

#[test]
fn chaos() {
    all_hold(Profile::Chaos, 300);
}

/// Else no failure could be repeated.
#[test]
fn same_seed_same_run() {
    assert_eq!(run(7, Profile::Chaos).unwrap(), run(7, Profile::Chaos).unwrap());
}
