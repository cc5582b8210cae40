//! Sheave of one version takes the place of another on a running cluster, manifests and images, as a user orders it.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::nodes::{power_on, struck};
use super::watch::{Options, Watch};
use super::workload::{restart, scale, wait_rolled_out};
use super::{Setup, Survival, observe};
use crate::lab::Fault;
use crate::scenario::deploy::Scene;
use crate::scenario::inside::on_node;
use crate::scenario::settle::{settle, wait_holder, wait_new_speaker, wait_speakers};

/// What is installed: manifests, and the tag of the images that they name, which are on the nodes.
pub struct Version<'a> {
    pub overlay: &'a Path,
    pub tag: &'a str,
}

/// `kubectl apply -k` of the other version under open connections. Speakers are replaced one after the other, so that both versions run
/// side by side meanwhile.
pub fn applied(scene: &Scene, setup: &Setup, from: &Version<'_>, to: &Version<'_>) -> Result<Survival> {
    settle(scene)?;
    observe(scene, setup, Options::default(), |watch| {
        expect_running(watch, from.tag)?;
        watch.order(&format!("{} is applied", to.tag))?;
        let began = Instant::now();
        scene.lab.apply_overlay(to.overlay)?;
        scene.lab.wait_rolled_out()?;
        watch.figure("rolled out after, s", began.elapsed().as_secs_f64());
        wait_speakers(scene)?;
        watch.figure("all speakers settled after, s", began.elapsed().as_secs_f64());
        expect_running(watch, to.tag)?;
        sleep(AFTERWARDS);
        Ok(())
    })
}

/// The upgrade stops after the first node, and goes on when everything has happened that changes rings and owners: every pod is replaced,
/// twice as many come and go, the owner's node loses power and is back. Manifests of `to` replace a speaker only when its pod is deleted.
pub fn half_way(scene: &Scene, setup: &Setup, from: &Version<'_>, to: &Version<'_>) -> Result<Survival> {
    settle(scene)?;
    observe(scene, setup, Options::REOPEN, |watch| {
        let first = struck(scene, setup)?;
        expect_running(watch, from.tag)?;
        watch.order(&format!("{} is applied", to.tag))?;
        scene.lab.apply_overlay(to.overlay)?;
        scene.lab.kubectl(&["--namespace=sheave-system", "rollout", "status", CONTROLLER, "--timeout=90s"])?;
        replace_speaker(watch, &first)?;
        note_running(watch)?;
        watch.order("every pod is replaced")?;
        restart(scene)?;
        wait_rolled_out(scene)?;
        let pods = scene.nodes.len() * scene.pods_per_node;
        for pods in [2 * pods, pods] {
            watch.order(&format!("{pods} pods"))?;
            scale(scene, pods)?;
            wait_rolled_out(scene)?;
            // Until both versions have given them rows.
            sleep(AFTERWARDS);
        }
        let owner = wait_holder(scene, &scene.nodes)?;
        watch.power_off(&[&owner])?;
        sleep(LOST_FOR);
        power_on(watch, &[&owner])?;
        scene.nodes.iter().filter(|node| **node != first).try_for_each(|node| replace_speaker(watch, node))?;
        expect_running(watch, to.tag)?;
        sleep(AFTERWARDS);
        Ok(())
    })
}

fn replace_speaker(watch: &mut Watch<'_>, node: &str) -> Result<()> {
    let (scene, node) = (watch.scene, node.to_owned());
    let before = scene.lab.speaker(&node)?.with_context(|| format!("{node} has no speaker"))?.pid;
    watch.order(&format!("the speaker of {node} is upgraded"))?;
    scene.lab.fault(Fault::DeleteSpeakerPod { node: node.clone() })?;
    wait_new_speaker(scene, &node, before, STARTS_WITHIN)
}

/// Every pod of Sheave must be of this version.
fn expect_running(watch: &mut Watch<'_>, tag: &str) -> Result<()> {
    let images = note_running(watch)?;
    match images.split_whitespace().find(|image| !image.ends_with(&format!(":{tag}"))) {
        Some(other) => bail!("{other} is not of version {tag}"),
        None if images.is_empty() => bail!("no pod of Sheave runs"),
        None => Ok(()),
    }
}

/// The images of all pods of Sheave, and what is pinned on each node.
fn note_running(watch: &mut Watch<'_>) -> Result<String> {
    let scene = watch.scene;
    let images = scene.lab.kubectl(&["--namespace=sheave-system", "get", "pods", "-o", IMAGES])?;
    watch.note(&format!("running: {}", images.trim()));
    for node in &scene.nodes {
        let pinned = on_node(&scene.lab, node, "ls", &[PINS])?;
        watch.note(&format!("pinned on {node}: {}", pinned.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    Ok(images.trim().to_owned())
}

const IMAGES: &str = "jsonpath={range .items[*]}{.spec.nodeName}/{.spec.containers[0].image} {end}";
const CONTROLLER: &str = "deployment/sheave-controller";
const PINS: &str = "/sys/fs/bpf/sheave";
/// How long clients are watched on: what must not happen has nothing to be waited for. Longer than a batch of additions waits for more
/// (`speaker_core::forwarding::LONGEST_WAIT`).
const AFTERWARDS: Duration = Duration::from_secs(20);
const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// The length of the fault.
const LOST_FOR: Duration = Duration::from_secs(3);
