//! IO: leadership by a coordination.k8s.io Lease. The record is written by `replace` with its resourceVersion, so of two
//! that try one is refused; [`candidate`] holds the rules.

mod candidate;

use std::pin::pin;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use sheave_api::{CONTROLLER_NAME, Chain, kubernetes};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::args::LeaseConfig;
use crate::pauses::{Flow, Pauses};
pub use candidate::StoreWentBack;
use candidate::{Candidate, Step};

/// The present leader, for the other tasks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership {
    held: watch::Receiver<Option<Held>>,
    config: LeaseConfig,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    /// The start of the last successful renewal.
    renewed: Instant,
    term: i32,
}

impl Leadership {
    /// By when a write that starts now must be over; None if none may start.
    pub fn request_deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        let held = (*self.held.borrow())?;
        (now < held.renewed + self.config.write_until).then_some(now + self.config.request)
    }

    /// The term in which we lead now. Facts read in another one may be out of date.
    pub fn term(&self) -> Option<i32> {
        self.request_deadline()?;
        Some((*self.held.borrow())?.term)
    }

    /// Returns when something about it has changed, at most once a renewal.
    pub async fn changed(&mut self) {
        if self.held.changed().await.is_err() {
            // The election is over: nothing changes any more.
            std::future::pending::<()>().await;
        }
    }
}

/// The task that competes.
pub struct Election {
    api: Api<Lease>,
    config: LeaseConfig,
    candidate: Candidate,
    pauses: Pauses,
    publish: watch::Sender<Option<Held>>,
    /// Whether this replica has read everything.
    synced: watch::Receiver<bool>,
}

impl Election {
    /// `synced`: whether this replica has read everything; before that it does not compete.
    pub fn new(
        client: Client,
        namespace: &str,
        identity: &str,
        config: LeaseConfig,
        pauses: Pauses,
        synced: watch::Receiver<bool>,
    ) -> (Self, Leadership) {
        let (publish, held) = watch::channel(None);
        let candidate = Candidate::new(identity.to_string(), config.clone());
        let leadership = Leadership { held, config: config.clone() };
        (Election { api: Api::namespaced(client, namespace), config, candidate, pauses, publish, synced }, leadership)
    }

    /// Competes until stopped, then gives the lead up so that another replica has it at once. Ends by itself only where the store went
    /// back.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), StoreWentBack> {
        let only_ours = watcher::Config::default().fields(&format!("metadata.name={}", self.config.name)).timeout(50);
        let mut records = pin!(kubernetes::follow(self.api.clone(), only_ours).default_backoff());
        self.read().await?;
        loop {
            self.candidate.compete(*self.synced.borrow_and_update());
            let step = self.candidate.step(Instant::now(), Timestamp::now());
            let wake = match (step, self.pauses.until(Flow::Lease)) {
                // The lead may end meanwhile: where the record cannot be written nothing else can.
                (Step::Write(_), Some(until)) => until,
                (Step::Write(lease), None) => {
                    if self.write(*lease).await? {
                        continue;
                    }
                    self.read().await?;
                    Instant::now() + PAUSE
                }
                (Step::Wait(until), _) => until,
            };
            // A leader whose renewals fail stops in time, however long the next try takes.
            let wake = wake.min(Instant::now() + self.config.renew);
            self.announce();
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(wake.into()) => {}
                Some(event) = records.next() => self.watched(event),
                Ok(()) = self.synced.changed() => {}
            }
            self.announce();
        }
        self.release().await;
        Ok(())
    }

    fn watched(&mut self, event: watcher::Result<watcher::Event<Lease>>) {
        match event {
            Ok(watcher::Event::Apply(lease) | watcher::Event::InitApply(lease)) => {
                self.candidate.observe(lease, Instant::now());
            }
            Ok(watcher::Event::Delete(_)) => self.candidate.observe_absence(),
            Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
            Err(error) => debug!(error = %Chain(&error), "watch of the Lease failed; retrying"),
        }
    }

    /// Notifies the other tasks of a change.
    fn announce(&mut self) {
        let term = self.candidate.term();
        let leading = self.candidate.leading(Instant::now()).map(|renewed| Held { renewed, term });
        self.publish.send_if_modified(|published| {
            if published.is_some() != leading.is_some() {
                info!(leader = leading.is_some(), term, "leadership changed");
            }
            let changed = *published != leading;
            *published = leading;
            changed
        });
    }

    /// True if the record is ours now.
    async fn write(&mut self, mut lease: Lease) -> Result<bool, StoreWentBack> {
        let started = Instant::now();
        let params = PostParams { field_manager: Some(CONTROLLER_NAME.to_string()), ..PostParams::default() };
        let name = self.config.name.clone();
        let request = async {
            if lease.resource_version().is_some() {
                self.api.replace(&name, &params, &lease).await
            } else {
                lease.metadata = ObjectMeta { name: Some(name.clone()), ..lease.metadata.clone() };
                self.api.create(&params, &lease).await
            }
        };
        match tokio::time::timeout(self.config.request, request).await {
            Ok(Ok(lease)) => {
                self.candidate.written(lease, started, Instant::now())?;
                self.announce();
                return Ok(true);
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => debug!("Lease taken by another candidate"),
            Ok(Err(error)) => warn!(error = %Chain(&error), "Lease not written; retrying"),
            Err(_) => warn!("Lease not written in time; retrying"),
        }
        Ok(false)
    }

    async fn read(&mut self) -> Result<(), StoreWentBack> {
        match tokio::time::timeout(self.config.request, self.api.get_opt(&self.config.name)).await {
            Ok(Ok(Some(lease))) => self.candidate.read(lease, Instant::now())?,
            Ok(Ok(None)) => self.candidate.observe_absence(),
            Ok(Err(error)) => debug!(error = %Chain(&error), "Lease not read; retrying"),
            Err(_) => debug!("Lease not read in time; retrying"),
        }
        Ok(())
    }

    async fn release(&mut self) {
        let Some(lease) = self.candidate.release(Instant::now(), Timestamp::now()) else { return };
        self.announce();
        let params = PostParams::default();
        let request = self.api.replace(&self.config.name, &params, &lease);
        match tokio::time::timeout(self.config.request, request).await {
            Ok(Ok(_)) => info!("leadership released"),
            Ok(Err(error)) => {
                warn!(error = %Chain(&error), "leadership not released; other candidates wait for the Lease to expire")
            }
            Err(_) => warn!("leadership not released in time; other candidates wait for the Lease to expire"),
        }
    }
}

/// After a failed write of the record.
const PAUSE: Duration = Duration::from_millis(300);
