//! A slow API server: etcd, then the leader's API server, stop and go on in pulses, so that requests take seconds or get no answer in time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::ground::{Ground, Server};
use super::history::History;
use super::replica::Replica;

/// Requests take up to so long: longer than a write may take (0.6 s), and shorter and longer than the lead lasts (1.2 s).
const STOPPED: [u64; 6] = [400, 900, 1500, 700, 2500, 1100];
const GOES_ON: Duration = Duration::from_millis(250);

pub fn chapter(ground: &Ground) -> Result<()> {
    let history = History::start(ground.lab)?;
    let flags = ["--lease-seconds", "2"];
    let replicas =
        [ground.replica(Server::First, "slow-1", &flags)?, ground.replica(Server::Second, "slow-2", &flags)?];
    (0..10).try_for_each(|number| ground.create(&format!("slow-{number}")))?;
    ground.wait_true()?;
    let terms = ground.terms()?;
    let over = AtomicBool::new(false);
    let leaders = thread::scope(|scope| -> Result<Leaders> {
        let watched = scope.spawn(|| Leaders::watch(&replicas, &over));
        let changed = scope.spawn(|| change(ground, &over));
        let pulses = pulses(ground, "etcd").and_then(|()| pulses(ground, "kube-apiserver-cp2"));
        over.store(true, Ordering::Relaxed);
        let (watched, changed) = (watched.join().expect("a panic"), changed.join().expect("a panic"));
        pulses?;
        eprintln!("  {} changes of Services meanwhile", changed?);
        watched
    })?;
    let calm = Instant::now();
    ground.wait_true()?;
    eprintln!(
        "  all true {:?} after the last pulse; {} changes of leader, {} looks at who leads, nobody at {}",
        calm.elapsed(),
        ground.terms()? - terms,
        leaders.looks,
        leaders.nobody
    );
    ensure!(leaders.both == 0, "both replicas led at {} moments", leaders.both);
    ground.end(history)
}

fn pulses(ground: &Ground, process: &str) -> Result<()> {
    for stopped in STOPPED {
        ground.signal(process, Signal::SIGSTOP)?;
        sleep(Duration::from_millis(stopped));
        ground.signal(process, Signal::SIGCONT)?;
        sleep(GOES_ON);
    }
    Ok(())
}

/// Services come and go, as fast as the API server admits them.
fn change(ground: &Ground, over: &AtomicBool) -> Result<usize> {
    let mut changes = 0;
    while !over.load(Ordering::Relaxed) {
        ground.create(&format!("change-{changes}")).context("create")?;
        if changes >= 4 {
            ground.delete(&format!("change-{}", changes - 4)).context("delete")?;
        }
        changes += 1;
        sleep(Duration::from_millis(20));
    }
    Ok(changes)
}

/// Who says that it leads.
#[derive(Default)]
struct Leaders {
    looks: u32,
    nobody: u32,
    both: u32,
}

impl Leaders {
    fn watch([one, other]: &[Replica; 2], over: &AtomicBool) -> Result<Self> {
        let mut leaders = Self::default();
        while !over.load(Ordering::Relaxed) {
            // Asked one after the other: it led all the time in between if it leads before and after.
            let seen = (one.leads()?, other.leads()?, one.leads()?);
            leaders.looks += 1;
            leaders.both += u32::from(seen == (true, true, true));
            leaders.nobody += u32::from(seen == (false, false, false));
            sleep(Duration::from_millis(5));
        }
        Ok(leaders)
    }
}
