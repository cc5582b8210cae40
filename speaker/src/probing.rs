//! Probes addresses that Services may get, on request: a task of its own, which nothing waits for.
//!
//! Read: `object` (this node's AddressProbe: the request, and the answer) → `speaker_core::probe` (pure: which probe when, what was found)
//! → `session` (the socket, open while a request is under way). A request that cannot be carried out stays unanswered: the controller
//! takes silence of a speaker for nothing known, never for a free address. `scan` does the same for `sheave init`, and looks for DHCP
//! servers.

mod object;
mod scan;
mod session;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::warn;

use crate::apiserver::ApiServer;
use crate::args::RunArgs;
use crate::metrics::Metrics;
use object::Object;
use session::Session;
use sheave_api::AddressProbe;

/// Requests that wait; the newest one replaces the others.
const MAX_REQUESTS: usize = 8;
/// For an answer of the kernel.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the controller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub round: i64,
    pub addresses: Vec<Ipv4Addr>,
}

/// Runs as long as the process.
pub async fn run(server: ApiServer, args: RunArgs, metrics: Arc<Metrics>) {
    let RunArgs { node_name, interface, node_ip, .. } = args;
    let (requests, mut asked) = mpsc::channel(MAX_REQUESTS);
    let (reports, reported) = watch::channel(None);
    tokio::spawn(scan::run(server.clone(), node_name.clone(), (interface.clone(), node_ip), metrics.clone()));
    tokio::spawn(object::follow::<AddressProbe>(server.clone(), node_name.clone(), requests));
    tokio::spawn(Object::<AddressProbe>::new(server, node_name, metrics.clone()).answer(reported));
    let mut session = Session::new(interface, node_ip, metrics.address_probes.clone());
    let mut failing = None;
    loop {
        let result = tokio::select! {
            request = asked.recv() => match request {
                Some(request) => match timeout(PATIENCE, session.request(request)).await {
                    Ok(result) => result,
                    Err(_) => Err(session::Failure::Timeout),
                },
                // The watch ends only with the process.
                None => return,
            },
            due = session.due() => due.and_then(|()| session.turn()),
        };
        match result {
            Ok(Some(report)) => {
                failing = None;
                reports.send_replace(Some(object::answer(&report)));
            }
            Ok(None) => {}
            Err(error) => {
                session.fail();
                let reason = error.label();
                metrics.address_probe_errors.with_label_values(&[reason]).inc();
                if failing.replace(reason) != Some(reason) {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    warn!(reason, error, "addresses not probed; the controller's request stays unanswered");
                }
            }
        }
    }
}
