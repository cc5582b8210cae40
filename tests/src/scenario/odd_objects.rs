//! Objects that this version cannot read, and large ones, while speakers start: neither costs more than itself.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::address::first_answer;
use super::deploy::Scene;
use super::http;
use super::settle::wait_new_speaker;
use crate::lab::fault::Fault;
use crate::lab::wait_for;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OddObjects {
    /// The most that a speaker had resident since it started, of all nodes.
    pub peak_mb: f64,
    /// Of a new Service, beside them.
    pub first_answer_ms: f64,
    /// Nodes whose `/readyz` did not name them.
    pub unnamed: Vec<String>,
}

/// Every speaker starts anew beside 100 Services with annotations of 250 kB (C17 of November 2026) and an L2Advertisement with a time that no
/// clock has (C16).
pub fn odd_objects(scene: &Scene) -> Result<OddObjects> {
    let made = make(scene);
    let report = made.and_then(|()| beside(scene));
    // Also after a failure.
    remove(scene)?;
    let report = report?;
    wait_unreadable(scene, 0.0)?;
    Ok(report)
}

fn make(scene: &Scene) -> Result<()> {
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TENANT} });
    scene.api.create(NAMESPACES, &namespace)?;
    // Six bytes of JSON for each character.
    let annotation = "\u{1}".repeat(250_000);
    for number in 0..SERVICES {
        let metadata = json!({ "name": format!("s-{number}"), "annotations": { "a": annotation } });
        let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": { "ports": [{ "port": 80 }] } });
        scene.api.create(&format!("{NAMESPACES}/{TENANT}/services"), &service)?;
    }
    let condition = json!({
        "type": "Ready", "status": "True", "reason": "Ready", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00+99:99",
    });
    let odd = json!({ "status": { "conditions": [condition] } });
    let object = json!({
        "apiVersion": "sheave.dev/v1alpha1", "kind": "L2Advertisement", "metadata": {"name": ODD},
        "spec": {"pools": ["none"]},
    });
    scene.api.create(ADVERTISEMENTS, &object)?;
    scene.api.patch(&format!("{ADVERTISEMENTS}/{ODD}/status"), &odd)?;
    Ok(())
}

fn beside(scene: &Scene) -> Result<OddObjects> {
    wait_unreadable(scene, 1.0)?;
    for node in &scene.nodes {
        let pid = scene.lab.speaker(node)?.with_context(|| format!("{node} has no speaker"))?.pid;
        scene.lab.fault(Fault::DeleteSpeakerPod { node: node.clone() })?;
        wait_new_speaker(scene, node, pid, WITHIN)?;
    }
    wait_unreadable(scene, 1.0)?;
    let names = |node: &&String| -> Result<bool> {
        let ready = http::speaker(&scene.lab, scene.node_address(node)?, "/readyz")?;
        Ok(ready.body.contains("objects_unreadable"))
    };
    let mut unnamed = Vec::new();
    for node in &scene.nodes {
        if !names(&node)? {
            unnamed.push(node.clone());
        }
    }
    let first_answer_ms = first_answer(scene, 4)?.first_answer_ms;
    let peaks = scene.nodes.iter().map(|node| peak(scene, node));
    let peak = peaks.collect::<Result<Vec<_>>>()?.into_iter().max().context("labs have nodes")?;
    Ok(OddObjects { peak_mb: peak as f64 / 1e6, first_answer_ms, unnamed })
}

fn remove(scene: &Scene) -> Result<()> {
    scene.api.delete(&format!("{ADVERTISEMENTS}/{ODD}"))?;
    scene.api.delete(&format!("{NAMESPACES}/{TENANT}"))
}

fn wait_unreadable(scene: &Scene, count: f64) -> Result<()> {
    wait_for(&format!("every speaker to count {count} objects that it cannot read"), WITHIN, || {
        for node in &scene.nodes {
            // One that starts may listen a moment later.
            let Ok(metrics) = http::metrics(&scene.lab, scene.node_address(node)?) else { return Ok(None) };
            if http::value(&metrics, "sheave_objects_unreadable{kind=\"L2Advertisement\"}") != Some(count) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}

/// Bytes.
fn peak(scene: &Scene, node: &str) -> Result<u64> {
    let pid = scene.lab.speaker(node)?.with_context(|| format!("{node} has no speaker"))?.pid;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

const SERVICES: usize = 100;
const TENANT: &str = "tenant";
const ODD: &str = "odd";
const NAMESPACES: &str = "/api/v1/namespaces";
const ADVERTISEMENTS: &str = "/apis/sheave.dev/v1alpha1/l2advertisements";
const WITHIN: Duration = Duration::from_secs(60);
