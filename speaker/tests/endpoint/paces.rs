//! Members whose files have different timing profiles, in one group: each is dead for the others in its own time.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use sheave_tests::lab::wait::wait_for;

use crate::world::{MEMBERS, World};
use crate::{PATIENCE, status};

/// Dead after 160 ms.
const FAST: &str = "timing: {interval: 50ms, dead: 150ms}\n";
/// Dead after 3.2 s.
const SLOW: &str = "timing: {profile: steady, interval: 1000ms, dead: 3000ms}\n";
const SLOW_INTERVAL: Duration = Duration::from_secs(1);
const SLOW_DEAD: Duration = Duration::from_millis(3200);
/// For a busy machine.
const SPARE: Duration = Duration::from_millis(1500);

pub fn each_is_dead_in_its_own_time(world: &mut World) -> Result<()> {
    for node in MEMBERS {
        world.kill_speaker(node)?;
        let file = world.file(node)?;
        world.write_file(node, &(file + if node == "c" { SLOW } else { FAST }))?;
    }
    let mut since = marks(world)?;
    for node in MEMBERS {
        world.start_speaker(node)?;
    }
    all_are_up(world)?;
    // Long enough for the fast ones to take it for dead many times over.
    sleep(SLOW_INTERVAL * 6);
    for node in ["a", "b"] {
        let lost = deaths(world, node, &since)?;
        ensure!(!lost.contains_key("c"), "{node} took the slow c for dead, which runs: {lost:?}");
    }
    since = marks(world)?;
    let killed = Timestamp::now();
    world.kill_speaker("a")?;
    // By the slow one too: by the fast one's pace.
    for node in ["b", "c"] {
        let took = death(world, node, "a", &since, killed)?;
        println!("fast speaker killed: dead for {node} after {took:?}");
        ensure!(took < SLOW_DEAD - SLOW_INTERVAL, "a fast one is dead for {node} after {took:?}");
    }
    world.start_speaker("a")?;
    all_are_up(world)?;
    since = marks(world)?;
    let killed = Timestamp::now();
    for node in ["c", "a"] {
        world.kill_speaker(node)?;
    }
    let [fast, slow] = ["a", "c"].map(|node| death(world, "b", node, &since, killed));
    let (fast, slow) = (fast?, slow?);
    println!("a slow and a fast speaker killed together: dead for the third after {slow:?} and {fast:?}");
    ensure!(fast < slow, "the fast one is dead after {fast:?}, the slow one after {slow:?}");
    let expected = SLOW_DEAD - SLOW_INTERVAL..SLOW_DEAD + SPARE;
    ensure!(expected.contains(&slow), "the slow one is dead after {slow:?}, not within {expected:?}");
    ["c", "a"].into_iter().try_for_each(|node| world.start_speaker(node))
}

/// For each other.
fn all_are_up(world: &World) -> Result<()> {
    for node in MEMBERS {
        wait_for(&format!("{node} to receive the others"), PATIENCE, || {
            let Ok(status) = status::status(world, node) else { return Ok(None) };
            let up = status.peers.iter().filter(|peer| peer.alive).count();
            Ok((status.not_ready.is_empty() && up == MEMBERS.len() - 1).then_some(()))
        })?;
    }
    Ok(())
}

/// How much each speaker has logged.
fn marks(world: &World) -> Result<BTreeMap<&'static str, usize>> {
    MEMBERS.into_iter().map(|node| Ok((node, world.speaker_log(node)?.len()))).collect()
}

/// Which peers are down for a node since then, and when they were first, by its log.
fn deaths(world: &World, node: &str, since: &BTreeMap<&str, usize>) -> Result<BTreeMap<String, Timestamp>> {
    let log = world.speaker_log(node)?;
    let new = log.get(since[node]..).context("the log grows")?;
    let mut deaths = BTreeMap::new();
    for line in new.lines().filter(|line| line.contains("peer down")) {
        let at = line.split_whitespace().next().context("a time")?.parse()?;
        let peer = line.rsplit("node=").next().context("a node")?;
        deaths.entry(peer.trim().to_owned()).or_insert(at);
    }
    Ok(deaths)
}

/// How long after it was killed a peer is dead for a node.
fn death(world: &World, node: &str, peer: &str, since: &BTreeMap<&str, usize>, killed: Timestamp) -> Result<Duration> {
    let at = wait_for(&format!("{node} to take {peer} for dead"), PATIENCE, || {
        Ok(deaths(world, node, since)?.get(peer).copied())
    })?;
    Ok(at.duration_since(killed).try_into()?)
}
