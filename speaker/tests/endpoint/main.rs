//! The API server endpoint with real packets: speakers with the file source on three members, each with a TLS server that stands for its API
//! server, and clients on the segment and on the members. No Kubernetes.
//!
//! Needs root, nft, iproute2, ethtool. The servers are processes of this program, so that they can be killed and frozen.

mod beside;
mod client;
mod command;
mod counted;
mod hardship;
mod load;
mod paces;
mod reloaded;
mod server;
mod status;
mod without_speaker;
mod world;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use sheave_tests::lab::netns;
use sheave_tests::lab::wait::wait_for;

use client::{Connection, Failure};
use world::{CLIENT, MEMBERS, VIP, World};

/// Longer than any takeover on a busy machine, and than members wait for each other (docs/decisions/0015): what is measured is printed, and
/// what a check may take is tested where time is an argument (speaker/core/src/health/checks.rs).
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections of one client that reach every member: each is missed by one of 11 million clients, (2/3)^40.
const MANY: usize = 40;

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().collect();
    match &arguments[..] {
        [_, mode, ..] if mode == "endpoint" => return Ok(sheave::main()),
        [_, mode, name, certificate, key] if mode == "serve" => server::run(name, certificate.as_ref(), key.as_ref())?,
        // Options of the test harness mean nothing here: it is one story.
        _ => told()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn told() -> Result<()> {
    let mut world = World::new()?;
    let story = story(&mut world);
    if story.is_err() {
        world.print_logs();
    }
    story
}

fn story(world: &mut World) -> Result<()> {
    refused_before_any_server_answers(world)?;
    let mut held = every_member_serves(world)?;
    hardship::servers_are_checked_once_the_ca_is_there(world)?;
    on_no_interface_and_reached_on_every_node(world)?;
    counted::every_connection_is_counted_once(world, &mut held)?;
    reloaded::a_changed_file_costs_no_connection(world, &mut held)?;
    status::a_drained_member_keeps_its_connections_and_gets_no_new_ones(world, &mut held)?;
    a_dead_server_costs_its_own_connections_alone(world, &mut held)?;
    a_frozen_server_gets_nothing_new(world)?;
    status::a_reader_that_waits_is_told(world)?;
    a_lost_owner_costs_no_connection(world, &mut held)?;
    hardship::a_lost_state_directory_costs_no_connection(world, &mut held)?;
    hardship::without_multicast_another_owner_is_found(world, &mut held)?;
    beside::the_daemonset_costs_no_connection(world, &mut held)?;
    an_owner_that_reaches_no_server_hands_over(world)?;
    without_speaker::it_is_checked_and_reached_through_two(world)?;
    refused_when_none_answers(world)?;
    paces::each_is_dead_in_its_own_time(world)
}

/// A cold start: the kubelets' connections must fail at once, not hang.
fn refused_before_any_server_answers(world: &mut World) -> Result<()> {
    for node in MEMBERS {
        world.start_speaker(node)?;
    }
    wait_for("the VIP to refuse", PATIENCE, || Ok(is_refused(&world.connect(CLIENT, 6443)).then_some(())))?;
    let took = refusals(world, CLIENT)?;
    println!("no server: refused within {took:?}");
    for node in MEMBERS {
        wait_for(&format!("{node} itself to be refused"), PATIENCE, || {
            Ok(is_refused(&world.connect(node, 6443)).then_some(()))
        })?;
    }
    Ok(())
}

fn every_member_serves(world: &mut World) -> Result<Vec<Connection>> {
    for node in MEMBERS {
        world.start_server(node)?;
    }
    let began = Instant::now();
    wait_for("all members to serve", PATIENCE, || {
        let reached: BTreeSet<String> =
            (0..MANY).filter_map(|_| Some(world.connect(CLIENT, 6443).ok()?.member)).collect();
        Ok((reached.len() == MEMBERS.len()).then_some(()))
    })?;
    println!("all members serve after {:?}", began.elapsed());
    let mut held = Vec::new();
    for port in [6443, 8443] {
        for _ in 0..MANY {
            let connection = world.connect(CLIENT, port).with_context(|| format!("port {port}"))?;
            ensure!(connection.seen == world::address(CLIENT), "the member saw {}", connection.seen);
            held.push(connection);
        }
    }
    let reached: BTreeSet<&str> = held.iter().map(|connection| connection.member.as_str()).collect();
    ensure!(reached == MEMBERS.into(), "one client reached {reached:?}");
    // Only 198.51.100.0/24 is admitted there.
    match world.connect(CLIENT, 9443) {
        Err(Failure::Silent) => {}
        other => bail!("a client outside the source ranges: {other:?}"),
    }
    Ok(held)
}

fn on_no_interface_and_reached_on_every_node(world: &World) -> Result<()> {
    for node in MEMBERS {
        let addresses = world.addresses(node)?;
        ensure!(!addresses.contains(&VIP.to_string()), "{node} has the VIP: {addresses}");
        for _ in 0..MANY {
            world.connect(node, 6443).with_context(|| format!("on {node}"))?;
        }
    }
    Ok(())
}

fn a_dead_server_costs_its_own_connections_alone(world: &mut World, held: &mut Vec<Connection>) -> Result<()> {
    world.signal_server("b", Signal::SIGKILL)?;
    let took = until_only(world, &["a", "c"])?;
    println!("killed server: new connections reach the others after {took:?}");
    held.retain(|connection| connection.member != "b");
    alive(held)?;
    // Also on the member whose own server is dead.
    for node in MEMBERS {
        for _ in 0..MANY {
            let connection = world.connect(node, 6443).with_context(|| format!("on {node}, b is dead"))?;
            ensure!(connection.member != "b");
        }
    }
    world.start_server("b")?;
    wait_for("b to serve again", PATIENCE, || Ok(reached(world)?.contains("b").then_some(())))?;
    alive(held)
}

fn a_frozen_server_gets_nothing_new(world: &mut World) -> Result<()> {
    let mut of_c = std::iter::repeat_with(|| world.connect(CLIENT, 6443)).take(MANY).collect::<Result<Vec<_>, _>>()?;
    of_c.retain(|connection| connection.member == "c");
    world.signal_server("c", Signal::SIGSTOP)?;
    let took = until_only(world, &["a", "b"])?;
    println!("frozen server: new connections reach the others after {took:?}");
    world.signal_server("c", Signal::SIGCONT)?;
    wait_for("c to serve again", PATIENCE, || Ok(reached(world)?.contains("c").then_some(())))?;
    // They waited for it.
    alive(&mut of_c)
}

fn a_lost_owner_costs_no_connection(world: &mut World, held: &mut [Connection]) -> Result<()> {
    let before = world.owner()?.context("the VIP has no owner")?;
    world.kill_speaker(before)?;
    let began = Instant::now();
    wait_for("another owner", PATIENCE, || Ok(world.owner()?.filter(|owner| *owner != before)))?;
    println!("killed owner {before}: another one after {:?}", began.elapsed());
    // The speaker of b has started anew in this story.
    let witness = MEMBERS.into_iter().find(|node| *node != before && *node != "b").context("a witness")?;
    status::events_are_in_order(world, witness, before)?;
    wait_for("a connection", PATIENCE, || Ok(world.connect(CLIENT, 6443).ok()))?;
    for _ in 0..MANY {
        world.connect(CLIENT, 6443)?;
    }
    alive(held)?;
    world.start_speaker(before)
}

/// Its own server is dead, and something keeps it from the others: clients must not be led to it. Later it may own the address again.
fn an_owner_that_reaches_no_server_hands_over(world: &mut World) -> Result<()> {
    let before = world.owner()?.context("the VIP has no owner")?;
    let others: Vec<&str> = MEMBERS.into_iter().filter(|node| *node != before).collect();
    let mut held = std::iter::repeat_with(|| world.connect(CLIENT, 6443)).take(MANY).collect::<Result<Vec<_>, _>>()?;
    held.retain(|connection| connection.member != before);
    world.signal_server(before, Signal::SIGKILL)?;
    let cut = "add table ip cut; add chain ip cut out { type filter hook output priority 0; }; add rule ip cut out tcp dport 6443 drop";
    world.inside(before, || netns::run("nft", &[cut]))?;
    let began = Instant::now();
    let other = wait_for("another owner", PATIENCE, || Ok(world.owner()?.filter(|owner| *owner != before)))?;
    println!("owner {before} that reaches no server: {other} after {:?}", began.elapsed());
    for _ in 0..MANY {
        let connection = world.connect(CLIENT, 6443)?;
        ensure!(connection.member != before, "{before} is dead");
    }
    alive(&mut held)?;
    world.inside(before, || netns::run("nft", &["delete table ip cut"]))?;
    world.start_server(before)?;
    wait_for("its server to serve again", PATIENCE, || Ok(reached(world)?.contains(before).then_some(())))?;
    // Those that are drained own the address only while no other node can.
    let began = Instant::now();
    for node in &others {
        command::drain(world, before, node)?;
    }
    wait_for("it to own the address again", PATIENCE, || Ok((world.owner()? == Some(before)).then_some(())))?;
    println!("it reaches them again: owner after {:?}", began.elapsed());
    for node in others {
        command::undrain(world, before, node)?;
    }
    alive(&mut held)
}

fn refused_when_none_answers(world: &mut World) -> Result<()> {
    for node in MEMBERS {
        world.signal_server(node, Signal::SIGKILL)?;
    }
    let owner = world.owner()?;
    wait_for("the VIP to refuse", PATIENCE, || Ok(is_refused(&world.connect(CLIENT, 6443)).then_some(())))?;
    let took = refusals(world, CLIENT)?;
    println!("all servers dead: refused within {took:?}");
    ensure!(world.owner()? == owner, "the owner stays");
    world.start_server("a")?;
    let began = Instant::now();
    wait_for("the first server that returns", PATIENCE, || Ok(world.connect(CLIENT, 6443).ok()))?;
    println!("first server back: served after {:?}", began.elapsed());
    Ok(())
}

/// From now until new connections reach these alone: when the last one began that did not.
fn until_only(world: &World, members: &[&str]) -> Result<Duration> {
    let began = Instant::now();
    let (mut good, mut last) = (0, Duration::ZERO);
    while good < MANY {
        ensure!(began.elapsed() < PATIENCE, "new connections still reach others than {members:?}");
        let begins = began.elapsed();
        match world.connect(CLIENT, 6443) {
            Ok(connection) if members.contains(&connection.member.as_str()) => good += 1,
            _ => (good, last) = (0, begins),
        }
    }
    Ok(last)
}

fn reached(world: &World) -> Result<BTreeSet<String>> {
    (0..MANY).map(|_| Ok(world.connect(CLIENT, 6443)?.member)).collect()
}

/// Every one answers once more.
fn alive(held: &mut [Connection]) -> Result<()> {
    let all = held.len();
    let ask = |connection: &mut Connection| {
        let failure = connection.ask().err()?;
        Some(format!("{}: {failure}", connection.member))
    };
    let lost: Vec<String> = held.iter_mut().filter_map(ask).collect();
    ensure!(all > 0 && lost.is_empty(), "{} of {all} connections are lost: {lost:?}", lost.len());
    Ok(())
}

fn is_refused(result: &Result<Connection, Failure>) -> bool {
    matches!(result, Err(Failure::Refused))
}

/// The longest of many refusals.
fn refusals(world: &World, from: &str) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    for _ in 0..MANY {
        let began = Instant::now();
        let result = world.connect(from, 6443);
        ensure!(is_refused(&result), "{result:?}");
        longest = longest.max(began.elapsed());
    }
    Ok(longest)
}
