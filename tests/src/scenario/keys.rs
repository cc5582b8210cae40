//! The Secret with the speakers' keys: replaced by another one, as when it was lost and made anew (cluster id, flow key, signing key); and
//! not there yet when a speaker starts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::address::counted;
use super::controller::ready_controllers;
use super::deploy::Scene;
use super::inside::on_node;
use super::measure::{Measurement, Observed};
use super::settle::{wait_holder, wait_new_speaker};
use super::waits::{Waits, Watch, own_waited_ms};
use super::{http, pods};
use crate::lab::{Fault, wait_for};
use crate::traffic::clock::now_ns;

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeysReplaced {
    /// Its speaker was restarted when the Secret had changed.
    pub restarted: String,
    pub owner_before: String,
    pub owner_after: String,
    /// Reason → adverts that all speakers refused until the new key was in use; the restarted one counts from its start.
    pub refused: BTreeMap<String, f64>,
    #[serde(flatten)]
    pub observed: Observed,
}

/// Replaces the Secret, restarts the speaker of a node that is not the owner, waits until all sign with the new key; then puts the first
/// contents back and waits again.
pub fn keys_replaced(scene: &Scene, connections: u16) -> Result<KeysReplaced> {
    let owner = wait_holder(scene, &scene.nodes)?;
    let restarted = scene.nodes.iter().find(|node| **node != owner).context("labs have two nodes")?.clone();
    let first = scene.api.get(SECRET)?;
    let refused_before = refusals(scene)?;
    let mut measurement = Measurement::start(scene, connections, false)?;
    measurement.mark()?;
    let replaced = replace_and_restart(scene, &restarted);
    let back = scene.api.patch(SECRET, &json!({ "data": first["data"] })).and_then(|_| wait_rotated(scene, 0.0));
    let owner_after = wait_holder(scene, &scene.nodes);
    let observed = measurement.finish(&owner, None)?;
    back.context("the first keys are put back")?;
    let refused_during = replaced.context("the Secret is replaced")?;
    let refused = |reason| (refusals_of(&refused_during, reason) - refusals_of(&refused_before, reason)).max(0.0);
    Ok(KeysReplaced {
        restarted,
        owner_before: owner,
        owner_after: owner_after?,
        refused: REASONS.iter().map(|reason| ((*reason).to_owned(), refused(reason))).collect(),
        observed,
    })
}

/// How long after the Secret's creation a speaker that waited for it had its keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeysAwaited {
    /// The answers of /readyz and /livez of the waiting speaker.
    pub waited_for: String,
    pub live: u16,
    /// Until /readyz named something else, a start of kubectl's proxy connection included.
    pub created_to_keys_ms: f64,
    /// Which programs waited for a processor meanwhile.
    pub waits: Waits,
}

/// A node without keys on disk, a cluster without the Secret and without a controller: a first installation. Then the Secret comes.
pub fn keys_awaited(scene: &Scene) -> Result<KeysAwaited> {
    scale_controllers(scene, 0)?;
    let report = without_controllers(scene);
    // Also after a failure: the next step wants controllers.
    scale_controllers(scene, 2)?;
    report
}

fn without_controllers(scene: &Scene) -> Result<KeysAwaited> {
    let owner = wait_holder(scene, &scene.nodes)?;
    let node = scene.nodes.iter().find(|node| **node != owner).context("labs have two nodes")?;
    let pid = scene.lab.speaker(node)?.with_context(|| format!("{node} has no speaker"))?.pid;
    let first = scene.api.get(SECRET)?;
    // Keys that were replaced before are written to disk a moment after they are in use: that would bring the file back.
    wait_for("the keys of the Secret on disk", WITHIN, || {
        let stored: Value = serde_json::from_str(&on_node(&scene.lab, node, "cat", &[KEYS])?)?;
        Ok((stored["signing"] == first["data"]["current"] && stored["other"].is_null()).then_some(()))
    })?;
    scene.api.delete(SECRET)?;
    on_node(&scene.lab, node, "rm", &[KEYS])?;
    let waited = wait_without_keys(scene, node);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": first["type"], "data": first["data"],
        "metadata": {"name": "sheave-keys", "namespace": "sheave-system", "labels": first["metadata"]["labels"]},
    });
    let (watch, own_waited) = (Watch::start(scene), own_waited_ms());
    scene.api.create(SECRETS, &secret)?;
    let (created, created_ns) = (Instant::now(), now_ns());
    let address = scene.node_address(node)?;
    wait_for("the speaker to have keys", WITHIN, || {
        let ready = http::speaker(&scene.lab, address, "/readyz")?;
        Ok((!ready.body.contains("keys_")).then_some(()))
    })?;
    let created_to_keys_ms = created.elapsed().as_secs_f64() * 1e3;
    let waits = watch?.finish(created_ns, own_waited_ms() - own_waited)?;
    wait_new_speaker(scene, node, pid, RESTARTS_WITHIN)?;
    let (waited_for, live) = waited?;
    Ok(KeysAwaited { waited_for, live, created_to_keys_ms, waits })
}

