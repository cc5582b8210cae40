//! A Service whose endpoints stand outside the cluster, or on a node without a speaker: nodes translate for them.

mod loss;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::api::text;
use super::deploy::{SERVICES, Scene, address_of};
use crate::lab::{netns, plan, wait_for};

pub use loss::{TranslatorLoss, translator_loss};

/// What clients and the server outside saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outside {
    /// Connections that the server answered through the VIP.
    pub answered: usize,
    /// The addresses from which the server saw them come.
    pub seen: BTreeSet<IpAddr>,
    /// Reason of the Service's condition.
    pub reason: String,
}

/// A server behind the router, a Service without selector, a slice written by hand; then so many connections of the client.
pub fn outside(scene: &Scene, connections: usize) -> Result<Outside> {
    with_service(scene, None, |scene| observe(scene, connections))
}

/// The same with an endpoint of a node without a speaker, as virtual nodes are: one that reports, and never had a SpeakerState. Before its
/// first ten minutes are over the endpoint is not served.
pub fn virtual_node(scene: &Scene, connections: usize) -> Result<Outside> {
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": VIRTUAL}, "spec": {"unschedulable": true},
        "status": {
            // No machine has it.
            "addresses": [{"type": "InternalIP", "address": plan::address(250)}],
            "conditions": reported("1970-01-01T00:00:00Z"),
        },
    });
    scene.api.create(NODES, &node)?;
    let report = with_service(scene, Some(VIRTUAL), |scene| {
        let vip = wait_for("an address for the Service", WITHIN, || address_of(&scene.api, NAME))?;
        wait_for("the owner of the VIP", WITHIN, || loss::owner_of(scene, vip))?;
        ensure!(greeting(scene, vip).is_err(), "served while the node may yet get its speaker");
        let message = remark(scene, "NodeWithoutSpeaker")?;
        ensure!(message.contains("not served until one runs there"), "{message}");
        // The kubelet's clock: later than any ten minutes.
        let status = json!({"status": {"conditions": reported("2099-01-01T00:00:00Z")}});
        scene.api.patch(&format!("{NODES}/{VIRTUAL}/status"), &status)?;
        observe(scene, connections)
    });
    scene.api.delete(&format!("{NODES}/{VIRTUAL}"))?;
    report
}

fn reported(at: &str) -> serde_json::Value {
    json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": at, "reason": "KubeletReady"}])
}

/// `node`: that the endpoint names. Whatever comes of it, nothing stays.
fn with_service<T>(scene: &Scene, node: Option<&str>, run: impl FnOnce(&Scene) -> Result<T>) -> Result<T> {
    let server = Server::start(scene)?;
    let port = json!([{"name": "tcp", "protocol": "TCP", "port": PORT}]);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME},
        "spec": {"type": "LoadBalancer", "ports": port},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": NAME, "labels": {"kubernetes.io/service-name": NAME}},
        "ports": port, "endpoints": [{"addresses": [plan::FAR_CLIENT], "nodeName": node}],
    });
    scene.api.create(SLICES, &slice)?;
    scene.api.create(SERVICES, &service)?;
    let report = run(scene);
    scene.api.delete(&format!("{SERVICES}/{NAME}"))?;
    scene.api.delete(&format!("{SLICES}/{NAME}"))?;
    drop(server);
    wait_for("the Service is gone", WITHIN, || {
        Ok(scene.api.find(&format!("{SERVICES}/{NAME}"))?.is_none().then_some(()))
    })?;
    report
}

fn observe(scene: &Scene, connections: usize) -> Result<Outside> {
    let vip = wait_for("an address for the Service", WITHIN, || address_of(&scene.api, NAME))?;
    let reason = "ClientAddressLost".to_string();
    let message = remark(scene, &reason)?;
    let both = ["it does not see the client's address", "open connections end with the node that translates"];
    ensure!(both.iter().all(|half| message.contains(half)), "{message}");
    wait_for("an answer from outside", WITHIN, || Ok(greeting(scene, vip).ok()))?;
    let seen: Vec<IpAddr> = (0..connections).map(|_| greeting(scene, vip)).collect::<Result<_>>()?;
    Ok(Outside { answered: seen.len(), seen: seen.into_iter().collect(), reason })
}

/// Waits until the Service's condition has this reason, and returns its message.
fn remark(scene: &Scene, reason: &str) -> Result<String> {
    wait_for(&format!("the Service's condition to say {reason}"), WITHIN, || {
        let service = scene.api.get(&format!("{SERVICES}/{NAME}"))?;
        let conditions = service.pointer("/status/conditions").and_then(serde_json::Value::as_array);
        let said = conditions.into_iter().flatten().find(|condition| text(condition, "/reason") == reason);
        Ok(said.map(|condition| text(condition, "/message").to_owned()))
    })
}

/// The client's address as the server says it.
fn greeting(scene: &Scene, vip: Ipv4Addr) -> Result<IpAddr> {
    Connection::open(scene, vip).map(|connection| connection.seen)
}

/// An open connection of the client.
struct Connection {
    stream: TcpStream,
    /// The client's address as the server says it.
    seen: IpAddr,
}

impl Connection {
    fn open(scene: &Scene, vip: Ipv4Addr) -> Result<Self> {
        Self::open_in(&scene.lab.state()?.plan.netns("client"), vip)
    }

    fn open_in(client: &str, vip: Ipv4Addr) -> Result<Self> {
        netns::inside(client, || {
            let stream = TcpStream::connect_timeout(&SocketAddr::from((vip, PORT)), WAIT)?;
            stream.set_read_timeout(Some(WAIT))?;
            let mut line = String::new();
            BufReader::with_capacity(1, &stream).read_line(&mut line)?;
            let seen = line.trim().parse().with_context(|| format!("greeting {line:?}"))?;
            Ok(Self { stream, seen })
        })
    }

    /// A byte to the server and back.
    fn carry(&mut self) -> std::io::Result<()> {
        let mut byte = [0];
        self.stream.write_all(b"x").and_then(|()| self.stream.read_exact(&mut byte))
    }
}

/// Tells every client its address, then echoes. Ends with the value.
struct Server(Arc<AtomicBool>);

impl Server {
    fn start(scene: &Scene) -> Result<Self> {
        let far = scene.lab.state()?.plan.netns("far");
        let listener = netns::inside(&far, || Ok(TcpListener::bind((plan::FAR_CLIENT, PORT))?))?;
        listener.set_nonblocking(true)?;
        let ends = Arc::new(AtomicBool::new(false));
        let ended = ends.clone();
        thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A client that has gone needs no answer.
                    Ok((stream, from)) => drop(thread::spawn(move || serve(stream, from.ip()))),
                    // Between two looks at whether the server is to end.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(POLL),
                    Err(error) => return eprintln!("the server outside ends: {error}"),
                }
            }
        });
        Ok(Self(ends))
    }
}

fn serve(mut stream: TcpStream, from: IpAddr) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.write_all(format!("{from}\n").as_bytes())?;
    std::io::copy(&mut &stream, &mut &stream).map(drop)
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const NAME: &str = "outside";
const VIRTUAL: &str = "virtual";
const PORT: u16 = 8081;
const NODES: &str = "/api/v1/nodes";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/demo/endpointslices";
const WITHIN: Duration = Duration::from_secs(20);
const WAIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(5);
