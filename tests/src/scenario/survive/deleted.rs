//! `kubectl delete node`: the normal way out of a cluster, and the machine goes on.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::watch::Options;
use super::workload::wait_rolled_out;
use super::{Setup, Survival, survive};
use crate::lab::{Fault, wait_for};
use crate::scenario::deploy::Scene;
use crate::scenario::settle::{wait_holder, wait_speakers};

/// The owner. The pod garbage collector ends its pods, the speaker among them, after 40 s or more; then the node registers again.
pub fn owner(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::REOPEN, |watch| {
        let owner = wait_holder(scene, &scene.nodes)?;
        watch.leaving(&[&owner])?;
        watch.order(&format!("the Node {owner} is deleted"))?;
        scene.lab.fault(Fault::DeleteNode { node: owner.clone() })?;
        let began = Instant::now();
        let others: Vec<_> = scene.nodes.iter().filter(|node| **node != owner).cloned().collect();
        let taken = wait_holder(scene, &others).map(|next| watch.note(&format!("{next} owns the address")));
        let ended = wait_ended(scene, &owner);
        watch.note(&format!("its pods are gone after {:.1} s", began.elapsed().as_secs_f64()));
        let moved = wait_rolled_out(scene);
        sleep(AFTERWARDS);
        watch.note(&format!("{owner} registers again"));
        scene.lab.fault(Fault::RestartKubelet { node: owner.clone() })?;
        scene.lab.wait_ready()?;
        wait_speakers(scene)?;
        watch.note(&format!("the speaker of {owner} is back"));
        sleep(AFTERWARDS);
        taken.and(ended).and(moved)
    })
}

/// Waits until no pod is recorded on the node.
fn wait_ended(scene: &Scene, node: &str) -> Result<()> {
    let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}");
    wait_for(&format!("the pods of {node} to be gone"), ENDED_WITHIN, || {
        Ok(scene.api.list(&path)?.is_empty().then_some(()))
    })
}

/// The garbage collector runs every 20 s, and waits for 40 s after it has first seen that the node is gone.
const ENDED_WITHIN: Duration = Duration::from_secs(120);
/// How long clients are watched on: what must not happen has nothing to be waited for.
const AFTERWARDS: Duration = Duration::from_secs(5);
