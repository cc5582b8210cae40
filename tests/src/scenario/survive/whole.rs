//! All that a scenario has left broken is repaired: every repetition begins with the same whole cluster.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::workload;
use crate::lab::plan::node_address;
use crate::lab::{Fault, ProxyMode, wait_for};
use crate::scenario::api::text;
use crate::scenario::deploy::{SERVICE, Scene};
use crate::scenario::settle::{settle, wait_new_speaker};

/// Power for all nodes, their own addresses, room on their disks, no cut, no filter, no Node deleted, no cordon, no label, a Service that names all pods, kube-proxy in the lab's mode, Sheave's own image, as many pods as at the
/// beginning and evenly spread. What is as it should be is left alone.
pub fn make_whole(scene: &Scene, flags: &[&str]) -> Result<()> {
    let lab = &scene.lab;
    let state = lab.state()?;
    for node in scene.nodes.iter().filter(|node| !state.nodes.contains_key(*node)) {
        lab.fault(Fault::PowerOn { node: node.clone() })?;
    }
    lab.fault(Fault::PassMulticast)?;
    lab.fault(Fault::JoinSpeakers)?;
    let registered = scene.api.list(NODES)?;
    for node in &scene.nodes {
        lab.fault(Fault::ApiHeal { node: node.clone() })?;
        lab.fault(Fault::FreeDisk { node: node.clone() })?;
        kube_proxy(scene, node, state.plan.proxy_mode)?;
        if scene.node_address(node)? != node_address(state.plan.node_number(node)?) {
            lab.fault(Fault::ChangeAddress { node: node.clone() })?;
        } else if !registered.iter().any(|object| text(object, "/metadata/name") == node) {
            lab.fault(Fault::RestartKubelet { node: node.clone() })?;
        }
    }
    for object in registered {
        let node = text(&object, "/metadata/name").to_owned();
        if object.pointer("/spec/unschedulable") == Some(&json!(true)) {
            lab.fault(Fault::Uncordon { node: node.clone() })?;
        }
        if object["metadata"]["labels"].get(EXCLUDED).is_some() {
            lab.fault(Fault::Include { node })?;
        }
    }
    workload::select(scene, SERVICE, None)?;
    lab.wait_all_back(&scene.nodes)?;
    speakers(scene, flags)?;
    spread(scene)?;
    settle(scene)
}

/// Waits until every node has a ready speaker. A speaker that died often is started ever more slowly by kubelet: its pod is
/// replaced.
pub fn speakers(scene: &Scene, flags: &[&str]) -> Result<()> {
    set_image(scene, IMAGE)?;
    set_arguments(scene, flags)?;
    for node in &scene.nodes {
        let there = || wait_for("a speaker", KUBELET_RESTARTS_WITHIN, || scene.lab.speaker(node));
        if there().is_err() {
            scene.lab.fault(Fault::DeleteSpeakerPod { node: node.clone() })?;
        }
        wait_new_speaker(scene, node, 0, READY_AGAIN_WITHIN)?;
    }
    Ok(())
}

/// Makes the DaemonSet run an image and waits until all speakers do.
pub fn set_image(scene: &Scene, image: &str) -> Result<()> {
    if text(&scene.api.get(DAEMON_SET)?, "/spec/template/spec/containers/0/image") == image {
        return Ok(());
    }
    let set = format!("speaker={image}");
    scene.lab.kubectl(&["--namespace=sheave-system", "set", "image", "daemonset/sheave-speaker", &set])?;
    rolled_out(scene)
}

/// Makes the DaemonSet run speakers with these flags and waits until all are.
fn set_arguments(scene: &Scene, flags: &[&str]) -> Result<()> {
    let arguments: Vec<&str> = ["run"].into_iter().chain(flags.iter().copied()).collect();
    let container = "/spec/template/spec/containers/0/args";
    if scene.api.get(DAEMON_SET)?.pointer(container) == Some(&json!(arguments)) {
        return Ok(());
    }
    let patch = json!([{ "op": "replace", "path": container, "value": arguments }]).to_string();
    let words = ["--namespace=sheave-system", "patch", "daemonset", "sheave-speaker", "--type=json", "-p", &patch];
    scene.lab.kubectl(&words)?;
    rolled_out(scene)
}

fn rolled_out(scene: &Scene) -> Result<()> {
    let status = ["--namespace=sheave-system", "rollout", "status", "daemonset/sheave-speaker", "--timeout=120s"];
    scene.lab.kubectl(&status).map(drop)
}

fn kube_proxy(scene: &Scene, node: &str, mode: ProxyMode) -> Result<()> {
    let (lab, node) = (&scene.lab, node.to_owned());
    if lab.kube_proxy_mode(&node)? != mode {
        return lab.fault(Fault::KubeProxyMode { node, mode });
    }
    match lab.kube_proxy_runs(&node)? {
        true => Ok(()),
        false => lab.fault(Fault::KubeProxyStart { node }),
    }
}

/// The same number of pods on every node.
fn spread(scene: &Scene) -> Result<()> {
    let wanted = scene.nodes.len() * scene.pods_per_node;
    if workload::replicas(scene)? != wanted {
        workload::scale(scene, wanted)?;
    }
    for _ in 0..TRIES {
        workload::wait_rolled_out(scene)?;
        let pods = scene.pods()?;
        let on = |node: &String| pods.iter().filter(|pod| pod.node == *node).count();
        if scene.nodes.iter().all(|node| on(node) == scene.pods_per_node) {
            return Ok(());
        }
        workload::restart(scene)?;
    }
    workload::wait_rolled_out(scene).context("spread evenly")
}

/// What the DaemonSet of the lab runs.
pub const IMAGE: &str = "sheave-speaker:lab";
const NODES: &str = "/api/v1/nodes";
const DAEMON_SET: &str = "/apis/apps/v1/namespaces/sheave-system/daemonsets/sheave-speaker";
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const KUBELET_RESTARTS_WITHIN: Duration = Duration::from_secs(3);
const READY_AGAIN_WITHIN: Duration = Duration::from_secs(60);
const TRIES: usize = 3;
