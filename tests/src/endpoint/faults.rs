//! What can happen to API servers, etcd members and owners behind the endpoint. Each makes one thing happen under all clients, says what
//! they saw, and returns when everything is whole again; it judges nothing.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;
use serde::Serialize;

use super::place::Place;
use super::session::{Access, USER_AGENT};
use super::{Clients, OBJECT, Seen, fresh, further};
use crate::lab::ha::{Ha, Part};
use crate::lab::{process, wait_for};
use crate::traffic::clock::{milliseconds, now_ns, sleep_until};

/// One fault, and what the clients saw from then on.
#[derive(Clone, Debug, Serialize)]
pub struct Faulted {
    /// The node that it happened to.
    pub node: String,
    /// Nodes whose API servers were killed, frozen or lost.
    pub dead: Vec<String>,
    pub owner_before: Option<String>,
    pub owner_after: Option<String>,
    pub seen: Seen,
    /// After the repair: from when its API server said itself that it is ready until the endpoint reached it.
    pub back_ms: f64,
}

/// Etcd, API servers and speakers on all nodes, and what the clients work with. Returns when all serve.
pub fn start_all(ha: &Ha) -> Result<()> {
    for node in ha.nodes() {
        ha.start_balancer(&node)?;
        [Part::Etcd, Part::ApiServer].into_iter().try_for_each(|part| ha.start(&node, part))?;
    }
    further::start(ha)?;
    ready(ha)
}

/// Waits until all API servers are ready, the endpoint reaches each, and the object of the watches exists.
pub fn ready(ha: &Ha) -> Result<()> {
    for node in ha.nodes() {
        wait_ready(ha, &node)?;
    }
    further::reach_all(ha)?;
    wait_for("the endpoint to be served", SERVED_WITHIN, || {
        Ok(ha
            .lab
            .kubectl(&["create", "configmap", OBJECT])
            .map_or_else(|error| error.to_string().contains("AlreadyExists").then_some(()), |_| Some(())))
    })
}

/// SIGKILL. It is started again after the measurement.
pub fn kill_api_server(ha: &Ha, clients: &mut Clients, node: &str) -> Result<Faulted> {
    let before = ha.owner()?;
    let from = now_ns();
    ha.stop(node, Part::ApiServer)?;
    let seen = clients.measure(from, MEASURED)?;
    ha.start(node, Part::ApiServer)?;
    repaired(ha, clients, node, before, seen)
}

/// SIGSTOP, and SIGCONT after the measurement.
pub fn stop_api_server(ha: &Ha, clients: &mut Clients, node: &str) -> Result<Faulted> {
    let before = ha.owner()?;
    let from = now_ns();
    ha.signal(node, Part::ApiServer, Signal::SIGSTOP)?;
    let seen = clients.measure(from, MEASURED);
    ha.signal(node, Part::ApiServer, Signal::SIGCONT)?;
    repaired(ha, clients, node, before, seen?)
}

/// SIGKILL for the etcd member: its API server lives on, and is not ready.
pub fn kill_etcd(ha: &Ha, clients: &mut Clients, node: &str) -> Result<Faulted> {
    let before = ha.owner()?;
    let from = now_ns();
    ha.stop(node, Part::Etcd)?;
    let seen = clients.measure(from, MEASURED)?;
    ha.start(node, Part::Etcd)?;
    // Its API server lives.
    Ok(Faulted { dead: Vec::new(), ..repaired(ha, clients, node, before, seen)? })
}

/// The owner's node loses power: the endpoint, an API server and an etcd member at once.
pub fn power_off_owner(ha: &Ha, clients: &mut Clients) -> Result<Faulted> {
    let node = owner(ha)?;
    clients.end_on(&node);
    let from = now_ns();
    ha.power_off(&node)?;
    let seen = clients.measure(from, MEASURED)?;
    let after = ha.owner()?;
    ha.power_on(&node)?;
    clients.start_on(&node)?;
    let faulted = repaired(ha, clients, &node, Some(node.clone()), seen)?;
    Ok(Faulted { owner_after: after, ..faulted })
}

