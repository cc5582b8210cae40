//! The same node loss on the path that a cluster has today, in the same cluster: the address is answered by one node, and
//! kube-proxy's own LoadBalancer rules do the forwarding, as beside MetalLB in L2 mode or kube-vip.
//!
//! How it is made. A second Service has another load balancer class, so Sheave leaves it alone. Its status is written here, with
//! an address that no pool of Sheave contains, and kube-proxy serves it on every node. One node has the address on its uplink and
//! announces it; when that node is lost, the next one takes and announces it. So that only the path is compared, the takeover
//! happens exactly as long after the fault as Sheave's own did.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::deploy::{NAMESPACE, POD_PORT, SERVICES, Scene, TCP_PORT, UDP_PORT};
use super::gratuitous;
use super::measure::{Measurement, Observed};
use super::settle::greet;
use crate::lab::{Fault, Lab, netns, plan, wait_for};
use crate::traffic::clock;

/// What became of the connections without Sheave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Baseline {
    pub address: Ipv4Addr,
    pub lost: String,
    /// When the next node took the address: what Sheave had needed.
    pub given_takeover_ms: f64,
    /// Whether pods saw the client's address.
    pub saw_client: bool,
    /// New connections through the next node, after the takeover: that some succeed shows that it serves. kube-proxy goes
    /// on sending others to pods of the lost node until the cluster has noticed.
    pub new_connections: usize,
    pub new_connections_served: usize,
    #[serde(flatten)]
    pub observed: Observed,
}

/// `takeover_ms`: after this time the next node takes the address. The lost node stays without power.
pub fn baseline(scene: &Scene, connections: u16, takeover_ms: f64) -> Result<Baseline> {
    let (owner, next) = (scene.nodes[0].clone(), scene.nodes[1].clone());
    serve(scene, &owner)?;
    let client = scene.lab.state()?.plan.netns("client");
    let to = format!("{ADDRESS}:{TCP_PORT}");
    let saw_client =
        netns::inside(&client, || Ok(greet(to.parse()?)?.client.starts_with(&format!("{}:", plan::CLIENT))))?;
    let udp = format!("{ADDRESS}:{UDP_PORT}");
    let mut measurement = Measurement::of(scene, &ADDRESS.to_string(), &to, &udp, connections, false)?;
    let at = measurement.mark()?;
    // While the fault is being carried out: removing a node takes longer than noticing it.
    let takeover = thread::scope(|scope| {
        let takeover = scope.spawn(|| {
            clock::sleep_until(at + (takeover_ms * 1e6) as u64);
            claim(&scene.lab, &next)
        });
        let fault = scene.lab.fault(Fault::PowerOff { node: owner.clone() });
        takeover.join().map_err(|_| anyhow!("the takeover panicked"))?.and(fault)
    });
    takeover?;
    let new_connections_served = netns::inside(&client, || {
        let to = to.parse()?;
        Ok((0..NEW_CONNECTIONS).filter(|_| greet(to).is_ok()).count())
    })?;
    let observed = measurement.finish(&owner, Some(&owner))?;
    Ok(Baseline {
        address: ADDRESS,
        lost: owner,
        given_takeover_ms: takeover_ms,
        saw_client,
        new_connections: NEW_CONNECTIONS,
        new_connections_served,
        observed,
    })
}

/// Creates the Service and waits until the address answers at this node.
pub fn serve(scene: &Scene, owner: &str) -> Result<()> {
    let path = format!("{SERVICES}/{NAME}");
    if scene.api.find(&path)?.is_none() {
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": "example.com/none-of-sheaves", "selector": {"app": "echo"},
                "ports": [
                    {"name": "tcp", "protocol": "TCP", "port": TCP_PORT, "targetPort": POD_PORT},
                    {"name": "udp", "protocol": "UDP", "port": UDP_PORT, "targetPort": POD_PORT},
                ],
            },
        });
        scene.api.create(SERVICES, &service)?;
    }
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": ADDRESS.to_string(), "ipMode": "VIP"}]}}});
    scene.api.patch(&format!("{path}/status"), &status)?;
    // Left over from a run before: only one node answers.
    scene.nodes.iter().try_for_each(|node| release(&scene.lab, node))?;
    claim(&scene.lab, owner)?;
    let to = format!("{ADDRESS}:{TCP_PORT}");
    netns::inside(&scene.lab.state()?.plan.netns("client"), || {
        wait_for("kube-proxy to serve the address", Duration::from_secs(20), || Ok(greet(to.parse()?).ok()))
    })
    .map(drop)
}

/// The node has the address and announces it, as a speaker in user space does.
pub fn claim(lab: &Lab, node: &str) -> Result<()> {
    let name = lab.state()?.plan.netns(node);
    netns::ip(&name, &format!("address replace {ADDRESS}/32 dev eth0\n"))?;
    let mac = lab.mac(node)?;
    netns::inside(&name, || gratuitous::announce("eth0", ADDRESS, &mac))
        .with_context(|| format!("announce from {node}"))
}

/// The node has the address no more; nothing happens if it has not, or has no power.
pub fn release(lab: &Lab, node: &str) -> Result<()> {
    let state = lab.state()?;
    if !state.nodes.contains_key(node) {
        return Ok(());
    }
    let name = state.plan.netns(node);
    let addresses = netns::run("ip", &["-netns", &name, "address", "show", "dev", "eth0"])?;
    if addresses.contains(&format!("{ADDRESS}/32")) {
        netns::ip(&name, &format!("address delete {ADDRESS}/32 dev eth0\n"))?;
    }
    Ok(())
}

/// Outside of every pool of the scenarios.
pub const ADDRESS: Ipv4Addr = plan::address(230);
pub const NAME: &str = "baseline";
const NEW_CONNECTIONS: usize = 12;
