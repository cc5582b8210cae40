//! The two plug points of the speaker: a source of desired state, and a sink of status.
//!
//! A source sends keys and view events, a sink takes who owns which VIP. Nothing else of the speaker knows which ones they are.

mod file;
mod kubernetes;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use anyhow::Result;
use kube::Client;
use speaker_core::view::endpoints::api_servers;
use speaker_core::view::{Event, View};
use tokio::sync::{mpsc, watch};

use crate::app::{Ground, Start};
use crate::dataplane::sync::Members;
use crate::endpoint::Opened;
use crate::endpoint::board::Board;
use crate::endpoint::desk::Clerk;
use crate::health::HealthFlags;
use crate::keys::Keys;
use crate::keys::source::Update;
use crate::local_drain::LocalDrains;
use crate::mailbox;
use crate::metrics::Metrics;
use crate::status::lost::Elected;
use crate::status::{Ownership, Views};

pub use file::NAMESPACE as ENDPOINT;

/// The run of events has a number that JSON readers of all kinds keep whole.
const NANOS_PER_MILLI: u64 = 1_000_000;
/// Events that wait between the source and the view.
const MAX_EVENTS: usize = 1024;

/// Where desired state comes from.
pub enum Source {
    Kubernetes(Box<kubernetes::Watches>),
    File(Box<file::File>),
}

/// Where status goes.
pub enum Sink {
    VirtualIps(kubernetes::VirtualIps),
    /// The status of this node: its local socket, page and metrics.
    Local(Arc<Board>),
}

/// What this speaker is plugged into.
pub struct Plugs {
    pub source: Source,
    pub sink: Sink,
    /// Where the source may also be reached, by the newest view.
    pub servers: watch::Sender<Vec<SocketAddrV4>>,
    /// Asks who may read the metrics.
    pub reviewer: Option<Client>,
    /// Of the API server endpoint: they are checked.
    pub members: Option<Members>,
    /// Who takes requests about them.
    pub clerk: Option<Clerk>,
}

/// Who says what is to be served.
pub enum Desired {
    Kubernetes,
    File(Box<Opened>),
}

/// Fails early: where nothing can be plugged in, nothing else starts.
pub async fn plug_in(desired: Desired, start: &Start, last_view: Option<&View>) -> Result<Plugs> {
    let (servers, known) = watch::channel(last_view.map(api_servers).unwrap_or_default());
    if let Desired::File(opened) = desired {
        let run = start.epoch.number / NANOS_PER_MILLI;
        let (members, clerk) = opened.members(&start.disk, run)?;
        let sink = Sink::Local(clerk.board.clone());
        let source = Source::File(Box::new(file::File::new(*opened, clerk.clone())));
        return Ok(Plugs { source, sink, servers, reviewer: None, members: Some(members), clerk: Some(clerk) });
    }
    let (watches, virtual_ips, reviewer) = kubernetes::configure(known).await?;
    Ok(Plugs {
        source: Source::Kubernetes(Box::new(watches)),
        sink: Sink::VirtualIps(virtual_ips),
        servers,
        reviewer: Some(reviewer),
        members: None,
        clerk: None,
    })
}

/// What a SpeakerState is made of, beside the host and the view.
pub struct Surroundings {
    pub health: Arc<HealthFlags>,
    pub metrics: Arc<Metrics>,
    pub drains: LocalDrains,
}

/// Of Kubernetes only what a speaker needs that serves nothing: its SpeakerState is written, addresses are probed. Returns who says who may
/// read the metrics.
pub async fn stand_by(start: &Start, surroundings: Surroundings, views: Views) -> Result<Client> {
    let (_, known) = watch::channel(Vec::new());
    let (watches, _, reviewer) = kubernetes::configure(known).await?;
    watches.report(&start.args, surroundings, views);
    Ok(reviewer)
}

impl Source {
    /// The keys of this node, and their updates from now on. `None`: the process was stopped before there were any.
    pub async fn keys(&self, ground: &Ground, views: Views) -> Result<Option<(Keys, mpsc::Receiver<Update>)>> {
        match self {
            Self::Kubernetes(watches) => watches.keys(ground, views).await,
            Self::File(file) => file.keys(&ground.disk).await.map(Some),
        }
    }

    /// View events from now on. `lagging`: whether other nodes have another view. `jitter`: a random number.
    pub fn start(self, ground: &Ground, lagging: watch::Receiver<bool>, jitter: u64) -> mpsc::Receiver<Event> {
        let (sender, events) = mpsc::channel(MAX_EVENTS);
        match self {
            Self::Kubernetes(watches) => watches.start(ground, sender, lagging, jitter),
            Self::File(file) => drop(tokio::spawn(file.run(sender))),
        }
        events
    }
}

impl Sink {
    pub fn start(
        self,
        ground: &Ground,
        updates: mailbox::Receiver<Ipv4Addr, Ownership>,
        views: Views,
        elected: Arc<Elected>,
    ) {
        match self {
            Self::VirtualIps(virtual_ips) => virtual_ips.start(ground, updates, views, elected),
            Self::Local(board) => drop(tokio::spawn(file::keep_status(updates, board))),
        }
    }
}
