//! A client that reaches an address by every node at once, owner or not, and what a change makes of it.
//!
//! By a firewall mark of its own for each node, and a route whose next hop is that node: as a router with an old ARP entry would send it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheave_tests::lab::{netns, plan, wait_for};
use sheave_tests::scenario::Scene;
use sheave_tests::traffic::clock::{milliseconds, now_ns};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::WITHIN;
use super::clients::{from, tcp};

/// When something was changed, and how many clients have begun before.
#[derive(Default)]
pub struct Change {
    made_ns: AtomicU64,
    begun: AtomicUsize,
}

impl Change {
    /// Until so many clients have had an answer, or none, as it is before the change.
    pub fn wait_begun(&self, clients: usize) -> Result<()> {
        wait_for("all clients to begin", WITHIN, || Ok((self.begun.load(Ordering::Acquire) >= clients).then_some(())))
    }

    pub fn made_at(&self, now_ns: u64) {
        self.made_ns.store(now_ns, Ordering::Release);
    }

    /// Makes one attempt after the other until some in a row are answered, or not, as they are to be after the change: how long after
    /// it the last one began that was not yet so.
    fn follow(&self, answered: bool, mut attempt: impl FnMut() -> Result<bool>) -> Result<f64> {
        let (deadline, mut in_a_row, mut last_ms) = (Instant::now() + WITHIN, 0, 0.0);
        let mut begun = false;
        while in_a_row < IN_A_ROW {
            ensure!(Instant::now() < deadline, "nothing has changed after {} s", WITHIN.as_secs());
            let at = now_ns();
            let is_so = attempt()? == answered;
            match self.made_ns.load(Ordering::Acquire) {
                0 => {
                    ensure!(!is_so, "answered: {answered} before the change");
                    if !std::mem::replace(&mut begun, true) {
                        self.begun.fetch_add(1, Ordering::Release);
                    }
                }
                made if at < made => {}
                _ if is_so => in_a_row += 1,
                made => (in_a_row, last_ms) = (0, milliseconds(made, at)),
            }
            // A measurement at a fixed rate.
            std::thread::sleep(PACE);
        }
        Ok(last_ms)
    }
}

/// The ways of the client on the segment, until dropped.
pub struct Ways<'a> {
    scene: &'a Scene,
    vip: Ipv4Addr,
}

impl<'a> Ways<'a> {
    pub fn open(scene: &'a Scene, vip: Ipv4Addr) -> Result<Self> {
        let ways = Self { scene, vip };
        let client = scene.lab.state()?.plan.netns("client");
        for (number, node) in scene.nodes.iter().enumerate() {
            let (mark, via) = (mark(number).to_string(), scene.node_address(node)?.to_string());
            let (vip, source) = (vip.to_string(), plan::CLIENT.to_string());
            let route = ["route", "add", &vip, "via", &via, "dev", "eth0", "src", &source, "table", &mark];
            netns::run("ip", &[&["-netns", client.as_str()][..], &route].concat())?;
            netns::run("ip", &["-netns", &client, "rule", "add", "fwmark", &mark, "lookup", &mark])?;
        }
        Ok(ways)
    }

    /// New connections by this node.
    pub fn follow(&self, node: usize, change: &Change, answered: bool) -> Result<f64> {
        from(self.scene, "client", || {
            change.follow(answered, || {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
                socket.set_mark(mark(node))?;
                // Ends with a reset: no source port is left waiting.
                socket.set_linger(Some(Duration::ZERO))?;
                match socket.connect_timeout(&SockAddr::from(tcp(self.vip)), DROPPED) {
                    Ok(()) => Ok(true),
                    Err(error) if error.kind() == ErrorKind::TimedOut => Ok(false),
                    // Answered by the old ranges, and reset by the new ones before this was told.
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(true),
                    Err(error) => Err(error).context("neither an answer nor silence"),
                }
            })
        })
    }
}

impl Drop for Ways<'_> {
    fn drop(&mut self) {
        let remove = || -> Result<()> {
            let client = self.scene.lab.state()?.plan.netns("client");
            for number in 0..self.scene.nodes.len() {
                let mark = mark(number).to_string();
                netns::run("ip", &["-netns", &client, "rule", "delete", "fwmark", &mark, "lookup", &mark])?;
                netns::run("ip", &["-netns", &client, "route", "flush", "table", &mark])?;
            }
            Ok(())
        };
        if let Err(error) = remove() {
            eprintln!("the client keeps its ways to {}: {error:#}", self.vip);
        }
    }
}

/// Datagrams of one port of the client on the segment.
pub struct Flow<'a> {
    scene: &'a Scene,
    socket: UdpSocket,
}

impl<'a> Flow<'a> {
    pub fn open(scene: &'a Scene, vip: Ipv4Addr) -> Result<Self> {
        let socket = from(scene, "client", || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(UNANSWERED))?;
            socket.connect((vip, 53))?;
            Ok(socket)
        })?;
        Ok(Self { scene, socket })
    }

    pub fn follow(&self, change: &Change, answered: bool) -> Result<f64> {
        from(self.scene, "client", || {
            change.follow(answered, || {
                self.socket.send(b"x")?;
                match self.socket.recv(&mut [0; 512]) {
                    Ok(_) => Ok(true),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
                    Err(error) => Err(error).context("neither an answer nor silence"),
                }
            })
        })
    }
}

fn mark(node: usize) -> u32 {
    FIRST_MARK + node as u32
}

/// Marks and tables that nobody else has in the client's network.
const FIRST_MARK: u32 = 7100;
/// One may be lost for another reason.
const IN_A_ROW: usize = 3;
const PACE: Duration = Duration::from_millis(2);
/// An answer takes a millisecond; a SYN that was lost for another reason is repeated after a second.
const DROPPED: Duration = Duration::from_millis(400);
const UNANSWERED: Duration = Duration::from_millis(200);
