//! Requests to probe addresses, and the answers of a speaker: no node answers for another one, and what a host uses is granted to nobody.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheave_tests::lab::wait_for;

use super::objects::{Objects, SOON};
use super::pair::Pair;
use super::speaker_state::{IN_FORCE, report, server_side, speaker_of};

/// Service `four` has 192.168.77.200 when this begins, and when it ends.
pub fn chapters(objects: &Objects, pair: &Pair, folder: &Path) -> Result<()> {
    // Of the chapter before: it goes with its SpeakerState.
    wait_for("the earlier AddressProbe to be collected", IN_FORCE, || Ok(probe(objects)?.is_none().then_some(())))?;
    objects.0.apply("apiVersion: v1\nkind: Node\nmetadata: {name: node2}")?;
    let speakers = ["node1", "node2"].map(|node| speaker_of(objects.0, folder, node));
    let [node1, node2] = speakers;
    let (node1, node2) = (node1?, node2?);
    report(
        objects.0,
        &node1,
        "node1",
        "{uplinks: [{name: eth0, mac: '02:00:00:00:00:11', subnets: [192.168.77.0/24]}]}",
    )?;
    asked_ahead(objects).context("asked ahead")?;
    only_their_own(objects, &node1, &node2).context("only their own")?;
    silence(objects, pair).context("silence")?;
    a_host(objects, pair, &node1).context("a host")?;
    objects.0.kubectl(&["-n", "sheave-system", "delete", "pod", "speaker-node1", "speaker-node2", "--force"])?;
    objects.0.kubectl(&["delete", "node", "node2"])?;
    objects.0.kubectl(&["delete", "speakerstates", "--all"])?;
    wait_for("the AddressProbe to go with its SpeakerState", IN_FORCE, || Ok(probe(objects)?.is_none().then_some(())))?;
    objects.wait_ledger(&["192.168.77.200"])
}

fn probe(objects: &Objects) -> Result<Option<Value>> {
    let found = objects.get(&["addressprobes"])?["items"].as_array().context("a list")?.first().cloned();
    Ok(found)
}

/// Those next in line, of the node that is on the segment, in an object that goes with its SpeakerState.
fn asked_ahead(objects: &Objects) -> Result<()> {
    let asked = wait_for("the request", SOON, || probe(objects))?;
    let expected = ["192.168.77.201", "192.168.77.202", "192.168.77.203"];
    let addresses = asked["spec"]["addresses"].as_array().context("addresses")?;
    ensure!(addresses.iter().map(|one| one.as_str().unwrap_or_default()).eq(expected), "{asked}");
    let owner = &asked["metadata"]["ownerReferences"][0];
    ensure!(asked["metadata"]["name"] == "node1" && owner["kind"] == "SpeakerState", "{asked}");
    ensure!(asked["spec"]["round"] == 1, "{asked}");
    Ok(())
}

fn only_their_own(objects: &Objects, node1: &Path, node2: &Path) -> Result<()> {
    let lab = objects.0;
    let dry = ["--subresource=status", "--dry-run=server"];
    let write = |who: &Path| server_side(lab, who, &object("status: {observedRound: 7}"), &dry);
    wait_for("the policy to be in force", IN_FORCE, || Ok(write(node2)?.is_err().then_some(())))?;
    for (who, sentence) in [(node2, "names node node2"), (&lab.kubeconfig(), "names no node")] {
        let Err(said) = write(who)? else { anyhow::bail!("{} could answer for node1", who.display()) };
        ensure!(said.contains("is written by the speaker of that node alone") && said.contains(sentence), "{said}");
    }
    write(node1)?.map_err(anyhow::Error::msg).context("its own")?;
    let spec = object("spec: {round: 9, addresses: [192.168.77.203]}");
    let Err(said) = server_side(lab, node1, &spec, &["--dry-run=server"])? else {
        anyhow::bail!("a speaker could ask")
    };
    ensure!(said.contains("orbidden"), "{said}");
    let many: Vec<String> = (0..65).map(|last| format!("192.0.2.{last}")).collect();
    let many = object(&format!("spec: {{round: 9, addresses: [{}]}}", many.join(", ")));
    let Err(said) = server_side(lab, &lab.kubeconfig(), &many, &["--dry-run=server"])? else {
        anyhow::bail!("65 addresses in one request")
    };
    ensure!(said.contains("64"), "{said}");
    Ok(())
}

