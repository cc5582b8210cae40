//! When conntrack's flows are scanned for flows that have lost their pod, to delete their entries.
//!
//! A TCP flow whose pod is no longer listed may have a pod that lives: its label or the Service's selector was changed. Such a
//! pod is probed; while it answers its flows stay, and it is probed again.
//!
//! A task of its own, so that no other work waits for a dump. What deletes an entry and when: docs/backend.md.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use speaker_core::backend::{Endpoints, Flow};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::conntrack;
use crate::io::tcp_probe::{Answer, PATIENCE, tcp_probe};

#[derive(Debug, Default)]
pub struct Forgetter {
    endpoints: Option<watch::Sender<Endpoints>>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    forgotten: AtomicU64,
    unnamed: AtomicU64,
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
                tokio::spawn(run(receiver, self.counts.clone()));
                self.endpoints = Some(sender);
            }
        }
    }

    pub fn forgotten(&self) -> u64 {
        self.counts.forgotten.load(Ordering::Relaxed)
    }

    /// Flows that stay with pods that are no longer listed.
    pub fn unnamed(&self) -> u64 {
        self.counts.unnamed.load(Ordering::Relaxed)
    }
}

/// Ends with the sender.
async fn run(mut endpoints: watch::Receiver<Endpoints>, counts: Arc<Counts>) {
    let mut judged = Endpoints::default();
    // When pods that are no longer listed are probed again.
    let mut again: Option<Instant> = None;
    loop {
        let first = endpoints.borrow_and_update().clone();
        let due = again.is_some_and(|again| again <= Instant::now());
        let changed = first.lost_since(&judged);
        if due || changed {
            sleep(GRACE).await;
            // The node may have been listed a moment later than its pods: uncertainty begins late.
            let last = endpoints.borrow().clone();
            match forget(Lost { then: first.clone(), now: last }).await {
                Ok(Outcome { forgotten, unnamed, reading }) => {
                    counts.forgotten.fetch_add(forgotten, Ordering::Relaxed);
                    log_forgotten(forgotten, unnamed, counts.unnamed.swap(unnamed, Ordering::Relaxed));
                    judged = first;
                    // And once after every change: connections may have been opened to such pods meanwhile (`RemovalGrace`).
                    again = (unnamed > 0 || changed).then(|| Instant::now() + AGAIN.max(reading * SHARE));
                }
                Err(error) => {
                    tracing::warn!(%error, "conntrack entries of lost pods not deleted; their packets may be lost, retrying");
                    sleep(RETRY).await;
                    continue;
                }
            }
        } else {
            judged = first;
        }
        let wait = again.map_or(Duration::MAX, |again| again.saturating_duration_since(Instant::now()));
        // The time is over: pods are to be probed again.
        if let Ok(Err(_)) = timeout(wait, endpoints.changed()).await {
            return;
        }
    }
}

fn log_forgotten(forgotten: u64, unnamed: u64, before: u64) {
    if forgotten > 0 {
        tracing::info!(flows = forgotten, "conntrack entries deleted: their pod is gone");
    }
    match (before, unnamed) {
        (0, 1..) => {
            tracing::info!(flows = unnamed, "flows stay with pods that no EndpointSlice lists any more and that answer")
        }
        (1.., 0) => tracing::info!("no flows are left with unlisted pods"),
        _ => {}
    }
}

/// The flows that had lost their pod then and still have none.
struct Lost {
    then: Endpoints,
    now: Endpoints,
}

impl Lost {
    fn has(&self, flow: &Flow) -> bool {
        self.then.lost(flow) && self.now.lost(flow)
    }
}

struct Outcome {
    forgotten: u64,
    /// Flows whose pod is probed again later.
    unnamed: u64,
    /// How long it took to read conntrack once.
    reading: Duration,
}

/// UDP flows at once, they do well with another pod; entries of closed connections as well. Open connections when their pod has
/// not answered.
async fn forget(lost: Lost) -> io::Result<Outcome> {
    let lost = Arc::new(lost);
    let first = lost.clone();
    let began = Instant::now();
    let (forgotten, pods) = blocking(move || {
        let mut pods = BTreeSet::new();
        let forgotten = conntrack::forget(first.now.destinations(), |flow| {
            let (lost, open) = (first.has(flow), is_open(flow));
            if lost && open && pods.len() < MAX_PROBED {
                pods.insert(flow.pod);
            }
            lost && !open
        })?;
        Ok((forgotten, pods))
    })
    .await?;
    let reading = began.elapsed();
    if pods.is_empty() {
        return Ok(Outcome { forgotten: forgotten as u64, unnamed: 0, reading });
    }
    let silent: BTreeSet<_> = stream::iter(pods)
        .map(|pod| async move { (pod, is_there(pod).await) })
        .buffer_unordered(PROBED_AT_ONCE)
        .filter_map(async |(pod, is_there)| (!is_there).then_some(pod))
        .collect()
        .await;
    let (tcp, unnamed) = blocking(move || {
        let mut unnamed = 0;
        let forgotten = conntrack::forget(lost.now.destinations(), |flow| {
            let lost = is_open(flow) && lost.has(flow);
            let gone = lost && silent.contains(&flow.pod);
            unnamed += u64::from(lost && !gone);
            gone
        })?;
        Ok((forgotten, unnamed))
    })
    .await?;
    Ok(Outcome { forgotten: (forgotten + tcp) as u64, unnamed, reading })
}

fn is_open(flow: &Flow) -> bool {
    flow.tcp.is_some() && !flow.is_closed()
}

/// A kernel with this address answers its clients itself, one way or the other.
async fn is_there((address, port): (Ipv4Addr, u16)) -> bool {
    for _ in 0..TRIES {
        let probed = Instant::now();
        if matches!(tcp_probe(address, port).await, Answer::Accepted | Answer::Refused) {
            return true;
        }
        sleep(PATIENCE.saturating_sub(probed.elapsed())).await;
    }
    false
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// An endpoint that moves between two EndpointSlices may be in neither for as long as an update of the API server takes
/// (client-go's reconciler writes them one by one).
const GRACE: Duration = Duration::from_millis(200);
const RETRY: Duration = Duration::from_secs(1);
/// Attempts before a pod counts as gone: a machine may be busy.
const TRIES: u32 = 3;
/// Pods that are probed at most, and at the same time. The flows of others wait for the next scan.
const MAX_PROBED: usize = 4096;
const PROBED_AT_ONCE: usize = 64;
/// Between two scans for pods that are no longer listed; reading takes at most this part of the time.
const AGAIN: Duration = Duration::from_secs(2);
const SHARE: u32 = 20;
