//! Objects that are as nobody meant them to be: one of them costs itself, not all.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sheave_tests::lab::wait_for;

use super::claims;
use super::objects::{Objects, SOON};
use super::pair::Pair;

/// Service `four` has 192.168.77.200 when this begins, and when it ends.
pub fn chapters(objects: &Objects, pair: &mut Pair) -> Result<()> {
    a_time_that_no_clock_has(objects, pair).context("a time that no clock has")?;
    unreadable(objects, pair).context("an unreadable pool")?;
    large(objects, pair).context("large annotations")
}

/// C16 of November 2026: the API server admits it in a VirtualIP and in a condition of a pool.
fn a_time_that_no_clock_has(objects: &Objects, pair: &mut Pair) -> Result<()> {
    let status = |rest: &str| {
        let status = format!("{{owner: node1, term: 1{rest}}}");
        claims::write(objects, "node1", "192.168.77.200", &status)
    };
    status(", reason: ClientAddressLost, since: '2026-01-01T00:00:00+99:99'")?;
    pair.stop()?;
    let odd = r#"{"status":{"conditions":[{"type":"Ready","status":"True","reason":"Valid","message":"","lastTransitionTime":"2026-01-01T00:00:00+99:99"}]}}"#;
    objects.0.kubectl(&["patch", "addresspool", "default", "--subresource=status", "--type=merge", "-p", odd])?;
    pair.replace(&[])?;
    // The rest of both is read: the reason reaches the Service, and the pool's status is written anew.
    wait_for("the remark", SOON, || Ok((objects.condition("four")?.1 == "ClientAddressLost").then_some(())))?;
    wait_for("the pool's status to be mended", SOON, || {
        Ok((!objects.get(&["addresspool", "default"])?.to_string().contains("+99:99")).then_some(()))
    })?;
    objects.service("next", "", "")?;
    objects.wait_shown("next", "192.168.77.201")?;
    objects.delete("service", "next")?;
    status("")?;
    wait_for("the remark to go", SOON, || Ok((objects.condition("four")?.1 == "AddressAllocated").then_some(())))
}

/// As from another version of the CRD: a field is of another type.
fn unreadable(objects: &Objects, pair: &mut Pair) -> Result<()> {
    const FIELD: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/autoAssign";
    let crd = objects.get(&["crd", "addresspools.sheave.dev"])?;
    let replace = |value: &Value| {
        let patch = json!([{ "op": "replace", "path": FIELD, "value": value }]).to_string();
        objects.0.kubectl(&["patch", "crd", "addresspools.sheave.dev", "--type=json", "-p", &patch])
    };
    replace(&json!({ "x-kubernetes-preserve-unknown-fields": true }))?;
    let odd = "apiVersion: sheave.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: odd}\n\
               spec: {addresses: [198.51.100.0/30], autoAssign: perhaps}";
    wait_for("the field to be free", std::time::Duration::from_secs(20), || Ok(objects.0.apply(odd).ok()))?;
    for started in [false, true] {
        if started {
            pair.replace(&[])?;
        }
        let metric = "sheave_controller_objects_unreadable{kind=\"AddressPools\"}";
        wait_for("the metric", SOON, || Ok((pair.leader()?.metric(metric)? == 1.0).then_some(())))?;
        wait_for("the note", SOON, || {
            Ok(pair.leader()?.readyz()?.contains("note: AddressPools odd cannot be read; skipped").then_some(()))
        })?;
        objects.service("next", "", "")?;
        objects.wait_shown("next", "192.168.77.201")?;
        objects.delete("service", "next")?;
    }
    ensure!(pair.leader()?.log().contains("perhaps"), "the log says what is wrong");
    objects.delete("addresspool", "odd")?;
    // By the event of the watch: a change of the CRD would have everything listed again.
    wait_for("the note to go", SOON, || Ok((!pair.leader()?.readyz()?.contains("cannot be read")).then_some(())))?;
    replace(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["autoAssign"])
        .map(drop)
}

/// C17 of November 2026: a tenant's annotations, each character six bytes of JSON. The limit of the container is 128 MiB.
fn large(objects: &Objects, pair: &mut Pair) -> Result<()> {
    const COUNT: usize = 60;
    objects.0.kubectl(&["create", "namespace", "tenant"])?;
    let annotation = "\u{1}".repeat(250_000);
    for number in 0..COUNT {
        let metadata = json!({ "name": format!("s-{number}"), "annotations": { "a": annotation } });
        let spec = json!({ "ports": [{ "port": 80 }] });
        let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec });
        objects.create("/api/v1/namespaces/tenant/services", &service)?;
    }
    pair.replace(&[])?;
    objects.service("next", "", "")?;
    objects.wait_shown("next", "192.168.77.201")?;
    objects.delete("service", "next")?;
    for replica in pair.all() {
        let peak = replica.peak_memory()?;
        eprintln!("{COUNT} Services with annotations of 250 kB: at most {peak} kB resident");
        ensure!(peak < 64 * 1024, "{peak} kB");
    }
    objects.0.kubectl(&["delete", "namespace", "tenant", "--wait=false"])?;
    pair.replace(&[])
}
