//! Looks over the node's subnet for `sheave init`: which addresses hosts answer for, and which DHCP servers there are. One request at a
//! time, by this node's SubnetScan; unlike the controller, a person waits for the answer, so a request that cannot be carried out is
//! answered with the cause.
//!
//! Read: `speaker_core::probe` and `speaker_core::dhcp` (pure) → `session` (the ARP socket) → [`crate::io::dhcp`].

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sheave_api::subnetscan::most;
use sheave_api::{DhcpServer, SubnetScan, SubnetScanStatus};
use speaker_core::dhcp::{Action, Discovery, Event, Offer};
use speaker_core::machine::Machine;
use speaker_core::probe::Report;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::Asked;
use super::object::{self, Object, Request};
use super::session::{Failure, Session};
use crate::apiserver::ApiServer;
use crate::io::dhcp::DhcpSocket;
use crate::io::{Mac, clock, random};
use crate::metrics::Metrics;

/// A request that waits; a newer one of the same object replaces it.
const MAX_REQUESTS: usize = 2;
/// For all probes of a request: 128 addresses take a quarter of a second.
const PROBES: Duration = Duration::from_secs(5);

/// What a person asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    probes: Asked,
    dhcp: bool,
}

impl Request for SubnetScan {
    type Asked = Wanted;

    fn round(&self) -> i64 {
        self.spec.round
    }

    fn answered(&self) -> i64 {
        self.status.as_ref().map_or(0, |status| status.observed_round)
    }

    fn asked(&self) -> Wanted {
        let addresses = object::addresses::<Self>(&self.spec.addresses, most::ADDRESSES);
        Wanted { probes: Asked { round: self.spec.round, addresses }, dhcp: self.spec.dhcp }
    }
}

/// Runs as long as the process. `uplink`: its name, if it was given, and the node's address.
pub async fn run(server: ApiServer, node: String, uplink: (Option<String>, Ipv4Addr), metrics: Arc<Metrics>) {
    let (requests, mut wanted) = mpsc::channel(MAX_REQUESTS);
    let (answers, answered) = watch::channel(None);
    tokio::spawn(object::follow::<SubnetScan>(server.clone(), node.clone(), requests));
    tokio::spawn(Object::<SubnetScan>::new(server, node, metrics.clone()).answer(answered));
    let mut session = Session::new(uplink.0, uplink.1, metrics.address_probes.clone());
    while let Some(request) = wanted.recv().await {
        info!(
            addresses = request.probes.addresses.len(),
            dhcp = request.dhcp,
            "looking over the subnet for sheave init"
        );
        let (status, error) = look(&mut session, request).await;
        if let Some((reason, error)) = error {
            metrics.address_probe_errors.with_label_values(&[reason]).inc();
            warn!(reason, error = format!("{error:#}"), "subnet not looked over, or in part; the SubnetScan says so");
        }
        answers.send_replace(Some(status));
    }
}

/// The status, and what failed.
async fn look(
    session: &mut Session,
    Wanted { probes, dhcp }: Wanted,
) -> (Value, Option<(&'static str, anyhow::Error)>) {
    let mut status = SubnetScanStatus { observed_round: probes.round, ..SubnetScanStatus::default() };
    // The request opens the uplink; the search for servers goes by what it found.
    let report = timeout(PROBES, report(session, probes)).await.unwrap_or(Err(Failure::Timeout));
    let mut failed = None;
    match report {
        Ok(report) => {
            status.results = object::results(&report, most::ADDRESSES);
            status.proxies = object::texts(&mut report.proxies.iter(), sheave_api::addressprobe::most::MACS);
        }
        Err(error) => {
            session.fail();
            failed = Some((error.label(), error.into()));
        }
    }
    if dhcp && failed.is_none() {
        match session.device().await {
            Ok((index, mac)) => match discover(index, mac).await {
                Ok(found) => status.dhcp_servers = servers(&found),
                Err(error) => failed = Some(("dhcp_socket", error.into())),
            },
            Err(error) => failed = Some((error.label(), error.into())),
        }
    }
    status.problem = failed.as_ref().map(|(reason, _)| (*reason).to_owned());
    (json!(status), failed)
}

async fn report(session: &mut Session, probes: Asked) -> Result<Report, Failure> {
    let mut report = session.request(probes).await?;
    loop {
        if let Some(report) = report {
            return Ok(report);
        }
        session.due().await?;
        report = session.turn()?;
    }
}

fn servers(found: &BTreeMap<Ipv4Addr, Offer>) -> Vec<DhcpServer> {
    let one = |(server, offer): (&Ipv4Addr, &Offer)| DhcpServer {
        server: server.to_string(),
        mac: Mac(offer.from).to_string(),
        offered: offer.offered.to_string(),
    };
    found.iter().map(one).take(most::SERVERS).collect()
}

/// DHCP servers of the segment, each with what it offers. Takes 4 s.
async fn discover(index: u32, mac: Mac) -> io::Result<BTreeMap<Ipv4Addr, Offer>> {
    let socket = DhcpSocket::open(index, mac)?;
    // SAFETY: the socket keeps its descriptor for as long as it lives.
    let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)?;
    let mut discovery = Discovery::default();
    let mut event = Event::Start { own: mac.0, seed: random::seed()? };
    loop {
        let mut actions = Vec::new();
        discovery.handle(event, clock::now(), &mut actions);
        for action in actions {
            match action {
                Action::Send(message) => socket.get_ref().send(&message)?,
                Action::Found(found) => return Ok(found),
            }
        }
        event = match socket.get_ref().receive()? {
            // Also while a flood of messages comes, its time does, and that of other tasks.
            Some(datagram) => {
                tokio::task::yield_now().await;
                Event::Message { message: datagram.message, from: datagram.from.0 }
            }
            None => {
                let due = discovery.next_deadline().map_or(Duration::ZERO, |due| due.since(clock::now()));
                tokio::select! {
                    readable = socket.readable() => readable?.clear_ready(),
                    () = sleep(due) => {}
                }
                Event::Tick
            }
        };
    }
}

#[cfg(test)]
mod tests;
