//! Speakers end and begin while the nodes go on.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::watch::{Options, Watch};
use super::workload::{restart, wait_rolled_out};
use super::{Setup, Survival, survive, whole};
use crate::lab::Fault;
use crate::lab::plan::kubernetes_bin;
use crate::scenario::deploy::Scene;
use crate::scenario::inside::on_node;
use crate::scenario::settle::{wait_new_speaker, wait_speakers};

/// As a rolling update of the DaemonSet does it.
pub fn in_turn(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        for node in &scene.nodes {
            watch.order(&format!("the speaker of {node} is deleted"))?;
            let before = pids(scene)?[node];
            scene.lab.fault(Fault::DeleteSpeakerPod { node: node.clone() })?;
            wait_new_speaker(scene, node, before, STARTS_WITHIN)?;
        }
        wait_speakers(scene)
    })
}

/// SIGKILL for all of them: no speaker hands over.
pub fn killed_at_once(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        let before = pids(scene)?;
        watch.fault("every speaker is killed")?;
        scene.lab.fault(Fault::KillAllSpeakers)?;
        all_are_back(watch, &before)
    })
}

/// All pods are deleted, gracefully: no speaker is there to hand over to.
pub fn deleted_at_once(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        let before = pids(scene)?;
        watch.fault("every speaker is deleted")?;
        scene.lab.fault(Fault::DeleteAllSpeakerPods)?;
        all_are_back(watch, &before)
    })
}

/// The DaemonSet gets another image, whose program has maps of another layout: one node after the other.
pub fn upgraded(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        for node in &scene.nodes {
            provide_next(scene, node)?;
        }
        watch.order("all speakers are upgraded")?;
        whole::set_image(scene, NEXT)?;
        wait_speakers(scene)?;
        watch.note("all speakers are of the next version");
        let maps = on_node(&scene.lab, &scene.nodes[0], "ls", &["/sys/fs/bpf/sheave"])?;
        watch.note(&format!("pinned: {}", maps.split_whitespace().collect::<Vec<_>>().join(" ")));
        sleep(AFTERWARDS);
        Ok(())
    })
}

/// Where kube-proxy's rules are gone, no client reaches the API server by the Service's address. There a speaker is killed, and
/// while its successor starts every pod is replaced: a speaker that serves its saved view sends new connections to pods that are
/// gone.
pub fn without_kube_proxy(scene: &Scene, setup: &Setup) -> Result<Survival> {
    let node = &scene.nodes[setup.repetition % scene.nodes.len()];
    survive(scene, setup, Options::REOPEN, |watch| {
        watch.fault(&format!("{node} without kube-proxy and its rules"))?;
        for fault in [Fault::KubeProxyStop { node: node.clone() }, Fault::KubeProxyFlush { node: node.clone() }] {
            scene.lab.fault(fault)?;
        }
        let before = pids(scene)?[node];
        watch.fault(&format!("the speaker of {node} is killed"))?;
        scene.lab.fault(Fault::KillSpeaker { node: node.clone() })?;
        watch.note("every pod is replaced");
        restart(scene)?;
        let began = wait_new_speaker(scene, node, before, STARTS_WITHIN).and_then(|_| wait_speakers(scene));
        watch.note("all speakers are ready");
        let rolled_out = wait_rolled_out(scene);
        sleep(AFTERWARDS);
        watch.note(&format!("{node} with kube-proxy"));
        scene.lab.fault(Fault::KubeProxyStart { node: node.clone() })?;
        sleep(AFTERWARDS);
        began.and(rolled_out)
    })
}

/// Every pod is replaced while one node's speaker does not run: its kernel goes on by a table that names pods of before.
pub fn frozen_while_rolled(scene: &Scene, setup: &Setup) -> Result<Survival> {
    let node = &scene.nodes[setup.repetition % scene.nodes.len()];
    survive(scene, setup, Options::REOPEN, |watch| {
        watch.fault(&format!("the speaker of {node} is frozen"))?;
        scene.lab.fault(Fault::StopSpeaker { node: node.clone() })?;
        sleep(FROZEN_BEFORE);
        watch.order("every pod is replaced")?;
        restart(scene)?;
        let rolled_out = wait_rolled_out(scene);
        watch.note(&format!("the speaker of {node} goes on"));
        scene.lab.fault(Fault::ContSpeaker { node: node.clone() })?;
        wait_speakers(scene)?;
        sleep(AFTERWARDS);
        rolled_out
    })
}

/// Waits for other speakers on all nodes; a speaker that kubelet starts later, because it died often, is helped.
fn all_are_back(watch: &mut Watch<'_>, before: &BTreeMap<String, i32>) -> Result<()> {
    let (scene, began) = (watch.scene, Instant::now());
    for (node, pid) in before {
        if wait_new_speaker(scene, node, *pid, HELPED_AFTER).is_err() {
            watch.note(&format!("kubelet waits with the speaker of {node}: its pod is replaced"));
            scene.lab.fault(Fault::DeleteSpeakerPod { node: node.clone() })?;
            wait_new_speaker(scene, node, *pid, STARTS_WITHIN)?;
        }
    }
    wait_speakers(scene)?;
    watch.note(&format!("all speakers are back after {:.1} s", began.elapsed().as_secs_f64()));
    sleep(AFTERWARDS);
    Ok(())
}

fn pids(scene: &Scene) -> Result<BTreeMap<String, i32>> {
    let each = scene.nodes.iter().map(|node| {
        let speaker = scene.lab.speaker(node)?.with_context(|| format!("{node} has no speaker"))?;
        Ok((node.clone(), speaker.pid))
    });
    each.collect()
}

/// Without an image of the next version (`make image-next` builds it) the present one serves under its name: an upgrade to itself.
fn provide_next(scene: &Scene, node: &str) -> Result<()> {
    let full = |image: &str| format!("docker.io/library/{image}");
    let ctr = kubernetes_bin().join("ctr").to_string_lossy().into_owned();
    let images = on_node(&scene.lab, node, &ctr, &["--namespace=k8s.io", "images", "list", "--quiet"])?;
    if !images.lines().any(|image| image == full(NEXT)) {
        let tag = ["--namespace=k8s.io", "images", "tag", &full(whole::IMAGE), &full(NEXT)];
        on_node(&scene.lab, node, &ctr, &tag)?;
    }
    Ok(())
}

const NEXT: &str = "sheave-speaker-next:lab";
const STARTS_WITHIN: Duration = Duration::from_secs(60);
const HELPED_AFTER: Duration = Duration::from_secs(12);
/// The length of the fault before the update: longer than a speaker takes to begin anew (`speaker_core::staleness`, SILENT).
const FROZEN_BEFORE: Duration = Duration::from_secs(4);
/// How long clients are watched on: what must not happen has nothing to be waited for.
const AFTERWARDS: Duration = Duration::from_secs(2);
