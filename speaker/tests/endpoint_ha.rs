//! Three real API servers, each with an etcd member, behind the endpoint that their nodes' speakers serve: killed, frozen, and the owner's
//! node without power. What more can happen shows `make demo-endpoint`.
//!
//! Needs root and what the lab needs (tests/src/lab/needs.rs). No kubelet runs: the clients are those of tests/src/endpoint.

use anyhow::{Context, Result, ensure};
use sheave_tests::endpoint::Clients;
use sheave_tests::endpoint::faults::{self, Faulted};
use sheave_tests::endpoint::further;
use sheave_tests::endpoint::judge::{self, Promise};
use sheave_tests::endpoint::upkeep;
use sheave_tests::lab::ha::{self, Ha};
use sheave_tests::lab::{Balancer, Distribution, alone, down_on_interrupt, quiet};
use sheave_tests::scenario::InTime;

const NAME: &str = "endpointha";
const WATCHES: usize = 30;

#[test]
fn api_servers_die_freeze_and_lose_power_behind_the_endpoint() -> Result<()> {
    down_on_interrupt(NAME)?;
    // Its API servers know their clients: what is ready is seen by a certificate. And it has a further port.
    let speaker = Balancer::Sheave(env!("CARGO_BIN_EXE_sheave-speaker").into(), Distribution::Rke2);
    alone(ha::config(NAME, speaker, quiet), |lab, _| {
        let ha = Ha::of(lab)?;
        faults::start_all(&ha)?;
        let mut clients = Clients::start(&ha, WATCHES)?;
        let owner = ha.owner()?.context("the endpoint has an owner")?;
        let other = ha.nodes().into_iter().find(|node| *node != owner).context("another node")?;
        check("without etcd", &[judge::readiness_seen(&upkeep::readiness(&ha, &other)?, &other)])?;
        clients.fill()?;
        check("killed", &judge::killed(&faults::kill_api_server(&ha, &mut clients, &other)?))?;
        check("frozen", &judge::frozen(&faults::stop_api_server(&ha, &mut clients, &owner)?))?;
        check(
            "whole, and what serves its further port is killed",
            &judge::further_killed(&further::kill(&ha, &clients, &other)?),
        )?;
        let lost = faults::power_off_owner(&ha, &mut clients)?;
        check("without power", &judge::owner_lost(&lost))?;
        client_address(&ha, &lost)
    })
}

fn check(fault: &str, promises: &[Promise]) -> Result<()> {
    println!("an API server is {fault}:");
    for Promise { name, outcome, seen } in promises {
        println!("  {outcome:?}  {name}: {seen}");
    }
    let broken = promises.iter().filter(|promise| promise.outcome == InTime::Broken).count();
    ensure!(broken == 0, "{fault}: {broken} of {} promises are broken", promises.len());
    Ok(())
}

/// The API servers know who asks.
fn client_address(ha: &Ha, lost: &Faulted) -> Result<()> {
    let promise = judge::client_seen(ha)?;
    println!("{}: {} (after {} was lost)", promise.name, promise.seen, lost.node);
    ensure!(promise.outcome == InTime::Kept, "{}", promise.seen);
    Ok(())
}
