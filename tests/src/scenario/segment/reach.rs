//! Whether hosts of the segment are reachable, all the time: each is connected to again and again.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use crate::lab::{netns, plan};
use crate::scenario::Scene;

/// What one target's connections came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reached {
    pub attempts: usize,
    /// Seconds since the start and the error, of those that failed.
    pub failed: Vec<String>,
    pub slowest_ms: f64,
}

/// Connects and listens until it is finished or dropped.
pub struct Watch {
    ends: Arc<AtomicBool>,
    probes: BTreeMap<String, JoinHandle<Result<Reached>>>,
}

impl Watch {
    /// From the client: the nodes (their kubelets), the API servers, the router and, through it, the client behind it. From the router: the client.
    pub fn start(scene: &Scene) -> Result<Self> {
        let state = scene.lab.state()?;
        let namespace = |role: &str| state.plan.netns(role);
        let mut watch = Watch { ends: Arc::default(), probes: BTreeMap::new() };
        for (role, address) in [("router", plan::ROUTER), ("far", plan::FAR_CLIENT), ("client", plan::CLIENT)] {
            watch.listen(namespace(role), address)?;
        }
        let mut targets = vec![
            ("client", "router", plan::ROUTER, PORT),
            ("client", "far, through the gateway", plan::FAR_CLIENT, PORT),
            ("router", "client", plan::CLIENT, PORT),
        ];
        let servers = state.plan.control_plane();
        targets.extend(servers.iter().map(|(role, address)| ("client", role.as_str(), *address, plan::API_PORT)));
        for node in &scene.nodes {
            targets.push(("client", node, state.node_address(node)?, KUBELET));
        }
        for (from, name, address, port) in targets {
            let (ends, namespace) = (watch.ends.clone(), namespace(from));
            let probe = move || netns::inside(&namespace, || Ok(probe((address, port).into(), &ends)));
            watch.probes.insert(name.to_owned(), thread::spawn(probe));
        }
        Ok(watch)
    }

    /// Of each target.
    pub fn finish(mut self) -> Result<BTreeMap<String, Reached>> {
        self.ends.store(true, Ordering::Relaxed);
        let probes = std::mem::take(&mut self.probes);
        let ended = |probe: JoinHandle<Result<Reached>>| probe.join().map_err(|_| anyhow!("a probe panicked"))?;
        probes.into_iter().map(|(target, probe)| Ok((target, ended(probe)?))).collect()
    }

    fn listen(&self, namespace: String, address: Ipv4Addr) -> Result<()> {
        let listener = netns::inside(&namespace, || Ok(TcpListener::bind((address, PORT))?))?;
        listener.set_nonblocking(true)?;
        let ends = self.ends.clone();
        thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok(connection) => drop(connection),
                    // Between two looks at whether the end has come.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(POLL),
                    Err(error) => return eprintln!("the listener at {address} ends: {error}"),
                }
            }
        });
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

fn probe(to: SocketAddr, ends: &AtomicBool) -> Reached {
    let (began, mut reached) = (Instant::now(), Reached::default());
    while !ends.load(Ordering::Relaxed) {
        let attempt = Instant::now();
        let outcome = TcpStream::connect_timeout(&to, WAIT)
            // Ends with a reset: no source port is left waiting.
            .and_then(|stream| SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
        reached.attempts += 1;
        reached.slowest_ms = reached.slowest_ms.max(attempt.elapsed().as_secs_f64() * 1e3);
        if let Err(error) = outcome {
            reached.failed.push(format!("{:.1} s: {error}", began.elapsed().as_secs_f64()));
        }
        // Its period: what takes an address keeps it for longer.
        thread::sleep(PERIOD);
    }
    reached
}

const PORT: u16 = 8089;
const KUBELET: u16 = 10250;
/// A SYN that is lost on a busy machine is sent again after 1 s; the second one after 3 s.
const WAIT: Duration = Duration::from_secs(4);
const PERIOD: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_millis(5);
