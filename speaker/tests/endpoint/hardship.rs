//! What an endpoint has to do without: the CA's certificate at a cold start, the directory of its state, multicast.

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use sheave_endpoint::status::State;
use sheave_tests::lab::wait::wait_for;

use crate::client::Connection;
use crate::load::Load;
use crate::status::{is_ready, status};
use crate::world::{CLIENT, MEMBERS, Program, World};
use crate::{MANY, PATIENCE, alive};

/// kubeadm makes the certificates while it makes the first API server: until there is one no server is verified, and all serve in doubt.
pub fn servers_are_checked_once_the_ca_is_there(world: &World) -> Result<()> {
    let reasons = |node: &str| -> Result<Vec<(State, String)>> {
        let status = status(world, node)?;
        Ok(status.ports.into_iter().flat_map(|port| port.members).map(|server| (server.state, server.reason)).collect())
    };
    for node in MEMBERS {
        wait_for(&format!("{node} to say that the CA is missing"), PATIENCE, || {
            let all = reasons(node)?;
            let serves = |(state, reason): &(State, String)| *state == State::Failing && reason == "CaMissing";
            Ok((!all.is_empty() && all.iter().all(serves)).then_some(()))
        })?;
    }
    MEMBERS.into_iter().try_for_each(|node| world.give_ca(node))?;
    for node in MEMBERS {
        wait_for(&format!("{node} to verify every server"), PATIENCE, || {
            Ok(reasons(node)?.iter().all(|server| *server == (State::Serving, "Ready".to_owned())).then_some(()))
        })?;
    }
    Ok(())
}

/// The disk was replaced, of the owner at that.
pub fn a_lost_state_directory_costs_no_connection(world: &mut World, held: &mut [Connection]) -> Result<()> {
    let node = world.owner()?.context("the VIP has no owner")?;
    let load = Load::start(world);
    world.end(node, Program::HostSpeaker, Signal::SIGTERM)?;
    world.lose_state(node)?;
    world.start_speaker(node)?;
    wait_for(&format!("{node} to serve without its state"), PATIENCE, || Ok(is_ready(world, node).then_some(())))?;
    let others_hear_it = |other: &str| {
        let status = status(world, other)?;
        Ok(status.peers.iter().any(|peer| peer.node == node && peer.alive).then_some(()))
    };
    for other in MEMBERS.into_iter().filter(|other| *other != node) {
        wait_for(&format!("{other} to hear {node}"), PATIENCE, || others_hear_it(other))?;
    }
    load.goes_on()?;
    alive(held)?;
    println!("state of {node} lost: {} connections opened meanwhile, {} held, 0 lost", load.stop()?, held.len());
    Ok(())
}

/// A switch that snoops IGMP and has no querier.
pub fn without_multicast_another_owner_is_found(world: &mut World, held: &mut [Connection]) -> Result<()> {
    world.filter_multicast(true)?;
    wait_for("all adverts to go by unicast", PATIENCE, || Ok(by_unicast(world)?.then_some(())))?;
    alive(held)?;
    let before = world.owner()?.context("the VIP has no owner")?;
    world.kill_speaker(before)?;
    wait_for("another owner", PATIENCE, || Ok(world.owner()?.filter(|owner| *owner != before)))?;
    for _ in 0..MANY {
        world.connect(CLIENT, 6443).context("without multicast")?;
    }
    alive(held)?;
    world.start_speaker(before)?;
    wait_for(&format!("{before} to serve again"), PATIENCE, || Ok(is_ready(world, before).then_some(())))?;
    wait_for("the others to hear it by unicast", PATIENCE, || Ok(by_unicast(world)?.then_some(())))?;
    world.filter_multicast(false)?;
    alive(held)?;
    println!("without multicast: {before} was replaced as owner, {} held, 0 lost", held.len());
    Ok(())
}

/// Every speaker sends to both others one by one, and receives both.
fn by_unicast(world: &World) -> Result<bool> {
    for node in MEMBERS {
        // A speaker that does not answer is not there yet.
        let metrics = crate::status::metrics(world, node).unwrap_or_default();
        let sent = metrics.contains("\nsheave_peers_by_unicast 2\n");
        let received = status(world, node)
            .is_ok_and(|status| status.peers.len() == MEMBERS.len() - 1 && status.peers.iter().all(|peer| peer.alive));
        if !(sent && received) {
            return Ok(false);
        }
    }
    Ok(true)
}
