//! Forgets UDP flows to pods that no longer serve.
//!
//! Conntrack keeps sending a UDP flow to the pod it was first sent to, for as long as the client goes on sending: with a fixed
//! source port (DNS resolvers, SIP, QUIC) forever, into a hole. TCP needs none of this: the pod's end closes the connection.
//! kube-proxy does the same for its own flows (pkg/proxy/conntrack/cleanup.go).
//!
//! Dump and delete one by one: a delete by filter exists since Linux 6.11 only. Read first: kernel
//! net/netfilter/nf_conntrack_netlink.c; attributes in include/uapi/linux/netfilter/nfnetlink_conntrack.h.

use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use speaker_core::backend::StaleFlow;

/// Deletes the flows from these ports of VIPs to these pods. Returns how many there were. Blocks for the time of a dump.
pub fn forget(stale: &[StaleFlow]) -> io::Result<usize> {
    if stale.is_empty() {
        return Ok(0);
    }
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(libc::NETLINK_NETFILTER)))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut found = Vec::new();
    send(&socket, GET, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, &[])?;
    receive(&socket, &mut |entry| {
        if let Some(original) = attribute(entry, CTA_TUPLE_ORIG)
            && flow(entry).is_some_and(|flow| stale.contains(&flow))
        {
            found.push(original.to_vec());
        }
    })?;
    let mut forgotten = 0;
    for original in found {
        // The kernel's own description of the flow, given back as it came.
        send(&socket, DELETE, libc::NLM_F_REQUEST | libc::NLM_F_ACK, &nested(CTA_TUPLE_ORIG, &original))?;
        match receive(&socket, &mut |_| {}) {
            Ok(()) => forgotten += 1,
            // It ended by itself meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(forgotten)
}

/// A UDP flow by where it was sent and who answers; `None` for what is not UDP over IPv4.
fn flow(entry: &[u8]) -> Option<StaleFlow> {
    let (original, reply) = (attribute(entry, CTA_TUPLE_ORIG)?, attribute(entry, CTA_TUPLE_REPLY)?);
    let part = |tuple, group, kind| attribute(attribute(tuple, group)?, kind);
    let address = |tuple, kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(part(tuple, CTA_TUPLE_IP, kind)?).ok()?));
    let port = |tuple, kind| Some(u16::from_be_bytes(part(tuple, CTA_TUPLE_PROTO, kind)?.try_into().ok()?));
    if part(original, CTA_TUPLE_PROTO, CTA_PROTO_NUM)? != [libc::IPPROTO_UDP as u8] {
        return None;
    }
    Some(StaleFlow {
        vip: (address(original, CTA_IP_V4_DST)?, port(original, CTA_PROTO_DST_PORT)?),
        pod: (address(reply, CTA_IP_V4_SRC)?, port(reply, CTA_PROTO_SRC_PORT)?),
    })
}

/// One request: nlmsghdr, nfgenmsg, attributes.
fn send(socket: &Socket, kind: u16, flags: i32, attributes: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADERS + attributes.len());
    message.extend(((HEADERS + attributes.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([libc::AF_INET as u8, 0, 0, 0]);
    message.extend(attributes);
    socket.send(&message).map(drop)
}

/// Hands over the attributes of each entry until the kernel says that this was all, or what is wrong.
fn receive(socket: &Socket, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![MaybeUninit::uninit(); 1 << 16];
    loop {
        let length = socket.recv(&mut buffer)?;
        // SAFETY: recv has written so many bytes.
        let bytes: Vec<u8> = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
        let mut rest = bytes.as_slice();
        while let Some((header, _)) = rest.split_at_checked(16) {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            let Some(message) = rest.get(16..length) else { return Err(io::ErrorKind::InvalidData.into()) };
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => return outcome(message),
                _ => each(message.get(4..).unwrap_or_default()),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
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
fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let (header, _) = bytes.split_at_checked(4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = bytes.get(4..length)?;
        if u16::from_ne_bytes([header[2], header[3]]) & ATTRIBUTE_KIND == kind {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    [&length.to_ne_bytes()[..], &(kind | libc::NLA_F_NESTED as u16).to_ne_bytes(), value].concat()
}

const PATIENCE: Duration = Duration::from_secs(2);
/// nlmsghdr and nfgenmsg.
const HEADERS: usize = 20;
/// Without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const ATTRIBUTE_KIND: u16 = 0x3fff;
/// NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET and _DELETE.
const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
