//! What every scenario stands on: a pool, pods on all nodes, and a Service of type LoadBalancer with an address.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use speaker_core::name::{NodeName, Vip};
use speaker_core::rank::rank;

use super::api::{Api, text};
use super::{pods, settle};
use crate::lab::{Lab, plan, wait_for};

/// A lab with the Service in it.
pub struct Scene {
    pub lab: Lab,
    pub api: Api,
    pub vip: Ipv4Addr,
    pub nodes: Vec<String>,
    pub pods_per_node: usize,
}

/// The owner of the address in the VirtualIP's status, and why this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Owner {
    pub node: String,
    pub term: i64,
    pub since: String,
    /// Nodes in the order in which they would take the address: rendezvous hash of (address, node).
    pub order: Vec<String>,
}

/// Deploys and waits until everything is there: pods on all nodes, an address, an owner, and answers from every pod.
pub fn deploy(lab: &Lab, pods_per_node: usize) -> Result<Scene> {
    let scene = apply(lab, pods_per_node)?;
    settle::settle(&scene)?;
    Ok(scene)
}

/// Deploys, and waits for no more than an address and an owner.
pub fn apply(lab: &Lab, pods_per_node: usize) -> Result<Scene> {
    let nodes = lab.node_names()?;
    let api = Api::open(lab)?;
    let (first, last) = plan::POOL;
    lab.apply(&format!(
        "{}---\n{}---\n{}",
        pool("demo", first, last),
        workload(nodes.len() * pods_per_node),
        echo_service()
    ))?;
    let vip = wait_for("an address in the Service's status", LONG, || address_of(&api, SERVICE))?;
    let scene = Scene { lab: lab.clone(), api, vip, nodes, pods_per_node };
    wait_for("an owner in the status of the VirtualIP", LONG, || scene.owner())?;
    Ok(scene)
}

impl Scene {
    /// Where TCP clients go.
    pub fn tcp(&self) -> String {
        format!("{}:{TCP_PORT}", self.vip)
    }

    /// Where UDP clients go.
    pub fn udp(&self) -> String {
        format!("{}:{UDP_PORT}", self.vip)
    }

    pub fn node_address(&self, node: &str) -> Result<Ipv4Addr> {
        self.lab.state()?.node_address(node)
    }

    /// The owner by the VirtualIP's status; `None` while it names none.
    pub fn owner(&self) -> Result<Option<Owner>> {
        let Some(object) = self.api.find(&format!("{VIRTUALIPS}/{}", self.vip))? else { return Ok(None) };
        let node = text(&object, "/status/owner");
        if node.is_empty() {
            return Ok(None);
        }
        Ok(Some(Owner {
            node: node.to_owned(),
            term: object.pointer("/status/term").and_then(serde_json::Value::as_i64).unwrap_or_default(),
            since: text(&object, "/status/since").to_owned(),
            order: order(self.vip, &self.nodes)?,
        }))
    }

    /// Pods of the Service.
    pub fn pods(&self) -> Result<Vec<pods::Pod>> {
        pods::list(&self.api, NAMESPACE)
    }
}

/// The address in the status of a Service of ours.
pub fn address_of(api: &Api, service: &str) -> Result<Option<Ipv4Addr>> {
    let object = api.find(&format!("{SERVICES}/{service}"))?;
    Ok(object.and_then(|object| text(&object, "/status/loadBalancer/ingress/0/ip").parse().ok()))
}

pub fn pool(name: &str, first: Ipv4Addr, last: Ipv4Addr) -> String {
    format!(
        "apiVersion: sheave.dev/v1alpha1\nkind: AddressPool\nmetadata: {{name: {name}}}\nspec: {{addresses: [{first}-{last}]}}\n"
    )
}

/// The nodes in the order in which they would take an address.
pub fn order(vip: Ipv4Addr, nodes: &[String]) -> Result<Vec<String>> {
    let names: Option<Vec<NodeName>> = nodes.iter().map(|node| NodeName::new(node)).collect();
    let mut names = names.context("names of nodes")?;
    let all = names.clone();
    names.sort_by_key(|name| rank(Vip(vip), name, &all));
    if names.is_empty() {
        bail!("a lab without nodes");
    }
    Ok(names.iter().map(|name| name.as_str().to_owned()).collect())
}

fn workload(replicas: usize) -> String {
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: {NAMESPACE}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: echo, namespace: {NAMESPACE}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: echo}}}}
  template:
    metadata: {{labels: {{app: echo}}}}
    spec:
      # Longer than the server takes to drain.
      terminationGracePeriodSeconds: 10
      automountServiceAccountToken: false
      enableServiceLinks: false
      # Pods wait for their node, so that every repetition finds the same ones.
      tolerations:
      - {{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute}}
      - {{key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute}}
      # Evenly on the nodes that take pods: a drained one does not count, and in a rolling update the new pods alone.
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: DoNotSchedule
        nodeTaintsPolicy: Honor
        matchLabelKeys: [pod-template-hash]
        labelSelector: {{matchLabels: {{app: echo}}}}
      containers:
      - name: echo
        image: sheave-traffic:lab
        imagePullPolicy: Never
        args: [serve, --tcp, '{POD_PORT}', --udp, '{POD_PORT}']
        # Without a request its weight is 2 (a daemon's: 1024): while nodes boot it would not run for 0.7 s on two cores, and the
        # pause be the server's.
        resources: {{requests: {{cpu: 50m}}}}
        # A container that runs listens some milliseconds later.
        readinessProbe: {{tcpSocket: {{port: {POD_PORT}}}, periodSeconds: 1}}
        env:
        - {{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
        - {{name: NODE_NAME, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}
"
    )
}

fn echo_service() -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {SERVICE}, namespace: {NAMESPACE}}}
spec:
  type: LoadBalancer
  selector: {{app: echo}}
  ports:
  - {{name: tcp, protocol: TCP, port: {TCP_PORT}, targetPort: {POD_PORT}}}
  - {{name: udp, protocol: UDP, port: {UDP_PORT}, targetPort: {POD_PORT}}}
"
    )
}

/// A Service of the pods above, by TCP alone.
pub fn service(name: &str, annotations: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations},
        "spec": {"type": "LoadBalancer", "selector": {"app": "echo"},
                 "ports": [{"name": "tcp", "protocol": "TCP", "port": TCP_PORT, "targetPort": POD_PORT}]},
    })
}

pub const NAMESPACE: &str = "demo";
pub const SERVICE: &str = "echo";
pub const SERVICES: &str = "/api/v1/namespaces/demo/services";
pub const VIRTUALIPS: &str = "/apis/sheave.dev/v1alpha1/virtualips";
pub const TCP_PORT: u16 = 80;
pub const UDP_PORT: u16 = 53;
pub const POD_PORT: u16 = 8080;
const LONG: Duration = Duration::from_secs(60);
