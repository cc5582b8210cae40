//! The loop: facts and results go into the index, writes come out of it. No decision is made here.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admin::Health;
use crate::index::{Index, Observed, Planned};
use crate::keys;
use crate::lease::Leadership;
use crate::metrics::Metrics;
use crate::watch::read_all;
use crate::writer::Finished;

/// The loop's ends.
pub struct Driver {
    pub client: Client,
    pub namespace: String,
    pub leadership: Leadership,
    pub queue: mpsc::Sender<Planned>,
    pub finished: mpsc::Receiver<Finished>,
    pub health: Arc<Health>,
    pub metrics: Arc<Metrics>,
}

impl Driver {
    /// Runs until stopped, then waits for the writes that are under way.
    pub async fn run(mut self, facts: impl Stream<Item = Observed>, stop: CancellationToken) {
        let mut facts = pin!(facts);
        let mut index = Index::default();
        let mut full_pass = tokio::time::interval(FULL_PASS);
        let mut beat = tokio::time::interval(BEAT);
        let mut ready = false;
        loop {
            if ready != (index.leading && index.is_synced()) {
                ready = !ready;
                info!(deciding = ready, services = index.services.len(), granted = index.granted(), "state");
            }
            self.plan(&mut index);
            let wake = index.next_deadline().unwrap_or_else(|| Instant::now() + BEAT).max(Instant::now());
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some((planned, outcome)) = self.finished.recv() => index.finished(&planned, outcome, Instant::now()),
                () = self.leadership.changed() => self.lead(&mut index).await,
                Some(fact) = facts.next() => index.observe(fact),
                _ = full_pass.tick() => self.full_pass(&mut index).await,
                _ = beat.tick() => {}
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            self.health.beat(Instant::now(), index.is_synced());
            self.metrics.observe(&index);
        }
        self.drain().await;
    }

    /// Fills the queue with what follows from what is known.
    fn plan(&self, index: &mut Index) {
        if index.leading && !self.leadership.leads() {
            return;
        }
        while let Ok(slot) = self.queue.try_reserve() {
            match index.next_write(Instant::now(), Timestamp::now()) {
                Some(planned) => slot.send(planned),
                None => break,
            }
        }
    }

    /// A new leader reads everything as it is now before it decides anything: its watches may be behind the last leader.
    async fn lead(&mut self, index: &mut Index) {
        let leads = self.leadership.leads();
        self.metrics.leader.set(leads.into());
        if leads == index.leading {
            return;
        }
        if leads {
            if !self.refresh(index).await {
                // Try again with the next renewal.
                return;
            }
            if let Err(error) = keys::ensure(&self.client, &self.namespace).await {
                warn!(%error, "no keys for the speakers yet, trying again");
            }
        }
        index.lead(leads);
    }

    async fn full_pass(&mut self, index: &mut Index) {
        if !index.leading {
            return;
        }
        self.refresh(index).await;
        if let Err(error) = keys::ensure(&self.client, &self.namespace).await {
            warn!(%error, "no keys for the speakers yet, trying again");
        }
        index.look_at_everything();
    }

    /// True if everything was read.
    async fn refresh(&self, index: &mut Index) -> bool {
        match tokio::time::timeout(READ_ALL, read_all(&self.client)).await {
            Ok(Ok(facts)) => {
                facts.into_iter().for_each(|fact| index.observe(fact));
                true
            }
            Ok(Err(error)) => {
                warn!(%error, "not everything could be read");
                false
            }
            Err(_) => {
                warn!("not everything could be read in time");
                false
            }
        }
    }

    /// No more writes; those under way get their answers.
    async fn drain(self) {
        let Driver { queue, mut finished, .. } = self;
        drop(queue);
        while finished.recv().await.is_some() {}
    }
}

/// Between full passes, which heal what a lost fact could have left undone.
const FULL_PASS: Duration = Duration::from_secs(60);
const BEAT: Duration = Duration::from_secs(1);
/// For reading everything; five thousand Services take about a second.
const READ_ALL: Duration = Duration::from_secs(10);
