//! A cluster that starts: speakers first, then etcd, then the first API server.

use anyhow::{Context, Result};
use serde::Serialize;

use super::faults::{self, SERVED_WITHIN};
use super::place::Place;
use super::session::{Access, Failure, USER_AGENT};
use crate::lab::ha::{Ha, Part};
use crate::lab::wait_for;
use crate::traffic::clock::{milliseconds, now_ns};

/// Connections to the endpoint while no API server runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Refused {
    pub made: usize,
    pub refused: usize,
    pub longest_ms: f64,
    /// Those that were not.
    pub others: Vec<String>,
}

/// The API server that comes first.
#[derive(Clone, Debug, Serialize)]
pub struct First {
    pub node: String,
    /// From when it said itself that it is ready until a connection to the endpoint was served.
    pub served_after_ms: f64,
}

/// Starts alone what serves the endpoint. Once the client and every node have been turned away, what follows is counted.
pub fn refused(ha: &Ha) -> Result<Refused> {
    let access = Access::of(ha, USER_AGENT)?;
    ha.nodes().iter().try_for_each(|node| ha.start_balancer(node))?;
    let mut seen = Refused::default();
    for role in ["client".to_owned()].into_iter().chain(ha.nodes()) {
        let place = Place::new(&ha.netns(&role))?;
        let one = || {
            let (access, to) = (access.clone(), ha.address());
            place.run(async move { access.open(to).await.map(|session| session.server) })
        };
        let is_refused = |result: &Result<String, Failure>| matches!(result, Err(Failure::Refused));
        // A proxy without a server accepts, and closes.
        wait_for(&format!("{role} to be turned away"), SERVED_WITHIN, || {
            let result = one()?;
            Ok((is_refused(&result) || matches!(result, Err(Failure::Reset))).then_some(()))
        })?;
        for _ in 0..CONNECTIONS {
            let from = now_ns();
            let result = one()?;
            seen.longest_ms = seen.longest_ms.max(milliseconds(from, now_ns()));
            seen.made += 1;
            match is_refused(&result) {
                true => seen.refused += 1,
                false => seen.others.push(format!("{role}: {result:?}")),
            }
        }
    }
    Ok(seen)
}

/// Starts all etcd members and one API server.
pub fn first_api_server(ha: &Ha) -> Result<First> {
    let nodes = ha.nodes();
    nodes.iter().try_for_each(|node| ha.start(node, Part::Etcd))?;
    let node = nodes.into_iter().next().context("a node")?;
    let (access, place) = (Access::of(ha, USER_AGENT)?, Place::new(&ha.netns("client"))?);
    ha.start(&node, Part::ApiServer)?;
    let ready = faults::wait_ready(ha, &node)?;
    let served = wait_for("the endpoint to serve the first API server", SERVED_WITHIN, || {
        let (access, to) = (access.clone(), ha.address());
        Ok(place.run(async move { access.open(to).await.is_ok() })?.then(now_ns))
    })?;
    Ok(First { node, served_after_ms: milliseconds(ready, served) })
}

const CONNECTIONS: usize = 40;
