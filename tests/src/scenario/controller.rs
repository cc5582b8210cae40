//! The controller: its leader dies, its pool runs out.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::text;
use super::deploy::{SERVICES, Scene, VIRTUALIPS, address_of, pool, service};
use super::{inside, pods};
use crate::lab::{plan, wait_for};

/// What became of the addresses when the leading controller was killed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ControllerFailover {
    pub leader_before: String,
    pub leader_after: String,
    /// Address by Service, before; the same after if `moved` is empty.
    pub addresses: BTreeMap<String, Ipv4Addr>,
    pub moved: Vec<String>,
    /// A Service created after the kill got an address: from the kill until then.
    pub new_address_ms: f64,
}

/// Two replicas, several Services, SIGKILL for the leader; then another Service, which the other one must serve.
pub fn controller_failover(scene: &Scene) -> Result<ControllerFailover> {
    let deployment = deployment(scene)?;
    let replicas = deployment.pointer("/spec/replicas").cloned().unwrap_or(json!(1));
    let path = format!(
        "/apis/apps/v1/namespaces/{}/deployments/{}",
        text(&deployment, "/metadata/namespace"),
        text(&deployment, "/metadata/name")
    );
    scene.api.patch(&path, &json!({"spec": {"replicas": 2}}))?;
    wait_for("two controllers", WITHIN, || Ok((ready_controllers(scene)?.len() == 2).then_some(())))?;

    let names = ["failover-1", "failover-2", "failover-3"];
    for name in names {
        scene.api.create(SERVICES, &service(name, &json!({})))?;
    }
    for name in names {
        wait_for(&format!("an address for {name}"), WITHIN, || address_of(&scene.api, name))?;
    }
    let addresses = ledger(scene)?;
    let leader_before = leader(scene)?;
    let leading = ready_controllers(scene)?.into_iter().find(|pod| leader_before.contains(&pod.name));
    let leading = leading.with_context(|| format!("the leader {leader_before:?} is none of the pods"))?;
    let began = std::time::Instant::now();
    inside::process_of(&scene.lab, &leading, COMMAND)?.kill(&scene.lab)?;
    scene.api.create(SERVICES, &service("failover-4", &json!({})))?;
    wait_for("an address for a Service created after the kill", WITHIN, || address_of(&scene.api, "failover-4"))?;
    let new_address_ms = began.elapsed().as_secs_f64() * 1e3;
    let leader_after = leader(scene)?;
    wait_for("two controllers again", WITHIN, || Ok((ready_controllers(scene)?.len() == 2).then_some(())))?;
    let now = ledger(scene)?;
    let moved = addresses.iter().filter(|(name, address)| now.get(*name) != Some(address));
    let moved = moved.map(|(name, address)| format!("{name}: {address}, now {:?}", now.get(name))).collect();

    for name in names.iter().chain(&["failover-4"]) {
        scene.api.delete(&format!("{SERVICES}/{name}"))?;
    }
    scene.api.patch(&path, &json!({"spec": {"replicas": replicas}}))?;
    Ok(ControllerFailover { leader_before, leader_after, addresses, moved, new_address_ms })
}

/// What three Services got from a pool of two addresses.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolExhaustion {
    pub granted: Vec<Ipv4Addr>,
    /// Reason and message of the Event about the third.
    pub event: String,
    pub third_waited_without_address: bool,
    /// What the third got when the first was deleted.
    pub third_got: Ipv4Addr,
}

pub fn pool_exhaustion(scene: &Scene) -> Result<PoolExhaustion> {
    // Beyond the pool of the demo: pools must not overlap.
    scene.lab.apply(&pool("two", plan::address(241), plan::address(242)))?;
    let pool_two = json!({"sheave.dev/address-pool": "two"});
    let names = ["two-1", "two-2", "two-3"];
    let mut granted = Vec::new();
    for name in &names[..2] {
        scene.api.create(SERVICES, &service(name, &pool_two))?;
        granted.push(wait_for(&format!("an address for {name}"), WITHIN, || address_of(&scene.api, name))?);
    }
    scene.api.create(SERVICES, &service(names[2], &pool_two))?;
    let event = wait_for("an Event that says that the pool is exhausted", WITHIN, || refusal(scene, names[2]))?;
    let third_waited_without_address = address_of(&scene.api, names[2])?.is_none();
    scene.api.delete(&format!("{SERVICES}/{}", names[0]))?;
    let third_got = wait_for("the freed address for the third", WITHIN, || address_of(&scene.api, names[2]))?;
    for name in names {
        scene.api.delete(&format!("{SERVICES}/{name}"))?;
    }
    wait_for("the addresses to be released", WITHIN, || {
        let left = ledger(scene)?;
        Ok(names.iter().all(|name| !left.contains_key(*name)).then_some(()))
    })?;
    scene.api.delete("/apis/sheave.dev/v1alpha1/addresspools/two")?;
    Ok(PoolExhaustion { granted, event, third_waited_without_address, third_got })
}

/// Ready pods of the controller.
pub fn ready_controllers(scene: &Scene) -> Result<Vec<pods::Pod>> {
    let mut all = pods::list(&scene.api, "")?;
    all.retain(|pod| pod.ready && pod.image.contains(COMMAND));
    Ok(all)
}

/// The address of each Service by the ledger.
fn ledger(scene: &Scene) -> Result<BTreeMap<String, Ipv4Addr>> {
    let items = scene.api.list(VIRTUALIPS)?;
    let entries = items.iter().map(|item| {
        let service = text(item, "/spec/services/0/name").to_owned();
        Ok((service, text(item, "/spec/address").parse()?))
    });
    entries.collect()
}

fn deployment(scene: &Scene) -> Result<Value> {
    let all = scene.api.list("/apis/apps/v1/deployments")?;
    let ours = all.into_iter().find(|one| text(one, "/spec/template/spec/containers/0/image").contains(COMMAND));
    ours.context("there is no Deployment of the controller")
}

/// The holder of the controller's Lease.
fn leader(scene: &Scene) -> Result<String> {
    let namespace = text(&deployment(scene)?, "/metadata/namespace").to_owned();
    let leases = scene.api.list(&format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"))?;
    let Some(lease) = leases.iter().find(|lease| text(lease, "/metadata/name").contains("controller")) else {
        bail!("there is no Lease of the controller in {namespace}")
    };
    Ok(text(lease, "/spec/holderIdentity").to_owned())
}

/// Reason and message of a warning about a Service.
fn refusal(scene: &Scene, service: &str) -> Result<Option<String>> {
    let events = scene.api.list("/apis/events.k8s.io/v1/events")?;
    let about = events.iter().find(|event| {
        text(event, "/regarding/name") == service
            && text(event, "/regarding/kind") == "Service"
            && event["type"] == "Warning"
    });
    Ok(about.map(|event| format!("{}: {}", text(event, "/reason"), text(event, "/note"))))
}

const COMMAND: &str = "sheave-controller";
const WITHIN: Duration = Duration::from_secs(60);
