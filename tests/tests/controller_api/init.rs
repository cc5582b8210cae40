//! `sheave init` against a real API server: the command as a person runs it, and the answers of a speaker, written with its token; then
//! with a real speaker (`segment`).

mod segment;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheave_tests::lab::wait_for;

use super::command::{refused, sheave};
use super::objects::Objects;
use super::speaker_state::{IN_FORCE, report, server_side, speaker_of};

/// What the speaker of node1 says, as part of a status.
const FINDS: &str = "dhcpServers: [{server: 192.0.2.253, mac: '02:00:00:00:00:fd', offered: 192.0.2.240}]";
/// The command waits for a speaker's answers for less.
const ENDS_WITHIN: Duration = Duration::from_secs(120);
const HOST: &str = "192.0.2.250";
/// The gateway is .254. From .241 on there are nine addresses in a row at most.
const PROPOSED: &str = "192.0.2.224-192.0.2.239";

/// Pool `default` is there, and no SpeakerState.
pub fn chapters(objects: &Objects, folder: &Path) -> Result<()> {
    let lab = objects.0;
    refused(objects, &["init", "--pool", "first"], "NoSpeaker: ")?;
    lab.apply("apiVersion: v1\nkind: Node\nmetadata: {name: node2}")?;
    let (node1, node2) = (speaker_of(lab, folder, "node1")?, speaker_of(lab, folder, "node2")?);
    report(lab, &node1, "node1", "{version: '1'}")?;
    refused(objects, &["init", "--pool", "first"], "NoSubnet: ")?;
    report(
        lab,
        &node1,
        "node1",
        "{uplinks: [{name: eth0, mac: '02:00:00:00:00:11', addresses: [192.0.2.11], subnets: [192.0.2.0/24], gateways: [192.0.2.254]}]}",
    )?;
    refused(objects, &["init"], "PoolExists: there is an AddressPool 'default' already")?;
    refused(objects, &["init", "--pool", "first", "--subnet", "198.51.100.0/24"], "UnknownSubnet: 198.51.100.0/24")?;
    let elsewhere = ["init", "--pool", "first", "--yes-this-range", "198.51.100.7"];
    refused(objects, &elsewhere, "RangeOutsideSubnets: 198.51.100.7-198.51.100.7")?;
    let node = ["init", "--pool", "first", "--yes-this-range", "192.0.2.11"];
    refused(objects, &node, "RangeInUse: 192.0.2.11-192.0.2.11 is not free: 192.0.2.11: address of node node1")?;
    only_its_own_node(objects, &node1, &node2).context("only its own node")?;
    proposed(objects, &node1).context("proposed")?;
    named(objects, &node1).context("named")?;
    lab.kubectl(&["-n", "sheave-system", "delete", "pod", "speaker-node1", "speaker-node2", "--force"])?;
    lab.kubectl(&["delete", "node", "node2"])?;
    lab.kubectl(&["delete", "speakerstates", "--all"])?;
    segment::chapter(objects, folder).context("a real speaker")
}

/// Also what it makes of an object that another command may be using.
fn only_its_own_node(objects: &Objects, node1: &Path, node2: &Path) -> Result<()> {
    let lab = objects.0;
    lab.apply(&object("spec: {round: 1, addresses: [192.0.2.7]}"))?;
    let write = |who: &Path| {
        let how = ["--subresource=status", "--dry-run=server"];
        server_side(lab, who, &object("status: {observedRound: 1}"), &how)
    };
    wait_for("the policy to be in force", IN_FORCE, || Ok(write(node2)?.is_err().then_some(())))?;
    let Err(said) = write(node2)? else { anyhow::bail!("node2 could answer for node1") };
    let sentence = "the status of SubnetScan node1 is written by the speaker of that node alone";
    ensure!(said.contains(sentence) && said.contains("names node node2"), "{said}");
    write(node1)?.map_err(anyhow::Error::msg).context("its own")?;
    refused(objects, &["init", "--pool", "first"], "ScanUnderWay: SubnetScan node1 was made")?;
    let many: Vec<String> = (0..129).map(|last| format!("192.0.2.{last}")).collect();
    let many = object(&format!("spec: {{round: 2, addresses: [{}]}}", many.join(", ")));
    let Err(said) = server_side(lab, &lab.kubeconfig(), &many, &["--dry-run=server"])? else {
        anyhow::bail!("129 addresses in one request")
    };
    ensure!(said.contains("128"), "{said}");
    lab.kubectl(&["delete", "subnetscan", "node1"]).map(drop)
}

