//! Readiness and liveness over HTTP on one port, metrics on another.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use kube::Client;
use sheave_admin::metrics;
use tokio::net::TcpListener;

use crate::endpoint::serve::Office;
use crate::health::{Cause, HealthFlags};
use crate::metrics::Metrics;

/// Prometheus text exposition format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the handlers read.
#[derive(Clone)]
pub struct Admin {
    pub health: Arc<HealthFlags>,
    pub metrics: Arc<Metrics>,
    /// Of an endpoint.
    pub office: Option<Office>,
}

/// Binds at once, so that an address in use is reported before anything else starts.
pub async fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{flag}: cannot listen on {address}"))
}

/// Ends only with an error. `client`: asks who may read the metrics, where they are open to others than this node; without one none may.
pub async fn serve(probes: TcpListener, scrapes: metrics::Server, client: Option<Client>, admin: Admin) -> Result<()> {
    let connections = admin.metrics.limits_reached.with_label_values(&["admin_connections"]);
    let limit_reached = || connections.inc();
    let probed = Router::new().route("/livez", get(livez)).route("/readyz", get(readyz)).with_state(admin.clone());
    let scraped = Router::new().route("/metrics", get(scrape)).with_state(admin);
    tokio::select! {
        () = sheave_admin::serve(probes, probed, limit_reached) => bail!("the probes' server ended"),
        () = scrapes.serve(scraped, client, limit_reached) => bail!("the metrics' server ended"),
    }
}

/// Alive: the election loop turns.
async fn livez(State(admin): State<Admin>) -> impl IntoResponse {
    verdict(admin.health.not_alive(), vec![])
}

/// Ready: has keys, is attached, synchronized, and has joined the election.
async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    verdict(admin.health.not_ready(), admin.health.notes())
}

async fn scrape(State(admin): State<Admin>) -> impl IntoResponse {
    match admin.metrics.render(&admin.health) {
        Ok(mut text) => {
            text.extend(admin.office.iter().flat_map(|office| office.metrics().into_bytes()));
            (StatusCode::OK, [("content-type", METRICS_TYPE)], text)
        }
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
