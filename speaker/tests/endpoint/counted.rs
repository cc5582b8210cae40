//! What status says was led to each member, against what the clients did.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sheave_endpoint::status::{Status, Total};
use sheave_tests::lab::wait::wait_for;

use crate::client::Connection;
use crate::status::{is_ready, status};
use crate::world::{CLIENT, MEMBERS, World};
use crate::{MANY, PATIENCE, alive, reached};

const PORT: u16 = 8443;
/// Counters are read every 5 s, and reported every second.
const READ_AND_REPORTED: Duration = Duration::from_secs(8);
/// Of one connection: a handshake and a request of TLS 1.3.
const LEAST_BYTES: u64 = 500;

pub fn every_connection_is_counted_once(world: &mut World, held: &mut Vec<Connection>) -> Result<()> {
    let before = settled(world)?;
    let mut made: BTreeMap<String, u64> = BTreeMap::new();
    // From the segment, and from the members themselves: to their own server and to the others.
    for from in [CLIENT].into_iter().chain(MEMBERS) {
        for _ in 0..MANY {
            let connection = world.connect(from, PORT).with_context(|| format!("from {from}"))?;
            *made.entry(connection.member).or_default() += 1;
        }
    }
    let began = Instant::now();
    for node in MEMBERS {
        let counted = || -> Result<Option<()>> {
            let status = status(world, node)?;
            if !status.not_counted_by.is_empty() {
                return Ok(None);
            }
            let now = of_port(&status);
            let rose =
                |member: &str| total(&now, member).connections.saturating_sub(total(&before, member).connections);
            ensure!(made.iter().all(|(member, made)| rose(member) <= *made), "{made:?}, {before:?}, {now:?}");
            Ok(made.iter().all(|(member, made)| rose(member) == *made).then_some(()))
        };
        wait_for(&format!("{node} to have counted {made:?}"), PATIENCE, counted)?;
        let now = of_port(&status(world, node)?);
        for (member, made) in &made {
            let (before, now) = (total(&before, member), total(&now, member));
            ensure!(
                now.bytes - before.bytes >= LEAST_BYTES * made,
                "{made} connections to {member}: {before:?}, {now:?}"
            );
            ensure!(now.resets == before.resets, "{member} has reset none: {before:?}, {now:?}");
        }
    }
    println!("counted at all members after {:?}: {made:?}", began.elapsed());
    resets_are_counted(world).context("resets")?;
    // Its server was killed.
    held.retain(|connection| connection.member != "b");
    // Nodes see at different moments that it answers again, and one that has not yet refuses.
    held.extend(wait_for("every connection to be served", PATIENCE, || Ok(many(world).ok()))?);
    over_another_table_and_a_restart(world).context("another table, a restart")?;
    alive(held)
}

fn many(world: &World) -> Result<Vec<Connection>> {
    Ok(std::iter::repeat_with(|| world.connect(CLIENT, PORT)).take(MANY).collect::<Result<_, _>>()?)
}

/// The kernel of a member whose server was killed resets what comes for it.
fn resets_are_counted(world: &mut World) -> Result<()> {
    let before = settled(world)?;
    let mut held = many(world).context("before the server is killed")?;
    held.retain(|connection| connection.member == "b");
    world.signal_server("b", Signal::SIGKILL)?;
    // Whether the end of the server was a FIN or a reset already: what is sent afterwards is reset.
    let reset = held.iter_mut().map(Connection::ask).filter(Result::is_err).count() as u64;
    ensure!(reset > 0 && reset == held.len() as u64, "{reset} of {} connections ended", held.len());
    world.start_server("b")?;
    // Until it listens what reaches it is refused.
    wait_for("b to serve again", PATIENCE, || Ok(reached(world).is_ok_and(|all| all.contains("b")).then_some(())))?;
    for node in MEMBERS {
        wait_for(&format!("{node} to have counted resets"), PATIENCE, || {
            let now = of_port(&status(world, node)?);
            ensure!(["a", "c"].iter().all(|other| total(&now, other).resets == total(&before, other).resets));
            Ok((total(&now, "b").resets >= total(&before, "b").resets + reset).then_some(()))
        })?;
    }
    println!("{reset} connections of a killed server were reset, and counted");
    Ok(())
}

/// A third party takes the table with its counters away: what was counted stays. A speaker that begins anew has counted nothing, and is
/// missing while it is away.
fn over_another_table_and_a_restart(world: &mut World) -> Result<()> {
    let before = settled(world)?;
    world.delete_table("c")?;
    wait_for("c's rules", PATIENCE, || {
        Ok(world.rules("c", "sheave").ok().filter(|rules| rules.contains("member_traffic")))
    })?;
    let made = reach_member(world, "c").context("the table is back")?;
    wait_for("what c has counted since", PATIENCE, || {
        let now = of_port(&status(world, "a")?);
        ensure!(total(&now, "c").connections >= total(&before, "c").connections, "{before:?}, {now:?}");
        Ok((total(&now, "c").connections == total(&before, "c").connections + made).then_some(()))
    })?;
    world.kill_speaker("c")?;
    wait_for("a to miss c's counters", PATIENCE, || Ok((status(world, "a")?.not_counted_by == ["c"]).then_some(())))?;
    world.start_speaker("c")?;
    wait_for("c's speaker", PATIENCE, || Ok(is_ready(world, "c").then_some(())))?;
    wait_for("c's counters", PATIENCE, || Ok(status(world, "a")?.not_counted_by.is_empty().then_some(())))?;
    let now = of_port(&status(world, "a")?);
    ensure!(total(&now, "c").connections < total(&before, "c").connections, "c counts from its start on: {now:?}");
    Ok(())
}

/// Connections until the member has many; how many it has.
fn reach_member(world: &World, member: &str) -> Result<u64> {
    let all = std::iter::repeat_with(|| world.connect(CLIENT, PORT)).take(MANY).collect::<Result<Vec<_>, _>>()?;
    let made = all.iter().filter(|connection| connection.member == member).count() as u64;
    ensure!(made > 0, "no connection reached {member}");
    Ok(made)
}

/// Nothing is under way any more: all nodes have read their counters since the last connection, and reported them.
fn settled(world: &World) -> Result<BTreeMap<String, Total>> {
    let mut last = (Instant::now(), BTreeMap::new());
    wait_for("all nodes to have counted", PATIENCE, || {
        let all: Vec<Status> = MEMBERS.into_iter().map(|node| status(world, node)).collect::<Result<_>>()?;
        let now = of_port(&all[0]);
        let agree = all.iter().all(|status| status.not_counted_by.is_empty() && of_port(status) == now);
        if !agree || now != last.1 {
            last = (Instant::now(), now);
        }
        Ok((last.0.elapsed() > READ_AND_REPORTED).then(|| last.1.clone()))
    })
}

fn of_port(status: &Status) -> BTreeMap<String, Total> {
    let port = status.ports.iter().find(|port| port.listen == PORT);
    let servers = port.iter().flat_map(|port| &port.members);
    servers.filter_map(|server| Some((server.member.clone(), server.total?))).collect()
}

fn total(totals: &BTreeMap<String, Total>, member: &str) -> Total {
    totals.get(member).copied().unwrap_or_default()
}
