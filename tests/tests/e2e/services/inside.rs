//! Clients inside the cluster: pods, nodes, pods on their node's own network, and a pod that reaches itself.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use sheave_tests::lab::wait_for;
use sheave_tests::scenario::Scene;
use sheave_tests::scenario::inside::{Process, process_of};
use sheave_tests::scenario::pods::greeting_from;
use sheave_tests::traffic::report::Greeting;

use super::clients::{client_of, wait_served};
use super::endings::owner;
use super::{Room, Server, WITHIN};

/// A client on a node, by what it is.
struct Client<'a> {
    what: &'static str,
    node: &'a str,
    /// Its own address.
    address: Ipv4Addr,
    process: Option<Process>,
    /// The pod that it is.
    pod: Option<&'static str>,
}

impl Client<'_> {
    fn greeting(&self, scene: &Scene, vip: Ipv4Addr) -> Result<Greeting> {
        let to = format!("{vip}:80");
        let greeting = match &self.process {
            Some(process) => process.greeting(&scene.lab, &to),
            None => greeting_from(&scene.lab, self.node, &to),
        };
        greeting.with_context(|| format!("{} on {}", self.what, self.node))
    }
}

const PODS: [Server; 3] =
    [Server::on(0, "inside-1", "all"), Server::on(1, "inside-2", "all"), Server::on(2, "inside-3", "all")];
const HOSTS: [&str; 3] = ["host-1", "host-2", "host-3"];

/// Both on the same clients.
pub fn clients(scene: &Scene) -> Result<String> {
    let room = Room::open(scene, "inside")?;
    let clients = start(&room)?;
    let with = with_kube_proxy(&room, &clients)?;
    let without = without_kube_proxy(&room, &clients)?;
    Ok(format!("{with}; without kube-proxy {without}"))
}

/// Beside kube-proxy, which translates on the client's node: every client on every node is served. Pods are seen with their own address
/// where Kubernetes keeps it: by pods of a Local Service. (What one connection reaches is chance: each client makes several.)
fn with_kube_proxy(room: &Room<'_>, clients: &[Client<'_>]) -> Result<String> {
    let scene = room.scene;
    scene.lab.kubectl(&["label", "pod", "inside-2", "-n", "inside", "reached=by-itself"])?;
    let cluster = room.service("cluster", 212, "", "selector: {app: all}")?;
    let local = room.service("local", 213, "", "selector: {app: all}\n  externalTrafficPolicy: Local")?;
    let own = room.service("own", 214, "", "selector: {reached: by-itself}")?;
    served(scene, clients, [cluster, local, own])
}

/// Every client at each of these VIPs.
fn served(scene: &Scene, clients: &[Client<'_>], [cluster, local, own]: [Ipv4Addr; 3]) -> Result<String> {
    [cluster, local, own].into_iter().try_for_each(|vip| wait_served(scene, vip))?;
    let mut kept = 0;
    for client in clients {
        // Each node has its rules a moment later.
        for vip in [cluster, local, own] {
            wait_for(&format!("{} on {} to be served at {vip}", client.what, client.node), WITHIN, || {
                Ok(client.greeting(scene, vip).ok())
            })?;
        }
        for _ in 0..TIMES {
            client.greeting(scene, cluster)?;
            let greeting = client.greeting(scene, local)?;
            let itself = client.pod == Some(greeting.pod.as_str());
            if client.pod.is_some() && !itself {
                ensure!(client_of(&greeting)? == client.address, "{} {greeting:?}", client.what);
                kept += 1;
            }
        }
        let greeting = client.greeting(scene, own)?;
        ensure!(greeting.pod == "inside-2", "{greeting:?}");
    }
    ensure!(kept > 0, "no connection of a pod to another pod");
    Ok(format!(
        "{} clients, one of them by the VIP to itself; {kept} connections of pods with their own address",
        clients.len()
    ))
}

/// Without kube-proxy's rules for the VIP (label `service.kubernetes.io/service-proxy-name`) the client's node translates by our rules: on the
/// owner's node as on the others, and pods are seen with their own address where they are with kube-proxy.
fn without_kube_proxy(room: &Room<'_>, clients: &[Client<'_>]) -> Result<String> {
    let scene = room.scene;
    let label = "service.kubernetes.io/service-proxy-name: none";
    let bare = room.service("bare", 215, label, "selector: {app: all}")?;
    let local = room.service("bare-local", 218, label, "selector: {app: all}\n  externalTrafficPolicy: Local")?;
    let own = room.service("bare-own", 219, label, "selector: {reached: by-itself}")?;
    let served = served(scene, clients, [bare, local, own])?;
    let (owner, _) = owner(scene, bare)?;
    ensure!(clients.iter().any(|client| client.node == owner), "no client on the owner's node {owner}");
    Ok(format!("{served}, the owner's among them"))
}

/// Pods on all nodes, and every kind of client on every node.
fn start<'a>(room: &Room<'a>) -> Result<Vec<Client<'a>>> {
    let host = |(node, name)| Server { port: 8089, host_network: true, ..Server::on(node, name, "host") };
    let servers: Vec<Server> = PODS.into_iter().chain(HOSTS.into_iter().enumerate().map(host)).collect();
    room.start(&servers)?;
    let scene = room.scene;
    let mut clients = Vec::new();
    for (number, node) in scene.nodes.iter().enumerate() {
        let address = scene.node_address(node)?;
        clients.push(Client { what: "the node", node, address, process: None, pod: None });
        for (what, name, is_pod) in [("a pod", PODS[number].name, true), ("a hostNetwork pod", HOSTS[number], false)] {
            let pod = room.find(name)?;
            let process = Some(process_of(&scene.lab, &pod, "sheave-traffic")?);
            let address = pod.ip.context("the address of a pod")?;
            clients.push(Client { what, node, address, process, pod: is_pod.then_some(name) });
        }
    }
    Ok(clients)
}

const TIMES: usize = 4;
