//! What must be true before a fault is made: every repetition begins with the same whole cluster.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::SockRef;

use super::api::condition;
use super::deploy::{POD_PORT, Scene};
use super::{http, pods};
use crate::lab::{netns, wait_for};
use crate::traffic::report::Greeting;

/// Waits until the cluster is whole: nodes Ready, pods there on all of them, speakers ready and receiving one another, one owner,
/// and every pod reached through the address. Then empties the clients' ARP entries.
pub fn settle(scene: &Scene) -> Result<()> {
    let mut missing = String::from("nothing was checked");
    let whole = wait_for("the cluster to be whole", WITHIN, || {
        // What does not answer is not there yet.
        missing = match first_missing(scene) {
            Ok(None) => return Ok(Some(())),
            Ok(Some(missing)) => missing,
            Err(error) => format!("{error:#}"),
        };
        Ok(None)
    });
    whole.with_context(|| format!("last seen: {missing}"))?;
    forget_neighbours(scene)
}

/// The clients resolve the address anew.
pub fn forget_neighbours(scene: &Scene) -> Result<()> {
    let plan = scene.lab.state()?.plan;
    for role in ["client", "router"] {
        netns::run("ip", &["-netns", &plan.netns(role), "neighbour", "flush", "dev", "eth0"])?;
    }
    Ok(())
}

/// The node that holds the address by its own speaker's metrics; `None` if not exactly one of `nodes` does.
pub fn holder(scene: &Scene, nodes: &[String]) -> Result<Option<String>> {
    let series = format!("sheave_vip_owned_term{{vip=\"{}\"}}", scene.vip);
    let mut holders = Vec::new();
    for node in nodes {
        let metrics = http::metrics(&scene.lab, scene.node_address(node)?)?;
        if http::value(&metrics, &series).is_some() {
            holders.push(node.clone());
        }
    }
    Ok(if holders.len() == 1 { holders.pop() } else { None })
}

/// Waits until one of these nodes, and only one, holds the address.
pub fn wait_holder(scene: &Scene, nodes: &[String]) -> Result<String> {
    wait_for(&format!("one owner among {}", nodes.join(", ")), WITHIN, || Ok(holder(scene, nodes).ok().flatten()))
}

