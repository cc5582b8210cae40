//! Does a host have this address? One attempt at a TCP connection.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

pub use speaker_core::startup::Answer;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take: a kernel gives it in less than a millisecond, if the machine has nothing better to do.
pub const PATIENCE: Duration = Duration::from_millis(200);

/// Needs a runtime. What is accepted is closed at once, as kubelet's own probes do.
pub async fn tcp_probe(address: Ipv4Addr, port: u16) -> Answer {
    match timeout(PATIENCE, TcpStream::connect(SocketAddrV4::new(address, port))).await {
        Ok(Ok(_)) => Answer::Accepted,
        Ok(Err(error)) => match error.kind() {
            ErrorKind::ConnectionRefused => Answer::Refused,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Answer::Unreachable,
            _ => Answer::Silence,
        },
        Err(_) => Answer::Silence,
    }
}
