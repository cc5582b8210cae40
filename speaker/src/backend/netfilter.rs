//! Requests to netfilter over netlink, as far as nft does not offer them: conntrack entries, counters, the ruleset's generation,
//! and notifications of changes.
//!
//! Requests block, with a time limit. Read first: kernel include/uapi/linux/netlink.h, linux/netfilter/nfnetlink.h,
//! linux/netfilter/nf_tables.h.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{NetlinkAddr, bind, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub struct Netfilter(Socket);

impl Netfilter {
    pub fn open() -> io::Result<Self> {
        let socket = open()?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Sends a request and hands over the attributes of each entry of the answer. The flags must make the kernel end it (dump or
    /// ack).
    pub fn request(&self, kind: u16, flags: i32, attributes: &[u8], each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.request_bounded(kind, flags, attributes, usize::MAX, each)
    }

    /// The same; an answer of more entries is an error, after which the socket is of no use.
    pub fn request_bounded(
        &self,
        kind: u16,
        flags: i32,
        attributes: &[u8],
        most: usize,
        each: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        self.send(kind, flags, libc::AF_INET, attributes)?;
        self.receive(most, &mut |entry| each(entry.get(GENERIC..).unwrap_or_default()))
    }

    /// One request: nlmsghdr, nfgenmsg, attributes.
    fn send(&self, kind: u16, flags: i32, family: i32, attributes: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADERS + attributes.len());
        message.extend(((HEADERS + attributes.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        message.extend([0; 8]);
        message.extend([family as u8, 0, 0, 0]);
        message.extend(attributes);
        self.0.send(&message).map(drop)
    }

    /// Hands over each entry (nfgenmsg, attributes) until the kernel ends the answer, or reports an error.
    fn receive(&self, most: usize, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        let mut entries = 0;
        loop {
            let length = (&self.0).read(&mut buffer)?;
            for message in Messages(&buffer[..length]) {
                let (kind, body) = message?;
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return outcome(body),
                    _ if entries == most => return Err(io::Error::other(format!("more than {most} entries"))),
                    _ => {
                        entries += 1;
                        each(body);
                    }
                }
            }
        }
    }
}

/// Receives every transaction in this network namespace, and reports those that touch one table of family ip.
#[derive(Debug)]
pub struct Monitor {
    socket: AsyncFd<Socket>,
    table: Vec<u8>,
    /// The transaction whose end has not come yet touches the table.
    touched: bool,
    buffer: Vec<u8>,
}

impl Monitor {
    pub fn open(table: &str) -> io::Result<Self> {
        let socket = open()?;
        // kube-proxy may change thousands of rules in one transaction. What does not fit is made good: see `next`.
        setsockopt(&socket, sockopt::RcvBufForce, &MONITOR_BUFFER)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP_NFTABLES))?;
        socket.set_nonblocking(true)?;
        let table = [table.as_bytes(), b"\0"].concat();
        // SAFETY: the socket is not exchanged for another one while it is registered.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket, table, touched: false, buffer: vec![0; BUFFER] })
    }

    /// The next transaction that touched the table, by its generation. `None`: messages were lost, it may have been.
    /// Loses nothing if it is dropped while it waits.
    pub async fn next(&mut self) -> io::Result<Option<u32>> {
        loop {
            let mut ready = self.socket.readable().await?;
            let length = match ready.try_io(|socket| socket.get_ref().read(&mut self.buffer)) {
                Err(_) => continue,
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.touched = false;
                    return Ok(None);
                }
                Ok(length) => length?,
            };
            if let Some(generation) = self.read_generation(length)? {
                return Ok(Some(generation));
            }
        }
    }

