//! What our pods have logged since they started.

use anyhow::{Context, Result};

use super::api::text;
use super::controller::ready_controllers;
use super::deploy::Scene;

/// Of the node's speaker.
pub fn of_speaker(scene: &Scene, node: &str) -> Result<String> {
    let pods = scene.api.list(&format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={SPEAKERS}"))?;
    let pod = pods.iter().find(|pod| text(pod, "/spec/nodeName") == node);
    of_pod(scene, text(pod.with_context(|| format!("the speaker of {node}"))?, "/metadata/name"))
}

/// Of each controller.
pub fn of_controllers(scene: &Scene) -> Result<Vec<String>> {
    ready_controllers(scene)?.iter().map(|pod| of_pod(scene, &pod.name)).collect()
}

fn of_pod(scene: &Scene, pod: &str) -> Result<String> {
    scene.lab.kubectl(&["-n", NAMESPACE, "logs", pod])
}

const NAMESPACE: &str = "sheave-system";
const SPEAKERS: &str = "app.kubernetes.io%2Fname%3Dsheave-speaker";
