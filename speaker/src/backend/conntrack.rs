//! Forgets UDP flows to pods that no longer serve.
//!
//! Conntrack keeps sending a UDP flow to the pod it was first sent to, for as long as the client goes on sending: with a fixed
//! source port (DNS resolvers, SIP, QUIC) forever, into a hole. TCP needs none of this: the pod's end closes the connection.
//! kube-proxy does the same for its own flows (pkg/proxy/conntrack/cleanup.go).
//!
//! Dump and delete one by one: a delete by filter exists since Linux 6.11 only. Read first: kernel
//! net/netfilter/nf_conntrack_netlink.c; attributes in include/uapi/linux/netfilter/nfnetlink_conntrack.h.

use std::io;
use std::net::Ipv4Addr;

use speaker_core::backend::StaleFlow;

use super::netfilter::{Netfilter, attribute, nested};

/// Deletes the flows from these ports of VIPs to these pods. Returns how many there were. Blocks for the time of a dump.
pub fn forget(stale: &[StaleFlow]) -> io::Result<usize> {
    if stale.is_empty() {
        return Ok(0);
    }
    let netfilter = Netfilter::open()?;
    let mut found = Vec::new();
    netfilter.request(GET, libc::NLM_F_DUMP, &[], &mut |entry| {
        if let Some(original) = attribute(entry, CTA_TUPLE_ORIG)
            && flow(entry).is_some_and(|flow| stale.contains(&flow))
        {
            found.push(original.to_vec());
        }
    })?;
    let mut forgotten = 0;
    for original in found {
        // The kernel's own description of the flow, given back as it came.
        match netfilter.request(DELETE, libc::NLM_F_ACK, &nested(CTA_TUPLE_ORIG, &original), &mut |_| {}) {
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
