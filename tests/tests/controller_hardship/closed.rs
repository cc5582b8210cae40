//! Watches that end every second: the API server closes them itself (a definition is changed), or the kernel ends their connections. No
//! event is lost, nothing is listed anew that need not be, and what is at rest stays so.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use super::ground::{Counts, Ground, Server};
use super::history::History;
use super::replica::Replica;

const ROUNDS: usize = 5;
const EVERY: Duration = Duration::from_secs(1);
/// What is watched, as the API server's metrics have it.
const WATCHED: [&str; 5] = ["services", "virtualips", "addresspools", "namespaces", "l2advertisements"];

pub fn chapter(ground: &Ground) -> Result<()> {
    let replica = ground.replica(Server::Second, "closed-1", &["--lease-seconds", "5"])?;
    ground.create("before")?;
    let address = ground.wait_shown("before")?;
    let history = History::start(ground.lab)?;
    connections_end(ground)?;
    at_rest(ground, &replica)?;
    ensure!(ground.shown("before")? == address, "an address moved");
    ground.end(history)?;
    // A watch of the test's own would end as well: what is left at the end is looked at instead.
    definitions_change(ground)
}

/// Every connection of the replica, in the middle of whatever it does.
fn connections_end(ground: &Ground) -> Result<()> {
    let before = ground.counts(Server::Second)?;
    let served = rounds(ground, |_| ground.end_connections())?;
    ground.wait_true()?;
    let after = ground.counts(Server::Second)?;
    eprintln!("  connections ended {ROUNDS} times: a Service served after {served:?} at most");
    for kind in WATCHED {
        let lists = after.lists(kind) - before.lists(kind);
        ensure!(lists == 0.0, "{kind} were listed {lists} times: their watches need only go on");
    }
    let ended = watches(&after, "services") - watches(&before, "services");
    ensure!((1.0..=2.0 * ROUNDS as f64 + 1.0).contains(&ended), "{ended} watches of Services ended");
    Ok(())
}

/// Watches of this kind that are over.
fn watches(counts: &Counts, kind: &str) -> f64 {
    counts.requests(&["verb=\"WATCH\"", &format!("resource=\"{kind}\"")])
}

/// Nothing is written because watches end.
fn at_rest(ground: &Ground, replica: &Replica) -> Result<()> {
    let before = ground.counts(Server::Second)?.writes();
    for _ in 0..2 {
        ground.end_connections()?;
        sleep(EVERY);
    }
    let writes = ground.counts(Server::Second)?.writes() - before;
    ensure!(writes == 0.0, "{writes} writes at rest:\n{}", replica.log());
    Ok(())
}

/// The API server closes the watches of a kind whose definition changes; it knows nothing of before then, so the kind is listed anew, once.
fn definitions_change(ground: &Ground) -> Result<()> {
    let kinds = ["virtualips", "addresspools"];
    let before = ground.counts(Server::Second)?;
    let served = rounds(ground, |round| {
        for kind in kinds {
            let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind}.sheave.dev");
            let mut versions = ground.api.get(&path)?["spec"]["versions"].take();
            versions[0]["schema"]["openAPIV3Schema"]["description"] = json!(format!("Round {round}."));
            ground.api.patch(&path, &json!({ "spec": { "versions": versions } }))?;
        }
        Ok(())
    })?;
    ground.wait_true()?;
    let after = ground.counts(Server::Second)?;
    eprintln!("  definitions changed {ROUNDS} times: a Service served after {served:?} at most");
    for kind in WATCHED {
        let lists = after.lists(kind) - before.lists(kind);
        let most = if kinds.contains(&kind) { 3.0 * ROUNDS as f64 } else { ROUNDS as f64 };
        let ended = watches(&after, kind) - watches(&before, kind);
        eprintln!("  {kind}: {ended} watches ended, {lists} lists");
        ensure!(!kinds.contains(&kind) || ended > 0.0, "no watch of {kind} was closed: this shows nothing");
        ensure!(lists <= most, "{kind} were listed {lists} times, {most} at most are right");
    }
    ground.clear()
}

/// Every second something happens, a Service comes and another one goes. The longest time from a creation to an address.
fn rounds(ground: &Ground, mut happens: impl FnMut(usize) -> Result<()>) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    for round in 0..ROUNDS {
        let began = Instant::now();
        happens(round)?;
        let name = format!("round-{round}");
        ground.create(&name)?;
        ground.wait_shown(&name)?;
        longest = longest.max(began.elapsed());
        if round > 0 {
            ground.delete(&format!("round-{}", round - 1))?;
        }
        sleep(EVERY.saturating_sub(began.elapsed()));
    }
    ground.delete(&format!("round-{}", ROUNDS - 1))?;
    Ok(longest)
}