fn wait_without_keys(scene: &Scene, node: &str) -> Result<(String, u16)> {
    scene.lab.fault(Fault::DeleteSpeakerPod { node: node.to_owned() })?;
    let address = scene.node_address(node)?;
    let waited_for = wait_for("a speaker that waits for keys", RESTARTS_WITHIN, || {
        let ready = http::speaker(&scene.lab, address, "/readyz").ok();
        Ok(ready.filter(|ready| ready.body.contains("keys_missing")).map(|ready| ready.body))
    })?;
    Ok((waited_for, http::speaker(&scene.lab, address, "/livez")?.status))
}

fn scale_controllers(scene: &Scene, replicas: usize) -> Result<()> {
    scene.api.patch(CONTROLLERS, &json!({ "spec": { "replicas": replicas } }))?;
    // One that is being deleted counts: until it has ended it creates a Secret that is deleted again.
    wait_for("the controllers", RESTARTS_WITHIN, || {
        let all = pods::with_terminating(&scene.api, "")?;
        let running = all.iter().filter(|pod| pod.image.contains("sheave-controller")).count();
        Ok((running == replicas && ready_controllers(scene)?.len() == replicas).then_some(()))
    })
}

/// Refusals when all sign with the new key.
fn replace_and_restart(scene: &Scene, node: &str) -> Result<Refusals> {
    let pid = scene.lab.speaker(node)?.with_context(|| format!("{node} has no speaker"))?.pid;
    let other = json!({ "current": "k".repeat(32), "flow-hash": "f".repeat(16), "cluster-id": "c".repeat(8) });
    scene.api.patch(SECRET, &json!({ "stringData": other }))?;
    scene.lab.fault(Fault::DeleteSpeakerPod { node: node.to_owned() })?;
    wait_new_speaker(scene, node, pid, RESTARTS_WITHIN)?;
    wait_rotated(scene, 1.0)?;
    refusals(scene)
}

/// All speakers have noticed that cluster id and flow key differ from theirs, or do not any more, and use one key.
fn wait_rotated(scene: &Scene, differs: f64) -> Result<()> {
    let expected =
        [("sheave_keys_identity_differs", differs), ("sheave_keys_rotating", 0.0), ("sheave_keys_accepted", 1.0)];
    wait_for("all speakers to sign with the new key", WITHIN, || {
        for node in &scene.nodes {
            // The restarted one may listen a moment later.
            let Ok(metrics) = http::metrics(&scene.lab, scene.node_address(node)?) else { return Ok(None) };
            if expected.iter().any(|(name, value)| http::value(&metrics, name) != Some(*value)) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}

type Refusals = BTreeMap<&'static str, f64>;

fn refusals(scene: &Scene) -> Result<Refusals> {
    let series = |reason| format!("sheave_adverts_rejected_total{{reason=\"{reason}\"}}");
    REASONS.iter().map(|reason| Ok((*reason, counted(scene, &series(reason))?))).collect()
}

fn refusals_of(refusals: &Refusals, reason: &str) -> f64 {
    refusals.get(reason).copied().unwrap_or_default()
}

const REASONS: [&str; 3] = ["wrong_cluster", "unknown_key", "bad_mac"];
const CONTROLLERS: &str = "/apis/apps/v1/namespaces/sheave-system/deployments/sheave-controller";
const SECRETS: &str = "/api/v1/namespaces/sheave-system/secrets";
const SECRET: &str = "/api/v1/namespaces/sheave-system/secrets/sheave-keys";
const KEYS: &str = "/var/lib/sheave/keys.json";
const WITHIN: Duration = Duration::from_secs(30);
const RESTARTS_WITHIN: Duration = Duration::from_secs(60);
