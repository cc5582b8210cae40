//! A Service at the nodes' own addresses, beside kube-proxy: what is the Service's, what stays the node's, and a port that a process takes.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sheave_tests::lab::{ClientKind, plan, wait_for};
use sheave_tests::scenario::Scene;
use sheave_tests::scenario::api::text;
use sheave_tests::scenario::settle::greet;
use sheave_tests::traffic::{self, report::HeldState};

use super::clients::{OUTSIDE, datagram, from, greeted_by, is_dropped, wait_served};
use super::{Room, Server, WITHIN};

/// Pods on two nodes, clients at the addresses of all.
pub fn node_addresses(scene: &Scene) -> Result<String> {
    let room = Room::open(scene, "nodeaddress")?;
    room.start(&[Server::on(0, "here-1", "here"), Server::on(1, "here-2", "here")])?;
    let nodes: Vec<Ipv4Addr> = scene.nodes.iter().map(|node| scene.node_address(node)).collect::<Result<_>>()?;
    scene.lab.apply(&format!(
        "apiVersion: v1
kind: Service
metadata: {{name: here, namespace: {}, annotations: {{sheave.dev/address-mode: node, sheave.dev/startup-probe: \"off\"}}}}
spec:
  type: LoadBalancer
  allocateLoadBalancerNodePorts: false
  ports:
  - {{name: web, protocol: TCP, port: 80, targetPort: web}}
  - {{name: high, protocol: TCP, port: {HIGH}, targetPort: web}}
  - {{name: dns, protocol: UDP, port: 53, targetPort: dns}}
  selector: {{app: here}}
",
        room.namespace
    ))?;
    wait_shown(&room, &nodes.iter().copied().collect())?;
    for node in &nodes {
        wait_served(scene, *node)?;
        // Without probes: with them the first pod that has started has all connections for a moment.
        wait_for(&format!("both pods by {node}"), WITHIN, || {
            let by = greeted_by(scene, OUTSIDE[0].0, OUTSIDE[0].1, *node, MANY);
            Ok(by.is_ok_and(|by| by.len() == 2).then_some(()))
        })?;
        for (role, client) in OUTSIDE {
            let by = greeted_by(scene, role, client, *node, MANY)?;
            ensure!(by.len() == 2, "{MANY} connections to {node} reached {by:?} alone");
        }
        datagram(scene, "client", *node)?;
        // Looked up in conntrack first, as these may be the node's own.
        let high = SocketAddr::from((*node, HIGH));
        let pods: BTreeSet<String> = from(scene, "client", || (0..MANY).map(|_| Ok(greet(high)?.pod)).collect())?;
        ensure!(pods.len() == 2, "{MANY} connections to {high} reached {pods:?} alone");
        let kubelet = SocketAddr::from((*node, KUBELET));
        from(scene, "client", || Ok(TcpStream::connect_timeout(&kubelet, Duration::from_secs(2))?))?;
    }

    let narrowed = narrowed(&room, &nodes)?;

    let listens = from(scene, &scene.nodes[2], || Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, HIGH))?))?;
    wait_shown(&room, &nodes[..2].iter().copied().collect())?;
    let service = room.scene.api.get(&room.path("services", "here"))?;
    let reasons: Vec<&str> =
        service["status"]["conditions"].as_array().into_iter().flatten().map(|one| text(one, "/reason")).collect();
    ensure!(reasons.contains(&"PortInUseOnNode"), "{reasons:?}");
    greeted_by(scene, "client", OUTSIDE[0].1, nodes[0], MANY)?;
    drop(listens);
    wait_shown(&room, &nodes.iter().copied().collect())?;
    Ok(format!(
        "{} addresses, each with both pods; {narrowed}; without that of a node where a process took a port",
        nodes.len()
    ))
}

/// At a port from which nodes may open connections themselves: those of a client that is not admitted any more end as elsewhere.
fn narrowed(room: &Room<'_>, nodes: &[Ipv4Addr]) -> Result<String> {
    let scene = room.scene;
    let set = |ranges: Value| {
        room.scene.api.patch(&room.path("services", "here"), &json!({"spec": {"loadBalancerSourceRanges": ranges}}))
    };
    let to = format!("{}:{HIGH}", nodes.last().context("a node")?);
    let mut held = traffic::hold(&scene.lab, ClientKind::Segment, &to, CONNECTIONS, 10)?;
    held.mark()?;
    set(json!([format!("{}/32", plan::FAR_CLIENT)]))?;
    for node in nodes {
        wait_for(&format!("{node} to deny the client"), WITHIN, || {
            Ok(is_dropped(scene, "client", *node)?.then_some(()))
        })?;
    }
    let report = held.report()?;
    let ended = report.count(HeldState::Reset, |_| true);
    ensure!(ended == usize::from(CONNECTIONS), "not all connections of the client were reset: {:?}", report.counts);
    set(Value::Null)?;
    for node in nodes {
        wait_served(scene, *node)?;
    }
    Ok(format!("{ended} open connections reset when the source ranges were narrowed"))
}

/// In the status of the Service.
fn wait_shown(room: &Room<'_>, expected: &BTreeSet<Ipv4Addr>) -> Result<()> {
    wait_for(&format!("the Service to show {expected:?}"), WITHIN, || {
        let service = room.scene.api.get(&room.path("services", "here"))?;
        let ingress = service.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
        let shown = ingress.into_iter().flatten().filter_map(|entry| text(entry, "/ip").parse().ok());
        Ok((shown.collect::<BTreeSet<Ipv4Addr>>() == *expected).then_some(()))
    })
}

const HIGH: u16 = 18_080;
const KUBELET: u16 = 10_250;
const CONNECTIONS: u16 = 30;
/// So many that one of two pods gets none once in a million runs.
const MANY: usize = 24;
