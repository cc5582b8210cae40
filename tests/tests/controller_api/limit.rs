//! The most addresses that a cluster may have in use: one more is refused, by name.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sheave_tests::lab::wait_for;
use sheave_tests::scenario::api::Api;

use super::objects::Objects;
use super::pair::Pair;

/// As a user knows it: the speakers' tables have room for so many.
const LIMIT: usize = 4096;
const LEDGER: &str = "/apis/sheave.dev/v1alpha1/virtualips";
const CRD: &str = "virtualips.sheave.dev";
const POOL_FIELD: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/pool";
const WRITERS: usize = 4;

/// The ledger is filled while no controller runs, with entries that it cannot read: their addresses count as granted, and nothing is
/// written to them. Service `four` has 192.168.77.200 when this begins, and when it ends.
pub fn one_more(objects: &Objects, pair: &mut Pair) -> Result<()> {
    pair.stop()?;
    let crd = objects.get(&["crd", CRD])?;
    let field = crd.pointer(POOL_FIELD).cloned().unwrap_or_default();
    replace_field(objects, &json!({ "x-kubernetes-preserve-unknown-fields": true }))?;
    fill(objects, LIMIT - objects.ledger()?.len())?;
    pair.fill()?;

    objects.service("late", "", "")?;
    objects.wait_refused("late", "LimitReached")?;
    let note = objects.wait_event("late", "Warning", "LimitReached")?;
    ensure!(
        note.contains("4096 addresses are in use, which is the most that the Services of a cluster may have"),
        "{note}"
    );
    pair.wait_metric("services_waiting", "{reason=\"LimitReached\"}", 1.0)?;
    ensure!(objects.shown("four")?.is_some(), "a Service lost its address");

    pair.stop()?;
    objects.0.kubectl(&["delete", "--raw", &format!("{LEDGER}?labelSelector=chapter%3Dlimit")])?;
    replace_field(objects, &field)?;
    pair.fill()?;
    objects.wait_shown("late", "192.168.77.201")?;
    objects.delete("service", "late")?;
    objects.wait_ledger(&["192.168.77.200"])
}

fn fill(objects: &Objects, count: usize) -> Result<()> {
    let api = Api::open(objects.0)?;
    let first = u32::from(Ipv4Addr::new(198, 18, 0, 0));
    let entry = |number: usize| {
        let address = Ipv4Addr::from(first + number as u32).to_string();
        let service = json!({ "namespace": "default", "name": "odd", "uid": "odd" });
        json!({
            "apiVersion": "sheave.dev/v1alpha1", "kind": "VirtualIP",
            "metadata": { "name": address, "labels": { "chapter": "limit" } },
            "spec": { "address": address, "pool": 7, "services": [service] },
        })
    };
    // A changed definition takes effect some moments later.
    wait_for("a pool that is a number to be accepted", Duration::from_secs(20), || {
        Ok(api.create(LEDGER, &entry(0)).ok())
    })?;
    std::thread::scope(|scope| {
        let writers = (0..WRITERS).map(|writer| {
            let (api, entry) = (api.clone(), &entry);
            scope.spawn(move || -> Result<()> {
                (1..count)
                    .skip(writer)
                    .step_by(WRITERS)
                    .try_for_each(|number| api.create(LEDGER, &entry(number)).map(drop))
            })
        });
        let writers: Vec<_> = writers.collect();
        writers.into_iter().try_for_each(|writer| writer.join().expect("a writer panicked"))
    })
}

fn replace_field(objects: &Objects, value: &Value) -> Result<()> {
    let patch = json!([{ "op": "replace", "path": POOL_FIELD, "value": value }]).to_string();
    objects.0.kubectl(&["patch", "crd", CRD, "--type=json", "-p", &patch]).map(drop)
}
