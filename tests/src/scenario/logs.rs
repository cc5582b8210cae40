//! What our pods have logged since they started.

use std::time::Duration;

use anyhow::{Context, Result};

use super::api::text;
use super::controller::ready_controllers;
use super::deploy::Scene;
use crate::lab::wait_for;

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

/// On a busy machine the API server may give up its connection to the kubelet.
fn of_pod(scene: &Scene, pod: &str) -> Result<String> {
    let mut failed = None;
    let log =
        wait_for(&format!("the log of {pod}"), WITHIN, || match scene.lab.kubectl(&["-n", NAMESPACE, "logs", pod]) {
            Ok(log) => Ok(Some(log)),
            Err(error) => {
                failed = Some(error);
                Ok(None)
            }
        });
    log.map_err(|timeout| failed.map_or(timeout, |error| error.context(format!("the log of {pod}"))))
}

const WITHIN: Duration = Duration::from_secs(30);
const NAMESPACE: &str = "sheave-system";
const SPEAKERS: &str = "app.kubernetes.io%2Fname%3Dsheave-speaker";
