//! The finalizer of Services that have an address: a deletion waits until the address is withdrawn.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheave_tests::lab::{Lab, wait_for};

use super::command::{refused, sheave};
use super::objects::{Objects, SOON};
use super::pair::Pair;
use super::replica::NAMESPACE;

const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// A namespace goes in several passes of the namespace controller.
const NAMESPACE_GONE: std::time::Duration = std::time::Duration::from_secs(60);

/// Service `four` has 192.168.77.200 when this begins, and when it ends.
pub fn chapters(objects: &Objects, pair: &mut Pair) -> Result<()> {
    only_with_an_address(objects).context("only with an address")?;
    deleted(objects, pair).context("deleted")?;
    another_type(objects, pair).context("another type")?;
    another_class(objects, pair).context("another class")?;
    namespace_deleted(objects).context("namespace deleted")?;
    objects.wait_ledger(&["192.168.77.200"])
}

fn has(service: &Value) -> bool {
    service["metadata"]["finalizers"].as_array().is_some_and(|all| all.iter().any(|name| name == FINALIZER))
}

fn service(objects: &Objects, name: &str) -> Result<Value> {
    objects.get(&["service", name])
}

/// Kubernetes does not remove it while a finalizer is left: one look is enough to know that it waits.
fn deletion_waits(objects: &Objects, name: &str) -> Result<()> {
    objects.0.kubectl(&["delete", "service", name, "--wait=false"])?;
    let waits = service(objects, name)?;
    ensure!(!waits["metadata"]["deletionTimestamp"].is_null() && has(&waits), "{}", waits["metadata"]);
    Ok(())
}

fn wait_gone(objects: &Objects, name: &str) -> Result<()> {
    wait_for(&format!("{name} to be gone"), SOON, || Ok((!objects.exists("service", name)?).then_some(())))
}

fn wait_without(objects: &Objects, name: &str) -> Result<()> {
    wait_for(&format!("the finalizer of {name} to go"), SOON, || Ok((!has(&service(objects, name)?)).then_some(())))
}

fn only_with_an_address(objects: &Objects) -> Result<()> {
    objects.service("held", "", "")?;
    objects.wait_shown("held", "192.168.77.201")?;
    ensure!(has(&service(objects, "held")?), "no finalizer");
    objects.service("refused", "sheave.dev/loadBalancerIPs: 192.168.77.99", "")?;
    objects.wait_refused("refused", "AddressNotInPool")?;
    ensure!(!has(&service(objects, "refused")?), "a Service without address has it");
    objects.0.kubectl(&[
        "annotate",
        "service",
        "refused",
        "sheave.dev/loadBalancerIPs=192.168.77.202",
        "--overwrite",
    ])?;
    objects.wait_shown("refused", "192.168.77.202")?;
    ensure!(has(&service(objects, "refused")?), "no finalizer");
    // Who takes it away by hand is corrected: the address is still there.
    let none = r#"{"metadata":{"finalizers":null}}"#;
    objects.0.kubectl(&["patch", "service", "held", "--type=merge", "-p", none])?;
    wait_for("the finalizer to come back", SOON, || Ok(has(&service(objects, "held")?).then_some(())))?;
    objects.delete("service", "refused")?;
    objects.wait_ledger(&["192.168.77.200", "192.168.77.201"])
}

/// Without a controller the deletion waits; with one the address goes first, then the Service, and its cluster IP is free again.
fn deleted(objects: &Objects, pair: &mut Pair) -> Result<()> {
    pair.stop()?;
    let cluster_ip = service(objects, "held")?["spec"]["clusterIP"].as_str().context("a cluster IP")?.to_string();
    deletion_waits(objects, "held")?;
    ensure!(objects.ledger()?.contains_key("192.168.77.201"), "nobody is there to release it");
    ensure!(objects.shown("held")?.is_some(), "nobody is there to withdraw it");
    pair.fill()?;
    wait_gone(objects, "held")?;
    ensure!(!objects.ledger()?.contains_key("192.168.77.201"), "the Service went before its address");
    objects.service("held", "", &format!(", clusterIP: {cluster_ip}")).context("the cluster IP is not free")?;
    objects.wait_shown("held", "192.168.77.201")
}