    /// A transaction's objects come first, in one or several datagrams; its generation comes last, in one of its own.
    fn read_generation(&mut self, length: usize) -> io::Result<Option<u32>> {
        for message in Messages(&self.buffer[..length]) {
            let (kind, body) = message?;
            let (family, attributes) = (body.first(), body.get(GENERIC..).unwrap_or_default());
            if kind != NEW_GENERATION {
                // The name of the table is the first attribute of everything that is in one.
                self.touched |=
                    family == Some(&(libc::AF_INET as u8)) && attribute(attributes, 1) == Some(self.table.as_slice());
            } else if std::mem::take(&mut self.touched) {
                return number(attribute(attributes, NFTA_GEN_ID)).map(Some);
            }
        }
        Ok(None)
    }
}

/// The number of the ruleset in force in this network namespace: every transaction raises it.
pub fn generation() -> io::Result<u32> {
    let mut generation = None;
    Netfilter::open()?.request(GET_GENERATION, libc::NLM_F_ACK, &[], &mut |answer| {
        generation = attribute(answer, NFTA_GEN_ID).map(<[u8]>::to_vec);
    })?;
    number(generation.as_deref())
}

/// All objects of this kind in this network namespace, of every family: hands over family and attributes of each. A dump that meets a
/// transaction may miss some.
pub fn dump(kind: u16, most: usize, each: &mut dyn FnMut(u8, &[u8])) -> io::Result<()> {
    let netfilter = Netfilter::open()?;
    netfilter.send(kind, libc::NLM_F_DUMP, libc::AF_UNSPEC, &[])?;
    netfilter.receive(most, &mut |entry| {
        if let Some((generic, attributes)) = entry.split_at_checked(GENERIC) {
            each(generic[0], attributes);
        }
    })
}

/// Whether there is what this request for one object of family ip names, in this network namespace.
pub fn exists(kind: u16, attributes: &[u8]) -> io::Result<bool> {
    found(Netfilter::open()?.request(kind, libc::NLM_F_ACK, attributes, &mut |_| ()))
}

/// Whether the object of a request was there.
pub fn found(outcome: io::Result<()>) -> io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn open() -> io::Result<Socket> {
    Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(libc::NETLINK_NETFILTER)))
}

/// The messages of one datagram: type, and what follows nlmsghdr. An error ends it.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = io::Result<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.0);
        let (header, _) = bytes.split_at_checked(16)?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let Some(body) = bytes.get(16..length) else { return Some(Err(io::ErrorKind::InvalidData.into())) };
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok((kind, body)))
    }
}

/// nlmsgerr: 0 or a negative errno.
fn outcome(message: &[u8]) -> io::Result<()> {
    match message.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The first attribute of this kind.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(other, _)| *other == kind).map(|(_, value)| value)
}

/// The attributes with their kinds, until one is cut off.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    core::iter::from_fn(move || {
        let (header, _) = bytes.split_at_checked(4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = bytes.get(4..length)?;
        let kind = u16::from_ne_bytes([header[2], header[3]]) & ATTRIBUTE_KIND;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    plain(kind | libc::NLA_F_NESTED as u16, value)
}

/// An attribute, filled up to a multiple of four bytes.
pub fn plain(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = [&(length as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// A number of 32 bits in network byte order.
pub fn number(value: Option<&[u8]>) -> io::Result<u32> {
    value.and_then(|value| value.try_into().ok()).map(u32::from_be_bytes).ok_or(io::ErrorKind::InvalidData.into())
}

const PATIENCE: Duration = Duration::from_secs(2);
/// nlmsghdr and nfgenmsg.
const HEADERS: usize = 20;
const GENERIC: usize = 4;
/// The kernel fills at most 32 KiB at once.
const BUFFER: usize = 1 << 16;
const MONITOR_BUFFER: usize = 2 << 20;
/// Without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const ATTRIBUTE_KIND: u16 = 0x3fff;
/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN and _GETGEN.
const NEW_GENERATION: u16 = 0x0a0f;
const GET_GENERATION: u16 = 0x0a10;
const NFTA_GEN_ID: u16 = 1;
/// NFNLGRP_NFTABLES, 7, as a bit.
const GROUP_NFTABLES: u32 = 1 << 6;
