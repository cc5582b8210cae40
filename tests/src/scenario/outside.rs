//! A Service whose endpoints stand outside the cluster: nodes translate for them.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::api::text;
use super::deploy::{SERVICES, Scene, address_of};
use crate::lab::{netns, plan, wait_for};

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
    let server = Server::start(scene)?;
    let port = json!([{"name": "tcp", "protocol": "TCP", "port": PORT}]);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME},
        "spec": {"type": "LoadBalancer", "ports": port},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": NAME, "labels": {"kubernetes.io/service-name": NAME}},
        "ports": port, "endpoints": [{"addresses": [plan::FAR_CLIENT]}],
    });
    scene.api.create(SLICES, &slice)?;
    scene.api.create(SERVICES, &service)?;
    let report = observe(scene, connections);
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
    let reason = wait_for("the Service's condition names what is lost", WITHIN, || {
        let service = scene.api.get(&format!("{SERVICES}/{NAME}"))?;
        let conditions = service.pointer("/status/conditions").and_then(serde_json::Value::as_array);
        let mut reasons = conditions.into_iter().flatten().map(|condition| text(condition, "/reason").to_owned());
        Ok(reasons.find(|reason| reason == "ClientAddressLost"))
    })?;
    wait_for("an answer from outside", WITHIN, || Ok(greeting(scene, vip).ok()))?;
    let seen: Vec<IpAddr> = (0..connections).map(|_| greeting(scene, vip)).collect::<Result<_>>()?;
    Ok(Outside { answered: seen.len(), seen: seen.into_iter().collect(), reason })
}

/// The client's address as the server says it.
fn greeting(scene: &Scene, vip: Ipv4Addr) -> Result<IpAddr> {
    let client = scene.lab.state()?.plan.netns("client");
    netns::inside(&client, || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((vip, PORT)), WAIT)?;
        stream.set_read_timeout(Some(WAIT))?;
        let mut line = String::new();
        stream.read_to_string(&mut line)?;
        line.trim().parse().with_context(|| format!("greeting {line:?}"))
    })
}

/// Tells every client its address. Ends with the value.
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
                    Ok((mut stream, from)) => drop(stream.write_all(from.ip().to_string().as_bytes())),
                    // Between two looks at whether the server is to end.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(POLL),
                    Err(error) => return eprintln!("the server outside ends: {error}"),
                }
            }
        });
        Ok(Self(ends))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const NAME: &str = "outside";
const PORT: u16 = 8081;
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/demo/endpointslices";
const WITHIN: Duration = Duration::from_secs(20);
const WAIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(5);
