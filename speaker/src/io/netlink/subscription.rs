//! The netlink socket of the notifications, read without a queue of our own: what the reader does not take in time waits in the
//! kernel, which reports when it had to drop something.
//!
//! Read first: netlink(7), "Note that netlink messages may be lost" (ENOBUFS).

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::{debug, warn};

/// Why changes may have been lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The kernel's queue was full.
    Overrun,
    /// The socket does not work any more.
    Closed,
}

impl Lost {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Overrun => "overrun",
            Self::Closed => "closed",
        }
    }
}

pub struct Subscription {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
}

/// Longer than any message but those of devices with hundreds of virtual functions, which count as lost.
const BUFFER: usize = 64 << 10;
/// Datagrams taken at once, so that a burst of changes is read again once.
const MAX_AT_ONCE: usize = 64;
/// Datagrams discarded after an overrun: more than the kernel queues. After that the socket is opened anew.
const MAX_DISCARDED: usize = 16384;

impl Subscription {
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        use MulticastGroup::{Ipv4Ifaddr, Ipv4Route, Link, Neigh};
        for group in [Link, Neigh, Ipv4Ifaddr, Ipv4Route] {
            socket.add_membership(group as u32)?;
        }
        Self::of(socket)
    }

    pub(super) fn of(socket: Socket) -> io::Result<Self> {
        socket.set_non_blocking(true)?;
        // SAFETY: the socket keeps its descriptor for as long as it lives.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket, buffer: vec![0; BUFFER] })
    }

    /// What waits, at least one datagram of it. Nothing is lost if the future is dropped while it waits. After [`Lost::Overrun`] nothing
    /// waits: what is read then is newer than all that came before.
    pub async fn next(&mut self) -> Result<Vec<RouteNetlinkMessage>, Lost> {
        loop {
            let mut guard = self.socket.readable().await.map_err(|_| Lost::Closed)?;
            let mut messages = Vec::new();
            for _ in 0..MAX_AT_ONCE {
                let buffer = &mut self.buffer;
                match guard.try_io(|socket| socket.get_ref().recv(&mut &mut buffer[..], libc::MSG_TRUNC)) {
                    Ok(Ok(0)) => return Err(Lost::Closed),
                    Ok(Ok(length)) if length > BUFFER => return Err(discard(self.socket.get_ref(), buffer)),
                    Ok(Ok(length)) => parse(&buffer[..length], &mut messages),
                    Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        return Err(discard(self.socket.get_ref(), buffer));
                    }
                    Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(Err(error)) => {
                        warn!(%error, "netlink socket failed; reopening");
                        return Err(Lost::Closed);
                    }
                    Err(_) if messages.is_empty() => break,
                    Err(_) => return Ok(messages),
                }
            }
            if !messages.is_empty() {
                return Ok(messages);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn socket(&self) -> &Socket {
        self.socket.get_ref()
    }
}

/// The kernel reports an overrun before what it queued until then, and queues nothing more, without a second report, before all of that
/// is taken (netlink_overrun(), NETLINK_S_CONGESTED).
fn discard(socket: &Socket, buffer: &mut [u8]) -> Lost {
    for _ in 0..MAX_DISCARDED {
        match socket.recv(&mut &mut buffer[..], libc::MSG_TRUNC) {
            Ok(0) => return Lost::Closed,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Lost::Overrun,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(error) => {
                warn!(%error, "netlink socket failed; reopening");
                return Lost::Closed;
            }
        }
    }
    Lost::Closed
}

/// Several messages may share a datagram. A message that cannot be read is left out.
fn parse(mut datagram: &[u8], messages: &mut Vec<RouteNetlinkMessage>) {
    while let Ok(header) = NetlinkBuffer::new_checked(&datagram) {
        let length = header.length() as usize;
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram) {
            Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) => messages.push(message),
            Ok(_) => {}
            Err(error) => debug!(%error, "netlink message unreadable; left out"),
        }
        // Messages are aligned to 4 bytes.
        let Some(rest) = datagram.get(length.next_multiple_of(4).max(4)..) else { return };
        datagram = rest;
    }
}