/// As [`power_off_owner`], while the API server of the owner and another one are dead: one of three is left.
pub fn power_off_owner_with_one_left(ha: &Ha, clients: &mut Clients) -> Result<Faulted> {
    let node = owner(ha)?;
    let other = ha.nodes().into_iter().find(|other| *other != node).context("another node")?;
    for dead in [&node, &other] {
        ha.stop(dead, Part::ApiServer)?;
    }
    // The fault is the loss of power: the dead are out before.
    let from = now_ns();
    wait_for("the API server that is left to serve alone", SERVED_WITHIN, || {
        let now = now_ns();
        let quiet = now.saturating_sub(u64::try_from(QUIET.as_nanos()).unwrap_or(u64::MAX)).max(from);
        let seen = clients.fresh.window(quiet, now);
        Ok((milliseconds(quiet, now) >= QUIET.as_secs_f64() * 999.0 && seen.failures() == 0).then_some(()))
    })?;
    clients.end_on(&node);
    let from = now_ns();
    ha.power_off(&node)?;
    let seen = clients.measure(from, MEASURED)?;
    let after = ha.owner()?;
    ha.power_on(&node)?;
    clients.start_on(&node)?;
    for dead in [&node, &other] {
        ha.start(dead, Part::ApiServer)?;
        wait_ready(ha, dead)?;
    }
    let faulted = repaired(ha, clients, &node, Some(node.clone()), seen)?;
    Ok(Faulted { owner_after: after, dead: vec![node, other], ..faulted })
}

/// What serves the endpoint on its owner ends in order, and starts again after the measurement.
pub fn stop_owner(ha: &Ha, clients: &Clients) -> Result<Faulted> {
    let node = owner(ha)?;
    let from = now_ns();
    ha.balancer().iter().rev().try_for_each(|part| ha.terminate(&node, *part))?;
    let seen = clients.measure(from, MEASURED)?;
    let after = ha.owner()?;
    ha.start_balancer(&node)?;
    // No API server died.
    let faulted = repaired(ha, clients, &node, Some(node.clone()), seen)?;
    Ok(Faulted { dead: Vec::new(), owner_after: after, ..faulted })
}

/// All API servers were killed.
#[derive(Clone, Debug, Serialize)]
pub struct AllDown {
    pub owner: Option<String>,
    /// Every owner that the client knew meanwhile.
    pub owners: Vec<String>,
    /// From a second after the fault on.
    pub seen: Seen,
    /// From when the first API server said itself that it is ready until a connection to the endpoint was served.
    pub back_ms: f64,
}

/// All API servers are dead for so long, and something else happens `meanwhile`; then they come back, one after the other.
pub fn kill_all_api_servers<T: Send>(
    ha: &Ha,
    clients: &Clients,
    time: Duration,
    meanwhile: impl FnOnce() -> Result<T> + Send,
) -> Result<(AllDown, T)> {
    let owner = Some(self::owner(ha)?);
    let nodes = ha.nodes();
    nodes.iter().try_for_each(|node| ha.stop(node, Part::ApiServer))?;
    let from = now_ns();
    let mut owners: Vec<String> = owner.iter().cloned().collect();
    let until = from + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let other = std::thread::scope(|scope| {
        let other = scope.spawn(meanwhile);
        while now_ns() < until || !other.is_finished() {
            owners.extend(ha.owner()?.filter(|one| !owners.contains(one)));
            sleep_until(now_ns() + LOOKS_EVERY_NS);
        }
        other.join().map_err(|_| anyhow!("what happened meanwhile panicked"))?
    })?;
    let seen = clients.measure(from + OUT_NS, time.saturating_sub(Duration::from_nanos(OUT_NS)))?;
    let first = nodes.first().context("a node")?;
    ha.start(first, Part::ApiServer)?;
    let ready = wait_ready(ha, first)?;
    let served = wait_for("the endpoint to be served", SERVED_WITHIN, || Ok(clients.fresh.first_served(from, None)))?;
    for node in &nodes[1..] {
        ha.start(node, Part::ApiServer)?;
        wait_ready(ha, node)?;
        wait_served_by(clients, node, now_ns())?;
    }
    clients.fill()?;
    Ok((AllDown { owner, owners, seen, back_ms: milliseconds(ready, served) }, other))
}

