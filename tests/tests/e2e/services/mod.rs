//! What a Service says, with real pods and real packets: rows of the table in docs/services.md.
//!
//! Each step has pods and Services of its own, in a namespace that goes with it, and addresses from .205 on.

pub mod clients;
pub mod counted;
pub mod endings;
pub mod endpoints;
pub mod forwarding;
pub mod inside;
pub mod late_table;
pub mod local;
pub mod node_address;
pub mod node_joins;
pub mod other_host;
pub mod ports;
pub mod ranges;
pub mod several;
pub mod shared;
pub mod starts;
pub mod ways;

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sheave_tests::lab::{plan, wait_for};
use sheave_tests::scenario::Scene;
use sheave_tests::scenario::api::text;
use sheave_tests::scenario::pods::{self, Pod};

/// Pods and Services of one step.
pub struct Room<'a> {
    pub scene: &'a Scene,
    pub namespace: &'static str,
}

/// A pod of `sheave-traffic serve` on a node. Its TCP port is named `web`, its UDP port of the same number `dns`.
#[derive(Clone, Copy)]
pub struct Server {
    pub name: &'static str,
    /// Index into the scene's nodes.
    pub node: usize,
    /// Label `app`, which selectors name.
    pub app: &'static str,
    pub port: u16,
    pub host_network: bool,
    /// Its probe succeeds.
    pub ready: bool,
    /// How long it goes on serving after it was told to end.
    pub drain_s: u8,
    /// Ready when it runs, without a probe, and so many seconds before it listens for TCP.
    pub listens_after_s: Option<u8>,
}

impl Server {
    pub const fn on(node: usize, name: &'static str, app: &'static str) -> Self {
        Self { name, node, app, port: 8080, host_network: false, ready: true, drain_s: 0, listens_after_s: None }
    }
}

/// What a Service has beside its name and address.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub labels: &'a str,
    /// After a comma.
    pub annotations: &'a str,
    /// A list in one line.
    pub ports: &'a str,
    /// Of its spec.
    pub more: &'a str,
}

impl Default for Asked<'_> {
    fn default() -> Self {
        Self { labels: "", annotations: "", ports: PORTS, more: "" }
    }
}

/// An endpoint of a Service as an EndpointSlice has it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub address: String,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub zones: usize,
}

impl<'a> Room<'a> {
    pub fn open(scene: &'a Scene, namespace: &'static str) -> Result<Self> {
        let room = Self { scene, namespace };
        scene.lab.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n"))?;
        Ok(room)
    }

    /// Starts pods and returns when those are Ready that are to be.
    pub fn start(&self, servers: &[Server]) -> Result<()> {
        let manifests: Vec<String> = servers.iter().map(|server| self.pod(server)).collect();
        let manifests = manifests.join("---\n");
        // Pods are refused until the namespace has its service account.
        wait_for("pods to be accepted", WITHIN, || match self.scene.lab.apply(&manifests) {
            Ok(_) => Ok(Some(())),
            Err(error) if format!("{error:#}").contains("serviceaccount") => Ok(None),
            Err(error) => Err(error),
        })?;
        for server in servers {
            wait_for(&format!("{} to run", server.name), WITHIN, || {
                let pod = self.find(server.name)?;
                let running = self.scene.api.get(&self.path("pods", server.name))?;
                let started = text(&running, "/status/phase") == "Running";
                Ok((started && pod.ready == server.ready && pod.ip.is_some()).then_some(()))
            })?;
        }
        Ok(())
    }

    pub fn find(&self, pod: &str) -> Result<Pod> {
        let all = pods::with_terminating(&self.scene.api, self.namespace)?;
        all.into_iter().find(|one| one.name == pod).with_context(|| format!("pod {pod}"))
    }

    /// Deletes pods, gracefully, and returns at once.
    pub fn end(&self, pods: &[&str]) -> Result<()> {
        pods.iter().try_for_each(|pod| self.scene.api.delete(&self.path("pods", pod)))
    }

    /// A Service with TCP port 80 and UDP port 53 on an address of the pool; `more` is added to its spec. Returns when the
    /// address is granted.
    pub fn service(&self, name: &str, last: u8, labels: &str, more: &str) -> Result<Ipv4Addr> {
        self.service_with(name, last, Asked { labels, more, ..Asked::default() })
    }

