//! externalTrafficPolicy Local: who owns the address, and kube-proxy's health check.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sheave_tests::lab::{Fault, wait_for};
use sheave_tests::scenario::deploy::order;
use sheave_tests::scenario::settle::{wait_holder, wait_speakers};
use sheave_tests::scenario::{Scene, http};

use super::clients::{OUTSIDE, from, greeted_by, wait_served};
use super::endings::{of, owner};
use super::{Room, Server, WITHIN};

/// A new address goes to the node with the pod, although its rank is the last; stays when the pod moves to the node in the middle; and
/// goes there, not to the first in rank, when its owner's speaker ends.
pub fn owners(scene: &Scene) -> Result<String> {
    const LAST: u8 = 209;
    let vip = sheave_tests::lab::plan::address(LAST);
    let rank = order(vip, &scene.nodes)?;
    let index = |node: &str| scene.nodes.iter().position(|one| one == node).context("a node of the lab");
    let (middle, last) = (index(&rank[1])?, index(&rank[2])?);
    let room = Room::open(scene, "localowner")?;
    // It serves until all nodes have noticed its end.
    room.start(&[Server { drain_s: 3, ..Server::on(last, "before", "local") }])?;
    room.service("local", LAST, "", "selector: {app: local}\n  externalTrafficPolicy: Local")?;
    wait_served(scene, vip)?;
    let seen = of(scene, vip);
    let first_owner = wait_holder(&seen, &scene.nodes)?;
    ensure!(first_owner == rank[2], "{first_owner} owns {vip}, the pod is on {}; by rank: {rank:?}", rank[2]);
    health(&room, &rank[2])?;

    room.start(&[Server::on(middle, "after", "local")])?;
    let term = owner(scene, vip)?;
    // The ring is that of Cluster: pods of both nodes are reached, whoever owns the address, and see the client.
    for (role, address) in OUTSIDE {
        wait_for(&format!("both pods to answer {role}"), WITHIN, || {
            let by = greeted_by(scene, role, address, vip, MANY)?;
            Ok((by.len() == 2 && by.contains_key("before") && by.contains_key("after")).then_some(()))
        })?;
    }
    room.end(&["before"])?;
    wait_for("the other pod alone", WITHIN, || {
        let by = greeted_by(scene, "client", OUTSIDE[0].1, vip, FEW)?;
        Ok((by.len() == 1 && by.contains_key("after")).then_some(()))
    })?;
    health(&room, &rank[1])?;
    ensure!(wait_holder(&seen, &scene.nodes)? == rank[2] && owner(scene, vip)? == term, "the address moved: {term:?}");

    scene.lab.fault(Fault::DeleteSpeakerPod { node: rank[2].clone() })?;
    let others: Vec<String> = rank[..2].to_vec();
    let next = wait_holder(&seen, &others)?;
    ensure!(next == rank[1], "{next} owns {vip}, the pod is on {}; by rank: {rank:?}", rank[1]);
    for (role, address) in OUTSIDE {
        greeted_by(scene, role, address, vip, FEW)?;
    }
    wait_speakers(scene)?;
    Ok(format!(
        "{}, then {} after {}; pods of both nodes reached; 200 with a pod, 503 without",
        rank[2], rank[1], rank[0]
    ))
}

/// kube-proxy answers with 200 on the node with the pod, and with 503 on the others.
fn health(room: &Room<'_>, with_pod: &str) -> Result<()> {
    let scene = room.scene;
    let service = scene.api.get(&room.path("services", "local"))?;
    let port = service.pointer("/spec/healthCheckNodePort").and_then(serde_json::Value::as_u64).context("the port")?;
    for node in &scene.nodes {
        let to = SocketAddr::from((scene.node_address(node)?, u16::try_from(port)?));
        let expected = if node == with_pod { 200 } else { 503 };
        wait_for(&format!("{expected} from {node}"), WITHIN, || {
            let answer = from(scene, "client", || {
                let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                http::request(stream, "GET", "/healthz", None)
            });
            // It listens a moment after the Service is there.
            Ok(answer.is_ok_and(|answer| answer.status == expected).then_some(()))
        })?;
    }
    Ok(())
}

const FEW: usize = 8;
/// That all of them go to one of two pods is an accident of one in 32,768.
const MANY: usize = 16;
const PATIENCE: Duration = Duration::from_secs(2);
