//! Services whose ports are at nodes' addresses, as klipper-lb's users have them: status, ledger, refusals, and the annotation live.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sheave_tests::lab::wait_for;

use super::objects::{Objects, SOON};
use super::pair::Pair;
use super::replica::NAMESPACE;
use super::speaker_state::{report, speaker_of};

const NODES: [(&str, &str); 2] = [("edge-a", "192.168.77.31"), ("edge-b", "192.168.77.32")];

/// Service `four` has 192.168.77.200 of pool `default` when this begins, and when it ends.
pub fn chapters(objects: &Objects, pair: &mut Pair, folder: &Path) -> Result<()> {
    let mut speakers = Vec::new();
    for (name, address) in NODES {
        let speaker = join(objects, folder, name, address)?;
        listen(objects, &speaker, name, "[22]")?;
        speakers.push(speaker);
    }
    objects.service("web", ANNOTATION, "")?;
    let both = NODES.map(|(_, address)| address);
    wait_addresses(objects, "web", &both)?;
    let entry = objects.get(&["virtualip", both[0]])?;
    ensure!((&entry["spec"]["node"], &entry["spec"]["pool"]) == (&"edge-a".into(), &"(node)".into()), "{entry}");
    ensure!(objects.get(&["service", "web"])?["metadata"]["finalizers"].is_null(), "nothing waits for its deletion");

    objects.service("rival", ANNOTATION, "")?;
    objects.wait_refused("rival", "PortTakenOnNode")?;
    let note = objects.wait_event("rival", "Warning", "PortTakenOnNode")?;
    ensure!(note.contains("80/TCP") && note.contains("default/web"), "{note}");
    listen(objects, &speakers[1], "edge-b", "[22, 80]")?;
    wait_addresses(objects, "web", &both[..1])?;
    let note = objects.wait_event("web", "Warning", "PortInUseOnNode")?;
    ensure!(note.contains("edge-b"), "{note}");
    ensure!(objects.condition("web")?.0 == "True", "{:?}", objects.condition("web")?);

    // An address from the pool, and back.
    objects.service("web", "", "")?;
    objects.wait_shown("web", "192.168.77.201")?;
    wait_addresses(objects, "rival", &both[..1])?;
    objects.delete("service", "rival")?;
    objects.service("web", ANNOTATION, "")?;
    wait_addresses(objects, "web", &both[..1])?;
    objects.wait_ledger(&["192.168.77.200", both[0]])?;
    objects.service("web", "sheave.dev/address-mode: host", "")?;
    objects.wait_refused("web", "AddressModeUnknown")?;
    ensure!(objects.condition("web")?.2.contains("'host'"), "{:?}", objects.condition("web")?);
    objects.delete("service", "web")?;
    listen(objects, &speakers[1], "edge-b", "[22]")?;
    by_default(objects, pair)?;
    for (name, _) in NODES {
        let pod = format!("speaker-{name}");
        objects.0.kubectl(&["-n", NAMESPACE, "delete", "pod", &pod, "--force"])?;
        objects.0.kubectl(&["delete", "node", name])?;
        objects.0.kubectl(&["delete", "speakerstate", name, "--ignore-not-found"])?;
    }
    objects.wait_ledger(&["192.168.77.200"])
}

/// The cluster's default, by a flag: for Services that say nothing and have no address from a pool.
fn by_default(objects: &Objects, pair: &mut Pair) -> Result<()> {
    let entry = objects.ledger()?["192.168.77.200"].clone();
    pair.replace(&["--address-mode=node"])?;
    objects.service("plain", "", "")?;
    wait_addresses(objects, "plain", &NODES.map(|(_, address)| address))?;
    objects.service("asks", "sheave.dev/addresses: 192.168.77.201", "")?;
    objects.wait_shown("asks", "192.168.77.201")?;
    objects.service("says", "sheave.dev/address-mode: pool", "")?;
    objects.wait_shown("says", "192.168.77.202")?;
    ensure!(objects.ledger()?["192.168.77.200"] == entry, "what had an address from a pool has moved");
    objects.wait_shown("four", "192.168.77.200")?;
    for name in ["plain", "asks", "says"] {
        objects.delete("service", name)?;
    }
    pair.replace(&[])
}

const ANNOTATION: &str = "sheave.dev/address-mode: node";

/// A Node object without a machine. Returns the kubeconfig of its speaker.
fn join(objects: &Objects, folder: &Path, name: &str, address: &str) -> Result<PathBuf> {
    objects.0.apply(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}"))?;
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
    patch_status(objects, name, &status)?;
    speaker_of(objects.0, folder, name)
}

/// What the speaker of a node reports.
fn listen(objects: &Objects, speaker: &Path, node: &str, ports: &str) -> Result<()> {
    report(objects.0, speaker, node, &format!("{{listening: {{tcp: {ports}, udp: []}}}}"))
}

/// As a kubelet says again and again: without it the node counts as lost after 40 s. Any later time will do.
fn beat(objects: &Objects, node: &str) -> Result<()> {
    static BEATS: AtomicU32 = AtomicU32::new(0);
    let beat = BEATS.fetch_add(1, Ordering::Relaxed);
    let time = format!("2026-01-01T00:{:02}:{:02}Z", beat / 60 % 60, beat % 60);
    let ready = json!({"type": "Ready", "status": "True", "reason": "Test", "message": "", "lastHeartbeatTime": time});
    patch_status(objects, node, &json!({"status": {"conditions": [ready]}}))
}

fn patch_status(objects: &Objects, node: &str, status: &Value) -> Result<()> {
    objects.patch("node", &format!("{node}/status"), status)
}

/// In the status of the Service, in order.
fn wait_addresses(objects: &Objects, service: &str, expected: &[&str]) -> Result<()> {
    for (node, _) in NODES {
        beat(objects, node)?;
    }
    wait_for(&format!("{service} to show {expected:?}"), SOON, || {
        let ingress = objects.get(&["service", service])?["status"]["loadBalancer"]["ingress"].take();
        let entries = ingress.as_array().cloned().unwrap_or_default();
        Ok(entries
            .iter()
            .map(|entry| entry["ip"].as_str().unwrap_or_default())
            .eq(expected.iter().copied())
            .then_some(()))
    })
}
