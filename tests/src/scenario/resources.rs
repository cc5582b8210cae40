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
    /// Of one core, the largest of all nodes, while nothing happens.
    pub idle_speaker_percent: f64,
    pub idle_seconds: f64,
    /// Image and size.
    pub images: Vec<(String, f64)>,
}

/// To be called when the cluster is idle. Watches the speakers for `idle`.
pub fn resources(scene: &Scene, idle: Duration) -> Result<Resources> {
    let speakers = scene.nodes.iter().map(|node| {
        let speaker = scene.lab.speaker(node)?.with_context(|| format!("{node} has no speaker"))?;
        Ok((usage(&speaker)?, speaker))
    });
    let speakers: Vec<_> = speakers.collect::<Result<_>>()?;
    let began = Instant::now();
    sleep(idle);
    let idle_seconds = began.elapsed().as_secs_f64();
    let (mut memory, mut ticks) = (0, 0);
    for ((_, before), speaker) in &speakers {
        let (bytes, now) = usage(speaker)?;
        memory = memory.max(bytes);
        ticks = ticks.max(now - before);
    }
    let controllers = controller::ready_controllers(scene)?;
    let each =
        controllers.iter().map(|pod| inside::process_of(&scene.lab, pod, "sheave-controller")?.memory(&scene.lab));
    let controller = each.collect::<Result<Vec<_>>>()?.into_iter().max().context("no controller is Ready")?;
    let images = image::pack_all(&plan::kubernetes_bin().join("pause"))?;
    Ok(Resources {
        speaker_mb: megabytes(memory),
        controller_mb: megabytes(controller),
        idle_speaker_percent: ticks as f64 / TICKS_PER_SECOND / idle_seconds * 100.0,
        idle_seconds,
        images: images.into_iter().map(|image| (image.name, megabytes(image.bytes))).collect(),
    })
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// USER_HZ, which is part of the kernel's interface to programs.
const TICKS_PER_SECOND: f64 = 100.0;
