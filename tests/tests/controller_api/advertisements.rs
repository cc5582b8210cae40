//! L2Advertisements: what the API server admits, and what the ledger says of them.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sheave_tests::lab::wait_for;

use super::objects::{Objects, SOON};

const ADDRESS: &str = "192.168.77.235";

pub fn chapters(objects: &Objects) -> Result<()> {
    fields_are_checked(objects)?;
    placements_are_checked(objects)?;
    objects.pool_with("announced", &format!("addresses: [{ADDRESS}]"))?;
    from_the_first_write_on(objects)?;
    followed(objects)?;
    not_announced(objects)?;
    objects.delete("service", "heard")?;
    objects.delete("l2advertisement", "some")?;
    objects.delete("addresspool", "announced")
}

fn apply(objects: &Objects, name: &str, spec: &str) -> Result<()> {
    objects.apply("l2advertisement", name, &object("L2Advertisement", name, spec))
}

fn object(kind: &str, name: &str, spec: &str) -> String {
    format!("apiVersion: sheave.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}")
}

/// The message names the field, the value and what is allowed.
fn fields_are_checked(objects: &Objects) -> Result<()> {
    for (spec, words) in [
        ("pools: [Office]", &["spec.pools[0]", "\"Office\"", "[a-z0-9]"][..]),
        ("pools: [a, a]", &["spec.pools[1]", "Duplicate value: \"a\""]),
        (
            "poolSelectors: [{matchExpressions: [{key: a, operator: In}]}]",
            &["spec.poolSelectors[0].matchExpressions[0]", "operator 'In' of key 'a' takes 1 to 64 values"],
        ),
        (
            "serviceSelectors: [{matchExpressions: [{key: a, operator: Like}]}]",
            &["spec.serviceSelectors[0].matchExpressions[0].operator", "\"Like\"", "\"DoesNotExist\""],
        ),
        (
            "nodeSelectors: [{matchExpressions: [{key: a, operator: Exists, values: [b]}]}]",
            &["spec.nodeSelectors[0].matchExpressions[0]", "operator 'Exists' of key 'a' takes no values"],
        ),
        ("preferredNodes: [{selector: {}, weight: 101}]", &["spec.preferredNodes[0].weight", "101", "100"]),
        ("preferredNodes: [{selector: {}}]", &["spec.preferredNodes[0].weight", "Required value"]),
        ("failback: 25h", &["spec.failback", "'25h' is neither Never nor a time", "1s to 24h"]),
        ("failback: never", &["spec.failback", "'never' is neither"]),
        ("interfaces: ['!eth0']", &["spec.interfaces[0]", "'!eth0' is neither the name of an interface", "1 to 15"]),
        ("excludedInterfaces: [bond0, sixteenletters16]", &["spec.excludedInterfaces[1]", "'sixteenletters16' is"]),
    ] {
        let error = objects.refusal("l2advertisement", &object("L2Advertisement", "bad", spec))?;
        ensure!(words.iter().all(|word| error.contains(word)), "{spec}: {error}");
    }
    Ok(())
}

/// The same of Placements.
fn placements_are_checked(objects: &Objects) -> Result<()> {
    for (name, spec, words) in [
        ("drain-a", "mode: Drain, node: b", "the name 'drain-a' must be 'drain-b'"),
        ("prefer-a", "mode: Prefer, node: a", "spec.address: required with spec.mode Prefer"),
        ("drain-1.2.3.4", "mode: Drain, node: a, address: 1.2.3.4", "'1.2.3.4' is not allowed with spec.mode Drain"),
        ("prefer-1.2.3", "mode: Prefer, node: a, address: 1.2.3", "'1.2.3' is not an IPv4 address"),
        (
            "move-1.2.3.4",
            "mode: Move, node: a, address: 1.2.3.4",
            "spec.owner, spec.term: required with spec.mode Move",
        ),
        ("drain-a", "mode: Drain, node: a, owner: b", "allowed with spec.mode Move alone, not with Drain"),
        ("move-1.2.3.4", "mode: Move, node: a, address: 1.2.3.4, owner: a, term: 7", "'a' is spec.owner as well"),
        ("drain-a", "mode: Evict, node: a", "\"Move\", \"Prefer\", \"Drain\""),
    ] {
        let error = objects.refusal("placement", &object("Placement", name, spec))?;
        ensure!(error.contains(words), "{name}, {spec}: {error}");
    }
    for (name, spec) in [
        ("drain-a", "mode: Drain, node: a, by: somebody, reason: tried"),
        ("prefer-1.2.3.4", "mode: Prefer, node: a, address: 1.2.3.4"),
        ("move-1.2.3.4", "mode: Move, node: a, address: 1.2.3.4, owner: b, term: 7"),
    ] {
        objects.apply("placement", name, &object("Placement", name, spec))?;
    }
    let table = objects.0.kubectl(&["get", "placements"])?;
    for word in ["MODE", "ADDRESS", "NODE", "BY", "REASON", "AGE", "Drain", "somebody", "tried"] {
        ensure!(table.contains(word), "{word} is not in\n{table}");
    }
    objects.0.kubectl(&["delete", "placements", "--all"]).map(drop)
}