/// Each API server ends gracefully and starts again, one after the other.
pub fn rolling_restart(ha: &Ha, clients: &Clients) -> Result<Seen> {
    let from = now_ns();
    for node in ha.nodes() {
        let old = ha.process(&node, Part::ApiServer)?.context("an API server")?;
        ha.terminate(&node, Part::ApiServer)?;
        wait_for(&format!("the API server of {node} to end"), ENDS_WITHIN, || Ok((!old.alive()).then_some(())))?;
        ha.start(&node, Part::ApiServer)?;
        wait_ready(ha, &node)?;
        wait_served_by(clients, &node, now_ns())?;
    }
    let until = now_ns();
    let seen = clients.measure(from, Duration::from_nanos(until - from))?;
    clients.fill()?;
    Ok(seen)
}

/// Waits until the API server of a node says itself that it is ready. Returns the time of that answer.
pub fn wait_ready(ha: &Ha, node: &str) -> Result<u64> {
    let (access, at) = (Access::of(ha, USER_AGENT)?, ha.api_server(node)?);
    let place = Place::new(&ha.netns("client"))?;
    wait_for(&format!("the API server of {node}"), READY_WITHIN, || {
        let ready = place.run(fresh::is_ready(access.clone(), at))?;
        Ok(ready.is_ok_and(|ready| ready).then(now_ns))
    })
    .map_err(|error| {
        let logs = [Part::Etcd, Part::ApiServer].map(|part| ha.log(node, part));
        let logs = logs.map(|log| format!("--- {}\n{}", log.display(), process::tail(&log)));
        error.context(logs.join("\n"))
    })
}

/// Waits until a connection that began at that time or later is served by the node's API server. Returns when.
fn wait_served_by(clients: &Clients, node: &str, from_ns: u64) -> Result<u64> {
    let what = format!("the endpoint to be served by {node}");
    wait_for(&what, SERVED_WITHIN, || Ok(clients.fresh.first_served(from_ns, Some(node))))
}

fn repaired(ha: &Ha, clients: &Clients, node: &str, before: Option<String>, seen: Seen) -> Result<Faulted> {
    let ready = wait_ready(ha, node)?;
    let served = wait_served_by(clients, node, ready)?;
    clients.fill()?;
    Ok(Faulted {
        node: node.to_owned(),
        dead: vec![node.to_owned()],
        owner_before: before,
        owner_after: ha.owner()?,
        seen,
        back_ms: milliseconds(ready, served),
    })
}

fn owner(ha: &Ha) -> Result<String> {
    let Some(owner) = ha.owner()? else { bail!("the client knows no owner of {}", ha.address()) };
    Ok(owner)
}

/// From the fault on.
const MEASURED: Duration = Duration::from_secs(6);
/// Without a failure for so long the dead are out.
const QUIET: Duration = Duration::from_secs(2);
/// Dead API servers are found so soon.
const OUT_NS: u64 = 1_000_000_000;
const LOOKS_EVERY_NS: u64 = 50_000_000;
/// An API server starts in seconds; three on two processors, with other programs beside them, need longer.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// HAProxy of some guides finds after half a minute that a server is dead.
pub const SERVED_WITHIN: Duration = Duration::from_secs(60);
const ENDS_WITHIN: Duration = Duration::from_secs(120);
