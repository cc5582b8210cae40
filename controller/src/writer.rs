//! IO: the one place that writes objects. A bounded queue, a bounded number of requests at a time, each only as long as
//! we lead and with a deadline inside the lease.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use sheave_api::{
    AddressPool, AddressProbe, AddressProbeSpec, CONTROLLER_NAME, L2Advertisement, ServiceRef, SpeakerState, VirtualIP,
    VirtualIPSpec, virtual_ip_name,
};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::advertisements::{AdvertisementView, Announced};
use crate::error::WriteError;
use crate::events::Events;
use crate::index::{Entry, Observed, Outcome, Planned, SeenEntry, Write};
use crate::lease::Leadership;
use crate::metrics::Metrics;
use crate::node_mode::NODE_POOL;
use crate::pace::Pace;
use crate::pauses::{Flow, Pauses};
use crate::probes::{ProbeView, ProbeWrite};
use crate::status::{FinalizerChange, StatusWrite};
use crate::view::{GrantView, PoolView, ServiceKey, ServiceView};

/// A write that is over.
pub type Finished = (Planned, Outcome);

/// Applies writes while we lead.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    leadership: Leadership,
    pauses: Pauses,
    events: Events,
    metrics: Arc<Metrics>,
}

impl Writer {
    pub fn new(client: Client, leadership: Leadership, pauses: Pauses, events: Events, metrics: Arc<Metrics>) -> Self {
        Writer { client, leadership, pauses, events, metrics }
    }

    /// Works off the queue until it is closed and empty.
    pub async fn run(self, mut queue: mpsc::Receiver<Planned>, finished: mpsc::Sender<Finished>) {
        let writer = &self;
        let mut requests = FuturesUnordered::new();
        let mut pace = Pace::new(REQUESTS);
        let mut open = true;
        while open || !requests.is_empty() {
            tokio::select! {
                planned = queue.recv(), if open && requests.len() < pace.allowed() => match planned {
                    Some(planned) => {
                        let began = pace.begin();
                        requests.push(async move { (began, writer.write(planned).await) });
                    }
                    None => open = false,
                },
                Some((began, result)) = requests.next() => {
                    match &result.1 {
                        // It was not sent.
                        Outcome::Failed(WriteError::NotLeader) => {}
                        Outcome::Failed(WriteError::Timeout) => if pace.late(began) {
                            info!(requests = pace.allowed(), "the API server is slow; fewer requests at a time");
                        },
                        _ => pace.answered(),
                    }
                    // The receiver is gone only in a shutdown, when the result does not matter.
                    let _ = finished.send(result).await;
                }
            }
        }
    }

