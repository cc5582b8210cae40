//! The controller on a real API server: two replicas as processes, with the rights of their ServiceAccount only.
//!
//! One lab, one story: every chapter starts from the state that the one before has left.

mod advertisements;
mod at_nodes;
mod attributes;
mod bad_objects;
mod claims;
mod command;
mod families;
mod finalizer;
mod guards;
mod init;
mod limit;
mod metrics;
mod objects;
mod pair;
mod pool_move;
mod pools;
mod probes;
mod replica;
mod rights;
mod roles;
mod room;
mod several;
mod sharing;
mod speaker_state;
mod upgrade;
mod whose;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sheave_tests::lab::{Lab, LabConfig, alone, manifests, quiet, wait_for};

use objects::{Objects, SOON};
use pair::Pair;
use replica::NAMESPACE;

#[test]
fn controller_on_a_real_api_server() -> Result<()> {
    let name = "ctlapi".into();
    let config = LabConfig { name, nodes: 1, sheave: false, dual_stack: true, progress: quiet, ..LabConfig::default() };
    alone(config, story)
}

fn story(lab: &Lab, folder: &Path) -> Result<()> {
    let objects = Objects::new(lab)?;
    manifests::install(lab)?;
    let mut since = Instant::now();
    let mut chapter = |name: &'static str, result: Result<()>| {
        eprintln!("{name} ({:.1} s)", since.elapsed().as_secs_f64());
        since = Instant::now();
        result.context(name)
    };
    chapter("rights", rights::chapter(&objects))?;
    chapter("roles of users", roles::chapter(lab, &objects))?;
    chapter("SpeakerStates", speaker_state::chapters(lab, &objects, folder))?;
    chapter("malformed pools", malformed_pools_are_refused(&objects))?;
    let kubeconfig = replica::kubeconfig(lab, folder)?;
    let mut pair = Pair::start(kubeconfig, folder)?;
    chapter("keys", keys(&objects))?;
    chapter("deleted keys", deleted_keys_come_back(&objects))?;
    chapter("keys that no replica has in memory", pair.forgets_the_keys(&objects))?;

    chapter("an address", an_address_and_its_ip_mode(&objects))?;
    chapter("exhausted", exhausted_and_freed(&objects))?;
    chapter("third-party changes", third_party_changes(&objects))?;
    chapter("leader killed", pair.killed(&objects))?;
    chapter("leader terminated", pair.terminated(&objects))?;
    chapter("wishes", wishes(&objects))?;
    chapter("a pool that shrinks", a_pool_that_shrinks(&objects))?;
    chapter("released", released(&objects))?;
    chapter("a pool that slipped through", a_malformed_pool_that_slipped_through(&objects))?;
    chapter("latency", latency(&objects))?;
    chapter("pools", pools::chapters(&objects))?;
    chapter("sheave pool move", pool_move::chapters(&objects))?;
    chapter("sharing", sharing::chapters(&objects))?;
    chapter("several addresses", several::chapters(&objects, &mut pair))?;
    chapter("both families", families::chapters(&objects, &mut pair))?;
    chapter("L2Advertisements", advertisements::chapters(&objects))?;
    chapter("attributes", attributes::chapters(&objects, &pair))?;
    chapter("finalizer", finalizer::chapters(&objects, &mut pair))?;
    chapter("guards", guards::chapters(&objects, &pair, folder))?;
    chapter("nodes' addresses", at_nodes::chapters(&objects, &mut pair, folder))?;
    chapter("probes", probes::chapters(&objects, &pair, folder))?;
    chapter("sheave init", init::chapters(&objects, folder))?;
    chapter("whose", whose::chapters(&objects, &mut pair))?;
    chapter("an upgrade without rights", upgrade::chapters(lab, &objects, &mut pair, folder))?;
    chapter("bad objects", bad_objects::chapters(&objects, &mut pair))?;
    chapter("metrics", metrics::chapter(&objects, &pair.kubeconfig, folder))?;
    pair.in_bounds()?;
    chapter("the most service ports", room::service_ports(&objects, &mut pair))?;
    chapter("the most addresses", limit::one_more(&objects, &mut pair))?;

    chapter("Sheave removed", finalizer::sheave_removed(lab, &objects, &mut pair))?;
    manifests::install(lab)?;
    pair.kubeconfig = replica::kubeconfig(lab, folder)?;
    pair.fill()?;
    chapter("Sheave installed again", finalizer::sheave_returned(&objects))
}

