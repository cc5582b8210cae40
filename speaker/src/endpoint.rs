//! The API server endpoint at the edge: its file, this host, checks of API servers over TLS; its status, drains and events ([`board`] →
//! [`desk`] → [`serve`]); another file while it serves ([`reload`]).

pub mod board;
pub mod checker;
pub mod desk;
pub mod reload;
pub mod serve;
mod trust;
mod verifier;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use nix::ifaddrs::getifaddrs;
use sheave_endpoint::host::{Interface, Seat};
use sheave_endpoint::{Endpoint, limits};
use speaker_core::health::{self, Health, checks};

use crate::dataplane::sync::Members;
use crate::io::random;
use crate::state::StateDir;
use board::Board;
use checker::Checker;
use desk::{Checks, Clerk};

/// A file that was accepted, and what this node is in it.
#[derive(Clone)]
pub struct Opened {
    pub endpoint: Endpoint,
    pub seat: Seat,
    path: PathBuf,
    stamp: Stamp,
}

/// By which a changed file is known: written, or replaced by another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    length: u64,
    written: (i64, i64),
    /// Its mode too.
    changed: (i64, i64),
}

/// Everything that is wrong with the file is named before anything starts.
pub fn open(path: &Path) -> Result<Opened> {
    let shown = path.display();
    let (endpoint, stamp) = read(path).with_context(|| format!("--config {shown}"))?;
    let host = interfaces().context("addresses of this host")?;
    let seat = endpoint.seat(&host).with_context(|| format!("--config {shown}"))?;
    trust::check(&endpoint.health).with_context(|| format!("--config {shown}"))?;
    Ok(Opened { endpoint, seat, path: path.into(), stamp })
}

fn read(path: &Path) -> Result<(Endpoint, Stamp)> {
    let file = fs::File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        bail!("it is no file");
    }
    Endpoint::check_mode(metadata.mode())?;
    let mut text = String::new();
    // One byte more shows that it is too long.
    file.take(limits::FILE as u64 + 1).read_to_string(&mut text).context("its text (UTF-8)")?;
    Ok((Endpoint::parse(&text)?, Stamp::of(&metadata)))
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            written: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

fn interfaces() -> Result<Vec<Interface>> {
    let mut found: BTreeMap<String, Vec<Ipv4Net>> = BTreeMap::new();
    for one in getifaddrs()? {
        let address = one.address.as_ref().and_then(|address| Some(address.as_sockaddr_in()?.ip()));
        let mask = one.netmask.as_ref().and_then(|mask| Some(mask.as_sockaddr_in()?.ip()));
        if let (Some(address), Some(mask)) = (address, mask)
            && let Ok(net) = Ipv4Net::with_netmask(address, mask)
        {
            found.entry(one.interface_name).or_default().push(net);
        }
    }
    Ok(found.into_iter().map(|(name, addresses)| Interface { name, addresses }).collect())
}

impl Opened {
    pub fn address(&self) -> Ipv4Addr {
        self.seat.member.address
    }

    /// The machine of the checks and what carries them out.
    /// `disk` has the drains of the members, `run` numbers the events' run.
    pub fn members(&self, disk: &StateDir, run: u64) -> Result<(Members, Clerk)> {
        let Checks { ports, first, checker } = self.checks()?;
        let name = || self.seat.member.name.clone();
        let checks = checks::Config::new(random::seed().context("random seed")?);
        let config = health::Config { node: name(), ports, first, checks };
        let board = Board::new(name(), self.endpoint.clone(), run, serve::now());
        let (desk, clerk) = desk::open(board, disk);
        Ok((Members::new(Health::new(config), checker, desk), clerk))
    }

    fn checks(&self) -> Result<Checks> {
        let endpoint = &self.endpoint;
        let checks = endpoint.ports.iter().map(|port| (port.target, port.check)).collect::<BTreeMap<_, _>>();
        let first = endpoint.ports.first().map(|port| port.target).context("ports: none")?;
        let ports = checks.keys().copied().collect();
        let checker = Checker::new(checks, &endpoint.health, checks::Config::new(0).timeout)?;
        Ok(Checks { ports, first, checker })
    }
}
