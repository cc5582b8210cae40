//! The election in simulation: hundreds of clusters with faults from seeds.
//!
//! `SHEAVE_SIM_SEEDS=n` runs n seeds of each profile (CI: the default), `SHEAVE_SIM_SEED=n` one seed of each and all it does.

use std::time::{Duration, Instant};

use sheave_tests::sim::{Paces, Profile, Report, run};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn all_hold(profile: Profile, paces: Paces, default: u64) -> Vec<Report> {
    let seeds = match number("SHEAVE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SHEAVE_SIM_SEEDS").unwrap_or(default),
    };
    let start = Instant::now();
    let mut reports = Vec::new();
    for seed in seeds {
        match run(seed, profile, paces) {
            Ok(report) => reports.push(report),
            Err(violation) => panic!("{violation}\nagain: SHEAVE_SIM_SEED={seed} SHEAVE_SIM_VERBOSE=1"),
        }
    }
    let most = |of: fn(&Report) -> Duration| reports.iter().map(of).max().unwrap_or_default();
    println!(
        "{profile:?}, {paces:?}: {} seeds in {:.1?}; {} datagrams, {} faults, {} moves, {} overlaps; longest: overlap {:.1?}, of two that \
         hear each other {:.1?}, gap {:.1?}, takeover {:.1?} ({:.1?} beyond dead), until in order {:.1?}",
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
        most(|report| report.longest_overtime),
        most(|report| report.settled_after),
    );
    reports
}

#[test]
fn calm() {
    all_hold(Profile::Calm, Paces::Alike, 50);
}

#[test]
fn crashes() {
    let reports = all_hold(Profile::Crashes, Paces::Alike, 50);
    // The dead interval, one interval in which a witness still names the dead, the skew by rank, the scheduler.
    let worst = reports.iter().map(|report| report.longest_takeover).max().unwrap_or_default();
    assert!(worst <= Duration::from_millis(160 + 50 + 40 + 10), "{worst:?}");
    // Ranks keep successors from claiming at the same time.
    let overlaps: u64 = reports.iter().map(|report| report.overlaps).sum();
    assert!(overlaps * 100 <= reports.iter().map(|report| report.moves).sum(), "{overlaps} overlaps");
}

#[test]
fn hand_overs() {
    all_hold(Profile::HandOvers, Paces::Alike, 50);
}

#[test]
fn cut_offs() {
    all_hold(Profile::CutOffs, Paces::Alike, 50);
}

#[test]
fn one_ways() {
    all_hold(Profile::OneWays, Paces::Alike, 50);
}

#[test]
fn stalls() {
    all_hold(Profile::Stalls, Paces::Alike, 50);
}

#[test]
fn chaos() {
    all_hold(Profile::Chaos, Paces::Alike, 300);
}

/// Nodes of different paces keep the same promises, each in its own time.
#[test]
fn mixed_paces() {
    for profile in [Profile::Calm, Profile::HandOvers, Profile::CutOffs, Profile::OneWays, Profile::Stalls] {
        all_hold(profile, Paces::Mixed, 30);
    }
}

#[test]
fn mixed_paces_crashes() {
    let reports = all_hold(Profile::Crashes, Paces::Mixed, 50);
    // Whatever the pace of those that notice.
    let worst = reports.iter().map(|report| report.longest_overtime).max().unwrap_or_default();
    assert!(worst <= Duration::from_millis(100), "{worst:?}");
}

#[test]
fn mixed_paces_chaos() {
    all_hold(Profile::Chaos, Paces::Mixed, 200);
}

/// Else no failure could be repeated.
#[test]
fn same_seed_same_run() {
    for paces in [Paces::Alike, Paces::Mixed] {
        assert_eq!(run(7, Profile::Chaos, paces).unwrap(), run(7, Profile::Chaos, paces).unwrap());
    }
}
