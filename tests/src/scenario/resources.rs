//! What Sheave costs: memory, processor time of a speaker that has nothing to do, size of the images.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::deploy::Scene;
use super::{controller, inside};
use crate::lab::fault::usage;
use crate::lab::{image, plan};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resources {
    /// Resident, the largest of all nodes.
    pub speaker_mb: f64,
    pub controller_mb: f64,
    /// Of one core, the largest of all nodes, while nothing happens and nothing has for 20 s.
    pub idle_speaker_percent: f64,
    /// The same from the call on, when something may just have changed.
    pub changed_speaker_percent: f64,
    pub idle_seconds: f64,
    /// Image and size.
    pub images: Vec<(String, f64)>,
}

/// For 15 s after a change of its table a speaker dumps conntrack every second, 5 to 9 ms each where the kernel has 262,144
/// buckets, even empty ones.
const AT_REST: Duration = Duration::from_secs(20);

/// To be called when the cluster is whole. Watches the speakers for `idle`, twice.
pub fn resources(scene: &Scene, idle: Duration) -> Result<Resources> {
    let changed = watched(scene, idle)?;
    // Time must pass: that the table does not change is the absence of an event.
    sleep(AT_REST.saturating_sub(idle));
    let at_rest = watched(scene, idle)?;
    let controllers = controller::ready_controllers(scene)?;
    let each =
        controllers.iter().map(|pod| inside::process_of(&scene.lab, pod, "sheave-controller")?.memory(&scene.lab));
    let controller = each.collect::<Result<Vec<_>>>()?.into_iter().max().context("no controller is Ready")?;
    let images = image::pack_all(&plan::kubernetes_bin().join("pause"))?;
    Ok(Resources {
        speaker_mb: megabytes(at_rest.memory),
        controller_mb: megabytes(controller),
        idle_speaker_percent: at_rest.percent,
        changed_speaker_percent: changed.percent,
        idle_seconds: at_rest.seconds,
        images: images.into_iter().map(|image| (image.name, megabytes(image.bytes))).collect(),
    })
}

/// The largest of all speakers.
struct Watched {
    memory: u64,
    /// Of one core.
    percent: f64,
    seconds: f64,
}

fn watched(scene: &Scene, idle: Duration) -> Result<Watched> {
    let speakers = scene.nodes.iter().map(|node| {
        let speaker = scene.lab.speaker(node)?.with_context(|| format!("{node} has no speaker"))?;
        Ok((usage(&speaker)?, speaker))
    });
    let speakers: Vec<_> = speakers.collect::<Result<_>>()?;
    let began = Instant::now();
    sleep(idle);
    let seconds = began.elapsed().as_secs_f64();
    let (mut memory, mut ticks) = (0, 0);
    for ((_, before), speaker) in &speakers {
        let (bytes, now) = usage(speaker)?;
        memory = memory.max(bytes);
        ticks = ticks.max(now - before);
    }
    Ok(Watched { memory, percent: ticks as f64 / TICKS_PER_SECOND / seconds * 100.0, seconds })
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// USER_HZ, which is part of the kernel's interface to programs.
const TICKS_PER_SECOND: f64 = 100.0;
