//! Writes that are decided, and arrive after another leader has decided otherwise: the leader and its API server are stopped in the middle of
//! its work. When the API server goes on it finds the requests that it was sent; when the leader goes on it sends what it was about to.

use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use sheave_tests::lab::wait_for;

use super::ground::{Counts, Ground, SOON, Server};
use super::history::History;

const SERVICES: usize = 40;
const TRIES: usize = 6;

pub fn chapter(ground: &Ground) -> Result<()> {
    let history = History::start(ground.lab)?;
    let (mut late, mut refused) = (0.0, 0.0);
    // Whether requests are under way at that moment is chance; mostly there are some.
    for round in 0..TRIES {
        let counted = round_of(ground, round)?;
        late += counted.0;
        refused += counted.1;
        eprintln!("  round {round}: {} late writes, {} of them refused", counted.0, counted.1);
        if late > 0.0 && refused > 0.0 {
            break;
        }
    }
    ensure!(late > 0.0, "no write was late in {TRIES} rounds");
    ensure!(refused > 0.0, "none of {late} late writes met what another leader had decided");
    let _last = ground.replica(Server::First, "late-last", &[])?;
    ground.end(history)
}

/// How many writes were late, and how many of them were refused.
fn round_of(ground: &Ground, round: usize) -> Result<(f64, f64)> {
    let flags = ["--lease-seconds", "2"];
    let stopped = ground.replica(Server::Second, &format!("late-{round}-1"), &flags)?;
    wait_for("the first replica to lead", SOON, || Ok(stopped.leads()?.then_some(())))?;
    let other = ground.replica(Server::First, &format!("late-{round}-2"), &flags)?;
    ensure!(stopped.leads()? && !other.leads()?, "the other one leads");
    let name = |number: usize| format!("late-{round}-{number}");
    let (before, ledger) = (ground.counts(Server::Second)?, ground.ledger()?.len());
    let granted = thread::scope(|scope| -> Result<usize> {
        let created = scope.spawn(|| (0..SERVICES).try_for_each(|number| ground.create(&name(number))));
        wait_for("the leader to be in the middle of its work", SOON, || {
            Ok((ground.ledger()?.len() >= ledger + SERVICES / 4).then_some(()))
        })?;
        // The API server first, so that what the leader sends then is not read.
        ground.signal_server(Server::Second, Signal::SIGSTOP)?;
        sleep(IN_FLIGHT);
        stopped.signal(Signal::SIGSTOP)?;
        let granted = ground.ledger()?.len() - ledger;
        created.join().expect("a panic")?;
        Ok(granted)
    })?;

    wait_for("the other replica to lead", SOON, || Ok(other.leads()?.then_some(())))?;
    ground.wait_true()?;
    // What the first one has decided is not so any more: its Services go, and others want the same addresses.
    let gone = granted / 2..SERVICES;
    let addresses: Vec<String> = gone.clone().map(|number| ground.shown(&name(number))).collect::<Result<_>>()?;
    gone.clone().try_for_each(|number| ground.delete(&name(number)))?;
    ground.wait_true()?;
    for (number, address) in gone.zip(addresses).filter(|(_, address)| !address.is_empty()) {
        ground.create_with(&format!("late-{round}-other-{number}"), &json!({ "sheave.dev/addresses": address }))?;
    }
    ground.wait_true()?;
    let decided = ground.ledger()?;
    ground.signal_server(Server::Second, Signal::SIGCONT)?;
    ground.wait_ready(Server::Second)?;
    let arrived = ground.counts(Server::Second)?;
    stopped.signal(Signal::SIGCONT)?;
    wait_for("the first replica to know that it does not lead", SOON, || Ok((!stopped.leads()?).then_some(())))?;
    ground.wait_true()?;
    let now = ground.ledger()?;
    let lost: Vec<_> = decided.iter().filter(|entry| !now.contains(entry)).collect();
    ensure!(lost.is_empty() && now.len() == decided.len(), "{lost:?} is not in the ledger any more: {now:?}");
    let after = ground.counts(Server::Second)?;
    drop((stopped, other));
    // Every entry of the ledger was made by a request that was answered, or stood in the store when all stopped.
    let late = |counts: &Counts| grants(counts, "") - grants(&before, "") - granted as f64;
    eprintln!("  stopped after {granted} grants: {} arrived when the API server went on", late(&arrived));
    Ok((late(&after), refused(&after) - refused(&before)))
}

/// Requests for a new entry of the ledger.
fn grants(counts: &Counts, code: &str) -> f64 {
    counts.requests(&["verb=\"POST\"", "resource=\"virtualips\"", code])
}

/// Writes that met something else than what they were decided by.
fn refused(counts: &Counts) -> f64 {
    let code = |code: &str| {
        let code = format!("code=\"{code}\"");
        ["services", "virtualips"]
            .map(|kind| counts.requests(&[&code, &format!("resource=\"{kind}\"")]))
            .iter()
            .sum::<f64>()
    };
    code("404") + code("409")
}

/// The leader has up to eight requests under way: time for it to send them.
const IN_FLIGHT: Duration = Duration::from_millis(30);
