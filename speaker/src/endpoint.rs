//! The API server endpoint at the edge: its file, this host, checks of API servers over TLS; its status, drains and events ([`board`] →
//! [`desk`] → [`serve`]).

pub mod board;
pub mod checker;
pub mod desk;
pub mod serve;
mod trust;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

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
use desk::Clerk;

/// A file that was accepted, and what this node is in it.
#[derive(Clone)]
pub struct Opened {
    pub endpoint: Endpoint,
    pub seat: Seat,
}

/// Everything that is wrong with the file is named before anything starts.
pub fn open(path: &Path) -> Result<Opened> {
    let shown = path.display();
    let endpoint = read(path).with_context(|| format!("--config {shown}"))?;
    let host = interfaces().context("addresses of this host")?;
    let seat = endpoint.seat(&host).with_context(|| format!("--config {shown}"))?;
    trust::check(&endpoint.health).with_context(|| format!("--config {shown}"))?;
    Ok(Opened { endpoint, seat })
}

fn read(path: &Path) -> Result<Endpoint> {
    let file = fs::File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        bail!("it is no file");
    }
    Endpoint::check_mode(metadata.mode())?;
    let mut text = String::new();
    // One byte more shows that it is too long.
    file.take(limits::FILE as u64 + 1).read_to_string(&mut text).context("its text (UTF-8)")?;
    Ok(Endpoint::parse(&text)?)
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
        let endpoint = &self.endpoint;
        let checks = endpoint.ports.iter().map(|port| (port.target, port.check)).collect::<BTreeMap<_, _>>();
        let first = endpoint.ports.first().map(|port| port.target).context("ports: none")?;
        let config = health::Config {
            node: self.seat.member.name.clone(),
            ports: checks.keys().copied().collect(),
            first,
            checks: checks::Config::new(random::seed().context("random seed")?),
        };
        let checker = checker::Checker::new(checks, &endpoint.health, config.checks.timeout)?;
        let board = Board::new(self.seat.member.name.clone(), endpoint.clone(), run);
        let (desk, clerk) = desk::open(board, disk);
        Ok((Members::new(Health::new(config), checker, desk), clerk))
    }
}
