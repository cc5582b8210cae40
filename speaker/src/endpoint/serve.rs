//! The status of the endpoint over HTTP: on the local socket as JSON, with drains and events; on a port of its own as a page. Each is made
//! of the same value.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use sheave_api::local::{MAX_REQUEST, Refused as Refusal};
use sheave_endpoint::local::{DRAIN, DrainRequest, EVENTS, EventsQuery, MAX_WAIT, STATUS};
use sheave_endpoint::status::events::Events;
use sheave_endpoint::status::{Peer, Status, Traffic, metrics, page};
use speaker_core::health::drains::{Refused, Wish};
use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::info;

use super::board::Surroundings;
use super::desk::{Clerk, NotDrained};
use crate::health::HealthFlags;
use crate::io::clock;
use crate::local_drain::LocalDrains;
use crate::metrics::Metrics;

/// Between two looks at the peers.
const PEERS: Duration = Duration::from_secs(1);
/// No script, nothing from elsewhere, in no frame; and no copy of an old state.
const HEADERS: [(&str, &str); 4] = [
    ("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-store"),
];

/// What the handlers read and change.
#[derive(Clone)]
pub struct Office {
    pub clerk: Clerk,
    pub health: Arc<HealthFlags>,
    pub metrics: Arc<Metrics>,
    pub drains: LocalDrains,
}

impl Office {
    pub fn status(&self) -> Status {
        let mut notes: Vec<String> = self.health.notes().iter().map(|note| note.label().to_owned()).collect();
        if let Some(drain) = self.drains.current() {
            let reason = drain.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            notes.push(format!("this node owns addresses only while no other can, by {}{reason}", drain.by));
        }
        let surroundings = Surroundings {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            not_ready: self.health.not_ready().iter().map(|cause| cause.label().to_owned()).collect(),
            notes,
            traffic: self.traffic(),
        };
        self.clerk.board.status(surroundings, now())
    }

    /// For the metrics port.
    pub fn metrics(&self) -> String {
        metrics(&self.status())
    }

    /// By port of the addresses; none where the kernel's counters cannot be read.
    fn traffic(&self) -> BTreeMap<u16, Traffic> {
        let counted = self.metrics.traffic_in(crate::source::ENDPOINT).unwrap_or_default();
        let port = |name: &str| name.strip_prefix("port-")?.parse::<u16>().ok();
        let mut traffic: BTreeMap<u16, Traffic> = BTreeMap::new();
        for (name, counters) in counted {
            let Some(port) = port(&name) else { continue };
            let of_port = traffic.entry(port).or_default();
            of_port.connections += counters.new_flows;
            of_port.packets += counters.packets;
            of_port.bytes += counters.bytes;
            of_port.resets += counters.resets;
        }
        traffic
    }

    /// What the election knows of the peers becomes known here.
    pub async fn watch_peers(self) {
        let mut ticks = interval(PEERS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let peers = self.health.peers().into_iter().map(|peer| Peer {
                node: peer.node.as_str().to_owned(),
                alive: peer.alive && !peer.vouched,
                lost: peer.loss.missing,
                of: peer.loss.of,
            });
            self.clerk.board.peers(peers.collect(), now());
        }
    }

    /// For root on this node.
    pub fn local(self) -> Router {
        Router::new()
            .route(STATUS, get(status))
            .route(EVENTS, get(events))
            .route(DRAIN, put(drain))
            .layer(DefaultBodyLimit::max(MAX_REQUEST))
            .with_state(self)
    }

    /// Serves the page to everybody who reaches it, for as long as it is polled.
    pub async fn serve_page(self, listener: TcpListener) {
        let connections = self.metrics.limits_reached.with_label_values(&["admin_connections"]);
        let router = Router::new()
            .route("/", get(html))
            .route("/status.json", get(status))
            .route("/events.json", get(events))
            .with_state(self);
        sheave_admin::serve(listener, router, || connections.inc()).await;
    }
}

/// Binds at once, so that an address in use is reported before anything else starts.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    crate::admin::bind("--status-listen", address).await
}

async fn html(State(office): State<Office>) -> Response {
    (HEADERS, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], page(&office.status())).into_response()
}

async fn status(State(office): State<Office>) -> Response {
    json(StatusCode::OK, &office.status())
}

/// At once if there are any, else as soon as there are, or when the wait is over.
async fn events(State(office): State<Office>, RawQuery(query): RawQuery) -> Response {
    let EventsQuery { run, after, wait } = match query.as_deref().unwrap_or_default().parse() {
        Ok(query) => query,
        Err(error) => return refused(StatusCode::BAD_REQUEST, error),
    };
    let board = &office.clerk.board;
    let mut newest = board.newest();
    let mut found: Events = board.events(run, after);
    let wait = Duration::from_secs(wait.min(MAX_WAIT));
    if found.events.is_empty() && !wait.is_zero() && timeout(wait, newest.changed()).await.is_ok() {
        found = board.events(run, after);
    }
    json(StatusCode::OK, &found)
}

async fn drain(State(office): State<Office>, body: Bytes) -> Response {
    let DrainRequest { member, drained, force } = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return refused(StatusCode::BAD_REQUEST, format!("the request: {error}")),
    };
    let board = &office.clerk.board;
    let no_member = || {
        let names = board.names().join(", ");
        refused(StatusCode::NOT_FOUND, format!("member: {member:?} is none; the file of this node has {names}"))
    };
    let Some(address) = board.address_of(&member) else { return no_member() };
    let wish = match (drained, force) {
        (false, _) => Wish::Serve,
        (true, false) => Wish::Drain,
        (true, true) => Wish::DrainByForce,
    };
    match office.clerk.drain(address, wish).await {
        Ok(()) => {
            info!(%member, drained, force, "drain of a member by the local socket");
            json(StatusCode::OK, &office.status())
        }
        Err(NotDrained::Refused(Refused::LastMember { port })) => {
            let error = format!(
                "{member} is the last member that gets new connections on port {port}: clients would be refused \
                 (--force drains it nevertheless)"
            );
            refused(StatusCode::CONFLICT, error)
        }
        Err(NotDrained::Refused(Refused::NoMember)) => {
            refused(StatusCode::SERVICE_UNAVAILABLE, "the packet path does not know the members yet".to_owned())
        }
        Err(NotDrained::Refused(Refused::TooMany)) => {
            let error = "drains of machines that are no members any more take the room until this speaker restarts";
            refused(StatusCode::CONFLICT, error.to_owned())
        }
        Err(NotDrained::Failed(error)) => {
            refused(StatusCode::INTERNAL_SERVER_ERROR, format!("nothing was changed: {error:#}"))
        }
    }
}

fn refused(status: StatusCode, error: String) -> Response {
    json(status, &Refusal { error })
}

fn json(status: StatusCode, object: &impl Serialize) -> Response {
    match serde_json::to_vec(object) {
        Ok(body) => (status, HEADERS, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// To the millisecond.
pub fn now() -> Timestamp {
    let now = clock::timestamp();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}
