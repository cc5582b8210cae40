//! Pools: what the API server admits, whom they serve, and what becomes of grants when they change.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sheave_tests::lab::wait_for;

use super::objects::{Objects, SOON};

/// Of the pools of these chapters; the pool of the others has none of it.
const RANGE: &str = "addresses: ['192.168.77.230 - 192.168.77.231']";
const OF_POOL: &str = "sheave.dev/address-pool: open";

pub fn chapters(objects: &Objects) -> Result<()> {
    fields_are_checked(objects)?;
    counted(objects)?;
    selected_by_labels(objects)?;
    drained(objects)?;
    renamed(objects)?;
    deleted_and_created_again(objects)?;
    for service in ["held", "late"] {
        objects.delete("service", service)?;
    }
    objects.delete("addresspool", "open")?;
    objects.wait_ledger(&["192.168.77.200"])
}

/// The message names the field, the value and what is allowed.
fn fields_are_checked(objects: &Objects) -> Result<()> {
    let selector = |what: &str| {
        format!("addresses: [192.0.2.1], serviceSelectors: [{{matchExpressions: [{{key: app, {what}}}]}}]")
    };
    for (spec, words) in [
        (
            "addresses: [192.0.2.1, '192.0.2.9 - 192.0.2.1']".to_string(),
            &["spec.addresses[1]", "ends before it starts"][..],
        ),
        (
            "addresses: [192.0.2.1], exclusions: [192.0.2.300]".into(),
            &["spec.exclusions[0]", "'192.0.2.300' is neither an address"],
        ),
        (
            "addresses: ['2001::/16']".into(),
            &["spec.addresses[0]", "'2001::/16' contains", "IPv6: /32", "within 2000::/3"],
        ),
        ("addresses: [192.0.2.1], priority: 0".into(), &["spec.priority", "greater than or equal to 1"]),
        ("addresses: [192.0.2.1], namespaces: [Shop]".into(), &["spec.namespaces[0]", "\"Shop\"", "[a-z0-9]"]),
        (
            selector("operator: Like"),
            &["spec.serviceSelectors[0].matchExpressions[0].operator", "\"Like\"", "\"DoesNotExist\""],
        ),
        (selector("operator: NotIn"), &["matchExpressions[0]", "operator 'NotIn' of key 'app' takes 1 to 64 values"]),
        (selector("operator: Exists, values: [a]"), &["operator 'Exists' of key 'app' takes no values"]),
    ] {
        let bad =
            format!("apiVersion: sheave.dev/v1alpha1\nkind: AddressPool\nmetadata: {{name: bad}}\nspec: {{{spec}}}");
        let error = objects.refusal("addresspool", &bad)?;
        ensure!(words.iter().all(|word| error.contains(word)), "{spec}: {error}");
    }
    Ok(())
}

/// IPv6 is counted, as far as the numbers go, and not given to a Service of IPv4.
fn counted(objects: &Objects) -> Result<()> {
    objects
        .pool_with("six", "addresses: ['2001:db8::/64', 2001:db8:1::1], exclusions: ['2001:db8::/120'], priority: 1")?;
    let status = wait_for("the pool to be counted", SOON, || {
        let status = objects.get(&["addresspool", "six"])?["status"].take();
        Ok((!status["conditions"].is_null()).then_some(status))
    })?;
    let counts = ["total", "used", "free", "excluded"].map(|field| status[field].as_i64());
    ensure!(counts == [Some(i64::MAX), Some(0), Some(i64::MAX), Some(256)], "{status}");
    let said = |type_: &str| condition(&status, type_);
    ensure!(
        said("Ready") == "True Valid" && said("Conflict") == "False Valid" && said("Malformed") == "False Valid",
        "{status}"
    );
    let table = objects.0.kubectl(&["get", "addresspools"])?;
    for word in ["TOTAL", "USED", "FREE", "EXCLUDED", "READY", "REASON", "9223372036854775807"] {
        ensure!(table.contains(word), "{word} is not in\n{table}");
    }
    objects.service("next", "", "")?;
    objects.wait_shown("next", "192.168.77.201")?;
    objects.delete("service", "next")?;
    objects.delete("addresspool", "six")
}

