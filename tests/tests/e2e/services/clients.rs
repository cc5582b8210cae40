//! Clients of a step: one connection, one datagram, one echo request, from wherever a client can stand.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sheave_tests::lab::{netns, plan, wait_for};
use sheave_tests::scenario::Scene;
use sheave_tests::scenario::settle::greet;
use sheave_tests::scenario::waits::{InTime, judge, own_wait_ms};
use sheave_tests::traffic::report::Greeting;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// The clients outside and the address that pods are to see of each.
pub const OUTSIDE: [(&str, Ipv4Addr); 2] = [("client", plan::CLIENT), ("far", plan::FAR_CLIENT)];

/// Runs in the network of a role of the lab.
pub fn from<T: Send>(scene: &Scene, role: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    netns::inside(&scene.lab.state()?.plan.netns(role), work)
}

pub fn tcp(vip: Ipv4Addr) -> SocketAddr {
    (vip, 80).into()
}

/// Connections until so many in a row are answered that every node has had its part: the nodes' tables have the Service from different
/// moments on.
pub fn wait_served(scene: &Scene, vip: Ipv4Addr) -> Result<()> {
    wait_served_at(scene, tcp(vip))
}

pub fn wait_served_at(scene: &Scene, to: SocketAddr) -> Result<()> {
    from(scene, "client", || {
        wait_for(&format!("answers at {to}"), super::WITHIN, || {
            Ok((0..IN_A_ROW).all(|_| greet(to).is_ok()).then_some(()))
        })
    })
}

/// So many connections, none of which may fail: by pod, how many it answered. Each pod sees the client's own address.
pub fn greeted_by(
    scene: &Scene,
    role: &str,
    seen: Ipv4Addr,
    vip: Ipv4Addr,
    connections: usize,
) -> Result<BTreeMap<String, usize>> {
    let greetings = greetings(scene, role, vip, connections)?;
    let mut by_pod = BTreeMap::new();
    for greeting in greetings {
        ensure!(client_of(&greeting)? == seen, "{role} to {vip} was seen as another: {greeting:?}");
        *by_pod.entry(greeting.pod).or_default() += 1;
    }
    Ok(by_pod)
}

pub fn greetings(scene: &Scene, role: &str, vip: Ipv4Addr, connections: usize) -> Result<Vec<Greeting>> {
    let all = from(scene, role, || (0..connections).map(|_| greet(tcp(vip))).collect::<Result<Vec<_>>>());
    all.with_context(|| format!("from {role} to {vip}"))
}

/// The address that the pod saw.
pub fn client_of(greeting: &Greeting) -> Result<Ipv4Addr> {
    let client: SocketAddr = greeting.client.parse().with_context(|| format!("{greeting:?}"))?;
    match client {
        SocketAddr::V4(client) => Ok(*client.ip()),
        SocketAddr::V6(client) => bail!("an IPv6 client: {client}"),
    }
}

/// One datagram from a port of its own, and the pod that answered.
pub fn datagram(scene: &Scene, role: &str, vip: Ipv4Addr) -> Result<String> {
    from(scene, role, || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect((vip, 53))?;
        socket.send(b"x")?;
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        Ok(text.split_whitespace().nth(1).context("the name of a pod")?.to_owned())
    })
}

/// How new flows end at an address that no pod serves: the slowest of some, in milliseconds.
#[derive(Debug)]
pub struct Refused {
    pub tcp_ms: f64,
    pub udp_ms: f64,
    pub tries: usize,
    /// Of those, that took longer than promised although the client ran.
    pub late: usize,
}

/// New TCP connections are reset and datagrams are answered with port unreachable; anything else is an error.
pub fn refused(scene: &Scene, role: &str, vip: Ipv4Addr) -> Result<Refused> {
    from(scene, role, || {
        let mut all = Refused { tcp_ms: 0.0, udp_ms: 0.0, tries: 0, late: 0 };
        let judged = |began: Instant, waited_ms: f64| {
            let took_ms = began.elapsed().as_secs_f64() * 1e3;
            (took_ms, judge(took_ms, REFUSED_MS, own_wait_ms() - waited_ms) == InTime::Broken)
        };
        for number in 0..TRIES {
            let (began, waited_ms) = (Instant::now(), own_wait_ms());
            expect_refusal(TcpStream::connect_timeout(&tcp(vip), PATIENCE).map(drop), "a connection")?;
            let (took_ms, late) = judged(began, waited_ms);
            all = Refused {
                tcp_ms: all.tcp_ms.max(took_ms),
                tries: all.tries + 1,
                late: all.late + usize::from(late),
                ..all
            };
            if number >= UDP_TRIES {
                continue;
            }
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect((vip, 53))?;
            let (took_ms, late) = first_refused(|| {
                let (began, waited_ms) = (Instant::now(), own_wait_ms());
                socket.send(b"x")?;
                expect_refusal(socket.recv(&mut [0; 16]).map(drop), "a datagram")?;
                Ok(judged(began, waited_ms))
            })?;
            all = Refused {
                udp_ms: all.udp_ms.max(took_ms),
                tries: all.tries + 1,
                late: all.late + usize::from(late),
                ..all
            };
        }
        Ok(all)
    })
    .with_context(|| format!("from {role} to {vip}"))
}

