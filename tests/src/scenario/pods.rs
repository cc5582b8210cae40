//! Pods as the API lists them, and whether they really are there: a node that lost power a moment ago is still listed as
//! Ready, with the addresses that its pods had.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};

use super::api::{Api, condition, text};
use crate::lab::Lab;
use crate::traffic::report::Greeting;

#[derive(Clone, Debug)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub node: String,
    pub ip: Option<Ipv4Addr>,
    pub ready: bool,
    pub terminating: bool,
    /// Of the first container.
    pub image: String,
}

/// Pods of a namespace, or of all with an empty one. Those that are being deleted are left out.
pub fn list(api: &Api, namespace: &str) -> Result<Vec<Pod>> {
    let mut pods = with_terminating(api, namespace)?;
    pods.retain(|pod| !pod.terminating);
    Ok(pods)
}

/// Also those that are being deleted, whose programs may run until they are gone from the list.
pub fn with_terminating(api: &Api, namespace: &str) -> Result<Vec<Pod>> {
    let path = match namespace {
        "" => "/api/v1/pods".to_owned(),
        one => format!("/api/v1/namespaces/{one}/pods"),
    };
    Ok(api
        .list(&path)?
        .iter()
        .map(|item| Pod {
            namespace: text(item, "/metadata/namespace").to_owned(),
            name: text(item, "/metadata/name").to_owned(),
            node: text(item, "/spec/nodeName").to_owned(),
            ip: text(item, "/status/podIP").parse().ok(),
            ready: condition(item, "Ready"),
            terminating: item.pointer("/metadata/deletionTimestamp").is_some(),
            image: text(item, "/spec/containers/0/image").to_owned(),
        })
        .collect())
}

/// Whether this very pod answers at the listed address, to a client on its own node.
pub fn answers(lab: &Lab, pod: &Pod, port: u16) -> bool {
    let Some(ip) = pod.ip else { return false };
    greeting_from(lab, &pod.node, &format!("{ip}:{port}")).is_ok_and(|greeting| greeting.pod == pod.name)
}

/// One connection from a network of the lab (`node1`, `client`, `far` …): the pod that answered, and the client address that it
/// saw.
pub fn greeting_from(lab: &Lab, role: &str, to: &str) -> Result<Greeting> {
    let mut command = lab.netns_command(role, &lab.traffic()?.to_string_lossy())?;
    let output = command.args(["get", "--to", to, "--timeout-ms", "1000"]).output().context("start sheave-traffic")?;
    if !output.status.success() {
        bail!("from {role} to {to}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("from {role} to {to}"))
}
