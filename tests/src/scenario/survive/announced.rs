//! L2Advertisements choose the nodes that may announce the address, by labels and uplinks.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::watch::{Options, Watch};
use super::{Setup, Survival, survive};
use crate::lab::wait_for;
use crate::scenario::api::text;
use crate::scenario::deploy::{Scene, VIRTUALIPS};
use crate::scenario::settle::wait_holder;

/// Two L2Advertisements name the nodes by labels of their own. The owner is none of them; then a label is taken away; then a node is
/// preferred.
pub fn labels(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::DEFAULT, |watch| {
        let owner = wait_holder(scene, &scene.nodes)?;
        let others: Vec<&String> = scene.nodes.iter().filter(|node| **node != owner).collect();
        let [first, second] = others[..] else { anyhow::bail!("three nodes are needed: {:?}", scene.nodes) };
        label(scene, first, "first", true)?;
        let chosen = json!([{ "matchLabels": { "e2e.test/first": "yes" } }]);
        let spec = json!({ "pools": ["demo"], "nodeSelectors": chosen, "interfaces": ["eth?"] });
        moved(watch, first, "chosen by a label", || advertise(scene, "first", spec))?;
        // Both may, and the owner stays until it may no more.
        label(scene, second, "second", true)?;
        let chosen = json!([{ "matchExpressions": [{ "key": "e2e.test/second", "operator": "Exists" }] }]);
        advertise(scene, "second", json!({ "nodeSelectors": chosen, "excludedInterfaces": ["bond*"] }))?;
        wait_named(scene, json!(["first", "second"]))?;
        ensure!(wait_holder(scene, &scene.nodes)? == *first, "a second L2Advertisement moved the address");
        moved(watch, second, "a label taken away", || label(scene, first, "first", false))?;
        // The owner works, and another one is preferred.
        label(scene, first, "heavy", true)?;
        let heavy = json!([{ "selector": { "matchLabels": { "e2e.test/heavy": "yes" } }, "weight": 100 }]);
        let spec = json!({ "nodeSelectors": null, "preferredNodes": heavy, "failback": "1s" });
        let patch = || scene.api.patch(&format!("{ADVERTISEMENTS}/second"), &json!({ "spec": spec })).map(drop);
        moved(watch, first, "failback", patch)
    })
}

/// No node may announce the address any more: its status says so; nor is a pool announced that says so itself. Then all is as before.
pub fn none(scene: &Scene) -> Result<String> {
    let mut said = Vec::new();
    advertise(scene, "second", json!({ "interfaces": ["bond*"] }))?;
    said.push(wait_vacant(scene, "NoEligibleNode")?);
    scene.api.patch(POOL, &json!({ "spec": { "announce": "None" } }))?;
    said.push(wait_vacant(scene, "NotAnnounced")?);
    scene.api.patch(POOL, &json!({ "spec": { "announce": null } }))?;
    said.push(wait_vacant(scene, "NoEligibleNode")?);
    Ok(said.join(", "))
}

/// Takes away what the others have made, and waits for an owner.
pub fn clear(scene: &Scene) -> Result<()> {
    scene.api.patch(POOL, &json!({ "spec": { "announce": null } }))?;
    for name in ["first", "second"] {
        scene.api.delete(&format!("{ADVERTISEMENTS}/{name}"))?;
    }
    for name in ["first", "second", "heavy"] {
        scene.nodes.iter().try_for_each(|node| label(scene, node, name, false))?;
    }
    wait_named(scene, Value::Null)?;
    wait_holder(scene, &scene.nodes).map(drop)
}

/// Makes the change, and waits until this node is the owner, by its own speaker's word.
fn moved(watch: &mut Watch<'_>, node: &str, why: &str, change: impl FnOnce() -> Result<()>) -> Result<()> {
    watch.order(why)?;
    let ordered = Instant::now();
    change()?;
    let name = format!("{why}: moved after, ms");
    wait_holder(watch.scene, &[node.to_owned()]).with_context(|| name.clone())?;
    watch.figure(&name, ordered.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

pub fn label(scene: &Scene, node: &str, name: &str, there: bool) -> Result<()> {
    let value = if there { json!("yes") } else { Value::Null };
    let labels = json!({ "metadata": { "labels": { format!("e2e.test/{name}"): value } } });
    scene.api.patch(&format!("/api/v1/nodes/{node}"), &labels).map(drop)
}

pub fn advertise(scene: &Scene, name: &str, spec: Value) -> Result<()> {
    let object = json!({
        "apiVersion": "sheave.dev/v1alpha1",
        "kind": "L2Advertisement",
        "metadata": { "name": name },
        "spec": spec,
    });
    // Replaced as a whole.
    scene.api.delete(&format!("{ADVERTISEMENTS}/{name}"))?;
    scene.api.create(ADVERTISEMENTS, &object).map(drop)
}

pub fn wait_named(scene: &Scene, names: Value) -> Result<()> {
    wait_for(&format!("the VirtualIP to name {names}"), WITHIN, || {
        let object = scene.api.get(&format!("{VIRTUALIPS}/{}", scene.vip))?;
        Ok((object["spec"]["l2Advertisements"] == names).then_some(()))
    })
}

/// Waits until the address has no owner for this reason; returns both with the time that took.
fn wait_vacant(scene: &Scene, reason: &str) -> Result<String> {
    let began = Instant::now();
    wait_for(&format!("no owner: {reason}"), WITHIN, || {
        let object = scene.api.get(&format!("{VIRTUALIPS}/{}", scene.vip))?;
        let vacant = text(&object, "/status/owner").is_empty() && text(&object, "/status/reason") == reason;
        Ok(vacant.then_some(()))
    })?;
    Ok(format!("{reason} after {:.0} ms", began.elapsed().as_secs_f64() * 1e3))
}

const ADVERTISEMENTS: &str = "/apis/sheave.dev/v1alpha1/l2advertisements";
const POOL: &str = "/apis/sheave.dev/v1alpha1/addresspools/demo";
const WITHIN: Duration = Duration::from_secs(10);