fn malformed_pools_are_refused(objects: &Objects) -> Result<()> {
    for (entry, sentence) in [
        ("192.0.2.0/33", "'192.0.2.0/33' is neither an address (192.0.2.10, 2001:db8::10), nor a CIDR"),
        ("192.0.2.0/08", "'192.0.2.0/08' is neither an address"),
        ("::ffff:192.0.2.0/120", "'::ffff:192.0.2.0/120' is neither an address"),
        ("192.0.2.7-2001:db8::1", "'192.0.2.7-2001:db8::1' is neither an address"),
        ("192.0.2.9-192.0.2.1", "range '192.0.2.9-192.0.2.1' ends before it starts"),
        ("127.0.0.0/8", "'127.0.0.0/8' contains addresses that no host can have"),
    ] {
        match objects.pool("bad", entry) {
            Ok(_) => bail!("{entry} was accepted"),
            Err(error) => ensure!(error.to_string().contains(sentence), "{entry}: {error}"),
        }
    }
    let vip = "apiVersion: sheave.dev/v1alpha1\nkind: VirtualIP\nmetadata: {name: 192.0.2.1}\n\
               spec: {address: 192.0.2.2, pool: p, services: [{namespace: a, name: b, uid: c}]}";
    let refused = objects.0.apply(vip).err().context("a VirtualIP with another name than its address")?;
    ensure!(refused.to_string().contains("the name '192.0.2.1' must be the address '192.0.2.2'"), "{refused}");
    Ok(())
}

/// As a speaker sees it: a list of one name, which is all that it may read.
fn secret(objects: &Objects) -> Result<Option<Value>> {
    let speaker = format!("--as=system:serviceaccount:{NAMESPACE}:sheave-speaker");
    let only = "--field-selector=metadata.name=sheave-keys";
    let list = objects.get(&["-n", NAMESPACE, "secrets", only, &speaker])?;
    Ok(list["items"].get(0).cloned())
}

fn keys(objects: &Objects) -> Result<()> {
    let secret = wait_for("the keys", SOON, || secret(objects))?;
    let length = |name: &str| {
        let text = secret["data"][name].as_str().unwrap_or_default();
        text.len() / 4 * 3 - text.matches('=').count()
    };
    ensure!((length("current"), length("flow-hash"), length("cluster-id")) == (32, 16, 8), "{}", secret["data"]);
    Ok(())
}

/// The same contents, also those of a rotation, as soon as the deletion is seen.
fn deleted_keys_come_back(objects: &Objects) -> Result<()> {
    let rotated = r#"{"data":{"previous":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}"#;
    objects.0.kubectl(&["-n", NAMESPACE, "patch", "secret", "sheave-keys", "-p", rotated])?;
    let before = secret(objects)?.context("the Secret")?;
    objects.0.kubectl(&["-n", NAMESPACE, "delete", "secret", "sheave-keys", "--wait=false"])?;
    let deleted = Instant::now();
    let again = wait_for("the keys to come back", SOON, || {
        Ok(secret(objects)?.filter(|again| again["metadata"]["uid"] != before["metadata"]["uid"]))
    })?;
    eprintln!("Secret deleted -> back after {:?}, as kubectl sees it", deleted.elapsed());
    ensure!(again["data"] == before["data"], "other keys");
    Ok(())
}

fn an_address_and_its_ip_mode(objects: &Objects) -> Result<()> {
    objects.service("one", "", "")?;
    objects.wait_refused("one", "NoPool")?;
    objects.pool("default", "192.168.77.200-192.168.77.201")?;
    objects.wait_shown("one", "192.168.77.200")?;
    ensure!(objects.wait_event("one", "Normal", "AddressAllocated")?.contains("192.168.77.200"));
    let (status, reason, _) = objects.condition("one")?;
    ensure!((status.as_str(), reason.as_str()) == ("True", "AddressAllocated"));
    let table = objects.0.kubectl(&["get", "virtualips"])?;
    for word in ["NAME", "POOL", "SERVICE", "OWNER", "SINCE", "TERM", "REASON", "192.168.77.200", "default", "one"] {
        ensure!(table.contains(word), "{word} is not in\n{table}");
    }
    Ok(())
}

