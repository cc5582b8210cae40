//! Sheave of one version takes the place of another on a running cluster, manifests and images, as a user orders it.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::watch::{Options, Watch};
use super::{Setup, Survival, observe};
use crate::scenario::deploy::Scene;
use crate::scenario::inside::on_node;
use crate::scenario::settle::{settle, wait_speakers};

/// `kubectl apply -k` of an overlay under open connections. Speakers are replaced one after the other, so that both versions run side
/// by side meanwhile. The images of the overlay are on the nodes.
pub fn applied(scene: &Scene, setup: &Setup, overlay: &Path, what: &str) -> Result<Survival> {
    settle(scene)?;
    observe(scene, setup, Options::default(), |watch| {
        note_running(watch)?;
        watch.order(what)?;
        let began = Instant::now();
        scene.lab.apply_overlay(overlay)?;
        watch.figure("rolled out after, s", began.elapsed().as_secs_f64());
        wait_speakers(scene)?;
        watch.figure("all speakers settled after, s", began.elapsed().as_secs_f64());
        note_running(watch)?;
        sleep(AFTERWARDS);
        Ok(())
    })
}

/// The images of all pods of Sheave, and what is pinned on each node.
fn note_running(watch: &mut Watch<'_>) -> Result<()> {
    let scene = watch.scene;
    let images = scene.lab.kubectl(&["--namespace=sheave-system", "get", "pods", "-o", IMAGES])?;
    watch.note(&format!("running: {}", images.trim()));
    for node in &scene.nodes {
        let pinned = on_node(&scene.lab, node, "ls", &[PINS])?;
        watch.note(&format!("pinned on {node}: {}", pinned.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    Ok(())
}

const IMAGES: &str = "jsonpath={range .items[*]}{.spec.nodeName}/{.spec.containers[0].image} {end}";
const PINS: &str = "/sys/fs/bpf/sheave";
/// How long clients are watched on: what must not happen has nothing to be waited for. Longer than a batch of additions waits for more
/// (`speaker_core::forwarding`, LONGEST).
const AFTERWARDS: Duration = Duration::from_secs(20);
