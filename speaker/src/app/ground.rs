//! What all flows of the speaker stand on: flags, disk, pinned maps, shared state.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, setrlimit};
use speaker_core::backend::Place;
use speaker_core::name::NodeName;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::sysctls;
use crate::args::RunArgs;
use crate::dataplane::Counters;
use crate::dataplane::loader::{self, Loaded, Pins};
use crate::endpoint::desk::Clerk;
use crate::endpoint::serve::Office;
use crate::health::HealthFlags;
use crate::io::clock;
use crate::io::netlink::Uplink;
use crate::io::udp::{self, MulticastSocket};
use crate::local_drain::LocalDrains;
use crate::local_socket::{self, Local};
use crate::metrics::Metrics;
use crate::saver::Saver;
use crate::state::{Epoch, PersistedState, StateDir};

/// Before anything outside the process is touched but the disk.
pub struct Start {
    pub args: RunArgs,
    pub node: NodeName,
    pub disk: StateDir,
    pub epoch: Epoch,
}

impl Start {
    pub fn new(args: RunArgs) -> Result<Self> {
        let node = NodeName::new(&args.node_name).with_context(|| {
            format!("--node-name {:?}: letters, digits, - and . are allowed, at most 253", args.node_name)
        })?;
        let disk = StateDir::open(&args.paths.state_dir);
        let epoch = disk.next_boot_epoch();
        Ok(Self { args, node, disk, epoch })
    }
}

pub struct Ground {
    pub args: RunArgs,
    pub node: NodeName,
    pub disk: StateDir,
    /// Numbers this run of the speaker.
    pub epoch: u64,
    pub pins: Pins,
    /// The node has booted since the last speaker.
    pub booted: bool,
    /// As the last speaker left it.
    pub persisted: Option<PersistedState>,
    pub health: Arc<HealthFlags>,
    pub metrics: Arc<Metrics>,
    pub saver: Saver,
    /// Whether this node was drained on the node itself.
    pub drains: LocalDrains,
}

impl Ground {
    /// With the programs, which are in the kernel and not attached yet.
    pub fn lay(start: Start, place: Place) -> Result<(Self, Loaded)> {
        let Start { args, node, disk, epoch: Epoch { number: epoch, is_saved } } = start;
        raise_memlock();
        let pins = Pins::new(&args.paths.pin_dir).at(place);
        let booted = pins.are_new();
        let loaded = loader::load(&pins)?;
        let health = Arc::new(HealthFlags::new(clock::now()));
        let metrics = Arc::new(Metrics::new(Counters::open(&pins)?)?);
        metrics.state_errors.with_label_values(&["boot_epoch"]).inc_by(u64::from(!is_saved));
        let saver = Saver::start(disk.clone(), metrics.clone()).context("start the disk thread")?;
        let persisted = disk.load_forwarding();
        let drains = LocalDrains::load(&disk);
        Ok((Self { args, node, disk, epoch, pins, booted, persisted, health, metrics, saver, drains }, loaded))
    }

    /// Where the status of an endpoint is to be had, and whether this node's member is drained.
    pub fn open_office(
        &self,
        clerk: Option<Clerk>,
        page: Option<TcpListener>,
    ) -> (Option<Office>, watch::Receiver<bool>) {
        let own = self.args.node_ip;
        let (sender, drained) = watch::channel(clerk.as_ref().is_some_and(|clerk| clerk.is_drained(own)));
        let Some(clerk) = clerk else { return (None, drained) };
        tokio::spawn(clerk.clone().keep(own, sender));
        let (health, metrics, drains) = (self.health.clone(), self.metrics.clone(), self.drains.clone());
        health.peers_wanted.store(true, Ordering::Relaxed);
        let office = Office { clerk, health, metrics, drains };
        tokio::spawn(office.clone().watch_peers());
        if let Some(page) = page {
            tokio::spawn(office.clone().serve_page(page));
        }
        (Some(office), drained)
    }

    /// A node serves without it.
    pub fn open_local_socket(&self, office: Option<Office>) {
        let local =
            Local { node: self.args.node_name.clone(), drains: self.drains.clone(), health: self.health.clone() };
        match local_socket::bind(&self.args.paths.local_socket) {
            Ok(listener) => {
                let beside = office.map(Office::local).unwrap_or_default();
                tokio::spawn(local_socket::serve(listener, local, beside, self.metrics.clone()));
            }
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "no local socket; `sheave drain --local` does not work on this node"
                )
            }
        }
    }

    pub fn set_sysctls(&self, uplink: &Uplink) {
        if let Err(error) = sysctls(&self.args.paths).disable_redirects(&uplink.name) {
            warn!(%error, "ICMP redirects not disabled; clients may receive redirects for VIPs");
        }
        if let Err(error) = sysctls(&self.args.paths).require_tcp_loose() {
            warn!(%error, "nf_conntrack_tcp_loose not enabled; clients of lost flows may get no reset");
        }
    }

    /// What the kernel does not queue it drops: less room than wanted is logged once, drops are counted.
    pub fn adverts_socket(&self, what: &'static str, uplink: &Uplink, port: u16) -> Result<MulticastSocket> {
        let group = SocketAddrV4::new(self.args.heartbeat_group, port);
        let socket = MulticastSocket::open(&uplink.name, uplink.index, group)
            .with_context(|| format!("{what} socket {group} on {}", uplink.name))?;
        if socket.queue() < udp::QUEUE {
            let (given, wanted) = (socket.queue(), udp::QUEUE);
            warn!(
                socket = what,
                given, wanted, "receive buffer smaller than requested; raise net.core.rmem_max or grant NET_ADMIN"
            );
        }
        self.metrics.watch_drops(what, socket.drops());
        Ok(socket)
    }
}

/// Kernels before 5.11 charge maps to RLIMIT_MEMLOCK; later ones ignore it, so a refusal matters only there.
fn raise_memlock() {
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, u64::MAX, u64::MAX) {
        debug!(%error, "RLIMIT_MEMLOCK not raised");
    }
}