/// Waits until the speakers of `nodes` have given up exactly `down` nodes.
pub fn wait_nodes_down(scene: &Scene, nodes: &[String], down: f64) -> Result<()> {
    wait_for("rows to move away from the lost node", WITHIN, || {
        for node in nodes {
            let metrics = http::metrics(&scene.lab, scene.node_address(node)?);
            if metrics.ok().and_then(|text| http::value(&text, "sheave_nodes_down")) != Some(down) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}

/// Waits until a speaker is ready and is another process than `before`.
pub fn wait_new_speaker(scene: &Scene, node: &str, before: i32, within: Duration) -> Result<()> {
    wait_for(&format!("a new speaker on {node}"), within, || {
        let other = scene.lab.speaker(node)?.is_some_and(|found| found.pid != before);
        Ok((other && speaker_missing(scene, node).ok().flatten().is_none()).then_some(()))
    })
}

/// Waits until every speaker is ready, receives all others and counts no node as down or silent.
pub fn wait_speakers(scene: &Scene) -> Result<()> {
    let mut missing = None;
    let waited = wait_for("all speakers", WITHIN, || {
        missing = scene.nodes.iter().find_map(|node| match speaker_missing(scene, node) {
            Ok(missing) => missing,
            Err(error) => Some(format!("{error:#}")),
        });
        Ok(missing.is_none().then_some(()))
    });
    waited.with_context(|| format!("last seen: {missing:?}"))
}

fn first_missing(scene: &Scene) -> Result<Option<String>> {
    for node in scene.api.list("/api/v1/nodes")? {
        if !condition(&node, "Ready") {
            return Ok(Some(format!("{} is not Ready", node["metadata"]["name"])));
        }
    }
    for node in &scene.nodes {
        if let Some(missing) = speaker_missing(scene, node)? {
            return Ok(Some(missing));
        }
    }
    let all = scene.pods()?;
    for node in &scene.nodes {
        let here: Vec<_> = all.iter().filter(|pod| pod.node == *node && pod.ready).collect();
        if here.len() < scene.pods_per_node {
            return Ok(Some(format!("{} of {} pods are Ready on {node}", here.len(), scene.pods_per_node)));
        }
        if let Some(silent) = here.iter().find(|pod| !pods::answers(&scene.lab, pod, POD_PORT)) {
            return Ok(Some(format!("{} on {node} does not answer", silent.name)));
        }
    }
    let Some(holder) = holder(scene, &scene.nodes)? else { return Ok(Some("not exactly one owner".to_owned())) };
    let shown = scene.owner()?.map(|owner| owner.node);
    if shown.as_ref() != Some(&holder) {
        return Ok(Some(format!("{holder} holds the address, the VirtualIP has {shown:?}")));
    }
    unreached(scene, all.iter().map(|pod| pod.name.clone()).collect())
}

fn speaker_missing(scene: &Scene, node: &str) -> Result<Option<String>> {
    let address = scene.node_address(node)?;
    let ready = http::speaker(&scene.lab, address, "/readyz").with_context(|| format!("speaker of {node}"))?;
    if ready.status != 200 {
        return Ok(Some(format!("the speaker of {node} is not ready: {}", ready.body.trim().replace('\n', ", "))));
    }
    let metrics = http::metrics(&scene.lab, address)?;
    let peers = http::value(&metrics, "sheave_peers_alive");
    if peers != Some(scene.nodes.len() as f64 - 1.0) {
        return Ok(Some(format!("the speaker of {node} receives {peers:?} others")));
    }
    for names in NONE_OF_THESE {
        let nodes = names.iter().find_map(|gauge| http::value(&metrics, gauge));
        if nodes != Some(0.0) {
            return Ok(Some(format!("{names:?} of the speaker of {node}: {nodes:?} nodes")));
        }
    }
    Ok(None)
}

/// Waits until so many pods are Ready and each was reached through the address, whatever the speakers say.
pub fn wait_reached(scene: &Scene) -> Result<()> {
    let mut missing = None;
    let waited = wait_for("every pod to be reached through the address", WITHIN, || {
        let pods: BTreeSet<String> = scene.pods()?.into_iter().filter(|pod| pod.ready).map(|pod| pod.name).collect();
        missing = match pods.len() == scene.nodes.len() * scene.pods_per_node {
            true => unreached(scene, pods)?,
            false => Some(format!("{} pods are Ready", pods.len())),
        };
        Ok(missing.is_none().then_some(()))
    });
    waited.with_context(|| format!("last seen: {missing:?}"))
}

/// Connects through the address until every pod has answered, or returns which never did or what failed.
fn unreached(scene: &Scene, mut pods: BTreeSet<String>) -> Result<Option<String>> {
    let tries = pods.len() * TRIES_PER_POD;
    let (client, to) = (scene.lab.state()?.plan.netns("client"), scene.tcp().parse()?);
    netns::inside(&client, || {
        for _ in 0..tries {
            match greet(to) {
                Ok(greeting) => drop(pods.remove(&greeting.pod)),
                Err(error) => return Ok(Some(format!("a connection to {to}: {error:#}"))),
            }
        }
        Ok((!pods.is_empty()).then(|| format!("{tries} connections never reached {pods:?}")))
    })
}

/// One connection from the network of the calling thread.
pub fn greet(to: SocketAddr) -> Result<Greeting> {
    let stream = TcpStream::connect_timeout(&to, CONNECT_WITHIN)?;
    stream.set_read_timeout(Some(CONNECT_WITHIN))?;
    // Ends with a reset: no source port is left waiting.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    serde_json::from_str(&line).with_context(|| format!("greeting {line:?}"))
}

/// Gauges that are 0 when all is well, each under all names that it has had: `make bench-upgrade` reads earlier versions too.
const NONE_OF_THESE: [&[&str]; 2] = [&["sheave_nodes_down"], &["sheave_nodes_silent", "sheave_nodes_absent"]];
const WITHIN: Duration = Duration::from_secs(90);
const CONNECT_WITHIN: Duration = Duration::from_millis(500);
/// That one of six equally likely pods is missed by accident: 6 · (5/6)^72, one in 80 000.
const TRIES_PER_POD: usize = 12;
