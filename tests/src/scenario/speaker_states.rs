//! What each node's SpeakerState says, beside what is true of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::text;
use super::deploy::Scene;
use super::inside::on_node;
use crate::lab::{plan, wait_for};

/// The SpeakerStates of all nodes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SpeakerStates {
    /// As `kubectl get speakerstates` prints them.
    pub table: String,
    /// What some object says and is not so, each with its node; empty if all is true.
    pub untrue: Vec<String>,
    /// Nodes whose object was written while nothing happened.
    pub written_at_rest: Vec<String>,
}

/// Compares every field with the node itself, and looks whether anything is written while nothing happens.
pub fn speaker_states(scene: &Scene) -> Result<SpeakerStates> {
    let mut untrue = Vec::new();
    let mut versions = BTreeMap::new();
    for node in &scene.nodes {
        let truth = truth(scene, node)?;
        let mut said = json!(null);
        let all_true = wait_for("the SpeakerState to be true", FOLLOWS, || {
            said = said_of(scene, node)?;
            Ok((said == truth).then_some(()))
        });
        if all_true.is_err() {
            untrue.push(format!("{node} says {said}, and true is {truth}"));
        }
        versions.insert(node, version(scene, node)?);
    }
    // Nothing can be awaited where nothing is to happen: as long as a survey of the host and the next look take.
    sleep(FOLLOWS);
    let mut written_at_rest = Vec::new();
    for (node, before) in versions {
        if version(scene, node)? != before {
            written_at_rest.push(node.clone());
        }
    }
    let table = scene.lab.kubectl(&["get", "speakerstates", "-o", "wide"])?;
    Ok(SpeakerStates { table, untrue, written_at_rest })
}

fn object(scene: &Scene, node: &str) -> Result<Value> {
    Ok(scene.api.find(&format!("/apis/sheave.dev/v1alpha1/speakerstates/{node}"))?.unwrap_or_default())
}

fn version(scene: &Scene, node: &str) -> Result<String> {
    Ok(text(&object(scene, node)?, "/metadata/resourceVersion").to_owned())
}

fn said_of(scene: &Scene, node: &str) -> Result<Value> {
    let object = object(scene, node)?;
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let not_true = conditions.iter().filter(|one| one["status"] != "True").map(|one| one["type"].clone());
    let mut said = object["status"].clone();
    if let Some(fields) = said.as_object_mut() {
        // Which limits a lab's story reaches is not this scenario's.
        fields.remove("limitsReached");
        fields.insert(
            "conditions".to_owned(),
            json!({ "number": conditions.len(), "notTrue": not_true.collect::<Vec<_>>() }),
        );
        fields.insert("owner".to_owned(), object["metadata"]["ownerReferences"][0]["uid"].clone());
    }
    Ok(said)
}

/// Ports on which something listens on other than the loopback.
fn listening(scene: &Scene, node: &str, kind: &str) -> Result<BTreeSet<u16>> {
    let sockets = on_node(&scene.lab, node, "ss", &[kind])?;
    let local = sockets.lines().filter_map(|line| line.split_whitespace().nth(3)?.rsplit_once(':'));
    let outside = local.filter(|(address, _)| !address.starts_with("127.") && *address != "[::1]");
    Ok(outside.filter_map(|(_, port)| port.parse().ok()).collect())
}

/// By other programs than the speaker.
fn truth(scene: &Scene, node: &str) -> Result<Value> {
    let lab = &scene.lab;
    let link: Value =
        serde_json::from_str(&on_node(lab, node, "ip", &["-json", "link", "show", "dev", plan::UPLINK])?)?;
    let routes: Value = serde_json::from_str(&on_node(lab, node, "ip", &["-json", "route", "show", "default"])?)?;
    // 1 is the driver's mode (linux/if_link.h, XDP_ATTACHED_DRV).
    let native = link[0]["xdp"]["mode"] == 1;
    let subnet = plan::address(0);
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": on_node(lab, node, "uname", &["-r"])?.trim(),
        "entry": if native { "xdp-native" } else { "none" },
        "serviceProxy": lab.state()?.plan.proxy_mode.to_string(),
        "uplinks": [{
            "name": plan::UPLINK,
            "mac": lab.mac(node)?,
            "mtu": link[0]["mtu"],
            "addresses": [lab.state()?.node_address(node)?],
            "subnets": [format!("{subnet}/24")],
            "gateways": [routes[0]["gateway"]],
        }],
        "listening": { "tcp": listening(scene, node, "-Hltn")?, "udp": listening(scene, node, "-Hlun")? },
        "conditions": { "number": CONDITIONS, "notTrue": [] },
        "owner": scene.api.get(&format!("/api/v1/nodes/{node}"))?["metadata"]["uid"].as_str().context("a UID")?,
    }))
}

/// Ready, and one for each check of the speaker.
const CONDITIONS: usize = 8;
/// The host is surveyed every 10 s, and what differs is written within 1 s.
const FOLLOWS: Duration = Duration::from_secs(15);