    async fn write(&self, planned: Planned) -> Finished {
        let term = self.leadership.term();
        self.pauses.over(Flow::Writes).await;
        let result = match self.leadership.request_deadline().filter(|_| self.leadership.term() == term) {
            // Or it leads again after a pause in which another one did.
            None => Err(WriteError::NotLeader),
            Some(deadline) => match tokio::time::timeout_at(deadline.into(), self.apply(&planned.write)).await {
                Ok(result) => result,
                Err(_) => {
                    self.without_answer(&planned.write);
                    Err(WriteError::Timeout)
                }
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
            Write::Grant { address, pool, service, announced } => self.grant(*address, pool, service, announced).await,
            Write::GrantAtNode { address, node, services } => self.grant_at_node(*address, node, services).await,
            Write::Status(write) | Write::Prepare { write, .. } => self.status(write).await,
            Write::Release(entry) => {
                self.release(entry).await?;
                Ok(vec![Observed::Released(entry.address, entry.uid.clone())])
            }
            Write::Amend { entry, from, to } => self.amend(entry, from, to).await,
            Write::Confirm(entry) => {
                let at = json!({ "annotations": { CONFIRMED: Timestamp::now().to_string() } });
                self.change(entry, json!({ "metadata": at })).await.map(as_facts)
            }
            Write::PoolStatus { pool, status } => {
                let api = Api::<AddressPool>::all(self.client.clone());
                let pool = api.patch_status(pool, &params(), &Patch::Merge(status)).await?;
                Ok(vec![Observed::Pool(PoolView::from(&pool))])
            }
            Write::AdvertisementStatus { advertisement, status } => {
                let api = Api::<L2Advertisement>::all(self.client.clone());
                let written = api.patch_status(advertisement, &params(), &Patch::Merge(status)).await?;
                Ok(vec![Observed::Advertisement(AdvertisementView::from(&written))])
            }
            Write::Probe(write) => self.probe(write).await,
        }
    }

    /// Creating the object is the compare-and-swap: of two writers that grant one address, one gets a conflict.
    async fn grant(
        &self,
        address: IpAddr,
        pool: &str,
        service: &ServiceRef,
        announced: &Announced,
    ) -> Result<Vec<Observed>, WriteError> {
        let api = Api::<VirtualIP>::all(self.client.clone());
        let name = &virtual_ip_name(address);
        let spec = VirtualIPSpec {
            address: address.to_string(),
            pool: pool.to_string(),
            services: vec![service.clone()],
            l2_advertisements: announced.advertisements.clone(),
            announce: announced.announce(),
            node: None,
        };
        let params = PostParams { field_manager: Some(CONTROLLER_NAME.to_string()), ..PostParams::default() };
        let vip = match api.create(&params, &VirtualIP::new(name, spec)).await {
            Ok(vip) => {
                self.metrics.allocations.inc();
                info!(%address, pool, service = %service.name, namespace = %service.namespace, "address granted");
                vip
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                debug!(%address, "the ledger has an entry already");
                api.get(name).await?
            }
            Err(error) => return Err(error.into()),
        };
        Ok(as_facts(vip))
    }

    /// The same of ports at an address of a node.
    async fn grant_at_node(
        &self,
        address: Ipv4Addr,
        node: &str,
        services: &[ServiceRef],
    ) -> Result<Vec<Observed>, WriteError> {
        let api = Api::<VirtualIP>::all(self.client.clone());
        let name = address.to_string();
        let spec = VirtualIPSpec {
            address: name.clone(),
            pool: NODE_POOL.to_string(),
            node: Some(node.to_string()),
            services: services.to_vec(),
            ..VirtualIPSpec::default()
        };
        let params = PostParams { field_manager: Some(CONTROLLER_NAME.to_string()), ..PostParams::default() };
        match api.create(&params, &VirtualIP::new(&name, spec)).await {
            Ok(vip) => {
                info!(address = name, node, services = services.len(), "ports of a node's address granted");
                Ok(as_facts(vip))
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(as_facts(api.get(&name).await?)),
            Err(error) => Err(error.into()),
        }
    }

    /// A request to a speaker. Created by name, or patched as it was seen: a late one of another leader fails.
    async fn probe(&self, write: &ProbeWrite) -> Result<Vec<Observed>, WriteError> {
        let api = Api::<AddressProbe>::all(self.client.clone());
        let addresses = write.addresses.iter().map(Ipv4Addr::to_string).collect();
        let spec = AddressProbeSpec { round: write.round, addresses };
        let written = match &write.seen {
            Some((uid, version)) => {
                let metadata = json!({ "uid": uid, "resourceVersion": version.to_string() });
                let patch = json!({ "metadata": metadata, "spec": spec });
                api.patch(&write.node, &params(), &Patch::Merge(patch)).await?
            }
            None => {
                let owner = OwnerReference {
                    api_version: SpeakerState::api_version(&()).into_owned(),
                    kind: SpeakerState::kind(&()).into_owned(),
                    name: write.node.clone(),
                    uid: write.owner.clone(),
                    ..OwnerReference::default()
                };
                let mut probe = AddressProbe::new(&write.node, spec);
                probe.metadata.owner_references = Some(vec![owner]);
                let params = PostParams { field_manager: Some(CONTROLLER_NAME.to_string()), ..PostParams::default() };
                api.create(&params, &probe).await?
            }
        };
        debug!(node = write.node, round = write.round, addresses = write.addresses.len(), "speaker asked to probe");
        Ok(vec![Observed::Probe(ProbeView::from(&written))])
    }

    /// It may have been carried out, and then nothing is left to be written, nor to be said. Else the Events come twice.
    fn without_answer(&self, write: &Write) {
        if let Write::Status(write) | Write::Prepare { write, .. } = write {
            write.notes.iter().for_each(|note| self.events.send(&write.service, &write.uid, note.clone()));
        }
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

    async fn amend(&self, seen: &SeenEntry, from: &Entry, to: &Entry) -> Result<Vec<Observed>, WriteError> {
        // In a merge patch what is null is taken away; a list that is empty is absent.
        let announced = &to.announced;
        let names = (!announced.advertisements.is_empty()).then_some(&announced.advertisements);
        let spec = json!({
            "pool": to.pool,
            "services": to.services,
            "l2Advertisements": names,
            "announce": announced.announce(),
        });
        let vip = self.change(seen, json!({ "spec": spec })).await?;
        let new = |entry: &Entry, other: &Entry| {
            let names = entry.services.iter().filter(|service| !other.services.contains(service));
            names.map(|service| ServiceKey::from(service).to_string()).collect::<Vec<_>>()
        };
        let (came, went) = (new(to, from), new(from, to));
        self.metrics.allocations.inc_by(came.len() as u64);
        self.metrics.releases.inc_by(went.len() as u64);
        info!(address = %seen.address, from = from.pool, pool = to.pool, ?came, ?went, ?announced, "ledger entry changed");
        Ok(as_facts(vip))
    }

    /// Only the entry as it was seen: else the API server answers 409. A report of the owner is a change, too; then it is tried again.
    async fn change(&self, seen: &SeenEntry, mut patch: serde_json::Value) -> Result<VirtualIP, WriteError> {
        patch["metadata"]["uid"] = json!(seen.uid);
        patch["metadata"]["resourceVersion"] = json!(seen.version.to_string());
        let api = Api::<VirtualIP>::all(self.client.clone());
        Ok(api.patch(&virtual_ip_name(seen.address), &params(), &Patch::Merge(patch)).await?)
    }

    fn finalizer(&self, write: &StatusWrite, change: &str) {
        info!(service = %write.service, change, "finalizer written");
        self.metrics.finalizers.with_label_values(&[change]).inc();
    }

    /// Only the entry as it was seen; a deleted one is as good.
    async fn release(&self, seen: &SeenEntry) -> Result<(), WriteError> {
        let api = Api::<VirtualIP>::all(self.client.clone());
        let (uid, version) = (Some(seen.uid.clone()), Some(seen.version.to_string()));
        let preconditions = Preconditions { uid, resource_version: version };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(&virtual_ip_name(seen.address), &params).await {
            Ok(_) => {
                self.metrics.releases.inc();
                info!(address = %seen.address, "address released");
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn as_facts(vip: VirtualIP) -> Vec<Observed> {
    GrantView::new(&vip).map(Observed::Grant).into_iter().collect()
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(CONTROLLER_NAME.to_string()), ..PatchParams::default() }
}

/// Annotation of a VirtualIP: when a leader last confirmed it (`index::late`). Nobody reads it.
const CONFIRMED: &str = "sheave.dev/confirmed-at";
/// Writes that may wait; more stay in the index, which is bounded by the cluster's objects.
pub const QUEUE: usize = 64;
/// Requests at a time while they are answered in time.
const REQUESTS: usize = 8;