fn exhausted_and_freed(objects: &Objects) -> Result<()> {
    objects.service("two", "", "")?;
    objects.wait_shown("two", "192.168.77.201")?;
    objects.service("three", "", "")?;
    objects.wait_refused("three", "PoolExhausted")?;
    let note = objects.wait_event("three", "Warning", "PoolExhausted")?;
    ensure!(note.contains("every IPv4 address of pool 'default' is granted"), "{note}");
    objects.wait_counts("default", &[("used", 2), ("free", 0)])?;
    objects.delete("service", "one")?;
    objects.wait_shown("three", "192.168.77.200")
}

/// A third-party change of a status neither stays nor makes a grant.
fn third_party_changes(objects: &Objects) -> Result<()> {
    // Without a class the status would not be ours to empty (module `whose`).
    objects.service("waiting", "", ", loadBalancerClass: sheave.dev/sheave")?;
    objects.wait_refused("waiting", "PoolExhausted")?;
    let before = objects.ledger()?;
    objects.third_party_status("two", r#"[{"ip":"192.168.77.250"}]"#)?;
    objects.wait_shown("two", "192.168.77.201")?;
    objects.third_party_status("two", "null")?;
    objects.wait_shown("two", "192.168.77.201")?;
    objects.wait_event("two", "Warning", "StatusCorrected")?;
    for ingress in [r#"[{"ip":"192.168.77.250"}]"#, r#"[{"ip":"192.168.77.201"}]"#, r#"[{"hostname":"evil"}]"#] {
        objects.third_party_status("waiting", ingress)?;
        objects.wait_refused("waiting", "PoolExhausted")?;
    }
    ensure!(objects.ledger()? == before, "a third-party change reached the ledger");
    objects.delete("service", "waiting")?;

    objects.service("theirs", "", ", loadBalancerClass: example.com/lb")?;
    objects.third_party_status("theirs", r#"[{"ip":"192.168.77.250"}]"#)?;
    objects.service("marker", "", "")?;
    objects.wait_refused("marker", "PoolExhausted")?;
    ensure!(objects.shown("theirs")? == Some(("192.168.77.250".into(), "VIP".into())), "not ours to touch");
    ensure!(objects.condition("theirs")?.0.is_empty(), "not ours to touch");
    objects.delete("service", "theirs")?;
    objects.delete("service", "marker")
}

/// Annotations, MetalLB's too; a wish that cannot be granted takes nothing away.
fn wishes(objects: &Objects) -> Result<()> {
    objects.pool("default", "192.168.77.200-192.168.77.203")?;
    objects.service("wish", "metallb.io/loadBalancerIPs: 192.168.77.203", "")?;
    objects.wait_shown("wish", "192.168.77.203")?;
    objects.service("rival", "sheave.dev/loadBalancerIPs: 192.168.77.203", "")?;
    objects.wait_refused("rival", "AddressInUse")?;
    ensure!(objects.wait_event("rival", "Warning", "AddressInUse")?.contains("default/wish"));
    objects.service("wish", "sheave.dev/loadBalancerIPs: 192.168.77.99", "")?;
    let what = "the wish to be refused and the address to stay";
    wait_for(what, SOON, || Ok((objects.condition("wish")?.1 == "AddressNotInPool").then_some(())))?;
    objects.wait_shown("wish", "192.168.77.203")?;
    objects.service("wish", "sheave.dev/loadBalancerIPs: 192.168.77.202", "")?;
    objects.wait_shown("wish", "192.168.77.202")?;
    objects.wait_shown("rival", "192.168.77.203")?;
    objects.delete("service", "rival")?;
    objects.delete("service", "wish")?;
    objects.wait_ledger(&["192.168.77.200", "192.168.77.201"])
}

fn a_pool_that_shrinks(objects: &Objects) -> Result<()> {
    objects.pool("default", "192.168.77.201-192.168.77.202")?;
    wait_for("the grant outside the pool to be marked", SOON, || {
        Ok((objects.condition("four")?.1 == "AddressNotInPool").then_some(()))
    })?;
    objects.wait_shown("four", "192.168.77.200")?;
    objects.wait_counts("default", &[("outside", 1), ("free", 1)])?;
    objects.pool("default", "192.168.77.200-192.168.77.203")?;
    wait_for("the mark to go", SOON, || Ok((objects.condition("four")?.1 == "AddressAllocated").then_some(())))
}

fn released(objects: &Objects) -> Result<()> {
    objects.0.kubectl(&["patch", "service", "two", "-p", r#"{"spec":{"type":"ClusterIP"}}"#])?;
    objects.wait_ledger(&["192.168.77.200"])?;
    ensure!(objects.shown("two")?.is_none());
    wait_for("the condition to go", SOON, || Ok(objects.condition("two")?.0.is_empty().then_some(())))?;
    objects.0.kubectl(&["patch", "service", "two", "-p", r#"{"spec":{"type":"LoadBalancer"}}"#])?;
    objects.wait_shown("two", "192.168.77.201")?;
    objects.delete("service", "two")?;
    objects.wait_ledger(&["192.168.77.200"])
}

/// As from a time before the rules: marked, and nothing that is allocated changes.
fn a_malformed_pool_that_slipped_through(objects: &Objects) -> Result<()> {
    let before = objects.ledger()?;
    let crd = objects.get(&["crd", "addresspools.sheave.dev"])?;
    let rules = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/addresses/items/\
                 x-kubernetes-validations";
    let patch = format!(r#"[{{"op":"remove","path":"{rules}"}}]"#);
    objects.0.kubectl(&["patch", "crd", "addresspools.sheave.dev", "--type=json", "-p", &patch])?;
    wait_for("the rules to be gone", Duration::from_secs(20), || Ok(objects.pool("bad", "nonsense").ok()))?;
    wait_for("the pool to be marked", SOON, || {
        let (status, reason, message) = objects.pool_condition("bad")?;
        Ok((status == "False" && reason == "Malformed" && message.contains("'nonsense'")).then_some(()))
    })?;
    // Also the pool that is in use becomes malformed.
    objects.pool("default", "also nonsense")?;
    wait_for("the pool in use to be marked", SOON, || {
        Ok((objects.pool_condition("default")?.1 == "Malformed").then_some(()))
    })?;
    objects.service("late", "", "")?;
    objects.wait_refused("late", "PoolMalformed")?;
    ensure!(objects.ledger()? == before);
    objects.wait_shown("four", "192.168.77.200")?;
    objects.pool("default", "192.168.77.200-192.168.77.203")?;
    objects.wait_shown("late", "192.168.77.201")?;
    objects.delete("addresspool", "bad")?;
    objects.delete("service", "late")?;
    let rules = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["addresses"]
        ["items"]["x-kubernetes-validations"];
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/addresses/items/\
                x-kubernetes-validations";
    let patch = serde_json::json!([{ "op": "add", "path": path, "value": rules }]).to_string();
    objects.0.kubectl(&["patch", "crd", "addresspools.sheave.dev", "--type=json", "-p", &patch]).map(drop)
}

/// From the Service's creation to its address, start of a kubectl included: an upper bound.
fn latency(objects: &Objects) -> Result<()> {
    let mut spans = Vec::new();
    for round in 0..5 {
        let name = format!("quick-{round}");
        let mut watch = objects.0.kubectl_command();
        watch.args(["wait", "--for=jsonpath={.status.loadBalancer.ingress[0].ip}", &format!("service/{name}")]);
        objects.service(&name, "", "")?;
        let created = Instant::now();
        ensure!(watch.args(["--timeout=5s"]).output()?.status.success(), "{name} got no address");
        spans.push(created.elapsed());
        objects.delete("service", &name)?;
        objects.wait_ledger(&["192.168.77.200"])?;
    }
    spans.sort();
    eprintln!(
        "Service created -> address in its status, as kubectl sees it: median {:?}, most {:?}",
        spans[2], spans[4]
    );
    Ok(())
}
