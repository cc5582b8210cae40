//! Flow reports on the network: the machine of `speaker_core::reports` on its socket.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use speaker_core::machine::Machine as _;
use speaker_core::name::NodeName;
use speaker_core::reports::exchange::{Action, Event, Exchange};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use crate::io::clock;
use crate::io::udp::{MulticastSocket, RECEIVE_BUFFER};
use crate::metrics::Metrics;

pub struct ReportSocket {
    pub exchange: Exchange,
    socket: AsyncFd<MulticastSocket>,
    /// Of the other nodes.
    addresses: BTreeMap<NodeName, Ipv4Addr>,
    metrics: Arc<Metrics>,
}

/// Datagrams taken in one turn.
const MAX_PER_TURN: usize = 256;
/// A machine without a deadline gets a turn after this time.
const IDLE: Duration = Duration::from_secs(1);

impl ReportSocket {
    /// In the runtime of the thread that will use it.
    pub fn new(exchange: Exchange, socket: MulticastSocket, metrics: Arc<Metrics>) -> io::Result<Self> {
        // SAFETY: the socket keeps its descriptor for as long as it lives.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { exchange, socket, addresses: BTreeMap::new(), metrics })
    }

    /// Other nodes: where reports go by unicast, and whose unicast is received.
    pub fn set_addresses(&mut self, addresses: BTreeMap<NodeName, Ipv4Addr>) {
        if let Err(error) = self.socket.get_ref().set_peers(&addresses.values().copied().collect()) {
            self.failed("report_filter", &error);
        }
        self.addresses = addresses;
    }

    /// Returns when something waits on the socket, or the machine's time has come.
    pub async fn due(&self) -> io::Result<()> {
        let deadline = self.exchange.next_deadline().map_or(IDLE, |deadline| deadline.since(clock::now()));
        tokio::select! {
            readable = self.socket.readable() => readable?.clear_ready(),
            () = tokio::time::sleep(deadline) => {}
        }
        Ok(())
    }

    /// Takes an event and what waits on the socket; sends what is to be sent and returns the other actions.
    pub fn turn(&mut self, event: Option<Event>) -> io::Result<Vec<Action>> {
        let mut actions = Vec::new();
        let now = clock::now();
        if let Some(event) = event {
            self.exchange.handle(event, now, &mut actions);
        }
        self.receive(&mut actions)?;
        if self.exchange.next_deadline().is_some_and(|due| due <= now) {
            self.exchange.handle(Event::Tick, now, &mut actions);
        }
        let mut others = Vec::new();
        for action in actions {
            let (kind, sent) = match &action {
                Action::Send(datagram) => ("reports", self.socket.get_ref().send(datagram)),
                Action::SendTo(node, datagram) => match self.addresses.get(node) {
                    Some(address) => ("unicast_reports", self.socket.get_ref().send_to(datagram, *address)),
                    None => continue,
                },
                _ => {
                    others.push(action);
                    continue;
                }
            };
            if let Err(error) = sent {
                self.failed(kind, &error);
            }
        }
        Ok(others)
    }

    fn failed(&self, kind: &str, error: &io::Error) {
        let failed = self.metrics.send_errors.with_label_values(&[kind]);
        if failed.get() == 0 {
            warn!(kind, %error, "socket operation of flow reports failed; further failures are only counted (sheave_send_errors_total)");
        }
        failed.inc();
    }

    fn receive(&mut self, actions: &mut Vec<Action>) -> io::Result<()> {
        let mut buffer = [0; RECEIVE_BUFFER];
        for _ in 0..MAX_PER_TURN {
            let Some(received) = self.socket.get_ref().receive(&mut buffer)? else { return Ok(()) };
            // RFC 5082: what crossed a router is not from this segment.
            if received.ttl != 255 {
                self.metrics.count_rejected("ttl", "flow report");
                continue;
            }
            let event = Event::Datagram { bytes: received.bytes.to_vec(), multicast: received.multicast };
            self.exchange.handle(event, clock::now(), actions);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
