//! The machine and its socket. The socket is open only while a request is under way: at rest no frame of the segment wakes this task.

use std::net::Ipv4Addr;
use std::{future, io};

use prometheus::IntCounter;
use speaker_core::machine::Machine;
use speaker_core::probe::{Action, Around, Event, Prober, Report, Request};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use super::Asked;
use crate::io::arp::{ArpSocket, Frame};
use crate::io::netlink::{Reader, UplinkDevice};
use crate::io::{Mac, clock, random};

pub struct Session {
    interface: Option<String>,
    node_ip: Ipv4Addr,
    reader: Option<Reader>,
    /// With the uplink that it was opened for.
    socket: Option<(AsyncFd<ArpSocket>, u32, Mac)>,
    prober: Prober,
    /// Probes that were sent.
    sent: IntCounter,
}

/// Why addresses were not probed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("links and addresses not read")]
    Uplink(#[source] anyhow::Error),
    #[error("there is no uplink, or it has no Ethernet address")]
    NoUplink,
    #[error("the uplink has no carrier")]
    NoCarrier,
    #[error("ARP socket")]
    Socket(#[from] io::Error),
    #[error("no answer of the kernel in time")]
    Timeout,
}

impl Failure {
    /// Metric label and log field.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Uplink(_) => "uplink_not_read",
            Self::NoUplink => "no_uplink",
            Self::NoCarrier => "no_carrier",
            Self::Socket(_) => "socket",
            Self::Timeout => "timeout",
        }
    }
}

/// Frames taken in one turn.
const MAX_PER_TURN: usize = 256;

impl Session {
    /// `interface`: the uplink, if it was named.
    pub fn new(interface: Option<String>, node_ip: Ipv4Addr, sent: IntCounter) -> Self {
        Self { interface, node_ip, reader: None, socket: None, prober: Prober::default(), sent }
    }

    /// Begins with a request; a report, if everything was probed a moment ago.
    pub async fn request(&mut self, asked: Asked) -> Result<Option<Report>, Failure> {
        let uplink = self.uplink().await?;
        let mac = uplink.mac.ok_or(Failure::NoUplink)?;
        // What is sent into a cut cable gets no answer: that says nothing of an address.
        if !uplink.carrier {
            return Err(Failure::NoCarrier);
        }
        if self.socket.as_ref().is_none_or(|(_, index, known)| (*index, *known) != (uplink.index, mac)) {
            let socket = ArpSocket::open(uplink.index, mac)?;
            // SAFETY: the socket keeps its descriptor for as long as it lives.
            let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
            self.socket = Some((socket.map_err(io::Error::from)?, uplink.index, mac));
        }
        let around = Around { own: uplink.addresses, subnets: uplink.subnets, gateways: uplink.gateways };
        let request = Request { round: asked.round, addresses: asked.addresses, around, seed: random::seed()? };
        self.handle(Some(Event::Request(request)))
    }

    /// Returns when something waits on the socket, or the machine's time has come; never while nothing is under way.
    pub async fn due(&self) -> Result<(), Failure> {
        let (Some((socket, ..)), Some(deadline)) = (&self.socket, self.prober.next_deadline()) else {
            return future::pending().await;
        };
        tokio::select! {
            readable = socket.readable() => readable?.clear_ready(),
            () = sleep(deadline.since(clock::now())) => {}
        }
        Ok(())
    }

    /// Takes what waits on the socket, and sends what is due.
    pub fn turn(&mut self) -> Result<Option<Report>, Failure> {
        self.handle(None)
    }

    /// What is under way stays unanswered.
    pub fn fail(&mut self) {
        self.prober.fail();
        (self.socket, self.reader) = (None, None);
    }

    fn handle(&mut self, event: Option<Event>) -> Result<Option<Report>, Failure> {
        let mut actions = Vec::new();
        self.receive(&mut actions)?;
        let now = clock::now();
        if let Some(event) = event {
            self.prober.handle(event, now, &mut actions);
        }
        if self.prober.next_deadline().is_some_and(|due| due <= now) {
            self.prober.handle(Event::Tick, now, &mut actions);
        }
        let mut report = None;
        for action in actions {
            let Some((socket, ..)) = &self.socket else { break };
            match action {
                Action::Expect(senders) => socket.get_ref().set_nodes(&senders)?,
                Action::Probe(address) => {
                    socket.get_ref().probe_address(address)?;
                    self.sent.inc();
                }
                Action::Report(found) => report = Some(found),
            }
        }
        if !self.prober.is_busy() {
            self.socket = None;
        }
        Ok(report)
    }

    fn receive(&mut self, actions: &mut Vec<Action>) -> Result<(), Failure> {
        let Some((socket, ..)) = &self.socket else { return Ok(()) };
        for _ in 0..MAX_PER_TURN {
            match socket.get_ref().receive()? {
                Some(Frame::Neighbour(host)) => {
                    let event = Event::Answer { address: host.ip, mac: host.mac.0 };
                    self.prober.handle(event, clock::now(), actions);
                }
                Some(Frame::Ignored) => {}
                None => break,
            }
        }
        Ok(())
    }

    /// Index and Ethernet address of the uplink.
    pub async fn device(&mut self) -> Result<(u32, Mac), Failure> {
        let uplink = self.uplink().await?;
        Ok((uplink.index, uplink.mac.ok_or(Failure::NoUplink)?))
    }

    async fn uplink(&mut self) -> Result<UplinkDevice, Failure> {
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => Reader::open().map_err(Failure::Uplink)?,
        };
        let found = reader.devices(self.interface.as_deref(), self.node_ip).await.map_err(Failure::Uplink)?;
        self.reader = Some(reader);
        let uplink = found.uplink.ok_or(Failure::NoUplink)?;
        // The node's address may leave it.
        self.interface = Some(uplink.name.clone());
        Ok(uplink)
    }
}

#[cfg(test)]
pub(super) mod tests;
