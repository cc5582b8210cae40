//! IO: /livez and /readyz on one port, /metrics on another.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use kube::Client;
use sheave_admin::metrics;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// The driver's state for the probes.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    /// Milliseconds after `started` when the driver last went round.
    beat: std::sync::atomic::AtomicU64,
    state: Mutex<Readiness>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Readiness {
    /// The kind of objects that are still to be read; `None` before the driver has begun.
    unread: Option<Option<&'static str>>,
    notes: Vec<String>,
}

impl Health {
    pub fn new(now: Instant) -> Self {
        Health { started: now, beat: Default::default(), state: Mutex::default() }
    }

    /// The driver is alive at `now`; ready once it has seen everything. `notes` are for the reader of `/readyz`.
    pub fn beat(&self, now: Instant, unread: Option<&'static str>, notes: &[String]) {
        let elapsed = now.saturating_duration_since(self.started).as_millis();
        self.beat.store(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::Relaxed);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.unread = Some(unread);
        if state.notes != notes {
            state.notes = notes.to_vec();
        }
    }

    fn readiness(&self) -> (StatusCode, String) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let notes: String = state.notes.iter().map(|note| format!("note: {note}\n")).collect();
        match state.unread {
            Some(None) => (StatusCode::OK, format!("ok\n{notes}")),
            unread => {
                let kind = unread.flatten().unwrap_or("Services");
                (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for the first full list of {kind}\n{notes}"))
            }
        }
    }

    fn is_alive(&self, now: Instant) -> bool {
        let beat = self.started + Duration::from_millis(self.beat.load(Ordering::Relaxed));
        now.saturating_duration_since(beat) < SILENCE
    }
}

/// Serves until cancelled. `client`: asks who may read the metrics, where they are open to others than this pod.
pub async fn serve(
    probes: TcpListener,
    scrapes: metrics::Server,
    client: Client,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let connections = metrics.limits_reached.with_label_values(&["admin_connections"]);
    let limit_reached = || connections.inc();
    let probed = Router::new().route("/livez", get(livez)).route("/readyz", get(readyz)).with_state(health);
    let scraped = Router::new().route("/metrics", get(scrape)).with_state(metrics);
    tokio::select! {
        () = stop.cancelled_owned() => {}
        () = sheave_admin::serve(probes, probed, limit_reached) => {}
        () = scrapes.serve(scraped, Some(client), limit_reached) => {}
    }
}

async fn livez(State(health): State<Arc<Health>>) -> (StatusCode, &'static str) {
    if health.is_alive(Instant::now()) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the main loop is stuck\n")
    }
}

/// A follower is ready as well: it is warm and may lead at any moment.
async fn readyz(State(health): State<Arc<Health>>) -> (StatusCode, String) {
    health.readiness()
}

async fn scrape(State(metrics): State<Arc<Metrics>>) -> (StatusCode, String) {
    match metrics.render() {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// A main loop that has not gone round for so long is stuck.
const SILENCE: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_what_is_missing_and_then_what_to_know() {
        let now = Instant::now();
        let health = Health::new(now);
        assert_eq!(health.readiness().0, StatusCode::SERVICE_UNAVAILABLE);
        health.beat(now, Some("SpeakerStates"), &["why".into()]);
        let (status, text) = health.readiness();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text, "waiting for the first full list of SpeakerStates\nnote: why\n");
        health.beat(now, None, &["a".into(), "b".into()]);
        assert_eq!(health.readiness(), (StatusCode::OK, "ok\nnote: a\nnote: b\n".into()));
    }
}
