//! Services whose ports are at nodes' addresses, as klipper-lb's users have them: status, ledger, refusals, and the annotation live.

use anyhow::{Result, ensure};
use serde_json::Value;
use sheave_tests::lab::wait_for;

use super::objects::{Objects, SOON};

const NODES: [(&str, &str); 2] = [("edge-a", "192.168.77.31"), ("edge-b", "192.168.77.32")];

/// Service `four` has 192.168.77.200 of pool `default` when this begins, and when it ends.
pub fn chapters(objects: &Objects) -> Result<()> {
    for (name, address) in NODES {
        join(objects, name, address)?;
        listen(objects, name, "[22]")?;
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
    listen(objects, "edge-b", "[22, 80]")?;
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
    for (name, _) in NODES {
        objects.0.kubectl(&["delete", "node", name])?;
        objects.0.kubectl(&["delete", "speakerstate", name, "--ignore-not-found"])?;
    }
    objects.wait_ledger(&["192.168.77.200"])
}

const ANNOTATION: &str = "sheave.dev/address-mode: node";

fn join(objects: &Objects, name: &str, address: &str) -> Result<()> {
    objects.0.apply(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}"))?;
    let status = serde_json::json!({"status": {
        "addresses": [{"type": "InternalIP", "address": address}],
        "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": "made for this chapter"}],
    }});
    patch_status(objects, "node", name, &status)?;
    objects.0.apply(&format!(
        "apiVersion: sheave.dev/v1alpha1\nkind: SpeakerState\nmetadata: {{name: {name}}}\nspec: {{}}"
    ))?;
    Ok(())
}

/// What its speaker would report.
fn listen(objects: &Objects, node: &str, ports: &str) -> Result<()> {
    let ports: Value = serde_json::from_str(ports)?;
    let status = serde_json::json!({"status": {"listening": {"tcp": ports, "udp": []}}});
    patch_status(objects, "speakerstate", node, &status)
}

fn patch_status(objects: &Objects, kind: &str, name: &str, status: &Value) -> Result<()> {
    let status = status.to_string();
    objects.0.kubectl(&["patch", kind, name, "--subresource=status", "--type=merge", "-p", &status]).map(drop)
}

/// In the status of the Service, in order.
fn wait_addresses(objects: &Objects, service: &str, expected: &[&str]) -> Result<()> {
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
