//! The file of the API server endpoint: what a speaker serves before there is an API server.
//!
//! Pure: text in, [`Endpoint`] or every [`Refusal`] out; what the host is comes in as an argument ([`host`]).
//! Read: `read` (YAML into values, each refusal with its field) → `parse` (values into the types here) → `check` (what no field says alone)
//! → `host` (which member this node is) → `change` (what a running speaker takes over of another one). [`preset`] is the other way: what is written for a distribution.

mod change;
mod check;
pub mod host;
pub mod local;
mod parse;
pub mod preset;
mod read;
mod refusal;
pub mod status;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;

pub use refusal::{Refusal, Refusals};

/// One address or several in front of the API servers of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// In order.
    pub addresses: Vec<Ipv4Addr>,
    /// The uplink; `None`: the interface that carries the member's address.
    pub interface: Option<String>,
    /// In order of `listen`.
    pub ports: Vec<Port>,
    /// In order of name.
    pub members: Vec<Member>,
    pub keys: Keys,
    pub timing: Timing,
    pub health: Health,
    pub group: Group,
}

/// A port of each address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub listen: u16,
    /// Where the members serve it.
    pub target: u16,
    pub check: Check,
    /// The clients that are admitted; none: all.
    pub sources: Vec<Ipv4Net>,
}

/// How a member's port is found to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// GET /readyz.
    Https,
    /// A TLS handshake that completes.
    Tls,
}

/// A machine with an API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub address: Ipv4Addr,
    /// It runs a speaker. Others check and translate for one that does not.
    pub speaker: bool,
}

/// What signs the speakers' datagrams.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    pub current: [u8; 32],
    /// Accepted as well, while the members' files change one after the other.
    pub previous: Option<[u8; 32]>,
}

/// Secrets are never printed.
impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys {{ .., previous: {} }}", if self.previous.is_some() { "Some(..)" } else { "None" })
    }
}

/// How quickly a lost owner is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats.
    pub interval: Duration,
    /// Without a heartbeat for so long a speaker counts as dead.
    pub dead: Duration,
}

impl Timing {
    /// Intervals without a heartbeat after which a speaker counts as dead: never sooner than [`Self::dead`].
    pub fn dead_intervals(&self) -> u32 {
        u32::try_from(self.dead.as_millis().div_ceil(self.interval.as_millis().max(1))).unwrap_or(u32::MAX)
    }
}

/// Floors and defaults of the timing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// One switch between the members.
    Fast,
    /// Virtual machines that share processors, or switches between buildings.
    Steady,
}

/// How the checks reach and judge the API servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Read again when it changes; the file may be absent before the first server.
    pub ca_file: Option<PathBuf>,
    pub credential: Option<Credential>,
    /// Certificates are not verified.
    pub insecure_skip_verify: bool,
}

/// With one, readiness is seen where anonymous requests are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    Certificate { certificate: PathBuf, key: PathBuf },
    Token(PathBuf),
}

/// Where the speakers of this endpoint find each other: never the group of the DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    pub address: Ipv4Addr,
    pub heartbeat_port: u16,
    pub report_port: u16,
}

impl Default for Group {
    /// The group is the DaemonSet's: its scope is the segment. The ports are not.
    fn default() -> Self {
        Self { address: Ipv4Addr::new(224, 0, 0, 254), heartbeat_port: 7484, report_port: 7485 }
    }
}

impl Endpoint {
    /// The meaning of the file's text, or everything that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Refusals> {
        let endpoint = parse::endpoint(text)?;
        check::check(&endpoint)?;
        Ok(endpoint)
    }

    /// The key is in the file: `mode` as the file system has it.
    pub fn check_mode(mode: u32) -> Result<(), Refusal> {
        let mode = mode & 0o7777;
        match mode {
            0o600 | 0o400 => Ok(()),
            _ => Err(Refusal::new(
                "the file's mode",
                format!("{mode:04o}"),
                "0600 is needed, because the key is in the file",
            )),
        }
    }
}

/// Limits, each with the word of its refusal.
pub mod limits {
    /// Bytes of the file.
    pub const FILE: usize = 64 << 10;
    /// Fields, texts and lists of it: a file at all the limits below has fewer than half as many.
    pub const VALUES: usize = 4096;
    pub const ADDRESSES: usize = 8;
    pub const PORTS: usize = 16;
    pub const MEMBERS: usize = 32;
    pub const SOURCES: usize = 64;
}

#[cfg(test)]
mod tests;
