//! Services that share an address, and addresses that are kept for Services that return.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheave_tests::lab::wait_for;

use super::objects::{Objects, SOON};

pub fn chapters(objects: &Objects) -> Result<()> {
    shared(objects)?;
    kept(objects)
}

/// A Service with one port of a pool of these chapters.
fn service(objects: &Objects, name: &str, pool: &str, annotation: &str, port: u16) -> Result<()> {
    let annotations = format!("{{sheave.dev/address-pool: {pool}{annotation}}}");
    let metadata = format!("metadata: {{name: {name}, annotations: {annotations}}}");
    let spec = format!("spec: {{type: LoadBalancer, selector: {{app: {name}}}, ports: [{{port: {port}}}]}}");
    objects.apply("service", name, &format!("apiVersion: v1\nkind: Service\n{metadata}\n{spec}"))
}

/// Names of the Services that the ledger has for an address, in its order.
fn named(objects: &Objects, address: &str) -> Result<Vec<String>> {
    let vip = objects.get(&["virtualip", address])?;
    let services = vip["spec"]["services"].as_array().cloned().unwrap_or_default();
    Ok(services.iter().filter_map(|service| service["name"].as_str()).map(str::to_string).collect())
}

/// Waits until the Service shows the address for this reason, and the ledger names it.
fn wait_has(objects: &Objects, name: &str, address: &str, reason: &str) -> Result<()> {
    wait_for(&format!("{name} to have {address}: {reason}"), SOON, || {
        let shows = objects.shown(name)?.is_some_and(|(ip, _)| ip == address);
        let fits = shows && objects.condition(name)?.1 == reason;
        Ok((fits && named(objects, address)?.iter().any(|other| other == name)).then_some(()))
    })
}

fn shared(objects: &Objects) -> Result<()> {
    const KEY: &str = ", sheave.dev/allow-shared-ip: web";
    let (first, second) = ("192.168.77.235", "192.168.77.236");
    objects.pool_with("shared", "addresses: [192.168.77.235-192.168.77.236], autoAssign: false")?;
    service(objects, "a", "shared", KEY, 80)?;
    wait_has(objects, "a", first, "AddressAllocated")?;
    service(objects, "b", "shared", ", metallb.io/allow-shared-ip: web", 443)?;
    wait_has(objects, "b", first, "AddressAllocated")?;
    let note = objects.wait_event("b", "Normal", "AnnotationRenamed")?;
    ensure!(note.contains("metallb.io/allow-shared-ip") && note.contains("sheave.dev/allow-shared-ip"), "{note}");
    service(objects, "c", "shared", KEY, 80)?;
    wait_has(objects, "c", second, "AddressAllocated")?;
    ensure!(named(objects, first)? == ["a", "b"] && named(objects, second)? == ["c"]);
    service(objects, "d", "shared", &format!(", sheave.dev/addresses: {first}"), 81)?;
    objects.wait_refused("d", "AddressInUse")?;
    let note = objects.wait_event("d", "Warning", "AddressInUse")?;
    ensure!(note.contains("192.168.77.235 is granted already: default/a has it"), "{note}");

    // A port in common moves neither.
    service(objects, "b", "shared", KEY, 80)?;
    wait_has(objects, "b", first, "SharingConflict")?;
    wait_has(objects, "a", first, "SharingConflict")?;
    let message = objects.condition("b")?.2;
    ensure!(message.contains("192.168.77.235 is shared: default/a has its port 80/TCP"), "{message}");
    service(objects, "b", "shared", KEY, 443)?;
    wait_has(objects, "b", first, "AddressAllocated")?;
    wait_has(objects, "a", first, "AddressAllocated")?;

    // One goes, the entry stays; with the key the next one joins.
    let entry = objects.ledger()?[first].0.clone();
    objects.delete("service", "a")?;
    wait_for("the ledger to name b alone", SOON, || Ok((named(objects, first)? == ["b"]).then_some(())))?;
    service(objects, "d", "shared", &format!("{KEY}, sheave.dev/addresses: {first}"), 81)?;
    wait_has(objects, "d", first, "AddressAllocated")?;
    wait_has(objects, "b", first, "AddressAllocated")?;
    ensure!(objects.ledger()?[first].0 == entry, "the entry was written anew");
    ensure!(named(objects, first)? == ["b", "d"]);
    objects.wait_counts("shared", &[("used", 2)]).context("addresses are counted, not Services")?;
    for name in ["b", "c", "d"] {
        objects.delete("service", name)?;
    }
    objects.delete("addresspool", "shared")?;
    objects.wait_ledger(&["192.168.77.200"])
}

fn kept(objects: &Objects) -> Result<()> {
    let pool = |retention: &str| {
        let metadata = format!("metadata: {{name: kept, annotations: {{sheave.dev/address-retention: {retention}}}}}");
        let spec = "spec: {addresses: [192.168.77.237-192.168.77.239], autoAssign: false}";
        let object = format!("apiVersion: sheave.dev/v1alpha1\nkind: AddressPool\n{metadata}\n{spec}");
        objects.apply("addresspool", "kept", &object)
    };
    pool("soon")?;
    let message = wait_for("the annotation to be named", SOON, || {
        let (status, _, message) = objects.pool_condition("kept")?;
        Ok((status == "True" && message.contains("address-retention")).then_some(message))
    })?;
    ensure!(message.contains("'soon' is no time") && message.contains("0s to 24h"), "{message}");
    // The time that holds then is minutes.
    service(objects, "first", "kept", "", 80)?;
    objects.wait_shown("first", "192.168.77.237")?;
    objects.delete("service", "first")?;
    objects.wait_ledger(&["192.168.77.200"])?;
    service(objects, "second", "kept", "", 80)?;
    objects.wait_shown("second", "192.168.77.238")?;
    service(objects, "first", "kept", "", 80)?;
    objects.wait_shown("first", "192.168.77.237")?;
    pool("0s")?;
    let said = |value: &Value| value["status"]["conditions"][0]["message"].as_str().unwrap_or_default().to_string();
    wait_for("the annotation to be read", SOON, || {
        Ok((!said(&objects.get(&["addresspool", "kept"])?).contains("address-retention")).then_some(()))
    })?;
    objects.delete("service", "first")?;
    objects.wait_ledger(&["192.168.77.200", "192.168.77.238"])?;
    service(objects, "third", "kept", "", 80)?;
    objects.wait_shown("third", "192.168.77.237")?;
    for name in ["second", "third"] {
        objects.delete("service", name)?;
    }
    objects.delete("addresspool", "kept")?;
    objects.wait_ledger(&["192.168.77.200"])
}
