//! Requests to netfilter over netlink, as far as nft does not offer them: conntrack entries, the ruleset's generation.
//!
//! Blocking, with a time limit. Read first: kernel include/uapi/linux/netlink.h, linux/netfilter/nfnetlink.h.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

pub struct Netfilter(Socket);

impl Netfilter {
    pub fn open() -> io::Result<Self> {
        let netlink = (Domain::from(libc::AF_NETLINK), Protocol::from(libc::NETLINK_NETFILTER));
        let socket = Socket::new(netlink.0, Type::RAW, Some(netlink.1))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Asks and hands over the attributes of each entry of the answer. The flags must make the kernel end it (dump or ack).
    pub fn request(&self, kind: u16, flags: i32, attributes: &[u8], each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.send(kind, flags, attributes)?;
        self.receive(each)
    }

    /// One request: nlmsghdr, nfgenmsg, attributes.
    fn send(&self, kind: u16, flags: i32, attributes: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADERS + attributes.len());
        message.extend(((HEADERS + attributes.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        message.extend([0; 8]);
        message.extend([libc::AF_INET as u8, 0, 0, 0]);
        message.extend(attributes);
        self.0.send(&message).map(drop)
    }

    /// Hands over the attributes of each entry until the kernel says that this was all, or what is wrong.
    fn receive(&self, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![MaybeUninit::uninit(); 1 << 16];
        loop {
            let length = self.0.recv(&mut buffer)?;
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
}

/// The number of the ruleset in force in this network namespace: every transaction of anybody raises it.
pub fn generation() -> io::Result<u32> {
    let mut generation = None;
    Netfilter::open()?.request(GET_GENERATION, libc::NLM_F_ACK, &[], &mut |answer| {
        generation = attribute(answer, NFTA_GEN_ID).and_then(|id| id.try_into().ok()).map(u32::from_be_bytes);
    })?;
    generation.ok_or(io::ErrorKind::InvalidData.into())
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
pub fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
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

pub fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    [&length.to_ne_bytes()[..], &(kind | libc::NLA_F_NESTED as u16).to_ne_bytes(), value].concat()
}

const PATIENCE: Duration = Duration::from_secs(2);
/// nlmsghdr and nfgenmsg.
const HEADERS: usize = 20;
/// Without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const ATTRIBUTE_KIND: u16 = 0x3fff;
/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN.
const GET_GENERATION: u16 = 0x0a10;
const NFTA_GEN_ID: u16 = 1;
