//! An administrator moves the address, prefers a node and drains nodes, by the command line.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::watch::{Options, Watch};
use super::{Setup, Survival, survive};
use crate::lab::{image, wait_for};
use crate::scenario::api::text;
use crate::scenario::deploy::Scene;
use crate::scenario::inside::on_node;
use crate::scenario::settle::{holder, wait_holder};

/// One hand-over to a node; then nodes are drained one after the other, the last one that could own the address as well; then one is back.
pub fn by_hand(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::DEFAULT, |watch| {
        let vip = scene.vip.to_string();
        let owner = wait_holder(scene, &scene.nodes)?;
        let others: Vec<&String> = scene.nodes.iter().filter(|node| **node != owner).collect();
        let [to, third] = others[..] else { bail!("three nodes are needed: {:?}", scene.nodes) };
        changes_nothing(scene, &owner, to)?;
        watch.order("moved by hand")?;
        moved(watch, "moved", to, || sheave(scene, &["move", &vip, to]), &format!("moved from {owner} to {to}"))?;
        ensure!(placements(scene)?.is_empty(), "the move stayed behind");
        // By its rank the address may go anywhere: it is preferred at one.
        sheave(scene, &["prefer", &vip, third, "--reason", REASON])?;
        ensure!(holder(scene, &scene.nodes)?.as_ref() == Some(to), "a preferred node moved the address");
        drained(watch, to, third, "drained, to the preferred node")?;
        drained(watch, third, &owner, "the preferred node drained, to the last one")?;
        refused(scene, &["move", &vip, to], "it is drained by")?;
        last(scene, &owner)?;
        let made = placements(scene)?;
        ensure!(made.len() == 4 && made.iter().all(|(by, reason)| !by.is_empty() && reason == REASON), "{made:?}");
        let status = said_by(&run(scene, &["status"])?);
        ensure!(status.matches(REASON).count() == 3, "{status}");
        watch.order("a drain undone")?;
        let undo = || sheave(scene, &["drain", to, "--undo"]);
        moved(watch, "a drain undone, from the last node", to, undo, "may own addresses again")?;
        clear(scene)?;
        on_the_node(watch, to)?;
        ensure!(wait_holder(scene, &scene.nodes)? != *to, "the end of a drain moved the address");
        Ok(())
    })
}

/// Takes back what may be left.
pub fn clear(scene: &Scene) -> Result<()> {
    for node in &scene.nodes {
        sheave(scene, &["drain", node, "--undo"])?;
        here(scene, node, &["--undo"])?;
    }
    sheave(scene, &["prefer", &scene.vip.to_string(), "--undo"]).map(drop)
}

/// What is only tried, and what cannot be.
fn changes_nothing(scene: &Scene, owner: &str, to: &str) -> Result<()> {
    let vip = scene.vip.to_string();
    for words in [&["move", &vip, to][..], &["prefer", &vip, to], &["drain", owner]] {
        let said = sheave(scene, &[words, &["--dry-run"]].concat())?;
        ensure!(said.contains("nothing was changed"), "{said}");
    }
    refused(scene, &["move", &vip, "nowhere"], "no Node has the name 'nowhere'")?;
    refused(scene, &["drain", "nowhere"], "no Node has the name 'nowhere'")?;
    refused(scene, &["move", "192.0.2.99", to], "192.0.2.99 is granted to no Service")?;
    let said = sheave(scene, &["move", &vip, owner])?;
    ensure!(said.contains("already"), "{said}");
    let made = placements(scene)?;
    ensure!(made.is_empty(), "{made:?}");
    Ok(())
}

/// Drains the owner, and waits until the next node is it.
fn drained(watch: &mut Watch<'_>, node: &str, next: &str, why: &str) -> Result<()> {
    watch.order(&format!("{node} is drained by hand"))?;
    let scene = watch.scene;
    moved(watch, why, next, || sheave(scene, &["drain", node, "--reason", REASON]), "is drained: it owns no address")
}