    /// The same, as asked.
    pub fn service_with(&self, name: &str, last: u8, asked: Asked<'_>) -> Result<Ipv4Addr> {
        let address = plan::address(last);
        let Asked { labels, annotations, ports, more } = asked;
        self.scene.lab.apply(&format!(
            "apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {}
  labels: {{{labels}}}
  annotations: {{sheave.dev/loadBalancerIPs: {address}{annotations}}}
spec:
  type: LoadBalancer
  ports: {ports}
  {more}
",
            self.namespace
        ))?;
        wait_for(&format!("{name} to have {address}"), WITHIN, || {
            let service = self.scene.api.get(&self.path("services", name))?;
            let shown = text(&service, "/status/loadBalancer/ingress/0/ip") == address.to_string();
            Ok(shown.then_some(()))
        })?;
        Ok(address)
    }

    /// Waits until our condition of the Service has this reason, and returns its message.
    pub fn remark(&self, service: &str, reason: &str) -> Result<String> {
        wait_for(&format!("{service} to say {reason}"), WITHIN, || {
            let object = self.scene.api.get(&self.path("services", service))?;
            let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
            let said = conditions.into_iter().flatten().find(|one| one["type"] == CONDITION && one["reason"] == reason);
            Ok(said.map(|one| text(one, "/message").to_owned()))
        })
    }

    /// The EndpointSlices of a Service, each with its endpoints.
    pub fn slices(&self, service: &str) -> Result<Vec<Vec<Endpoint>>> {
        let path = format!(
            "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices?labelSelector=kubernetes.io/service-name={service}",
            self.namespace
        );
        let slices = self.scene.api.list(&path)?;
        Ok(slices
            .iter()
            .map(|slice| slice["endpoints"].as_array().into_iter().flatten().map(endpoint).collect())
            .collect())
    }

    pub fn path(&self, kind: &str, name: &str) -> String {
        format!("/api/v1/namespaces/{}/{kind}/{name}", self.namespace)
    }

    fn pod(&self, server: &Server) -> String {
        let Server { name, node, app, port, host_network, ready, drain_s, listens_after_s } = *server;
        let probed = if ready { port } else { CLOSED };
        let probe = match listens_after_s {
            None => format!("readinessProbe: {{tcpSocket: {{port: {probed}}}, periodSeconds: 1}}"),
            Some(_) => "# Without a probe.".into(),
        };
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}}}
spec:
  nodeName: {node}
  hostNetwork: {host_network}
  # Longer than the server takes to drain.
  terminationGracePeriodSeconds: {grace}
  automountServiceAccountToken: false
  enableServiceLinks: false
  containers:
  - name: serve
    image: sheave-traffic:lab
    imagePullPolicy: Never
    args: [serve, --tcp, '{port}', --udp, '{port}', --drain-seconds, '{drain_s}', --listen-after-seconds, '{listens_after}']
    ports:
    - {{name: web, protocol: TCP, containerPort: {port}}}
    - {{name: dns, protocol: UDP, containerPort: {port}}}
    resources: {{requests: {{cpu: 50m}}}}
    {probe}
    env:
    - {{name: POD_NAME, value: {name}}}
    - {{name: NODE_NAME, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}
",
            namespace = self.namespace,
            node = self.scene.nodes[node],
            grace = drain_s + 3,
            listens_after = listens_after_s.unwrap_or_default(),
        )
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        // What follows waits for what it needs; the lab's end removes the rest.
        if let Err(error) = self.scene.lab.kubectl(&["delete", "namespace", self.namespace, "--wait=false"]) {
            eprintln!("namespace {} stays: {error:#}", self.namespace);
        }
    }
}

fn endpoint(object: &Value) -> Endpoint {
    let is = |name: &str| object["conditions"][name].as_bool().unwrap_or_default();
    Endpoint {
        address: text(object, "/addresses/0").to_owned(),
        ready: is("ready"),
        serving: is("serving"),
        terminating: is("terminating"),
        zones: object.pointer("/hints/forZones").and_then(Value::as_array).map_or(0, Vec::len),
    }
}

const PORTS: &str = "[{name: web, protocol: TCP, port: 80, targetPort: web}, \
                     {name: dns, protocol: UDP, port: 53, targetPort: dns}]";
const CONDITION: &str = "sheave.dev/Allocated";
/// No program listens there.
const CLOSED: u16 = 9;
pub const WITHIN: Duration = Duration::from_secs(30);