/// A kernel sends one host six ICMP errors at once and then one a second (icmp_ratelimit): earlier tries may have had them.
fn first_refused<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..DATAGRAMS {
        if let Ok(refused) = attempt() {
            return Ok(refused);
        }
    }
    attempt()
}

/// New flows are refused from some moment on.
pub fn wait_refused(scene: &Scene, vip: Ipv4Addr) -> Result<()> {
    let mut last = None;
    let refused = wait_for(&format!("refusals at {vip}"), super::WITHIN, || {
        let result = refused(scene, "client", vip);
        last = result.as_ref().err().map(|error| format!("{error:#}"));
        Ok(result.ok())
    });
    refused.map(drop).with_context(|| format!("last seen: {last:?}"))
}

/// Both a reset of a SYN and ICMP port unreachable are this error.
fn expect_refusal(result: io::Result<()>, what: &str) -> Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => bail!("{what} was not refused: {error}"),
        Ok(()) => bail!("{what} was answered"),
    }
}

/// Whether a new connection gets no answer at all, as a denied client's.
pub fn is_dropped(scene: &Scene, role: &str, vip: Ipv4Addr) -> Result<bool> {
    from(scene, role, || match TcpStream::connect_timeout(&tcp(vip), DROPPED) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(true),
        Err(error) => Err(error).with_context(|| format!("from {role} to {vip}: neither an answer nor silence")),
    })
}

/// One ICMP echo request, answered.
pub fn ping(scene: &Scene, role: &str, vip: Ipv4Addr) -> Result<()> {
    from(scene, role, || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // Echo request, identifier and number 0x5368; the checksum is the complement of the sum of the words.
        let sum = !(0x0800_u16.wrapping_add(0x5368).wrapping_add(0x5368));
        let [high, low] = sum.to_be_bytes();
        socket.send_to(&[8, 0, high, low, 0x53, 0x68, 0x53, 0x68], &SockAddr::from(SocketAddr::from((vip, 0))))?;
        let (mut reader, mut buffer) = (&socket, [0; 128]);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let length = reader.read(&mut buffer).with_context(|| format!("an echo reply of {vip}"))?;
            // The IPv4 header comes with it, and other ICMP.
            let reply = length >= 28 && buffer[20..22] == [0, 0] && buffer[24..28] == [0x53, 0x68, 0x53, 0x68];
            if reply && buffer[12..16] == vip.octets() {
                return Ok(());
            }
        }
        bail!("no echo reply of {vip} from {role}")
    })
}

/// A connection that was greeted and is kept.
pub fn open(scene: &Scene, role: &str, vip: Ipv4Addr) -> Result<TcpStream> {
    open_at(scene, role, tcp(vip))
}

pub fn open_at(scene: &Scene, role: &str, to: SocketAddr) -> Result<TcpStream> {
    from(scene, role, || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (mut line, mut byte) = (Vec::new(), [0]);
        while line.last() != Some(&b'\n') {
            ensure!(stream.read(&mut byte)? == 1, "the greeting ended early");
            line.push(byte[0]);
        }
        Ok(stream)
    })
}

/// Sends a byte on an open connection and returns what comes back.
pub fn echo(mut stream: &TcpStream) -> io::Result<usize> {
    stream.write_all(b"x")?;
    stream.read(&mut [0; 16])
}

/// Within so long a new flow is refused.
pub const REFUSED_MS: f64 = 10.0;
pub const TRIES: usize = 10;
/// That one of three nodes has no part in them by accident: (2/3)^24, one in 16,000.
const IN_A_ROW: usize = 24;
/// A kernel sends six ICMP errors to one client at once, then one a second (net.ipv4.icmp_ratelimit).
const UDP_TRIES: usize = 1;
/// Without an answer, before they count as not refused.
const DATAGRAMS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(2);
/// An answer takes a millisecond; a SYN that was lost for another reason is repeated after a second.
const DROPPED: Duration = Duration::from_millis(400);