fn another_type(objects: &Objects, pair: &mut Pair) -> Result<()> {
    pair.stop()?;
    objects.0.kubectl(&["patch", "service", "held", "-p", r#"{"spec":{"type":"ClusterIP"}}"#])?;
    ensure!(has(&service(objects, "held")?) && objects.ledger()?.contains_key("192.168.77.201"));
    pair.fill()?;
    wait_without(objects, "held")?;
    ensure!(!objects.ledger()?.contains_key("192.168.77.201"), "the finalizer went before the address");
    ensure!(objects.condition("held")?.0.is_empty(), "the condition stayed");
    objects.0.kubectl(&["patch", "service", "held", "-p", r#"{"spec":{"type":"LoadBalancer"}}"#])?;
    objects.wait_shown("held", "192.168.77.201")?;
    ensure!(has(&service(objects, "held")?), "no finalizer");
    Ok(())
}

/// A class can be set only with the type, so it is lost in two steps; the controller sees both at once.
fn another_class(objects: &Objects, pair: &mut Pair) -> Result<()> {
    pair.stop()?;
    objects.0.kubectl(&["patch", "service", "held", "-p", r#"{"spec":{"type":"ClusterIP"}}"#])?;
    let theirs = r#"{"spec":{"type":"LoadBalancer","loadBalancerClass":"example.com/lb"}}"#;
    objects.0.kubectl(&["patch", "service", "held", "-p", theirs])?;
    pair.fill()?;
    wait_without(objects, "held")?;
    ensure!(!objects.ledger()?.contains_key("192.168.77.201"), "the finalizer went before the address");
    ensure!(objects.condition("held")?.0.is_empty(), "the condition stayed");
    // From here on it is another controller's, and so is the finalizer that this one may set.
    let set = format!(r#"{{"metadata":{{"finalizers":["{FINALIZER}"]}}}}"#);
    objects.0.kubectl(&["patch", "service", "held", "--type=merge", "-p", &set])?;
    objects.service("marker", "", "")?;
    objects.wait_shown("marker", "192.168.77.201")?;
    ensure!(has(&service(objects, "held")?), "a finalizer that is not ours was taken away");
    objects.delete("service", "marker")
}

fn namespace_deleted(objects: &Objects) -> Result<()> {
    objects.0.kubectl(&["create", "namespace", "short"])?;
    objects.0.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: inside, namespace: short}\n\
         spec: {type: LoadBalancer, selector: {app: x}, ports: [{port: 80}]}",
    )?;
    wait_for("the Service in the namespace to be granted an address", SOON, || {
        Ok(objects.ledger()?.values().any(|(_, name)| name == "inside").then_some(()))
    })?;
    objects.0.kubectl(&["delete", "namespace", "short", "--wait=false"])?;
    wait_for("the namespace to be gone", NAMESPACE_GONE, || Ok((!objects.exists("namespace", "short")?).then_some(())))
}

/// Sheave is gone, its ledger is there: the command line takes the finalizers off. `held` is another controller's.
pub fn sheave_removed(lab: &Lab, objects: &Objects, pair: &mut Pair) -> Result<()> {
    objects.service("stuck", "", "")?;
    objects.wait_shown("stuck", "192.168.77.201")?;
    refused(objects, &["finalizers", "remove", "--yes"], "a controller leads")?;
    ensure!(has(&service(objects, "stuck")?), "the refusal took it off");

    pair.stop()?;
    lab.kubectl(&[
        "delete",
        "namespace",
        NAMESPACE,
        "--wait=true",
        &format!("--timeout={}s", NAMESPACE_GONE.as_secs()),
    ])?;
    deletion_waits(objects, "stuck")?;
    let dry = sheave(objects, &["finalizers", "remove"], "")?;
    let text = &dry.out;
    ensure!(dry.code == 0 && text.contains("default/stuck") && text.contains("default/four"), "{text}");
    ensure!(!text.contains("default/held") && text.contains("--yes"), "{text}");
    ensure!(has(&service(objects, "stuck")?) && has(&service(objects, "four")?), "a dry run changed something");

    let done = sheave(objects, &["finalizers", "remove", "--yes"], "")?;
    ensure!(done.code == 0, "{done:?}");
    wait_gone(objects, "stuck")?;
    ensure!(!has(&service(objects, "four")?) && has(&service(objects, "held")?), "exactly those of the ledger");
    let again = sheave(objects, &["finalizers", "remove", "--yes"], "")?;
    ensure!(again.code == 0 && again.out.contains("no Service"), "{again:?}");
    Ok(())
}

/// Installed again: what has an address has the finalizer, and the entry of the Service that went is released.
pub fn sheave_returned(objects: &Objects) -> Result<()> {
    wait_for("the finalizer to be back", SOON, || Ok(has(&service(objects, "four")?).then_some(())))?;
    objects.wait_ledger(&["192.168.77.200"])?;
    objects.wait_shown("four", "192.168.77.200")
}
