//! Source ports that were not used for minutes.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail};

use super::clock::now_ns;

/// Consecutive free source ports from a given place, or from one that moves on with the clock: a port that was used within the two
/// minutes of TIME_WAIT (or of the kernel's memory of a UDP flow) meets what some node still knows of it.
pub struct SourcePorts(u16);

impl SourcePorts {
    /// `count`: as many as will be wanted at the beginning.
    pub fn new(first: Option<u16>, count: u16) -> Self {
        let places = u64::from(LAST_PORT - FIRST_PORT) / u64::from(count.max(1));
        let place = now_ns() / PLACE_NS % places.max(1);
        Self(first.unwrap_or(FIRST_PORT + place as u16 * count))
    }

    /// A socket with the next port that `bind` can have.
    pub fn next<T>(&mut self, bind: impl Fn(SocketAddr) -> io::Result<T>) -> Result<(T, SocketAddr)> {
        for _ in FIRST_PORT..LAST_PORT {
            let port = self.0;
            self.0 = if port >= LAST_PORT { FIRST_PORT } else { port + 1 };
            let local = (Ipv4Addr::UNSPECIFIED, port).into();
            match bind(local) {
                Ok(socket) => return Ok((socket, local)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).with_context(|| format!("source port {port}")),
            }
        }
        bail!("no source port is free")
    }
}

const FIRST_PORT: u16 = 10_000;
/// The kernel gives out ports from 32768 on (net.ipv4.ip_local_port_range).
const LAST_PORT: u16 = 32_000;
/// Before the next place: 110 places of 200 ports come round every 220 s.
const PLACE_NS: u64 = 2_000_000_000;
