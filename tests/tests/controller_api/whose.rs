//! Which Services are ours: classes, other owners, and requests that say two things.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheave_tests::lab::wait_for;

use super::objects::{Objects, SOON};
use super::pair::Pair;

/// API groups are asked for every 15 s.
const GROUPS_READ: Duration = Duration::from_secs(40);
/// How long another controller rewrites its statuses here, once a second: there is nothing to wait for that would say that nothing is
/// written. `$WAR_SECONDS` asks for more where it has a Service that was ours (`make status-war`: ten minutes).
const WAR: Duration = Duration::from_secs(8);

/// Service `four` has 192.168.77.200 when this begins, and when it ends; the pool has .200 to .203.
pub fn chapters(objects: &Objects, pair: &mut Pair) -> Result<()> {
    ambiguous(objects, pair).context("ambiguous requests")?;
    nothing_asked_for(objects).context("nothing asked for")?;
    adopted(objects, pair).context("a status of a predecessor")?;
    a_refusal_without_a_class(objects).context("a refusal without a class")?;
    a_field_manager(objects, pair).context("another owner by its field manager")?;
    a_group(objects, pair).context("another owner by its API group")?;
    a_list_of_classes(objects, pair).context("a list of classes")?;
    objects.wait_ledger(&["192.168.77.200"])
}

fn ambiguous(objects: &Objects, pair: &Pair) -> Result<()> {
    let two = "sheave.dev/loadBalancerIPs: 192.168.77.201, metallb.io/loadBalancerIPs: 192.168.77.202";
    objects.service("two-minds", two, "")?;
    objects.wait_refused("two-minds", "AddressAmbiguous")?;
    let note = objects.wait_event("two-minds", "Warning", "AddressAmbiguous")?;
    ensure!(
        note.contains("sheave.dev/loadBalancerIPs is '192.168.77.201' and metallb.io/loadBalancerIPs is"),
        "{note}"
    );
    pair.wait_metric("services_waiting", "{reason=\"AddressAmbiguous\"}", 1.0)?;
    let field = ", loadBalancerIP: 192.168.77.203";
    objects.service(
        "two-minds",
        "sheave.dev/loadBalancerIPs: 192.168.77.201, metallb.io/loadBalancerIPs: ''",
        field,
    )?;
    objects.wait_refused("two-minds", "AddressAmbiguous")?;
    let same = "sheave.dev/loadBalancerIPs: ' 192.168.77.203', metallb.io/loadBalancerIPs: ''";
    objects.service("two-minds", same, field)?;
    objects.wait_shown("two-minds", "192.168.77.203")?;
    // What it has stays while it is of two minds again.
    objects.service("two-minds", "sheave.dev/loadBalancerIPs: 192.168.77.202", field)?;
    wait_for("the remark", SOON, || Ok((objects.condition("two-minds")?.1 == "AddressAmbiguous").then_some(())))?;
    objects.wait_shown("two-minds", "192.168.77.203")?;
    objects.delete("service", "two-minds")?;

    objects.service("dhcp", "", ", loadBalancerIP: 0.0.0.0")?;
    objects.wait_refused("dhcp", "DhcpNotSupported")?;
    ensure!(objects.wait_event("dhcp", "Warning", "DhcpNotSupported")?.contains("'0.0.0.0'"));
    objects.delete("service", "dhcp")
}

fn nothing_asked_for(objects: &Objects) -> Result<()> {
    let external = ", externalIPs: [192.168.77.99]";
    objects.service("empty", "sheave.dev/loadBalancerIPs: '', sheave.dev/address-pool: ' '", external)?;
    objects.wait_shown("empty", "192.168.77.201")?;
    ensure!(objects.get(&["service", "empty"])?["spec"]["externalIPs"][0] == "192.168.77.99", "left alone");
    objects.delete("service", "empty")
}

