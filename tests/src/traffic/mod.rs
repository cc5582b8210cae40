//! Traffic through the cluster: the server in the pods, and clients that measure what becomes of connections.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! # use sheave_tests::lab::{ClientKind, Fault, Lab};
//! # use sheave_tests::traffic::{self, report::HeldState};
//! # let lab = Lab::attach("lab")?;
//! let vip = "192.168.77.200:80";
//! let mut held = traffic::hold(&lab, ClientKind::Segment, vip, 200, 10)?;   // returns when 200 are connected
//! let mut probes = traffic::probe(&lab, ClientKind::Segment, "192.168.77.200:53", 1)?;
//! let at = held.mark()?;                                                    // the fault happens now
//! probes.mark_at(at)?;
//! lab.fault(Fault::PowerOff { node: "node2".into() })?;
//! // … wait for what the scenario waits for …
//! let report = held.report()?;                                              // traffic::report::HoldReport
//! let lost = report.count(HeldState::Reset, |held| held.node != "node2");
//! println!("{} alive, {lost} lost, outage {} ms", report.counts.alive, probes.report()?.longest_outage_ms);
//! # Ok(())
//! # }
//! ```
//!
//! Commands of `sheave-traffic` (a static binary is the image `sheave-traffic:lab`, entry point `/sheave-traffic`):
//! - `serve --tcp 8080 --udp 8080`: greets with [`report::Greeting`] as a line of JSON (env POD_NAME, NODE_NAME), echoes;
//!   a UDP reply is the datagram and " POD NODE STARTED".
//! - `hold`, `probe`, `connect`, `arp-watch`: print `ready`, obey `mark [NS]` and `report` on stdin ([`control`]), print
//!   one JSON report: [`report::HoldReport`], [`report::ProbeReport`], [`report::ConnectReport`], [`report::ArpReport`].
//!   [`hold()`], [`probe()`], [`connect()`], [`arp_watch`], [`start`] run them as a client of a lab.
//! - `get --to IP:PORT`: one connection, prints the greeting.
//!
//! [`manifest::manifest`] is the Deployment and the Service to send it to.

pub mod arp;
pub mod clock;
pub mod connect;
pub mod control;
pub mod handshakes;
pub mod hold;
pub mod manifest;
pub mod ports;
pub mod probe;
pub mod relay;
pub mod report;
pub mod running;
pub mod serve;
pub mod tcp_info;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

pub use running::{Running, arp_watch, connect, hold, probe, start};

/// The `sheave-traffic` that belongs to the running program: `SHEAVE_TRAFFIC`, or beside it, or the static one.
pub fn binary() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("SHEAVE_TRAFFIC") {
        return Ok(PathBuf::from(named));
    }
    let running = std::env::current_exe()?;
    // Test programs are one folder deeper (deps) than binaries.
    let beside = running.ancestors().skip(1).take(2).map(|folder| folder.join(NAME));
    let candidates: Vec<_> = beside.chain([crate::lab::image::static_binary(NAME)]).collect();
    match candidates.iter().find(|path: &&PathBuf| Path::exists(path)) {
        Some(found) => Ok(found.clone()),
        None => {
            bail!("{NAME} is in none of {candidates:?}: `cargo build -p sheave-tests --bins`, or set SHEAVE_TRAFFIC")
        }
    }
}

pub(crate) fn single_threaded() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

const NAME: &str = "sheave-traffic";
