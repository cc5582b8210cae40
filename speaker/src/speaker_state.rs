//! Keeps this node's SpeakerState in the API as the node is: a task of its own, which nothing waits for.
//!
//! Read: `survey` (what is read of the host) → `content` (pure: what the object says) → `object` (the API server). It looks once a second,
//! so that a second's changes are one write, and writes only what differs. An API server that is away costs a retry.

mod content;
mod object;
mod survey;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use sheave_api::SpeakerStateStatus;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::apiserver::ApiServer;
use crate::backoff::Backoff;
use crate::health::HealthFlags;
use crate::metrics::Metrics;
use content::Facts;
use object::{Failure, Object};
use survey::HostFacts;

pub use survey::Survey;

/// Between two looks, and so between two writes.
const PACE: Duration = Duration::from_secs(1);
/// Between two surveys of the host: flags need none.
const SURVEY: Duration = Duration::from_secs(10);
/// Between two readings of the object when nothing is to be written: it goes with its Node, and may be there again.
const REREAD: Duration = Duration::from_secs(60);

/// Runs as long as the process.
pub async fn run(server: ApiServer, node: String, mut survey: Survey, health: Arc<HealthFlags>, metrics: Arc<Metrics>) {
    let mut writer = Writer::new(Object::new(server, node), metrics.clone());
    let mut host = HostFacts::default();
    let mut surveyed: Option<Instant> = None;
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        if surveyed.is_none_or(|at| now - at >= SURVEY) {
            host = survey.read().await;
            surveyed = Some(now);
        }
        let facts = Facts {
            host: &host,
            attached: health.attached.load(Ordering::Relaxed),
            not_ready: health.not_ready(),
            notes: health.notes(),
            limits: metrics.names_of_limits_reached(),
        };
        writer.look(&facts).await;
    }
}

/// What is known of the object, and when it is asked for again.
struct Writer {
    object: Object,
    metrics: Arc<Metrics>,
    /// As the API server has it; `None`: not read yet, or a write failed, after which anything may be there.
    known: Option<SpeakerStateStatus>,
    read: Instant,
    backoff: Backoff,
    /// Not before.
    retry: Instant,
    /// The failure that was logged.
    failing: Option<&'static str>,
}

impl Writer {
    fn new(object: Object, metrics: Arc<Metrics>) -> Self {
        let now = Instant::now();
        Self { object, metrics, known: None, read: now, backoff: Backoff::default(), retry: now, failing: None }
    }

    async fn look(&mut self, facts: &Facts<'_>) {
        if Instant::now() < self.retry {
            return;
        }
        match self.follow(facts).await {
            Ok(()) => {
                self.backoff.succeeded();
                if let Some(reason) = self.failing.take() {
                    info!(reason, "SpeakerState up to date again");
                }
            }
            Err(failure) => {
                self.known = None;
                self.retry = Instant::now() + self.backoff.failed();
                let reason = failure.label();
                self.metrics.speaker_state_errors.with_label_values(&[reason]).inc();
                if self.failing.replace(reason) != Some(reason) {
                    warn!(reason, error = %failure, "SpeakerState not written; retrying");
                }
            }
        }
    }

    async fn follow(&mut self, facts: &Facts<'_>) -> Result<(), Failure> {
        let known = match self.known.take().filter(|_| self.read.elapsed() < REREAD) {
            Some(known) => known,
            None => {
                let found = self.object.read().await?;
                self.read = Instant::now();
                found
            }
        };
        let wanted = content::status(facts, &known.conditions, Timestamp::now());
        if wanted != known {
            self.object.write(&wanted).await?;
            self.metrics.speaker_state_writes.inc();
            debug!("SpeakerState written");
        }
        self.known = Some(wanted);
        Ok(())
    }
}
