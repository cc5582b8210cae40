//! A node loses power: the one that holds the address, or another one, with the API server or without.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::deploy::Scene;
use super::measure::{Measurement, Observed};
use super::settle::{settle, wait_holder, wait_nodes_down};
use crate::lab::Fault;

/// What happened when a node was lost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeLoss {
    pub lost: String,
    pub owner_before: String,
    pub owner_after: String,
    #[serde(flatten)]
    pub observed: Observed,
}

/// The node that holds the address loses power. It stays without: [`restore`] gives it back.
pub fn owner_loss(scene: &Scene, connections: u16) -> Result<NodeLoss> {
    let owner = wait_holder(scene, &scene.nodes)?;
    loss(scene, &owner, &owner, connections)
}

/// A node that does not hold the address loses power, while new connections are being opened.
pub fn other_node_loss(scene: &Scene, connections: u16) -> Result<NodeLoss> {
    let owner = wait_holder(scene, &scene.nodes)?;
    let other = scene.nodes.iter().find(|node| **node != owner).expect("labs have two nodes").clone();
    loss(scene, &other, &owner, connections)
}

/// The API server is stopped; then the node that holds the address loses power; then the API server is back.
pub fn api_server_down_then_owner_loss(scene: &Scene, connections: u16) -> Result<NodeLoss> {
    let owner = wait_holder(scene, &scene.nodes)?;
    scene.lab.fault(Fault::ApiStop { server: None })?;
    let result = loss(scene, &owner, &owner, connections);
    scene.lab.fault(Fault::ApiStart { server: None })?;
    result
}

/// Gives the node its power back and waits until the cluster is whole again.
pub fn restore(scene: &Scene, node: &str) -> Result<()> {
    scene.lab.fault(Fault::PowerOn { node: node.to_owned() })?;
    settle(scene)
}

fn loss(scene: &Scene, node: &str, owner: &str, connections: u16) -> Result<NodeLoss> {
    let mut measurement = Measurement::start(scene, connections, true)?;
    measurement.mark()?;
    scene.lab.fault(Fault::PowerOff { node: node.to_owned() })?;
    let left: Vec<_> = scene.nodes.iter().filter(|one| *one != node).cloned().collect();
    let settled = wait_holder(scene, &left).and_then(|after| wait_nodes_down(scene, &left, 1.0).map(|()| after));
    // What the clients saw is worth more than a sentence about what was waited for.
    let observed = measurement.finish(owner, Some(node))?;
    let owner_after = settled.map_err(|error| error.context(format!("clients saw {observed:?}")))?;
    Ok(NodeLoss { lost: node.to_owned(), owner_before: owner.to_owned(), owner_after, observed })
}
