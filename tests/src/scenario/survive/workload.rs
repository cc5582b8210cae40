//! The Deployment behind the addresses: how many pods, other pods, and waiting for them.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::lab::wait_for;
use crate::scenario::deploy::{NAMESPACE, SERVICES, Scene};
use crate::scenario::pods::Pod;
use crate::traffic::clock::now_ns;

/// As `kubectl scale`.
pub fn scale(scene: &Scene, replicas: usize) -> Result<()> {
    scene.api.patch(DEPLOYMENT, &json!({"spec": {"replicas": replicas}})).map(drop)
}

/// As `kubectl rollout restart`: every pod is replaced by another one.
pub fn restart(scene: &Scene) -> Result<()> {
    let annotations = json!({"sheave.dev/restarted": now_ns().to_string()});
    let patch = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
    scene.api.patch(DEPLOYMENT, &patch).map(drop)
}

/// As many pods as there should be.
pub fn replicas(scene: &Scene) -> Result<usize> {
    let deployment = scene.api.get(DEPLOYMENT)?;
    number(&deployment, "/spec/replicas").and_then(|count| usize::try_from(count).ok()).context("replicas")
}

/// Waits until every pod is of the newest kind and Ready, and those on their way out are gone.
pub fn wait_rolled_out(scene: &Scene) -> Result<()> {
    let mut seen = Value::Null;
    let waited = wait_for("the Deployment to be rolled out", WITHIN, || {
        let deployment = scene.api.get(DEPLOYMENT)?;
        seen = deployment["status"].clone();
        Ok((rolled_out(&deployment) && leaving(scene)?.is_empty()).then_some(()))
    });
    waited.with_context(|| format!("leaving: {:?}, status: {seen}", leaving(scene).unwrap_or_default()))
}

/// Waits until so many pods are Ready.
pub fn wait_ready(scene: &Scene, pods: i64) -> Result<()> {
    wait_for(&format!("{pods} pods to be Ready"), WITHIN, || {
        let ready = number(&scene.api.get(DEPLOYMENT)?, "/status/readyReplicas").unwrap_or_default();
        Ok((ready == pods).then_some(()))
    })
}

/// `ClientIP` or `None`.
pub fn set_affinity(scene: &Scene, service: &str, affinity: &str) -> Result<()> {
    scene.api.patch(&format!("{SERVICES}/{service}"), &json!({"spec": {"sessionAffinity": affinity}})).map(drop)
}

/// Gives every pod a color.
pub fn paint(scene: &Scene, color: impl Fn(&Pod) -> &'static str) -> Result<()> {
    scene.pods()?.iter().try_for_each(|pod| {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}", pod.name);
        scene.api.patch(&path, &json!({"metadata": {"labels": {"color": color(pod)}}})).map(drop)
    })
}

/// The Service's selector names pods of this color only, or all.
pub fn select(scene: &Scene, service: &str, color: Option<&str>) -> Result<()> {
    scene.api.patch(&format!("{SERVICES}/{service}"), &json!({"spec": {"selector": {"color": color}}})).map(drop)
}

/// The names of pods that are being deleted.
pub fn leaving(scene: &Scene) -> Result<Vec<String>> {
    let items = scene.api.list(&format!("/api/v1/namespaces/{NAMESPACE}/pods"))?;
    let leaving = items.iter().filter(|pod| pod.pointer("/metadata/deletionTimestamp").is_some());
    Ok(leaving.map(|pod| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect())
}

fn rolled_out(deployment: &Value) -> bool {
    let status = |name: &str| number(deployment, &format!("/status/{name}")).unwrap_or_default();
    let wanted = number(deployment, "/spec/replicas").unwrap_or_default();
    number(deployment, "/metadata/generation") <= number(deployment, "/status/observedGeneration")
        && ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|name| status(name) == wanted)
}

fn number(object: &Value, pointer: &str) -> Option<i64> {
    object.pointer(pointer).and_then(Value::as_i64)
}

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/demo/deployments/echo";
const WITHIN: Duration = Duration::from_secs(120);