/// No other node can own the address: the command says so, and it stays.
fn last(scene: &Scene, node: &str) -> Result<()> {
    let output = run(scene, &["drain", node, "--reason", REASON])?;
    let said = said_by(&output);
    ensure!(output.status.code() == Some(1), "{said}");
    for words in ["stays at", "no other node can own it", "it is drained by", "keeps until another node can own them"] {
        ensure!(said.contains(words), "{words:?} is not in: {said}");
    }
    ensure!(holder(scene, &scene.nodes)?.as_deref() == Some(node), "{said}");
    Ok(())
}

/// The owner is drained there, without a word to the API server; the other nodes may all own the address.
fn on_the_node(watch: &mut Watch<'_>, node: &str) -> Result<()> {
    let scene = watch.scene;
    watch.order(&format!("{node} is drained on the node"))?;
    let ordered = Instant::now();
    let said = here(scene, node, &["--reason", REASON])?;
    ensure!(said.contains("is drained: it owns no address"), "{said}");
    watch.figure("drained on the node: after, ms", ordered.elapsed().as_secs_f64() * 1e3);
    let shown = || {
        let state = scene.api.get(&format!("/apis/sheave.dev/v1alpha1/speakerstates/{node}"))?;
        Ok((text(&state, "/status/drained/reason") == REASON).then_some(()))
    };
    wait_for("the SpeakerState to show the drain", SHOWN, shown)?;
    refused(scene, &["move", &scene.vip.to_string(), node], "it is drained on the node by")?;
    let said = here(scene, node, &["--undo"])?;
    ensure!(said.contains("may own addresses again") && said.contains(REASON), "{said}");
    Ok(())
}

/// Runs the command, and waits until the node is the owner, by its own speaker's word.
fn moved(
    watch: &mut Watch<'_>,
    why: &str,
    node: &str,
    command: impl FnOnce() -> Result<String>,
    words: &str,
) -> Result<()> {
    let ordered = Instant::now();
    let said = command()?;
    ensure!(said.contains(words), "{why}: {words:?} is not in: {said}");
    wait_holder(watch.scene, &[node.to_owned()]).with_context(|| format!("{why}: to {node}"))?;
    watch.figure(&format!("{why}: after, ms"), ordered.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// By whom, and why.
fn placements(scene: &Scene) -> Result<Vec<(String, String)>> {
    let all = scene.api.list("/apis/sheave.dev/v1alpha1/placements")?;
    Ok(all.iter().map(|one| (text(one, "/spec/by").to_owned(), text(one, "/spec/reason").to_owned())).collect())
}

/// A drain of the node on which it runs.
fn here(scene: &Scene, node: &str, words: &[&str]) -> Result<String> {
    let program = image::static_binary("sheave").to_string_lossy().into_owned();
    on_node(&scene.lab, node, &program, &[&["drain", "--local"], words].concat())
}

fn refused(scene: &Scene, words: &[&str], why: &str) -> Result<()> {
    let output = run(scene, words)?;
    let said = said_by(&output);
    ensure!(!output.status.success() && said.contains(why), "sheave {}: {why:?} is not in: {said}", words.join(" "));
    Ok(())
}

fn sheave(scene: &Scene, words: &[&str]) -> Result<String> {
    let output = run(scene, words)?;
    ensure!(output.status.success(), "sheave {}: {}", words.join(" "), said_by(&output));
    Ok(said_by(&output))
}

fn run(scene: &Scene, words: &[&str]) -> Result<Output> {
    let mut command = Command::new(image::static_binary("sheave"));
    command.args(words).arg("--kubeconfig").arg(scene.lab.kubeconfig()).output().context("start sheave")
}

fn said_by(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The speaker writes its SpeakerState once a second.
const SHOWN: Duration = Duration::from_secs(10);
const REASON: &str = "tried in e2e";