/// No speaker runs there: the pool says so, and Services get addresses all the same.
fn silence(objects: &Objects, pair: &Pair) -> Result<()> {
    let says = || Ok::<_, anyhow::Error>(condition(objects, "NotProbed")?.0 == "True");
    wait_for("the pool to say NotProbed", SOON, || Ok(says()?.then_some(())))?;
    ensure!(condition(objects, "NotProbed")?.1.contains("no speaker in 192.168.77.0/24"));
    objects.service("unprobed", "", "")?;
    objects.wait_shown("unprobed", "192.168.77.201")?;
    wait_for("the note", SOON, || Ok(pair.leader()?.readyz()?.contains("note: NotProbed: ").then_some(())))?;
    wait_for("the metric", SOON, || {
        Ok((pair.leader()?.metric("sheave_controller_grants_not_probed_total")? >= 1.0).then_some(()))
    })?;
    objects.delete("service", "unprobed")?;
    objects.wait_ledger(&["192.168.77.200"])
}

/// One answers for .201.
fn a_host(objects: &Objects, pair: &Pair, speaker: &Path) -> Result<()> {
    let answer = |macs: &str| {
        let probe = probe(objects)?.context("an AddressProbe")?;
        let round = |part: &str, name: &str| probe[part][name].as_i64().unwrap_or_default();
        let round = round("spec", "round").max(round("status", "observedRound"));
        // The time that the speaker had is over: it counts all the same. One more than was answered before.
        let results = format!(
            "[{{address: 192.168.77.201, macs: [{macs}]}}, {{address: 192.168.77.202}}, {{address: 192.168.77.203}}]"
        );
        let status = object(&format!("status: {{observedRound: {}, results: {results}}}", round + 1));
        server_side(objects.0, speaker, &status, &["--subresource=status"])?.map_err(anyhow::Error::msg)
    };
    answer("'02:00:00:00:00:99'")?;
    objects.wait_counts("default", &[("excluded", 1), ("free", 2)])?;
    wait_for("the speaker to count as one that answers", SOON, || {
        Ok((condition(objects, "NotProbed")?.0 == "False").then_some(()))
    })?;
    objects.service("auto", "", "")?;
    objects.wait_shown("auto", "192.168.77.202")?;
    objects.service("asked", "sheave.dev/addresses: 192.168.77.201", "")?;
    objects.wait_refused("asked", "AnsweredByHost")?;
    let note = objects.wait_event("asked", "Warning", "AnsweredByHost")?;
    ensure!(note.contains("192.168.77.201 is in use by the host 02:00:00:00:00:99"), "{note}");
    wait_for("the metrics", SOON, || {
        let leader = pair.leader()?;
        let excluded = leader.metric("sheave_controller_addresses_excluded{reason=\"AnsweredByHost\"}")?;
        let answers = leader.metric("sheave_controller_probe_answers{verdict=\"AnsweredByHost\"}")?;
        Ok(((excluded, answers) == (1.0, 1.0)).then_some(()))
    })?;
    // The host is gone.
    answer("")?;
    objects.wait_shown("asked", "192.168.77.201")?;
    // An answer for a granted address is named, and takes nothing away; a node's says nothing.
    answer("'02:00:00:00:00:99'")?;
    wait_for("the Service to name the host", SOON, || {
        let (status, reason, _) = objects.condition("asked")?;
        Ok((status == "True" && reason == "AnsweredByHost").then_some(()))
    })?;
    answer("'02:00:00:00:00:11'")?;
    wait_for("the remark to go", SOON, || Ok((objects.condition("asked")?.1 == "AddressAllocated").then_some(())))?;
    objects.delete("service", "asked")?;
    objects.delete("service", "auto")
}

/// (status, message) of a condition of the pool.
fn condition(objects: &Objects, name: &str) -> Result<(String, String)> {
    let pool = objects.get(&["addresspool", "default"])?;
    let conditions = pool["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == name);
    let text = |field: &str| found.and_then(|c| c[field].as_str()).unwrap_or_default().to_string();
    Ok((text("status"), text("message")))
}

fn object(rest: &str) -> String {
    format!("apiVersion: sheave.dev/v1alpha1\nkind: AddressProbe\nmetadata: {{name: node1}}\n{rest}\n")
}
