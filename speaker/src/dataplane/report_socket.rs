//! Flow reports on the network: the machine of `speaker_core::reports` on its socket.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use speaker_core::machine::Machine as _;
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
        Ok(Self { exchange, socket, metrics })
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
        let (sent, others): (Vec<_>, Vec<_>) =
            actions.into_iter().partition(|action| matches!(action, Action::Send(_)));
        for action in sent {
            if let Action::Send(datagram) = action
                && let Err(error) = self.socket.get_ref().send(&datagram)
            {
                let failed = self.metrics.send_errors.with_label_values(&["reports"]);
                if failed.get() == 0 {
                    warn!(%error, "flow report not sent; further failures are only counted (sheave_send_errors_total)");
                }
                failed.inc();
            }
        }
        Ok(others)
    }

    fn receive(&mut self, actions: &mut Vec<Action>) -> io::Result<()> {
        let mut buffer = [0; RECEIVE_BUFFER];
        for _ in 0..MAX_PER_TURN {
            let Some(received) = self.socket.get_ref().receive(&mut buffer)? else { return Ok(()) };
            // RFC 5082: what crossed a router is not from this segment.
            if received.ttl != 255 {
                self.metrics.adverts_rejected.with_label_values(&["ttl"]).inc();
                continue;
            }
            self.exchange.handle(Event::Datagram(received.bytes.to_vec()), clock::now(), actions);
        }
        Ok(())
    }
}
