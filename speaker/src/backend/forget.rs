//! When conntrack's flows are looked through: who has lost its pod, and is told to be forgotten.
//!
//! A task of its own, so that nobody waits for a dump. Who deletes what and when: docs/backend.md.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use speaker_core::backend::{Endpoints, Flow};
use tokio::sync::watch;
use tokio::time::sleep;

use super::conntrack;

#[derive(Debug, Default)]
pub struct Forgetter {
    endpoints: Option<watch::Sender<Endpoints>>,
    forgotten: Arc<AtomicU64>,
}

impl Forgetter {
    /// Needs a runtime. The first time everything is looked through: an earlier speaker may have left something.
    pub fn judge_by(&mut self, endpoints: &Endpoints) {
        match &self.endpoints {
            Some(sender) => {
                sender.send_if_modified(|known| {
                    let differs = known != endpoints;
                    if differs {
                        known.clone_from(endpoints);
                    }
                    differs
                });
            }
            None => {
                let (sender, receiver) = watch::channel(endpoints.clone());
                tokio::spawn(run(receiver, self.forgotten.clone()));
                self.endpoints = Some(sender);
            }
        }
    }

    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }
}

/// Ends with the sender.
async fn run(mut endpoints: watch::Receiver<Endpoints>, forgotten: Arc<AtomicU64>) {
    let mut judged = Endpoints::default();
    loop {
        let first = endpoints.borrow_and_update().clone();
        if !first.lost_since(&judged) {
            judged = first;
        } else {
            sleep(GRACE).await;
            // The node may have been listed a moment later than its pods: doubt begins late.
            let last = endpoints.borrow().clone();
            match forget(first.clone(), last).await {
                Ok(flows) => {
                    forgotten.fetch_add(flows as u64, Ordering::Relaxed);
                    judged = first;
                }
                Err(error) => {
                    tracing::warn!(%error, "flows to pods that are gone may go into a hole, trying again");
                    sleep(RETRY).await;
                    continue;
                }
            }
        }
        if endpoints.changed().await.is_err() {
            return;
        }
    }
}

/// The flows that had nobody left then and have nobody left now.
async fn forget(then: Endpoints, now: Endpoints) -> std::io::Result<usize> {
    let work = move || {
        let lost = |flow: &Flow| then.lost(flow) && now.lost(flow);
        conntrack::forget(now.vips(), lost)
    };
    let flows = tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)??;
    if flows > 0 {
        tracing::info!(flows, "forgot flows whose pod is gone");
    }
    Ok(flows)
}

/// An endpoint that moves between two EndpointSlices may be in neither for as long as an update of the API server takes
/// (client-go's reconciler writes them one by one).
const GRACE: Duration = Duration::from_millis(200);
const RETRY: Duration = Duration::from_secs(1);
