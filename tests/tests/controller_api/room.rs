//! What the speakers' tables have room for in the whole cluster: what goes beyond is said on the Service that is not served for it.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::attributes::wait_remark;
use super::objects::Objects;
use super::pair::Pair;

/// As a user knows them.
const LIMIT: usize = 16_384;
const OF_A_SERVICE: usize = 1000;
const WIDE: usize = 16;

/// 16 Services of 1,000 ports and one of 384, then one of a single port; the one of 384 gets one more. Service `four` has an address with one
/// port when this begins, and when it ends.
pub fn service_ports(objects: &Objects, pair: &mut Pair) -> Result<()> {
    let rest = LIMIT - WIDE * OF_A_SERVICE - 1;
    objects.pool_with("room", "addresses: ['198.51.100.0/26'], autoAssign: false")?;
    (0..WIDE).map(wide).try_for_each(|name| service(objects, &name, OF_A_SERVICE))?;
    service(objects, "rest", rest)?;
    for name in (0..WIDE).map(wide).chain(["rest".into()]) {
        wait_remark(objects, &name, "AddressAllocated")?;
    }

    service(objects, "beyond", 1)?;
    objects.wait_refused("beyond", "LimitReached")?;
    let note = objects.wait_event("beyond", "Warning", "LimitReached")?;
    ensure!(note.contains("its 1 service ports") && note.contains("may have 16384"), "{note}");
    pair.wait_metric("services_waiting", "{reason=\"LimitReached\"}", 1.0)?;

    // What it had is served; speakers have its new port before anybody can refuse it.
    service(objects, "rest", rest + 1)?;
    let said = wait_remark(objects, "rest", "LimitReached")?;
    ensure!(
        said.contains(&format!("not served: port {}/TCP (the Services of a cluster may have 16384", rest + 1)),
        "{said}"
    );
    ensure!(!objects.wait_event("rest", "Warning", "LimitReached")?.is_empty());
    pair.wait_metric("services_partly_served", "{reason=\"LimitReached\"}", 1.0)?;
    let errors = json!([{"port": rest + 1, "protocol": "TCP", "error": "sheave.dev/LimitReached"}]);
    ensure!(without_place(objects, "rest")? == errors, "{}", without_place(objects, "rest")?);

    // The next leader says the same, and takes nothing from those that were served.
    let versions = || -> Result<Vec<Value>> {
        let names = (0..WIDE).map(wide).chain(["rest".into(), "beyond".into()]);
        names.map(|name| Ok(objects.get(&["service", &name])?["metadata"]["resourceVersion"].take())).collect()
    };
    let before = versions()?;
    pair.stop()?;
    pair.fill()?;
    service(objects, "later", 1)?;
    objects.wait_refused("later", "LimitReached")?;
    ensure!(versions()? == before, "a new leader has written a Service that had not changed");

    objects.delete("service", &wide(7))?;
    for name in ["rest", "beyond", "later"] {
        wait_remark(objects, name, "AddressAllocated")?;
    }
    ensure!(objects.ports("rest")?.is_null(), "{}", objects.ports("rest")?);
    for name in (0..WIDE).filter(|number| *number != 7).map(wide).chain(["rest", "beyond", "later"].map(Into::into)) {
        objects.delete("service", &name)?;
    }
    objects.delete("addresspool", "room")?;
    objects.wait_ledger(&["192.168.77.200"])
}

fn wide(number: usize) -> String {
    format!("wide-{number}")
}

/// Without NodePorts, of which a cluster has fewer, and without pods.
fn service(objects: &Objects, name: &str, ports: usize) -> Result<()> {
    let ports: Vec<Value> = (1..=ports).map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
    let object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "annotations": {"sheave.dev/address-pool": "room"}},
        "spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": ports},
    });
    objects.apply("service", name, &object.to_string())
}

/// The ports that its status lists with an error.
fn without_place(objects: &Objects, service: &str) -> Result<Value> {
    let listed = objects.ports(service)?;
    Ok(listed.as_array().into_iter().flatten().filter(|port| !port["error"].is_null()).cloned().collect())
}
