//! The loop: facts and results go into the index, writes come out of it. No decision is made here.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use sheave_admin::memory;
use sheave_api::Chain;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admin::Health;
use crate::index::{Index, Observed, Planned};
use crate::lease::Leadership;
use crate::metrics::Metrics;
use crate::watch::read_all;
use crate::writer::Finished;

/// The loop's ends.
pub struct Driver {
    pub client: Client,
    pub leadership: Leadership,
    pub queue: mpsc::Sender<Planned>,
    pub finished: mpsc::Receiver<Finished>,
    pub health: Arc<Health>,
    pub metrics: Arc<Metrics>,
    /// Whether everything was read: only then this replica competes for the lead.
    pub synced: watch::Sender<bool>,
    /// What is known; nothing yet.
    pub index: Index,
}

impl Driver {
    /// Runs until stopped, then waits for the writes that are under way.
    pub async fn run(mut self, facts: impl Stream<Item = Observed>, stop: CancellationToken) {
        let mut facts = pin!(facts);
        let mut index = std::mem::take(&mut self.index);
        let mut notes = Vec::new();
        let mut term = None;
        let mut full_pass = tokio::time::interval(FULL_PASS);
        let mut read_again = tokio::time::interval(READ_AGAIN);
        let mut beat = tokio::time::interval(BEAT);
        let mut counted = Instant::now();
        let (mut look_around, mut in_doubt) = (false, false);
        let mut ready = false;
        loop {
            if ready != (index.leading && index.is_synced()) {
                ready = !ready;
                info!(deciding = ready, services = index.services.len(), granted = index.granted(), "state");
            }
            // Nothing is planned by what was read in another term.
            if self.leadership.term() == term {
                self.plan(&mut index);
            }
            // A pass that could not be planned waits for another event: the lead, or room in the queue.
            let pause = index.next_deadline().filter(|at| *at > Instant::now());
            let wake = pause.unwrap_or_else(|| Instant::now() + BEAT);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some((planned, outcome)) = self.finished.recv() => index.finished(&planned, outcome, Instant::now()),
                () = self.leadership.changed() => self.lead(&mut index, &mut term).await,
                Some(fact) = facts.next() => index.observe(fact),
                _ = full_pass.tick() => index.look_at_everything(),
                _ = read_again.tick() => if in_doubt || index.leading {
                    in_doubt = !self.refresh(&mut index).await;
                    if in_doubt {
                        read_again.reset_after(READ_RETRY);
                    }
                },
                _ = beat.tick() => look_around = true,
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            if index.take_doubt() && !std::mem::replace(&mut in_doubt, true) {
                // Several watches begin anew together, as when their API server has started anew.
                read_again.reset_after(IN_DOUBT);
            }
            let synced = index.is_synced();
            // What `/readyz` says of the reasons must not be older than its answer.
            if self.synced.send_if_modified(|known| std::mem::replace(known, synced) != synced) {
                look_around = true;
                // The lists were longer than what is kept of them.
                memory::give_back();
            }
            if std::mem::take(&mut look_around) {
                note(&mut notes, index.notes());
                self.metrics.observe_surroundings(&index);
            }
            self.health.beat(Instant::now(), index.unread(), &notes);
            // It counts all Services: with thousands of them under way once a second is enough. A status that pauses is not under way.
            if index.in_flight.is_empty() || counted.elapsed() >= BEAT {
                self.metrics.observe(&index);
                counted = Instant::now();
            }
        }
        self.drain().await;
    }

    /// Fills the queue with what follows from what is known.
    fn plan(&self, index: &mut Index) {
        while let Ok(slot) = self.queue.try_reserve() {
            match index.next_write(Instant::now(), Timestamp::now()) {
                Some(planned) => slot.send(planned),
                None => break,
            }
        }
    }

    /// A new leader reads everything as it is now before it decides anything: its watches may be behind the last leader.
    async fn lead(&mut self, index: &mut Index, term: &mut Option<i32>) {
        let now = self.leadership.term();
        self.metrics.leader.set(now.is_some().into());
        if now == *term {
            return;
        }
        // If it cannot be read, the next renewal brings us here again.
        if now.is_none() || self.refresh(index).await {
            *term = now;
            index.lead(now.is_some());
        }
    }

    /// True if everything was read.
    async fn refresh(&self, index: &mut Index) -> bool {
        match tokio::time::timeout(READ_ALL, read_all(&self.client)).await {
            Ok(Ok(facts)) => {
                facts.into_iter().for_each(|fact| index.observe(fact));
                memory::give_back();
                true
            }
            Ok(Err(error)) => {
                warn!(error = %Chain(&error), "objects not read; the full pass is incomplete");
                false
            }
            Err(_) => {
                warn!("objects not read in time; the full pass is incomplete");
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

/// Logs what is new of what an operator is to know, and what is over.
fn note(known: &mut Vec<String>, now: Vec<String>) {
    if *known == now {
        return;
    }
    now.iter().filter(|note| !known.contains(note)).for_each(|note| warn!("{note}"));
    known.iter().filter(|note| !now.contains(note)).for_each(|note| info!(note, "no longer so"));
    *known = now;
}

/// Between full passes over what we know: they find what was not marked as changed.
const FULL_PASS: Duration = Duration::from_secs(60);
/// Between full readings of a leader: heals whatever we do not know. A thousand Services take some tenths of a second.
const READ_AGAIN: Duration = Duration::from_secs(600);
/// From the first doubt until everything is read.
const IN_DOUBT: Duration = Duration::from_millis(300);
/// After a reading that failed.
const READ_RETRY: Duration = Duration::from_secs(5);
const BEAT: Duration = Duration::from_secs(1);
/// The longest that reading everything may take.
const READ_ALL: Duration = Duration::from_secs(10);
