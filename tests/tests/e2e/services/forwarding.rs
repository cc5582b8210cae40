//! The nodes' policy of FORWARD is DROP, as Docker and ufw set it.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheave_tests::lab::{ProxyMode, plan, wait_for};
use sheave_tests::scenario::Scene;
use sheave_tests::scenario::api::text;
use sheave_tests::scenario::inside::on_node;

use super::clients::{OUTSIDE, datagram, echo, greeted_by, is_dropped, open, wait_served};
use super::{Room, Server, WITHIN};

/// On every node. Beside kube-proxy in iptables mode new and open connections are served as before, with the client's address. In nftables mode
/// what is translated needs another rule that accepts it, as kube-proxy's own path does: the nodes name the chain, and with such a rule all is
/// served.
pub fn drop_policy(scene: &Scene) -> Result<String> {
    let room = Room::open(scene, "forwarding")?;
    room.start(&[
        Server::on(0, "forward-1", "all"),
        Server::on(1, "forward-2", "all"),
        Server::on(2, "forward-3", "all"),
    ])?;
    let vip = room.service("forwarded", 217, "", "selector: {app: all}")?;
    wait_served(scene, vip)?;
    let before: Vec<_> = (0..OPEN).map(|_| open(scene, "far", vip)).collect::<Result<_>>()?;
    let policy = Policy { scene };
    for node in &scene.nodes {
        policy.set(node, "DROP")?;
    }
    let served = match scene.lab.state()?.plan.proxy_mode {
        ProxyMode::Iptables => {
            served(scene, vip)?;
            before.iter().try_for_each(|stream| echo(stream).map(drop)).context("an open connection")?;
            format!("{} open connections", before.len())
        }
        ProxyMode::Nftables => beside_nftables(scene, vip)?,
    };
    drop(policy);
    wait_conditions(scene, "True", |_| true)?;
    wait_served(scene, vip)?;
    Ok(format!("{CONNECTIONS} new connections from each client with its address, datagrams; {served}"))
}

/// Refused by that chain, named, then accepted by rules as a CNI has them.
fn beside_nftables(scene: &Scene, vip: Ipv4Addr) -> Result<String> {
    ensure!(is_dropped(scene, "far", vip)?, "the policy of DROP drops nothing");
    let named = wait_conditions(scene, "Unknown", |message| {
        ["chain FORWARD", "table ip filter", "priority 0", "handle "].iter().all(|part| message.contains(part))
    })?;
    for node in &scene.nodes {
        for direction in ["-s", "-d"] {
            on_node(
                &scene.lab,
                node,
                "iptables",
                &["-w", "-A", "FORWARD", direction, plan::POD_RANGE, "-j", "ACCEPT"],
            )?;
        }
    }
    served(scene, vip)?;
    Ok(format!("served by another's rule; before: {named}"))
}

fn served(scene: &Scene, vip: Ipv4Addr) -> Result<()> {
    for (role, address) in OUTSIDE {
        greeted_by(scene, role, address, vip, CONNECTIONS)?;
        (0..CONNECTIONS).try_for_each(|_| datagram(scene, role, vip).map(drop)).with_context(|| role.to_owned())?;
    }
    Ok(())
}

/// Until every node's `ForwardingAllowed` has this status and such a message; the message of the last one.
fn wait_conditions(scene: &Scene, status: &str, message: impl Fn(&str) -> bool) -> Result<String> {
    let mut last = String::new();
    for node in &scene.nodes {
        last = wait_for(&format!("ForwardingAllowed of {node} to be {status}"), WITHIN, || {
            let object = scene.api.get(&format!("/apis/sheave.dev/v1alpha1/speakerstates/{node}"))?;
            let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
            let said = conditions.into_iter().flatten().find(|one| one["type"] == "ForwardingAllowed");
            let said = said.filter(|one| one["status"] == status).map(|one| text(one, "/message").to_owned());
            Ok(said.filter(|said| message(said)))
        })?;
    }
    Ok(last)
}

/// Set on the nodes until this is dropped.
struct Policy<'a> {
    scene: &'a Scene,
}

impl Policy<'_> {
    fn set(&self, node: &str, policy: &str) -> Result<()> {
        on_node(&self.scene.lab, node, "iptables", &["-w", "-P", "FORWARD", policy]).map(drop)
    }

    fn reset(&self, node: &str) -> Result<()> {
        self.set(node, "ACCEPT")?;
        for direction in ["-s", "-d"] {
            // Only in one of the modes there are such rules.
            let rule = [direction, plan::POD_RANGE, "-j", "ACCEPT"];
            let has =
                |verb| on_node(&self.scene.lab, node, "iptables", &[&["-w", verb, "FORWARD"], &rule[..]].concat());
            if has("-C").is_ok() {
                has("-D")?;
            }
        }
        Ok(())
    }
}

impl Drop for Policy<'_> {
    fn drop(&mut self) {
        for node in &self.scene.nodes {
            if let Err(error) = self.reset(node) {
                eprintln!("{node} goes on with a policy of DROP: {error:#}");
            }
        }
    }
}

const OPEN: usize = 12;
const CONNECTIONS: usize = 30;
