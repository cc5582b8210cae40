//! What a speaker needs from its node does not work for a while: its disk, nft.

use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::nodes::{power_on, struck};
use super::watch::{Options, Watch};
use super::workload::{restart, scale, wait_rolled_out};
use super::{Setup, Survival, survive};
use crate::lab::{Fault, NftHold, NftRefusal, wait_for};
use crate::scenario::deploy::Scene;
use crate::scenario::http;
use crate::scenario::settle::{wait_holder, wait_new_speaker, wait_nodes_down, wait_speakers};

/// The owner's speaker is killed and starts on a full disk; every pod is replaced, of which nothing can be saved; it is killed again, and
/// starts with an old saved view.
pub fn disk_full(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::REOPEN, |watch| {
        let owner = wait_holder(scene, &scene.nodes)?;
        let node = || owner.clone();
        scene.lab.fault(Fault::FillDisk { node: node() })?;
        let full = kill_speaker(watch, &owner)
            .and_then(|()| wait_metric(scene, &owner, "sheave_state_unsaved", 1.0))
            .and_then(|()| {
                watch.order("every pod is replaced")?;
                restart(scene)?;
                wait_rolled_out(scene)?;
                kill_speaker(watch, &owner)
            });
        watch.note("there is room again");
        scene.lab.fault(Fault::FreeDisk { node: node() })?;
        // Its container has the small file system until it ends.
        let before = pid(scene, &owner)?;
        scene.lab.fault(Fault::DeleteSpeakerPod { node: node() })?;
        wait_new_speaker(scene, &owner, before, STARTS_WITHIN)?;
        wait_speakers(scene)?;
        wait_metric(scene, &owner, "sheave_state_unsaved", 0.0)?;
        sleep(AFTERWARDS);
        full
    })
}

/// nft does not run on the nodes that keep power, while there are more pods: the rows of the lost node must not wait for it.
pub fn nft_held(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        let lost = struck(scene, setup)?;
        let others: Vec<_> = scene.nodes.iter().filter(|node| **node != lost).cloned().collect();
        let began = Instant::now();
        let holds = others.iter().map(|node| NftHold::begin(&scene.lab, node)).collect::<Result<Vec<_>>>()?;
        watch.order(&format!("nft is held on {}, and there are more pods", others.join(" and ")))?;
        scale(scene, scene.nodes.len() * scene.pods_per_node + others.len())?;
        sleep(HELD_BEFORE);
        let moved = lose(watch, &lost, &others);
        sleep(HELD.saturating_sub(began.elapsed()));
        let held = holds.into_iter().map(NftHold::end).collect::<Result<Vec<_>>>()?;
        watch.note(&format!("nft goes on; so many were held: {held:?}"));
        power_on(watch, &[&lost])?;
        if held.contains(&0) {
            bail!("on a node no nft was started in {HELD:?}: nothing was held");
        }
        moved
    })
}

/// Removing a node takes longer than detecting it: both at the same time.
fn lose(watch: &mut Watch<'_>, lost: &String, others: &[String]) -> Result<()> {
    let (scene, began) = (watch.scene, Instant::now());
    let detected = thread::scope(|scope| {
        let detected = scope.spawn(|| wait_nodes_down(scene, others, 1.0).map(|()| began.elapsed()));
        watch.power_off(&[lost])?;
        detected.join().map_err(|_| anyhow!("waiting for the lost node panicked"))?
    })?;
    watch.figure("lost node declared down after, ms", detected.as_secs_f64() * 1e3);
    Ok(())
}

/// The kernel refuses every change of one node's table, while there are more pods, then others: its rules name pods that are gone. The
/// owner in one repetition, another node in the next.
pub fn nft_refused(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::REOPEN, |watch| {
        let node = struck(scene, setup)?;
        let refusal = NftRefusal::begin(&scene.lab, &node)?;
        watch.order(&format!("nft is refused on {node}"))?;
        let changed = more_then_others(watch);
        let detected = wait_metric(scene, &node, "sheave_nft_failing", 1.0);
        watch.note("nft is not refused any more");
        refusal.end()?;
        let began = Instant::now();
        wait_metric(scene, &node, "sheave_nft_failing", 0.0)?;
        watch.figure("rules as wanted after, ms", began.elapsed().as_secs_f64() * 1e3);
        wait_speakers(scene)?;
        sleep(AFTERWARDS);
        changed.and(detected)
    })
}

fn more_then_others(watch: &mut Watch<'_>) -> Result<()> {
    let scene = watch.scene;
    let pods = scene.nodes.len() * scene.pods_per_node * 2;
    watch.order(&format!("{pods} pods"))?;
    scale(scene, pods)?;
    wait_rolled_out(scene)?;
    sleep(BETWEEN);
    watch.order("every pod is replaced")?;
    restart(scene)?;
    wait_rolled_out(scene)?;
    sleep(BETWEEN);
    Ok(())
}

fn kill_speaker(watch: &mut Watch<'_>, node: &str) -> Result<()> {
    let before = pid(watch.scene, node)?;
    watch.fault(&format!("the speaker of {node} is killed"))?;
    watch.scene.lab.fault(Fault::KillSpeaker { node: node.to_owned() })?;
    wait_new_speaker(watch.scene, node, before, STARTS_WITHIN)?;
    watch.note(&format!("the speaker of {node} is ready"));
    Ok(())
}

fn pid(scene: &Scene, node: &str) -> Result<i32> {
    Ok(scene.lab.speaker(node)?.with_context(|| format!("{node} has no speaker"))?.pid)
}

fn wait_metric(scene: &Scene, node: &str, series: &str, value: f64) -> Result<()> {
    wait_for(&format!("{series} of {node} to be {value}"), SHOWN_WITHIN, || {
        // A speaker that does not answer is not there yet.
        let metrics = http::metrics(&scene.lab, scene.node_address(node)?).unwrap_or_default();
        Ok((http::value(&metrics, series) == Some(value)).then_some(()))
    })
}

const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// The length of the fault, and how much of it passes before power is lost: new pods are there after 2 s or so, and nft is started.
const HELD: Duration = Duration::from_secs(10);
const HELD_BEFORE: Duration = Duration::from_secs(3);
/// How long clients are watched on: what must not happen has nothing to be waited for.
const AFTERWARDS: Duration = Duration::from_secs(3);
const BETWEEN: Duration = Duration::from_secs(2);
/// Longer than the longest pause after a refusal (30 s).
const SHOWN_WITHIN: Duration = Duration::from_secs(45);
