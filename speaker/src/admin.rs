//! Readiness, liveness and metrics over HTTP on the node's address.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::health::{Cause, HealthFlags};
use crate::metrics::Metrics;

/// Prometheus text exposition format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the handlers read.
#[derive(Clone)]
pub struct Admin {
    pub health: Arc<HealthFlags>,
    pub metrics: Arc<Metrics>,
}

/// Binds at once, so that an address in use is reported before anything else starts.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on {address} (--admin-listen)"))
}

/// Serves for as long as it is polled.
pub async fn serve(listener: TcpListener, admin: Admin) {
    let connections = admin.metrics.limits_reached.with_label_values(&["admin_connections"]);
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(admin);
    sheave_admin::serve(listener, router, || connections.inc()).await;
}

/// Alive: the election loop turns.
async fn livez(State(admin): State<Admin>) -> impl IntoResponse {
    verdict(admin.health.not_alive(), vec![])
}

/// Ready: has keys, is attached, synchronized, and has joined the election.
async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    verdict(admin.health.not_ready(), admin.health.notes())
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    match admin.metrics.render(&admin.health) {
        Ok(text) => (StatusCode::OK, [("content-type", METRICS_TYPE)], text),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [("content-type", "text/plain; charset=utf-8")],
            format!("{error:#}\n").into_bytes(),
        ),
    }
}

/// Every cause against it on a line, or "ok"; then what is worth knowing anyway.
fn verdict(causes: Vec<Cause>, notes: Vec<Cause>) -> (StatusCode, String) {
    let (status, mut lines) = match causes.is_empty() {
        true => (StatusCode::OK, vec!["ok".to_owned()]),
        false => (StatusCode::SERVICE_UNAVAILABLE, causes.iter().map(|cause| cause.label().to_owned()).collect()),
    };
    lines.extend(notes.into_iter().filter(|note| !causes.contains(note)).map(|note| format!("note: {}", note.label())));
    (status, lines.join("\n") + "\n")
}