/// The field manager is a controller that is gone; .203 is free, and it shows an IPv6 address beside it.
fn adopted(objects: &Objects, pair: &mut Pair) -> Result<()> {
    pair.stop()?;
    objects.service("heir", "", "")?;
    status_as(objects, "heir", r#"[{"ip":"192.168.77.203"},{"ip":"2001:db8::1"}]"#, "predecessor")?;
    pair.replace(&[])?;
    objects.wait_shown("heir", "192.168.77.203")?;
    wait_for("the address that is not served to go", SOON, || {
        let ingress = objects.get(&["service", "heir"])?["status"]["loadBalancer"]["ingress"].take();
        Ok((ingress.as_array().is_some_and(|entries| entries.len() == 1)).then_some(()))
    })?;
    objects.delete("service", "heir")
}

/// A status by another field manager.
fn status_as(objects: &Objects, service: &str, ingress: &str, manager: &str) -> Result<()> {
    objects.third_party_status_by(manager, service, ingress)
}

/// Nothing of ours is on the Service, now or before.
fn untouched(objects: &Objects, service: &str) -> Result<()> {
    let service = objects.get(&["service", service, "--show-managed-fields"])?;
    let managers = service["metadata"]["managedFields"].as_array().context("a record")?;
    let ours = managers.iter().any(|entry| entry["manager"] == "sheave.dev/controller");
    ensure!(!ours && service["metadata"]["finalizers"].is_null(), "{}", service["metadata"]);
    ensure!(service["status"]["conditions"].as_array().is_none_or(Vec::is_empty), "{}", service["status"]);
    Ok(())
}

/// C3 of November 2026: what its status shows is not ours to empty.
fn a_refusal_without_a_class(objects: &Objects) -> Result<()> {
    objects.service("theirs", "sheave.dev/loadBalancerIPs: 192.168.77.99", "")?;
    objects.wait_refused("theirs", "AddressNotInPool")?;
    for address in ["192.0.2.10", "192.0.2.11"] {
        objects.third_party_status("theirs", &format!(r#"[{{"ip":"{address}"}}]"#))?;
        let version = objects.get(&["service", "theirs"])?["metadata"]["resourceVersion"].take();
        // A Service that comes later is served: the change before it was seen.
        objects.service("marker", "", "")?;
        objects.wait_shown("marker", "192.168.77.201")?;
        let now = objects.get(&["service", "theirs"])?;
        ensure!(now["metadata"]["resourceVersion"] == version, "written to: {}", now["status"]);
        objects.delete("service", "marker")?;
    }
    objects.delete("service", "theirs")
}

/// Another controller writes the statuses of its Services without a class every second. One of them it had before we came, at the other
/// one we were faster.
fn a_field_manager(objects: &Objects, pair: &mut Pair) -> Result<()> {
    objects.service("raced", "", "")?;
    objects.wait_shown("raced", "192.168.77.201")?;
    pair.stop()?;
    objects.service("theirs", "", "")?;
    status_as(objects, "theirs", r#"[{"ip":"192.0.2.10"}]"#, "other-controller")?;
    pair.replace(&[])?;
    objects.service("marker", "", "")?;
    objects.wait_shown("marker", "192.168.77.202")?;
    let seconds = match std::env::var("WAR_SECONDS") {
        Ok(text) => {
            text.parse().map(Duration::from_secs).with_context(|| format!("WAR_SECONDS={text:?} is no number"))?
        }
        Err(_) => WAR,
    };
    war(objects, &["raced", "theirs"], seconds)?;
    untouched(objects, "theirs")?;
    let held = objects.ledger()?.get("192.168.77.201").cloned();
    ensure!(held.is_some_and(|(_, name)| name == "raced"), "what was granted is not taken back");
    ["raced", "theirs", "marker"].iter().try_for_each(|service| objects.delete("service", service))
}

/// Rewrites the statuses once a second for a while; between two rewrites nobody else writes.
fn war(objects: &Objects, services: &[&str], span: Duration) -> Result<()> {
    let (began, mut round) = (Instant::now(), 0);
    while began.elapsed() < span {
        round += 1;
        let mut versions = Vec::new();
        for service in services {
            status_as(objects, service, &format!(r#"[{{"ip":"192.0.2.{}"}}]"#, round % 250), "other-controller")?;
            versions.push(objects.get(&["service", service])?["metadata"]["resourceVersion"].take());
        }
        // Its period: only the time shows that nothing comes in between.
        std::thread::sleep(Duration::from_secs(1));
        for (service, version) in services.iter().zip(versions) {
            let now = objects.get(&["service", service])?;
            ensure!(now["metadata"]["resourceVersion"] == version, "round {round}: {service} {}", now["status"]);
        }
    }
    eprintln!("{} statuses rewritten in {:.0} s, none by us", round * services.len(), began.elapsed().as_secs_f64());
    Ok(())
}

fn a_group(objects: &Objects, pair: &Pair) -> Result<()> {
    let before = objects.get(&["service", "four"])?["metadata"]["resourceVersion"].take();
    objects.0.apply(METALLB)?;
    let note = "note: Services without a class are left to another owner: API group metallb.io";
    wait_note(pair, note, true)?;
    pair.wait_metric("other_owner", "{owner=\"metallb.io\"}", 1.0)?;
    ensure!(pair.leader()?.log().contains("are left to another owner: API group metallb.io"), "not in the log");

    objects.service("theirs", "", "")?;
    objects.service("ours", "", ", loadBalancerClass: sheave.dev/sheave")?;
    objects.wait_shown("ours", "192.168.77.201")?;
    untouched(objects, "theirs")?;
    war(objects, &["theirs"], WAR)?;
    untouched(objects, "theirs")?;
    pair.wait_metric("services_left", "", 1.0)?;
    let four = objects.get(&["service", "four"])?;
    ensure!(four["metadata"]["resourceVersion"] == before, "what is served stays as it is: {}", four["status"]);
    objects.delete("service", "theirs")?;
    objects.delete("service", "ours")?;
    objects.service("theirs", "", "")?;
    objects.delete("crd", "ipaddresspools.metallb.io")?;
    wait_note(pair, note, false)?;
    objects.wait_shown("theirs", "192.168.77.201")?;
    objects.delete("service", "theirs")
}

fn wait_note(pair: &Pair, note: &str, there: bool) -> Result<()> {
    wait_for(&format!("/readyz to say '{note}': {there}"), GROUPS_READ, || {
        let said: Vec<String> = pair.all().iter().map(super::replica::Replica::readyz).collect::<Result<_>>()?;
        let ready = said.iter().all(|text| text.starts_with("HTTP/1.1 200"));
        Ok((ready && said.iter().all(|text| text.contains(note) == there)).then_some(()))
    })
}

/// `spec.loadBalancerClass` never changes: a Service of MetalLB's class moves to us by the flag.
fn a_list_of_classes(objects: &Objects, pair: &mut Pair) -> Result<()> {
    objects.service("moved", "", ", loadBalancerClass: metallb.io/metallb")?;
    objects.service("marker", "", "")?;
    objects.wait_shown("marker", "192.168.77.201")?;
    untouched(objects, "moved")?;
    objects.delete("service", "marker")?;
    pair.replace(&["--load-balancer-class=sheave.dev/sheave,metallb.io/metallb"])?;
    objects.wait_shown("moved", "192.168.77.201")?;
    objects.service("asked", "sheave.dev/loadBalancerIPs: 192.168.77.99", ", loadBalancerClass: metallb.io/metallb")?;
    objects.wait_refused("asked", "AddressNotInPool")?;
    objects.third_party_status("asked", r#"[{"ip":"192.0.2.10"}]"#)?;
    objects.wait_refused("asked", "AddressNotInPool").context("its class names us: the status is ours")?;
    objects.delete("service", "asked")?;
    // Back: the class is another controller's again, and what we wrote goes.
    pair.replace(&[])?;
    wait_for("our condition to go", SOON, || Ok(objects.condition("moved")?.0.is_empty().then_some(())))?;
    let moved: Value = objects.get(&["service", "moved"])?;
    ensure!(moved["metadata"]["finalizers"].is_null(), "{}", moved["metadata"]);
    objects.delete("service", "moved")
}

/// As MetalLB's installation makes it, without its controller.
const METALLB: &str = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ipaddresspools.metallb.io}
spec:
  group: metallb.io
  scope: Namespaced
  names: {plural: ipaddresspools, singular: ipaddresspool, kind: IPAddressPool}
  versions:
  - name: v1beta1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";
