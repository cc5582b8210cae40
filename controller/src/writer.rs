//! IO: the one place that writes objects. A bounded queue, a bounded number of requests at a time, each only as long as
//! we lead and with a deadline inside the lease.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use sheave_api::{AddressPool, CONTROLLER_NAME, ServiceRef, VirtualIP, VirtualIPSpec};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::error::WriteError;
use crate::events::Events;
use crate::index::{Observed, Outcome, Planned, Write};
use crate::lease::Leadership;
use crate::metrics::Metrics;
use crate::status::{FinalizerChange, StatusWrite};
use crate::view::{GrantView, PoolView, ServiceView};

/// A write that is over.
pub type Finished = (Planned, Outcome);

/// Applies writes while we lead.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    leadership: Leadership,
    events: Events,
    metrics: Arc<Metrics>,
}

impl Writer {
    pub fn new(client: Client, leadership: Leadership, events: Events, metrics: Arc<Metrics>) -> Self {
        Writer { client, leadership, events, metrics }
    }

    /// Works off the queue until it is closed and empty.
    pub async fn run(self, mut queue: mpsc::Receiver<Planned>, finished: mpsc::Sender<Finished>) {
        let mut requests = FuturesUnordered::new();
        let mut open = true;
        while open || !requests.is_empty() {
            tokio::select! {
                planned = queue.recv(), if open && requests.len() < REQUESTS => match planned {
                    Some(planned) => requests.push(self.write(planned)),
                    None => open = false,
                },
                Some(result) = requests.next() => {
                    // The receiver is gone only in a shutdown, when the result does not matter.
                    let _ = finished.send(result).await;
                }
            }
        }
    }

    async fn write(&self, planned: Planned) -> Finished {
        let result = match self.leadership.request_deadline() {
            None => Err(WriteError::NotLeader),
            Some(deadline) => match tokio::time::timeout_at(deadline.into(), self.apply(&planned.write)).await {
                Ok(result) => result,
                Err(_) => Err(WriteError::Timeout),
            },
        };
        let outcome = match result {
            Ok(facts) => Outcome::Done(facts),
            Err(error) => {
                self.metrics.write_errors.with_label_values(&[error.kind()]).inc();
                warn!(subject = ?planned.subject, kind = error.kind(), %error, "write failed; retried later");
                Outcome::Failed(error)
            }
        };
        (planned, outcome)
    }

    async fn apply(&self, write: &Write) -> Result<Vec<Observed>, WriteError> {
        match write {
            Write::Grant { address, pool, service } => self.grant(&address.to_string(), pool, service).await,
            Write::Status(write) | Write::Prepare { write, .. } => self.status(write).await,
            Write::Release { address, uid } => {
                self.release(&address.to_string(), uid).await?;
                Ok(vec![Observed::Released(*address, uid.clone())])
            }
            Write::PoolStatus { pool, status } => {
                let api = Api::<AddressPool>::all(self.client.clone());
                let pool = api.patch_status(pool, &params(), &Patch::Merge(status)).await?;
                Ok(vec![Observed::Pool(PoolView::from(&pool))])
            }
        }
    }

    /// Creating the object is the compare-and-swap: of two writers that grant one address, one gets a conflict.
    async fn grant(&self, name: &str, pool: &str, service: &ServiceRef) -> Result<Vec<Observed>, WriteError> {
        let api = Api::<VirtualIP>::all(self.client.clone());
        let spec = VirtualIPSpec { address: name.to_string(), pool: pool.to_string(), services: vec![service.clone()] };
        let params = PostParams { field_manager: Some(CONTROLLER_NAME.to_string()), ..PostParams::default() };
        let vip = match api.create(&params, &VirtualIP::new(name, spec)).await {
            Ok(vip) => {
                self.metrics.allocations.inc();
                info!(address = name, pool, service = %service.name, namespace = %service.namespace, "address granted");
                vip
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                debug!(address = name, "the ledger has an entry already");
                api.get(name).await?
            }
            Err(error) => return Err(error.into()),
        };
        Ok(GrantView::new(&vip).map(Observed::Grant).into_iter().collect())
    }

    async fn status(&self, write: &StatusWrite) -> Result<Vec<Observed>, WriteError> {
        let api = Api::<Service>::namespaced(self.client.clone(), &write.service.namespace);
        let patch = write.patch(Timestamp::now());
        let service = api.patch_status(&write.service.name, &params(), &Patch::Strategic(&patch)).await?;
        if write.is_correction() {
            self.metrics.corrections.inc();
        }
        for note in &write.notes {
            info!(service = %write.service, reason = note.reason, message = %note.message, "status written");
            if note.warning && !write.is_correction() {
                self.metrics.refusals.with_label_values(&[note.reason]).inc();
            }
            self.events.send(&write.service, &write.uid, note.clone());
        }
        match write.finalizer {
            FinalizerChange::Leave => {}
            FinalizerChange::Add => self.finalizer(write, "added"),
            FinalizerChange::Remove => self.finalizer(write, "removed"),
        }
        let view = ServiceView::from(&service);
        // The API server has removed it with its last finalizer.
        if view.deleting && service.finalizers().is_empty() {
            return Ok(vec![Observed::ServiceGone(view.key, view.version)]);
        }
        Ok(vec![Observed::Service(view)])
    }

    fn finalizer(&self, write: &StatusWrite, change: &str) {
        info!(service = %write.service, change, "finalizer written");
        self.metrics.finalizers.with_label_values(&[change]).inc();
    }

    /// Only this very object; a deleted one is as good.
    async fn release(&self, name: &str, uid: &str) -> Result<(), WriteError> {
        let api = Api::<VirtualIP>::all(self.client.clone());
        let preconditions = Preconditions { uid: Some(uid.to_string()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(name, &params).await {
            Ok(_) => {
                self.metrics.releases.inc();
                info!(address = name, "address released");
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(CONTROLLER_NAME.to_string()), ..PatchParams::default() }
}

/// Writes that may wait; more stay in the index, which is bounded by the cluster's objects.
pub const QUEUE: usize = 64;
/// Requests at a time.
const REQUESTS: usize = 8;
