//! etcd is put back to an earlier state, as from a backup: versions go back, Services and grants of since then are gone. A leader leads
//! again, the ledger that was restored holds, and a Service that asks for another one's address is refused by name.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use sheave_tests::lab::{Fault, wait_for};

use super::ground::{Ground, Server};
use super::replica::Replica;

/// From the first answer of an API server on.
const LEADS_WITHIN: Duration = Duration::from_secs(30);

pub fn chapter(ground: &Ground) -> Result<()> {
    let data = sheave_tests::lab::plan::lab_dir(ground.lab.name()).join("etcd");
    let backup = ground.folder.join("etcd-backup");
    let flags = ["--lease-seconds", "5"];
    let replica = ground.replica(Server::Second, "restored-1", &flags)?;
    ["kept-0", "kept-1", "kept-2"].into_iter().try_for_each(|name| ground.create(name))?;
    ground.wait_true()?;
    let ledger = ground.ledger()?;
    with_etcd_down(ground, || copy(&data, &backup))?;
    // Of this the restored store knows nothing: the versions that replicas know are ahead of it by more than a term's renewals.
    (0..30).try_for_each(|number| ground.create(&format!("lost-{number}")))?;
    ground.wait_true()?;
    ground.delete("kept-2")?;
    ground.wait_true()?;

    with_etcd_down(ground, || {
        std::fs::remove_dir_all(&data)?;
        copy(&backup, &data)
    })?;
    let restored = Instant::now();
    let mut replicas = vec![replica];
    // The kubelet would start it again.
    wait_for("a replica to lead again", LEADS_WITHIN, || {
        let leads = replicas.last().is_some_and(|replica| replica.leads().unwrap_or(false));
        if !leads
            && replicas.last().is_some_and(|replica| replica.log().contains("StoreWentBack"))
            && replicas.len() == 1
        {
            replicas.push(ground.replica(Server::Second, "restored-2", &flags)?);
        }
        Ok((leads && ground.terms().is_ok()).then_some(()))
    })
    .with_context(|| replicas.iter().map(Replica::log).collect::<Vec<_>>().join("\n---\n"))?;
    eprintln!("  a leader leads {:?} after etcd was restored", restored.elapsed());
    ground.wait_true()?;
    let names = ground.ledger()?;
    ensure!(names == ledger, "the ledger was {ledger:?} and is {names:?}");
    ground.create("after")?;
    ground.wait_shown("after")?;
    // Two that want one address: by what the ledger says it is refused, and that is named.
    ground.create_with("rival", &json!({ "sheave.dev/addresses": ledger[0].0 }))?;
    ground.wait_true()?;
    ensure!(ground.shown("rival")?.is_empty());
    let (status, reason) = ground.condition("rival")?;
    ensure!((status.as_str(), reason.as_str()) == ("False", "AddressInUse"), "{status} {reason}");
    ground.clear()
}

/// The API servers keep caches of what etcd had, so they start anew with it.
fn with_etcd_down(ground: &Ground, work: impl FnOnce() -> Result<()>) -> Result<()> {
    ground.lab.fault(Fault::ApiStop { server: None })?;
    ground.signal("etcd", Signal::SIGTERM)?;
    let etcd = ground.lab.state()?.processes.get("etcd").context("etcd")?.clone();
    wait_for("etcd to end", Duration::from_secs(10), || Ok((!etcd.alive()).then_some(())))?;
    work()?;
    ground.lab.start_etcd()?;
    ground.lab.fault(Fault::ApiStart { server: None })?;
    ground.wait_ready(Server::First)?;
    ground.wait_ready(Server::Second)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let done = Command::new("cp").arg("-a").args([from, to]).status().context("cp")?;
    if !done.success() {
        bail!("cp {} {}: {done}", from.display(), to.display());
    }
    Ok(())
}