/// Found, proposed, and applied when it is typed.
fn proposed(objects: &Objects, node1: &Path) -> Result<()> {
    let words = ["init", "--pool", "first"];
    let run = |typed: &str| with_speaker(objects, node1, FINDS, || sheave(objects, &words, typed));
    for typed in ["yes\n", "", "192.0.2.224-192.0.2.238\n"] {
        let (said, _) = run(typed)?;
        ensure!(said.code == 1 && said.out.contains("nothing was applied"), "{typed:?}: {said:?}");
        ensure!(objects.get(&["addresspool", "first"]).is_err(), "{typed:?} was taken for the range");
    }
    let (said, asked) = run(&format!(" {} \n", PROPOSED.replace('-', " - ")))?;
    ensure!(said.code == 0, "{said:?}");
    for sentence in [
        "192.0.2.0/24: subnet of node1",
        "192.0.2.1-192.0.2.254: 254 addresses probed by the speaker of node1",
        "another host answers: 192.0.2.250 (02:00:00:00:00:99)",
        "the DHCP server 192.0.2.253 (02:00:00:00:00:fd) offers 192.0.2.240",
        "addresses: [192.0.2.224-192.0.2.239]",
        "AddressPool first created: 16 addresses",
    ] {
        ensure!(said.out.contains(sentence), "{sentence} is not in {said:?}");
    }
    // Every address once, in requests of 128; DHCP servers are looked for with the first.
    let rounds: Vec<_> = asked.iter().map(|(round, (addresses, dhcp))| (*round, addresses.len(), *dhcp)).collect();
    ensure!(rounds == [(1, 128, true), (2, 126, false)], "{rounds:?}");
    let all = asked.into_values().flat_map(|(addresses, _)| addresses);
    ensure!(all.eq((1..=254).map(|last| format!("192.0.2.{last}"))), "not every address was asked for");
    let pool = objects.get(&["addresspool", "first"])?;
    ensure!(pool["spec"]["addresses"] == serde_json::json!([PROPOSED]), "{}", pool["spec"]);
    ensure!(objects.get(&["subnetscans"])?["items"] == serde_json::json!([]), "a SubnetScan stays behind");
    Ok(())
}

/// A range that is named is applied without a question, if it is free.
fn named(objects: &Objects, node1: &Path) -> Result<()> {
    let run = |finds: &str, range: &str, more: &[&str]| {
        let words = [&["init", "--pool", "second", "--yes-this-range", range], more].concat();
        with_speaker(objects, node1, finds, || sheave(objects, &words, "")).map(|(said, _)| said)
    };
    for (finds, range, sentence) in [
        (FINDS, "192.0.2.248-192.0.2.251", "192.0.2.250: a host answers (02:00:00:00:00:99)"),
        (FINDS, "192.0.2.240", "192.0.2.240: offered by the DHCP server 192.0.2.253"),
        (FINDS, "192.0.2.239/32", "192.0.2.239: in AddressPool first"),
        ("problem: no_carrier", "192.0.2.100", "NoAnswer: no speaker of the subnet has answered: node1: no_carrier"),
    ] {
        let said = run(finds, range, &[])?;
        ensure!(said.code == 2 && said.error.contains(sentence), "{range}: {said:?}");
    }
    let tried = run(FINDS, "192.0.2.100-192.0.2.101", &["--dry-run"])?;
    ensure!(tried.code == 0 && tried.out.contains("would be created; nothing was changed"), "{tried:?}");
    ensure!(objects.get(&["addresspool", "second"]).is_err(), "a dry run made a pool");
    let said = run(FINDS, "192.0.2.100-192.0.2.101", &[])?;
    ensure!(said.code == 0 && said.out.contains("AddressPool second created: 2 addresses"), "{said:?}");
    objects.delete("addresspool", "second")?;
    objects.delete("addresspool", "first")
}

/// By round: the addresses, and whether DHCP servers were asked for.
type Asked = BTreeMap<i64, (Vec<String>, bool)>;

/// Answers as the speaker of node1 while `run` runs: [`HOST`] answers, and `finds` is what else there is.
fn with_speaker<T>(objects: &Objects, who: &Path, finds: &str, run: impl FnOnce() -> Result<T>) -> Result<(T, Asked)> {
    let (over, asked) = (AtomicBool::new(false), Mutex::new(Asked::new()));
    std::thread::scope(|scope| {
        let answers = scope.spawn(|| {
            wait_for("the command to end", ENDS_WITHIN, || {
                answer(objects, who, finds, &asked)?;
                Ok(over.load(Ordering::Relaxed).then_some(()))
            })
        });
        let result = run();
        over.store(true, Ordering::Relaxed);
        answers.join().expect("the speaker").context("the speaker's answers")?;
        let asked = std::mem::take(&mut *asked.lock().expect("no panic"));
        Ok((result?, asked))
    })
}

fn answer(objects: &Objects, who: &Path, finds: &str, asked: &Mutex<Asked>) -> Result<()> {
    let list = objects.get(&["subnetscans"])?;
    let Some(scan) = list["items"].get(0) else { return Ok(()) };
    let round = scan["spec"]["round"].as_i64().unwrap_or_default();
    if scan["status"]["observedRound"].as_i64().unwrap_or_default() >= round {
        return Ok(());
    }
    let addresses: Vec<String> = serde_json::from_value(scan["spec"]["addresses"].clone())?;
    let macs = |address: &str| if address == HOST { ", macs: ['02:00:00:00:00:99']" } else { "" };
    let results: Vec<String> =
        addresses.iter().map(|address| format!("{{address: {address}{}}}", macs(address))).collect();
    let dhcp = scan["spec"]["dhcp"] == Value::Bool(true);
    let finds = if dhcp { finds } else { "proxies: []" };
    let status = format!("status: {{observedRound: {round}, results: [{}], {finds}}}", results.join(", "));
    // The command may have ended meanwhile.
    let written = server_side(objects.0, who, &object(&status), &["--subresource=status"])?;
    ensure!(written.is_ok() || written.as_ref().is_err_and(|said| said.contains("not found")), "{written:?}");
    asked.lock().expect("no panic").insert(round, (addresses, dhcp));
    Ok(())
}

fn object(rest: &str) -> String {
    format!("apiVersion: sheave.dev/v1alpha1\nkind: SubnetScan\nmetadata: {{name: node1}}\n{rest}\n")
}
