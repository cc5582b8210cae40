//! The ports that a distribution has beside that of its API servers (RKE2: 9345; k0s: 9443, 8132): on each node one program serves them
//! all, and completes handshakes alone.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::faults::SERVED_WITHIN;
use super::place::Place;
use super::report::Window;
use super::session::{Access, PATIENCE, USER_AGENT};
use super::{Clients, Seen, fresh};
use crate::lab::ha::{Ha, Part};
use crate::lab::wait_for;
use crate::traffic::clock::now_ns;

/// What serves them on a node was killed.
#[derive(Clone, Debug, Serialize)]
pub struct Killed {
    pub node: String,
    /// New connections to each port, from the kill on.
    pub ports: Vec<(u16, Window)>,
    /// Of the API servers' port.
    pub seen: Seen,
}

/// Starts it on all nodes.
pub fn start(ha: &Ha) -> Result<()> {
    if ha.further_ports().is_empty() {
        return Ok(());
    }
    ha.nodes().iter().try_for_each(|node| ha.start(node, Part::Further))
}

/// Waits until the endpoint reaches each node by each port, the API servers' among them.
pub fn reach_all(ha: &Ha) -> Result<()> {
    let (access, place) = (Access::of(ha, USER_AGENT)?, Place::new(&ha.netns("client"))?);
    for port in [ha.address().port()].into_iter().chain(ha.further_ports()) {
        let mut missing: BTreeSet<String> = ha.nodes().into_iter().collect();
        let to = SocketAddrV4::new(*ha.address().ip(), port);
        wait_for(&format!("the endpoint to reach every node by port {port}"), SERVED_WITHIN, || {
            let access = access.clone();
            if let Ok(server) = place.run(async move { access.reach(to).await })? {
                missing.remove(&server);
            }
            Ok(missing.is_empty().then_some(()))
        })?;
    }
    Ok(())
}

/// SIGKILL. It is started again after the measurement.
pub fn kill(ha: &Ha, clients: &Clients, node: &str) -> Result<Killed> {
    let place = Place::new(&ha.netns("client"))?;
    let start = |port| {
        let to = SocketAddrV4::new(*ha.address().ip(), port);
        (port, fresh::start_handshakes(&place, &clients.access, to, EVERY))
    };
    let logs: Vec<_> = ha.further_ports().into_iter().map(start).collect();
    let wait_served = |from| {
        logs.iter().try_for_each(|(port, log)| {
            let what = format!("port {port} to be served by {node}");
            wait_for(&what, SERVED_WITHIN, || Ok(log.first_served(from, Some(node)))).map(drop)
        })
    };
    wait_served(0).context("before")?;
    let from = now_ns();
    ha.stop(node, Part::Further)?;
    let seen = clients.measure(from, MEASURED)?;
    let until = from + u64::try_from(MEASURED.as_nanos()).unwrap_or(u64::MAX);
    wait_for("the last handshakes", 3 * PATIENCE, || {
        Ok(logs.iter().all(|(_, log)| log.is_settled(until)).then_some(()))
    })?;
    let ports = logs.iter().map(|(port, log)| (*port, log.window(from, until))).collect();
    ha.start(node, Part::Further)?;
    wait_served(now_ns()).context("after")?;
    Ok(Killed { node: node.to_owned(), ports, seen })
}

const EVERY: Duration = Duration::from_millis(50);
/// From the fault on.
const MEASURED: Duration = Duration::from_secs(4);