/// A watch of the ledger never shows the entry without them.
fn from_the_first_write_on(objects: &Objects) -> Result<()> {
    for failback in ["Never", "86400s", "10m", "24h"] {
        apply(objects, "some", &format!("pools: [announced], failback: {failback}"))?;
    }
    apply(objects, "some", "pools: [announced], serviceSelectors: [{matchLabels: {app: heard}}]")?;
    wait_ready(objects, "some", "True Valid 0")?;
    objects.0.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: heard, labels: {{app: heard}},\n\
         annotations: {{sheave.dev/addresses: {ADDRESS}}}}}\n\
         spec: {{type: LoadBalancer, ports: [{{port: 80}}]}}"
    ))?;
    objects.wait_shown("heard", ADDRESS)?;
    let vip = objects.get(&["virtualip", ADDRESS])?;
    ensure!(vip["spec"]["l2Advertisements"] == json!(["some"]), "{}", vip["spec"]);
    ensure!(vip["metadata"]["generation"] == 1, "it was written again: {}", vip["metadata"]);
    wait_ready(objects, "some", "True Valid 1")
}

/// Objects and labels that change, and what is absent again when nothing selects.
fn followed(objects: &Objects) -> Result<()> {
    apply(objects, "every", "")?;
    wait_named(objects, json!(["every", "some"]))?;
    objects.0.kubectl(&["label", "service", "heard", "app=other", "--overwrite"])?;
    wait_named(objects, json!(["every"]))?;
    objects.delete("l2advertisement", "every")?;
    wait_named(objects, Value::Null)?;
    apply(objects, "some", "pools: [later], poolSelectors: [{matchLabels: {zone: '1'}}]")?;
    wait_ready(objects, "some", "False UnknownPool 0")?;
    objects.0.kubectl(&["label", "addresspool", "announced", "zone=1"])?;
    wait_named(objects, json!(["some"]))?;
    wait_ready(objects, "some", "False UnknownPool 1")?;
    let table = objects.0.kubectl(&["get", "l2advertisements"])?;
    for word in ["NAME", "POOLS", "ADDRESSES", "READY", "REASON", "later", "UnknownPool"] {
        ensure!(table.contains(word), "{word} is not in\n{table}");
    }
    Ok(())
}

/// Of a pool that says so, whatever selects it.
fn not_announced(objects: &Objects) -> Result<()> {
    let say = |announce: &str| {
        let patch = format!("{{\"spec\":{{\"announce\":{announce}}}}}");
        objects.0.kubectl(&["patch", "addresspool", "announced", "--type=merge", "-p", &patch])
    };
    let refused = say("\"Never\"").err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(refused.contains("spec.announce") && refused.contains("\"L2\", \"None\""), "{refused}");
    say("\"None\"")?;
    wait_for("the ledger to say it", SOON, || {
        let spec = objects.get(&["virtualip", ADDRESS])?["spec"].take();
        Ok((spec["announce"] == "None" && spec["l2Advertisements"].is_null()).then_some(()))
    })?;
    say("null")?;
    wait_named(objects, json!(["some"]))?;
    ensure!(objects.get(&["virtualip", ADDRESS])?["spec"]["announce"].is_null(), "it says so still");
    Ok(())
}

fn wait_named(objects: &Objects, names: Value) -> Result<()> {
    wait_for(&format!("the ledger to name {names}"), SOON, || {
        Ok((objects.get(&["virtualip", ADDRESS])?["spec"]["l2Advertisements"] == names).then_some(()))
    })
}

/// Status and reason of `Ready`, and the count of addresses.
fn wait_ready(objects: &Objects, name: &str, wanted: &str) -> Result<()> {
    wait_for(&format!("{name} to say {wanted}"), SOON, || {
        let status = objects.get(&["l2advertisement", name])?["status"].take();
        let ready = &status["conditions"][0];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let said = format!("{} {} {}", text(&ready["status"]), text(&ready["reason"]), status["addresses"]);
        Ok((said == wanted).then_some(()))
    })
}
