//! Constructs everything once, in order; fails early. Then runs it and winds it down.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use kube::client::ClientBuilder;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admin::Health;
use crate::args::Config;
use crate::driver::Driver;
use crate::guards::Fixed;
use crate::index::Index;
use crate::keys::Keeper;
use crate::lease::{Election, StoreWentBack};
use crate::metrics::Metrics;
use crate::pauses::{KeepPauses, Pauses};
use crate::writer::Writer;
use crate::{admin, events, keys, version, watch, writer};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Everything that runs, not yet started.
pub struct App {
    admin: Task,
    admin_stop: CancellationToken,
    election: Pin<Box<dyn Future<Output = Result<(), StoreWentBack>> + Send>>,
    election_stop: CancellationToken,
    writer: Task,
    publisher: Task,
    version: Task,
    keeper: Task,
    driver: Task,
    driver_stop: CancellationToken,
    drain: Duration,
}

impl App {
    /// Binds the port and prepares the client; nothing is sent yet.
    pub async fn build(config: Config) -> anyhow::Result<App> {
        let Config {
            namespace,
            identity,
            probe_listen,
            metrics_listen,
            lease,
            policy,
            service_ranges,
            probing,
            log: _,
            drain,
        } = config;
        let identity = format!("{identity}_{}", keys::suffix().context("no random bytes")?);
        let metrics = Arc::new(Metrics::register().context("metrics")?);
        let health = Arc::new(Health::new(Instant::now()));
        let bind = |flag: &'static str, address: SocketAddr| async move {
            TcpListener::bind(address).await.with_context(|| format!("{flag}: cannot listen on {address}"))
        };
        let probes = bind("--probe-listen", probe_listen).await?;
        let scrapes = bind("--metrics-listen", metrics_listen).await?;
        let scrapes = sheave_admin::metrics::Server::new(scrapes, "sheave-controller").context("--metrics-listen")?;

        let mut kube = kube::Config::infer().await.context("neither in a pod nor a kubeconfig")?;
        let server = kube.cluster_url.to_string();
        let api_server = kube.cluster_url.host().and_then(|host| host.trim_matches(['[', ']']).parse().ok());
        let fixed = Fixed {
            service_ranges: service_ranges.into_iter().collect(),
            api_servers: api_server.into_iter().collect(),
        };
        kube.connect_timeout = Some(CONNECT);
        // Watches end after 50 s, so a connection that is silent for longer is dead.
        kube.read_timeout = Some(READ);
        // A request that is sent again behind its sender's back ends as one without an answer.
        kube.default_retry = false;
        let pauses = Pauses::default();
        let keep = KeepPauses { pauses: pauses.clone(), metrics: metrics.clone() };
        let client = ClientBuilder::try_from(kube).context("client")?.with_layer(&keep).build();

        let (synced, read) = tokio::sync::watch::channel(false);
        let (election, leadership) = Election::new(client.clone(), &namespace, &identity, lease, pauses.clone(), read);
        let (events, publisher) = events::channel(client.clone(), &identity, metrics.clone());
        let (queue, planned) = mpsc::channel(writer::QUEUE);
        let (finished, results) = mpsc::channel(writer::QUEUE);
        let writer = Writer::new(client.clone(), leadership.clone(), pauses, events, metrics.clone());
        let keeper = Keeper::new(client.clone(), &namespace, leadership.clone());
        let facts = watch::all(&client, &server);
        let scraper = client.clone();
        let version = version::check(client.clone(), metrics.clone());
        let driver = Driver {
            client,
            leadership,
            queue,
            finished: results,
            health: health.clone(),
            metrics: metrics.clone(),
            synced,
            index: Index::new(policy, fixed, probing),
        };

        let (admin_stop, election_stop, driver_stop) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let served = admin::serve(probes, scrapes, scraper, health, metrics, admin_stop.clone());
        info!(%identity, %probe_listen, %metrics_listen, %server, "built");
        Ok(App {
            admin: Box::pin(served),
            election: Box::pin(election.run(election_stop.clone())),
            writer: Box::pin(writer.run(planned, finished)),
            publisher: Box::pin(publisher.run()),
            version: Box::pin(version),
            keeper: Box::pin(keeper.run(driver_stop.clone())),
            driver: Box::pin(driver.run(facts, driver_stop.clone())),
            admin_stop,
            election_stop,
            driver_stop,
            drain,
        })
    }

    /// Runs until `stop`, then finishes writes, gives the lead up and ends, in this order and within the deadline.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let admin = tokio::spawn(self.admin);
        let mut election = tokio::spawn(self.election);
        let mut writer = tokio::spawn(self.writer);
        let publisher = tokio::spawn(self.publisher);
        let version = tokio::spawn(self.version);
        let mut keeper = tokio::spawn(self.keeper);
        let mut driver = tokio::spawn(self.driver);
        tokio::select! {
            () = stop => info!("stopping"),
            _ = &mut driver => anyhow::bail!("the main loop ended by itself"),
            _ = &mut keeper => anyhow::bail!("the keeper of the keys ended by itself"),
            _ = &mut writer => anyhow::bail!("the writer ended by itself"),
            ended = &mut election => {
                ended.context("the election ended by itself")??;
                anyhow::bail!("the election ended by itself")
            }
        }
        version.abort();
        let ordered = async {
            self.driver_stop.cancel();
            let _ = (&mut driver).await;
            let _ = keeper.await;
            let _ = writer.await;
            self.election_stop.cancel();
            let _ = election.await;
            let _ = publisher.await;
            self.admin_stop.cancel();
            let _ = admin.await;
        };
        if tokio::time::timeout(self.drain, ordered).await.is_err() {
            warn!("shutdown deadline reached; writes may be lost");
        }
        Ok(())
    }
}

const CONNECT: Duration = Duration::from_secs(2);
const READ: Duration = Duration::from_secs(60);
