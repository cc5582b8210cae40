//! Something happens to a speaker while its node goes on: killed, frozen, deleted, restarted.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::deploy::Scene;
use super::measure::{Measurement, Observed};
use super::settle::{settle, wait_holder, wait_new_speaker};
use crate::lab::Fault;
use crate::traffic::clock::{milliseconds, now_ns};

/// What happened when the speaker of a node was struck.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SpeakerFault {
    pub node: String,
    pub owner_before: String,
    pub owner_after: String,
    /// From the mark until the fault had surely happened: a signal is delivered when the system call returns, and finding
    /// the process takes a while before. No lease was renewed later than this.
    pub struck_ms: f64,
    #[serde(flatten)]
    pub observed: Observed,
}

/// SIGKILL for the owner's speaker. kubelet starts another one: the first time at once, later ever more slowly, so a pod
/// that was killed often is replaced when it has been measured.
pub fn speaker_kill(scene: &Scene, connections: u16) -> Result<SpeakerFault> {
    let owner = wait_holder(scene, &scene.nodes)?;
    let others: Vec<_> = scene.nodes.iter().filter(|node| **node != owner).cloned().collect();
    let kill = || scene.lab.fault(Fault::KillSpeaker { node: owner.clone() });
    let report = strike(scene, &owner, &owner, connections, kill, |pid| {
        wait_holder(scene, &others)?;
        // Either way is a fair measurement: with a speaker that comes back, or with none.
        let _ = wait_new_speaker(scene, &owner, pid, AT_ONCE);
        Ok(())
    })?;
    if scene.lab.speaker(&owner)?.is_none() {
        scene.lab.fault(Fault::DeleteSpeakerPod { node: owner })?;
    }
    Ok(report)
}

/// SIGSTOP for the owner's speaker, and SIGCONT when another node has the address.
pub fn speaker_stop_and_cont(scene: &Scene, connections: u16) -> Result<SpeakerFault> {
    let owner = wait_holder(scene, &scene.nodes)?;
    let others: Vec<_> = scene.nodes.iter().filter(|node| **node != owner).cloned().collect();
    let stop = || scene.lab.fault(Fault::StopSpeaker { node: owner.clone() });
    strike(scene, &owner, &owner, connections, stop, |_| {
        let taken = wait_holder(scene, &others);
        // Long enough for questions to queue up that a woken process would answer.
        sleep(FROZEN);
        scene.lab.fault(Fault::ContSpeaker { node: owner.clone() })?;
        taken.map(drop)
    })
}

/// The owner's pod is deleted, gracefully.
pub fn graceful_delete(scene: &Scene, connections: u16) -> Result<SpeakerFault> {
    let owner = wait_holder(scene, &scene.nodes)?;
    restart(scene, &owner, &owner, connections)
}

/// The speakers' pods are deleted under open connections: the owner's, one that is a backend only, then each in turn.
pub fn speaker_restarts(scene: &Scene, connections: u16) -> Result<Vec<SpeakerFault>> {
    let owner = wait_holder(scene, &scene.nodes)?;
    let mut reports = vec![restart(scene, &owner, &owner, connections)?];
    settle(scene)?;
    let owner = wait_holder(scene, &scene.nodes)?;
    let backend = scene.nodes.iter().find(|node| **node != owner).expect("labs have two nodes").clone();
    reports.push(restart(scene, &backend, &owner, connections)?);
    settle(scene)?;
    reports.push(rolling_restart(scene, connections)?);
    settle(scene)?;
    Ok(reports)
}

/// All speakers, one after the other, under the same connections.
fn rolling_restart(scene: &Scene, connections: u16) -> Result<SpeakerFault> {
    let owner = wait_holder(scene, &scene.nodes)?;
    strike(
        scene,
        "all",
        &owner,
        connections,
        || Ok(()),
        |_| {
            for node in &scene.nodes {
                let before = pid(scene, node)?;
                scene.lab.fault(Fault::DeleteSpeakerPod { node: node.clone() })?;
                wait_new_speaker(scene, node, before, RESTARTS_WITHIN)?;
            }
            Ok(())
        },
    )
}

fn restart(scene: &Scene, node: &str, owner: &str, connections: u16) -> Result<SpeakerFault> {
    let delete = || scene.lab.fault(Fault::DeleteSpeakerPod { node: node.to_owned() });
    strike(scene, node, owner, connections, delete, |pid| wait_new_speaker(scene, node, pid, RESTARTS_WITHIN))
}

/// `wait` gets the pid of the speaker before; it returns when the fault has had its effect.
fn strike(
    scene: &Scene,
    node: &str,
    owner: &str,
    connections: u16,
    fault: impl FnOnce() -> Result<()>,
    wait: impl FnOnce(i32) -> Result<()>,
) -> Result<SpeakerFault> {
    let before = if scene.nodes.iter().any(|one| one == node) { pid(scene, node)? } else { 0 };
    let mut measurement = Measurement::start(scene, connections, false)?;
    let at = measurement.mark()?;
    let struck = fault();
    let struck_ms = milliseconds(at, now_ns());
    let struck = struck.and_then(|()| wait(before));
    let running = || scene.nodes.iter().filter(|node| scene.lab.speaker(node).is_ok_and(|found| found.is_some()));
    let settled = struck.and_then(|()| wait_holder(scene, &running().cloned().collect::<Vec<_>>()));
    let observed = measurement.finish(owner, None)?;
    let owner_after = settled.map_err(|error| error.context(format!("clients saw {observed:?}")))?;
    Ok(SpeakerFault { node: node.to_owned(), owner_before: owner.to_owned(), owner_after, struck_ms, observed })
}

fn pid(scene: &Scene, node: &str) -> Result<i32> {
    Ok(scene.lab.speaker(node)?.with_context(|| format!("{node} has no speaker"))?.pid)
}

const AT_ONCE: Duration = Duration::from_secs(3);
const RESTARTS_WITHIN: Duration = Duration::from_secs(60);
const FROZEN: Duration = Duration::from_millis(1000);