/// A label opens the pool; without it, and with other labels asked for, the Service keeps what it has.
fn selected_by_labels(objects: &Objects) -> Result<()> {
    let by_namespace = format!("{RANGE}, namespaceSelectors: [{{matchLabels: {{open: 'yes'}}}}]");
    objects.pool_with("open", &by_namespace)?;
    objects.service("held", OF_POOL, "")?;
    objects.wait_refused("held", "ServiceNotSelected")?;
    let note = objects.wait_event("held", "Warning", "ServiceNotSelected")?;
    ensure!(note.contains("pool 'open' does not select namespace 'default'"), "{note}");
    objects.0.kubectl(&["label", "namespace", "default", "open=yes"])?;
    objects.wait_shown("held", "192.168.77.230")?;
    objects.0.kubectl(&["label", "namespace", "default", "open-"])?;
    objects.service("late", OF_POOL, "")?;
    objects.wait_refused("late", "ServiceNotSelected")?;
    objects.wait_shown("held", "192.168.77.230")?;

    objects.pool_with(
        "open",
        &format!("{RANGE}, serviceSelectors: [{{matchExpressions: [{{key: tier, operator: Exists}}]}}]"),
    )?;
    wait_for("another reason", SOON, || {
        Ok(objects.condition("late")?.2.contains("the Service's labels").then_some(()))
    })?;
    objects.0.kubectl(&["label", "service", "late", "tier=front"])?;
    objects.wait_shown("late", "192.168.77.231")?;
    objects.wait_shown("held", "192.168.77.230")?;
    ensure!(objects.condition("held")?.1 == "AddressAllocated", "{:?}", objects.condition("held")?);
    objects.delete("service", "late")?;
    objects.wait_ledger(&["192.168.77.200", "192.168.77.230"])
}

fn drained(objects: &Objects) -> Result<()> {
    objects.pool_with("open", &format!("{RANGE}, disabled: true"))?;
    wait_for("the pool to be drained", SOON, || {
        let (status, reason, _) = objects.pool_condition("open")?;
        Ok((status == "False" && reason == "Disabled").then_some(()))
    })?;
    objects.service("late", OF_POOL, "")?;
    objects.wait_refused("late", "PoolDisabled")?;
    objects.wait_event("late", "Warning", "PoolDisabled")?;
    objects.service("late", "sheave.dev/loadBalancerIPs: 192.168.77.231", "")?;
    wait_for("the address to be refused", SOON, || Ok(objects.condition("late")?.2.contains("'open'").then_some(())))?;
    objects.wait_refused("late", "PoolDisabled")?;
    objects.wait_shown("held", "192.168.77.230")?;
    objects.pool_with("open", RANGE)?;
    objects.wait_shown("late", "192.168.77.231")
}

/// The new pool is there before the old one goes: the ledger's entries stay the same objects, and name the new one.
fn renamed(objects: &Objects) -> Result<()> {
    let before = objects.ledger()?;
    objects.pool_with("renamed", RANGE)?;
    wait_for("both pools to name the conflict", SOON, || {
        let said =
            |pool: &str| Ok::<_, anyhow::Error>(condition(&objects.get(&["addresspool", pool])?["status"], "Conflict"));
        Ok((said("open")? == "True Overlapping" && said("renamed")? == "True Overlapping").then_some(()))
    })?;
    ensure!(objects.pool_condition("open")?.0 == "True" && objects.pool_condition("renamed")?.1 == "Overlapping");
    objects.delete("addresspool", "open")?;
    wait_adopted(objects, "renamed")?;
    ensure!(objects.ledger()? == before, "an entry was written anew");
    let message = objects.condition("late")?.2;
    ensure!(message == "192.168.77.231 from pool 'renamed'", "{message}");
    // `held` names the pool that is gone.
    objects.wait_shown("held", "192.168.77.230")?;
    ensure!(objects.condition("held")?.1 == "UnknownPool", "{:?}", objects.condition("held")?);
    Ok(())
}

/// cases-2026-11, C4, in both ways: the pool goes before the next one comes, and comes back.
fn deleted_and_created_again(objects: &Objects) -> Result<()> {
    let before = objects.ledger()?;
    objects.delete("addresspool", "renamed")?;
    wait_for("the grant outside any pool to be marked", SOON, || {
        Ok((objects.condition("late")?.1 == "AddressNotInPool").then_some(()))
    })?;
    objects.pool_with("open", RANGE)?;
    wait_adopted(objects, "open")?;
    for (service, address) in [("held", "192.168.77.230"), ("late", "192.168.77.231")] {
        let what = format!("{service} to be as it wants");
        wait_for(&what, SOON, || Ok((objects.condition(service)?.1 == "AddressAllocated").then_some(())))?;
        objects.wait_shown(service, address)?;
    }
    ensure!(objects.ledger()? == before, "an entry was written anew");
    Ok(())
}

/// Waits until the ledger names this pool for both grants, and it counts them.
fn wait_adopted(objects: &Objects, pool: &str) -> Result<()> {
    wait_for(&format!("{pool} to adopt the grants"), SOON, || {
        let named = |address: &str| {
            Ok::<_, anyhow::Error>(objects.get(&["virtualip", address])?["spec"]["pool"] == json!(pool))
        };
        let counts = objects.get(&["addresspool", pool])?["status"]["used"] == json!(2);
        Ok((named("192.168.77.230")? && named("192.168.77.231")? && counts).then_some(()))
    })
}

/// Status and reason of a pool's condition.
fn condition(status: &Value, type_: &str) -> String {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let found = conditions.filter(|condition| condition["type"] == type_);
    let text = |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_string();
    found.map(|c| format!("{} {}", text(c, "status"), text(c, "reason"))).collect()
}
