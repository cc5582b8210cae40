//! What the address does for its users: pods see the client, the Service's other ways still work, and it comes quickly.

use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::api::text;
use super::deploy::{NAMESPACE, POD_PORT, SERVICE, SERVICES, Scene, TCP_PORT, VIRTUALIPS};
use super::measure::saw_client;
use super::settle::{forget_neighbours, greet};
use super::{http, pods};
use crate::lab::{ClientKind, netns, plan, wait_for};
use crate::traffic::{self, clock};

/// The client addresses that the pods saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClientAddress {
    pub clients: Vec<Seen>,
    /// What failed of NodePort and ClusterIP of the same Service, from each node's address; empty if all worked.
    pub other_ways_failed: Vec<String>,
    pub other_ways_worked: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seen {
    pub client: Ipv4Addr,
    pub connections: usize,
    /// Connections in which the pod saw the client's own address and port.
    pub saw_client: usize,
    /// Nodes whose pods answered.
    pub nodes: Vec<String>,
}

/// Connections of both clients through the address; NodePort and ClusterIP of the Service on every node.
pub fn client_address(scene: &Scene, connections: u16) -> Result<ClientAddress> {
    let mut clients = Vec::new();
    for (kind, client) in [(ClientKind::Segment, plan::CLIENT), (ClientKind::BehindRouter, plan::FAR_CLIENT)] {
        let report = traffic::hold(&scene.lab, kind, &scene.tcp(), connections, 50)?.report()?;
        let mut nodes: Vec<_> = report.connections.iter().map(|held| held.node.clone()).collect();
        nodes.sort();
        nodes.dedup();
        let saw_client = report.connections.iter().filter(|held| saw_client(held, client)).count();
        clients.push(Seen { client, connections: report.connections.len(), saw_client, nodes });
    }
    let service = scene.api.get(&format!("{SERVICES}/{SERVICE}"))?;
    let node_port =
        service.pointer("/spec/ports/0/nodePort").and_then(serde_json::Value::as_u64).context("nodePort")?;
    let mut ways = Vec::new();
    for node in &scene.nodes {
        ways.push(("client", format!("{}:{node_port}", scene.node_address(node)?)));
        ways.push((node, format!("{}:{TCP_PORT}", text(&service, "/spec/clusterIP"))));
    }
    let answers: Vec<_> = ways.iter().map(|(role, to)| pods::greeting_from(&scene.lab, role, to)).collect();
    let other_ways_worked = answers.iter().filter(|answer| answer.is_ok()).count();
    let other_ways_failed = answers.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    Ok(ClientAddress { clients, other_ways_failed, other_ways_worked })
}

/// From the creation of a Service to the first answer at a client that is already trying.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FirstAnswer {
    pub address: Ipv4Addr,
    /// Until the API server had answered "created".
    pub created_ms: f64,
    pub first_answer_ms: f64,
}

/// Creates a Service with a wanted address to which a client is connecting already. `number` chooses the address.
pub fn first_answer(scene: &Scene, number: u8) -> Result<FirstAnswer> {
    let address = plan::address(plan::POOL.1.octets()[3] - number % 10);
    let name = format!("first-{number}");
    forget_neighbours(scene)?;
    let to = format!("{address}:{TCP_PORT}");
    let connecting = traffic::connect(&scene.lab, ClientKind::Segment, &to)?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": {"sheave.dev/loadBalancerIPs": address.to_string()}},
        "spec": {"type": "LoadBalancer", "selector": {"app": "echo"},
                 "ports": [{"name": "tcp", "protocol": "TCP", "port": TCP_PORT, "targetPort": POD_PORT}]},
    });
    let began = clock::now_ns();
    scene.api.create(SERVICES, &service)?;
    let created = clock::now_ns();
    let client = scene.lab.state()?.plan.netns("client");
    let answered =
        netns::inside(&client, || wait_for(&format!("an answer at {to}"), WITHIN, || Ok(greet(to.parse()?).ok())));
    // The client connects every 5 ms: its own first success may still be on its way.
    sleep(SOME_ATTEMPTS);
    let report = connecting.report()?;
    scene.api.delete(&format!("{SERVICES}/{name}"))?;
    wait_for(&format!("{address} to be released"), WITHIN, || {
        Ok(scene.api.find(&format!("{VIRTUALIPS}/{address}"))?.is_none().then_some(()))
    })?;
    answered?;
    let first =
        report.first_success_ns.with_context(|| format!("no pod answered at {to}: {:?}", report.failures.first()))?;
    Ok(FirstAnswer {
        address,
        created_ms: clock::milliseconds(began, created),
        first_answer_ms: clock::milliseconds(began, first),
    })
}

/// The sum of a counter with this label over all speakers; 0 where it does not exist yet.
pub fn counted(scene: &Scene, series: &str) -> Result<f64> {
    let each = scene.nodes.iter().map(|node| {
        let metrics = http::metrics(&scene.lab, scene.node_address(node)?)?;
        Ok(http::value(&metrics, series).unwrap_or_default())
    });
    each.sum()
}

const SOME_ATTEMPTS: Duration = Duration::from_millis(50);
const WITHIN: Duration = Duration::from_secs(20);
