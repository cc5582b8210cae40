//! IO: /livez, /readyz and /metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// The driver's state for the probes.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    /// Milliseconds after `started` when the driver last went round.
    beat: std::sync::atomic::AtomicU64,
    ready: AtomicBool,
}

impl Health {
    pub fn new(now: Instant) -> Self {
        Health { started: now, beat: Default::default(), ready: AtomicBool::new(false) }
    }

    /// The driver is alive at `now`; ready once it has seen everything.
    pub fn beat(&self, now: Instant, ready: bool) {
        let elapsed = now.saturating_duration_since(self.started).as_millis();
        self.beat.store(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.ready.store(ready, Ordering::Relaxed);
    }

    fn is_alive(&self, now: Instant) -> bool {
        let beat = self.started + Duration::from_millis(self.beat.load(Ordering::Relaxed));
        now.saturating_duration_since(beat) < SILENCE
    }
}

#[derive(Clone)]
struct Admin {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

/// Serves until cancelled.
pub async fn serve(listener: TcpListener, health: Arc<Health>, metrics: Arc<Metrics>, stop: CancellationToken) {
    let connections = metrics.limits_reached.with_label_values(&["admin_connections"]);
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(Admin { health, metrics });
    tokio::select! {
        () = stop.cancelled_owned() => {}
        () = sheave_admin::serve(listener, router, || connections.inc()) => {}
    }
}

async fn livez(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    if admin.health.is_alive(Instant::now()) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the main loop is stuck\n")
    }
}

/// A follower is ready as well: it is warm and may lead at any moment.
async fn readyz(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    if admin.health.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "waiting for the first full list of Services, AddressPools and VirtualIPs\n")
    }
}

async fn scrape(State(admin): State<Admin>) -> (StatusCode, String) {
    match admin.metrics.render() {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// A main loop that has not gone round for so long is stuck.
const SILENCE: Duration = Duration::from_secs(20);
