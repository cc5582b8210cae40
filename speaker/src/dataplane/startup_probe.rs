//! After a boot: are the pods there that the API server names?
//!
//! The API server notices a loss of power after 40 s. A node that is back before that has its old pods in the EndpointSlices,
//! ready, at addresses that no pod has any more, until its kubelet corrects them. New flows to them are lost without an error. So
//! the first speaker after a boot probes each pod before it declares this node ready: a pod that accepts a connection is there. A
//! pod's address answers before its program listens, so a refusal is a sign of life for UDP ports only, which have no better
//! probe. A pod that is silent may have a policy that forbids the connection; one whose address no host has is gone.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::sleep;

use crate::io::tcp_probe::{Answer, tcp_probe};

/// A port of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub address: Ipv4Addr,
    pub port: u16,
    pub tcp: bool,
}

#[derive(Debug)]
pub enum StartupProbe {
    /// Not after a boot, or not waited for any more.
    Off,
    Running {
        /// The pods that are probed, and whether each has given a sign of life.
        pods: BTreeMap<Target, Sign>,
        signs_sender: Sender<(Target, Sign)>,
        signs: Receiver<(Target, Sign)>,
    },
}

/// What is known of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Nothing yet.
    None,
    /// No host has the address. A sign of life may come later.
    Unreachable,
    Alive,
}

impl StartupProbe {
    pub fn running() -> Self {
        let (signs_sender, signs) = channel(MAX_WAITING);
        Self::Running { pods: BTreeMap::new(), signs_sender, signs }
    }

    /// The pods without a sign of life yet, and what is known of them. New ones are probed from now on. Needs a runtime.
    pub fn missing(&mut self, wanted: impl Iterator<Item = Target>) -> BTreeMap<Target, Sign> {
        let Self::Running { pods, signs_sender, .. } = self else { return BTreeMap::new() };
        let sign = |pod: Target| {
            let sign = *pods.entry(pod).or_insert_with(|| {
                tokio::spawn(probe_until_answered(pod, signs_sender.clone()));
                Sign::None
            });
            (pod, sign)
        };
        wanted.map(sign).filter(|(_, sign)| *sign != Sign::Alive).collect()
    }

    /// Returns when more is known of one: never, if none is awaited. May be dropped while it waits.
    pub async fn next(&mut self) {
        match self {
            Self::Off => std::future::pending().await,
            // Cannot end: there is a sender here.
            Self::Running { pods, signs, .. } => {
                if let Some((pod, sign)) = signs.recv().await {
                    pods.insert(pod, sign);
                }
            }
        }
    }
}

/// Until it answers, or the receiver is dropped.
async fn probe_until_answered(target: Target, signs: Sender<(Target, Sign)>) {
    let mut known = Sign::None;
    while !signs.is_closed() {
        let sign = match tcp_probe(target.address, target.port).await {
            Answer::Accepted => Sign::Alive,
            Answer::Refused if !target.tcp => Sign::Alive,
            // Its host is there.
            Answer::Refused => Sign::None,
            Answer::Unreachable => Sign::Unreachable,
            // The kernel says so only when it has asked for long enough, and then begins anew.
            Answer::Silence => known,
        };
        if sign != std::mem::replace(&mut known, sign) {
            // Not wanted any more is as good.
            signs.send((target, sign)).await.ok();
        }
        if sign == Sign::Alive {
            return;
        }
        sleep(PAUSE).await;
    }
}

/// Answers that the loop has not taken yet. A probe whose answer finds no room waits.
const MAX_WAITING: usize = 64;
const PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, SocketAddrV4};

    use tokio::net::{TcpListener, TcpSocket, TcpStream};
    use tokio::time::timeout;

    use super::*;
    use crate::io::tcp_probe::PATIENCE;

    fn missing(startup_probe: &mut StartupProbe, pods: &[Target]) -> Vec<(Target, Sign)> {
        startup_probe.missing(pods.iter().copied()).into_iter().collect()
    }

    #[tokio::test]
    async fn a_pod_that_accepts_is_alive_and_a_silent_one_is_not() {
        let (accepting, accepts) = listener(16);
        // Its queue is full, so the kernel drops the next one's SYN.
        let (silent, says_nothing) = listener(0);
        let _queued = TcpStream::connect(SocketAddrV4::new(says_nothing.address, says_nothing.port)).await.unwrap();

        let mut startup_probe = StartupProbe::running();
        assert_eq!(missing(&mut startup_probe, &[accepts, says_nothing]).len(), 2, "the first probes are under way");
        startup_probe.next().await;
        assert_eq!(missing(&mut startup_probe, &[accepts, says_nothing]), [(says_nothing, Sign::None)]);
        assert!(timeout(3 * PATIENCE, startup_probe.next()).await.is_err(), "silence is no sign of life");

        silent.accept().await.unwrap();
        startup_probe.next().await;
        assert_eq!(missing(&mut startup_probe, &[accepts, says_nothing]), [], "each is probed until it answers");
        drop(accepting);
    }

    /// The sandbox is there, the program does not listen yet; or it listens for UDP.
    #[tokio::test]
    async fn a_refusal_is_a_sign_of_life_of_udp_only() {
        let (refusing, tcp) = listener(16);
        drop(refusing);
        let udp = Target { tcp: false, ..tcp };
        let mut startup_probe = StartupProbe::running();
        assert_eq!(missing(&mut startup_probe, &[tcp, udp]).len(), 2);
        startup_probe.next().await;
        assert_eq!(missing(&mut startup_probe, &[tcp, udp]), [(tcp, Sign::None)]);
        assert!(timeout(3 * PATIENCE, startup_probe.next()).await.is_err(), "no server listens");

        let _listening = TcpListener::bind(SocketAddrV4::new(tcp.address, tcp.port)).await.unwrap();
        startup_probe.next().await;
        assert_eq!(missing(&mut startup_probe, &[tcp, udp]), []);
    }

    #[tokio::test]
    async fn no_pod_is_probed_unless_running() {
        let (_silent, pod) = listener(0);
        assert_eq!(missing(&mut StartupProbe::Off, &[pod]), []);
    }

    fn listener(backlog: u32) -> (TcpListener, Target) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let listener = socket.listen(backlog).unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, Target { address: Ipv4Addr::LOCALHOST, port, tcp: true })
    }
}
