//! Kubernetes as source and sink: watches and the Secret `sheave-keys` in, status of VirtualIPs and this node's SpeakerState out.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use anyhow::{Context, Result};
use kube::Client;
use speaker_core::view::Event;
use tokio::sync::{mpsc, watch};

use super::Surroundings;
use crate::apiserver::ApiServer;
use crate::app::Ground;
use crate::args::RunArgs;
use crate::keys::source::Update;
use crate::keys::{self, Keys};
use crate::mailbox;
use crate::probing;
use crate::speaker_state::{self, Survey};
use crate::status::lost::Elected;
use crate::status::{self, Overload, Ownership, Sources, Views};
use crate::watch::{Reports, Rights};

/// The source.
pub struct Watches {
    server: ApiServer,
    owners: Arc<mailbox::Sender<Ipv4Addr, Option<String>>>,
}

/// The sink.
pub struct VirtualIps {
    writer: (Client, Overload),
    seen: mailbox::Receiver<Ipv4Addr, Option<String>>,
}

/// `known`: other addresses of API servers. The client is for what is asked beside: who may read the metrics.
pub async fn configure(known: watch::Receiver<Vec<SocketAddrV4>>) -> Result<(Watches, VirtualIps, Client)> {
    let config = kube::Config::infer().await.context("configure the Kubernetes client")?;
    let (client, overload) = status::client(config.clone()).context("Kubernetes client")?;
    // One for each VIP of the view.
    let (owners, seen) = mailbox::channel(usize::MAX);
    let watches = Watches { server: ApiServer::new(config, known), owners: Arc::new(owners) };
    Ok((watches, VirtualIps { writer: (client.clone(), overload), seen }, client))
}

impl Watches {
    /// Those on disk, else those of the Secret as soon as it is there. The SpeakerState is written meanwhile: it says what the node waits
    /// for.
    pub async fn keys(&self, ground: &Ground, views: Views) -> Result<Option<(Keys, mpsc::Receiver<Update>)>> {
        let Ground { args, disk, health, metrics, drains, .. } = ground;
        let server = self.server.clone();
        let surroundings = Surroundings { health: health.clone(), metrics: metrics.clone(), drains: drains.clone() };
        self.report(args, surroundings, views);
        let (updates, mut secret) = mpsc::channel(keys::source::MAX_UPDATES);
        let keys = Keys::load(disk);
        tokio::spawn(keys::source::run(server, args.namespace.clone(), keys.is_some(), updates));
        let keys = match keys {
            Some(keys) => Some(keys),
            None => keys::source::first(disk, &mut secret, health).await?,
        };
        Ok(keys.map(|keys| (keys, secret)))
    }

    /// What the node is like, from now on, and what is asked of it beside serving.
    pub fn report(&self, args: &RunArgs, surroundings: Surroundings, views: Views) {
        let Surroundings { health, metrics, drains } = surroundings;
        let survey = Survey::new(args.interface.clone(), args.node_ip);
        let (name, server) = (args.node_name.clone(), self.server.clone());
        tokio::spawn(speaker_state::run(server.clone(), name, survey, views, (health, drains), metrics.clone()));
        tokio::spawn(probing::run(server, args.clone(), metrics));
    }

    pub fn start(self, ground: &Ground, events: mpsc::Sender<Event>, lagging: watch::Receiver<bool>, jitter: u64) {
        let rights = Rights { health: ground.health.clone(), metrics: ground.metrics.clone() };
        let reports = Reports { events, owners: self.owners, rights };
        tokio::spawn(crate::watch::run(self.server, reports, lagging, jitter));
    }
}

impl VirtualIps {
    pub fn start(
        self,
        ground: &Ground,
        updates: mailbox::Receiver<Ipv4Addr, Ownership>,
        views: Views,
        elected: Arc<Elected>,
    ) {
        let sources = Sources { seen: self.seen, views, elected, health: ground.health.clone() };
        tokio::spawn(status::run(self.writer, ground.args.node_name.clone(), updates, sources));
    }
}
