//! 410: a controller is stopped while Services come, go and change, etcd forgets its history, and its API server starts anew. The watches ask
//! for a state that nobody knows any more; what is there is listed, and what is gone is noticed.

use std::io::{Read, Write};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use sheave_tests::lab::{Fault, wait_for};
use sheave_tests::scenario::api::text;

use super::ground::{Ground, SOON, Server};
use super::history::History;
use super::{LEDGER, SERVICES};

pub fn chapter(ground: &Ground) -> Result<()> {
    let history = History::start(ground.lab)?;
    // It keeps the lead all the time: a new leader would read everything anyway.
    let replica = ground.replica(Server::Second, "expired-1", &["--lease-seconds", "120"])?;
    wait_for("the replica to lead", SOON, || Ok(replica.leads()?.then_some(())))?;
    (0..6).try_for_each(|number| ground.create(&format!("old-{number}")))?;
    let addresses: Vec<String> =
        (0..6).map(|number| ground.wait_shown(&format!("old-{number}"))).collect::<Result<_>>()?;
    ground.wait_true()?;
    let (terms, ledger) = (ground.terms()?, ground.ledger()?);
    let kept: Vec<_> = ledger.into_iter().filter(|(_, _, name)| name == "old-4" || name == "old-5").collect();

    replica.signal(Signal::SIGSTOP)?;
    // Gone at once, deleted, of another type, moved by its user.
    let path = |number: usize| format!("{SERVICES}/old-{number}");
    ground.api.patch(&path(0), &json!({ "metadata": { "finalizers": null } }))?;
    ground.delete("old-0")?;
    ground.delete("old-1")?;
    ground.api.patch(&path(2), &json!({ "spec": { "type": "ClusterIP", "allocateLoadBalancerNodePorts": null } }))?;
    ground.api.patch(&path(3), &json!({ "metadata": { "annotations": { "sheave.dev/addresses": "198.18.0.50" } } }))?;
    (0..3).try_for_each(|number| ground.create(&format!("new-{number}")))?;
    let now = ground.api.get(LEDGER)?;
    compact(ground, text(&now, "/metadata/resourceVersion").parse()?)?;
    ground.lab.fault(Fault::ApiStart { server: Some(Server::Second.role().into()) })?;
    ground.wait_ready(Server::Second)?;
    let before = ground.counts(Server::Second)?;
    replica.signal(Signal::SIGCONT)?;

    (0..3).try_for_each(|number| ground.wait_shown(&format!("new-{number}")).map(drop))?;
    ground.wait_true()?;
    let shows = |name: &str, address: &str| -> Result<()> {
        let shown = ground.shown(name)?;
        ensure!(shown == address, "{name} shows {shown:?} instead of {address:?}");
        Ok(())
    };
    shows("old-4", &addresses[4])?;
    shows("old-5", &addresses[5])?;
    shows("old-3", "198.18.0.50")?;
    let now = ground.ledger()?;
    ensure!(kept.len() == 2 && kept.iter().all(|entry| now.contains(entry)), "an entry was written anew: {now:?}");
    ensure!(ground.api.find(&path(1))?.is_none(), "old-1 still waits for its deletion");
    ensure!(ground.terms()? == terms && replica.leads()?, "the lead was lost: this shows nothing");
    ensure!(replica.log().contains("too old resource version"), "no watch was refused:\n{}", replica.log());
    let after = ground.counts(Server::Second)?;
    for kind in ["services", "virtualips", "addresspools"] {
        let lists = after.lists(kind) - before.lists(kind);
        // One by the watch, and one that is read from the store itself.
        ensure!((1.0..=3.0).contains(&lists), "{kind} were listed {lists} times");
    }
    ground.end(history)
}

/// etcd forgets what was before this revision.
fn compact(ground: &Ground, revision: u64) -> Result<()> {
    let body = json!({ "revision": revision.to_string(), "physical": true }).to_string();
    let request = format!(
        "POST /v3/kv/compaction HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let script = "exec 3<>/dev/tcp/192.168.77.2/2379; cat >&3; cat <&3";
    let mut bash = ground.lab.netns_command(Server::First.role(), "bash")?;
    let mut bash = bash.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("bash")?;
    bash.stdin.take().context("stdin")?.write_all(request.as_bytes())?;
    let mut answer = String::new();
    bash.stdout.take().context("stdout")?.read_to_string(&mut answer)?;
    bash.wait()?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}
