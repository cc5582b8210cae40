//! The flows to VIPs that conntrack knows: read them, delete some.
//!
//! Conntrack keeps sending a flow to the pod that it was first sent to. If that pod is gone, TCP goes on into a hole, and so
//! does UDP for as long as the client goes on sending from the same port (DNS resolvers, SIP, QUIC). Once the entry is gone,
//! the client's next packet is that of an unknown flow: TCP gets its reset, UDP another pod. kube-proxy does the same for its
//! own UDP flows (pkg/proxy/conntrack/cleanup.go).
//!
//! The kernel's own filter (Linux 5.8) takes one address and saves the copying of everything else; each address costs a pass
//! through the table. So few VIPs are read one by one, and for many everything is read and filtered here. An older kernel does
//! not know the filter and returns everything too. Deleted one by one: a delete by filter exists since Linux 6.11 only. All of it
//! blocks; figures in bench/README.md, Conntrack. Read first: kernel net/netfilter/nf_conntrack_netlink.c; attributes in
//! include/uapi/linux/netfilter/nfnetlink_conntrack.h.

use std::io;
use std::net::Ipv4Addr;

use ebpf_common::FlowTuple;
use speaker_core::backend::{Destinations, Flow, TcpState};

use super::netfilter::{self, Netfilter, attribute, nested, number, plain};

/// Every flow to these, as many as [`MAX_FLOWS`].
pub fn flows(to: &Destinations) -> io::Result<Vec<Flow>> {
    let mut flows = Vec::new();
    let mut left_out = 0_u64;
    dump(&Netfilter::open()?, to, &mut |flow, _| {
        if flows.len() < MAX_FLOWS {
            flows.push(*flow);
        } else {
            left_out += 1;
        }
    })?;
    if left_out > 0 {
        tracing::warn!(left_out, limit = MAX_FLOWS, "more conntrack entries than the limit; the rest is not scanned");
    }
    Ok(flows)
}

/// Deletes the flows to these for which `lost` is true. Returns how many there were. `lost` is asked again right before: a client that has
/// used the port anew meanwhile has an entry with the same tuple, and where the kernel took the same memory for it, with the same
/// identification.
pub fn forget(to: &Destinations, mut lost: impl FnMut(&Flow) -> bool) -> io::Result<usize> {
    let netfilter = Netfilter::open()?;
    let mut forgotten = 0;
    loop {
        let mut found = Vec::new();
        let mut more = false;
        dump(&netfilter, to, &mut |flow, entry| {
            if lost(flow) {
                more |= found.len() == AT_ONCE;
                found.extend(description(entry).filter(|_| !more));
            }
        })?;
        // Any of them may end by itself meanwhile.
        for description in &found {
            let mut still = false;
            let mut ask_again = |entry: &[u8]| still = flow(entry).is_some_and(|flow| lost(&flow));
            let there = netfilter::found(netfilter.request(GET, libc::NLM_F_ACK, description, &mut ask_again))?;
            if there && still && netfilter::found(netfilter.request(DELETE, libc::NLM_F_ACK, description, &mut |_| {}))?
            {
                forgotten += 1;
            }
        }
        if !more {
            return Ok(forgotten);
        }
    }
}

/// Deletes what closed connections left (TIME_WAIT, CLOSE): a client that uses the port again may by now have its flow on
/// another node, and the leftover would catch it. `concerned`: whose flows may be there.
pub fn forget_closed(to: &Destinations, concerned: impl Fn(&FlowTuple) -> bool) -> io::Result<usize> {
    forget(to, |flow| flow.is_closed() && concerned(&flow.tuple))
}

fn dump(netfilter: &Netfilter, to: &Destinations, each: &mut dyn FnMut(&Flow, &[u8])) -> io::Result<()> {
    let addresses = to.addresses();
    let filters: Vec<(Option<Ipv4Addr>, Vec<u8>)> = if addresses.len() <= FEW {
        addresses.iter().map(|&vip| (Some(vip), to_address(vip))).collect()
    } else {
        vec![(None, Vec::new())]
    };
    for (only, filter) in filters {
        netfilter.request(GET, libc::NLM_F_DUMP, &filter, &mut |entry| {
            // Most entries are none of ours: the address is compared first.
            let requested = |address| only.map_or_else(|| addresses.contains(&address), |only| only == address);
            if destination(entry).is_some_and(requested)
                && let Some(flow) = flow(entry).filter(|flow| to.has(flow))
            {
                each(&flow, entry);
            }
        })?;
    }
    Ok(())
}

/// Only entries whose packets were sent to this address.
fn to_address(vip: Ipv4Addr) -> Vec<u8> {
    let address = nested(CTA_TUPLE_IP, &plain(CTA_IP_V4_DST, &vip.octets()));
    let by = nested(CTA_FILTER, &plain(CTA_FILTER_ORIG_FLAGS, &CTA_FILTER_F_CTA_IP_DST.to_ne_bytes()));
    [nested(CTA_TUPLE_ORIG, &address), by].concat()
}

/// What identifies an entry, also against a later one of the same flow, as the kernel gave it.
fn description(entry: &[u8]) -> Option<Vec<u8>> {
    let original = attribute(entry, CTA_TUPLE_ORIG)?;
    Some([nested(CTA_TUPLE_ORIG, original), plain(CTA_ID, attribute(entry, CTA_ID)?)].concat())
}

fn destination(entry: &[u8]) -> Option<Ipv4Addr> {
    let tuple = attribute(entry, CTA_TUPLE_ORIG)?;
    part::<4>(tuple, CTA_TUPLE_IP, CTA_IP_V4_DST).map(Ipv4Addr::from)
}

/// `None` for what is not TCP or UDP over IPv4, or not translated.
fn flow(entry: &[u8]) -> Option<Flow> {
    let (original, reply) = (attribute(entry, CTA_TUPLE_ORIG)?, attribute(entry, CTA_TUPLE_REPLY)?);
    let status = number(attribute(entry, CTA_STATUS)).ok()?;
    let [proto] = part(original, CTA_TUPLE_PROTO, CTA_PROTO_NUM)?;
    let tcp = match i32::from(proto) {
        libc::IPPROTO_TCP => Some(tcp_state(entry)?),
        libc::IPPROTO_UDP => None,
        _ => return None,
    };
    let tuple = FlowTuple {
        src: part(original, CTA_TUPLE_IP, CTA_IP_V4_SRC)?,
        dst: part(original, CTA_TUPLE_IP, CTA_IP_V4_DST)?,
        src_port: part(original, CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT)?,
        dst_port: part(original, CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT)?,
        proto,
    };
    let address = part::<4>(reply, CTA_TUPLE_IP, CTA_IP_V4_SRC)?;
    let port = part(reply, CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT)?;
    let pod = (address.into(), u16::from_be_bytes(port));
    (status & IPS_DST_NAT != 0).then_some(Flow { tuple, pod, tcp, assured: status & IPS_ASSURED != 0 })
}

fn tcp_state(entry: &[u8]) -> Option<TcpState> {
    let tcp = attribute(attribute(entry, CTA_PROTOINFO)?, CTA_PROTOINFO_TCP)?;
    attribute(tcp, CTA_PROTOINFO_TCP_STATE)?.first().copied().map(TcpState::from_kernel)
}

fn part<const N: usize>(tuple: &[u8], group: u16, kind: u16) -> Option<[u8; N]> {
    attribute(attribute(tuple, group)?, kind)?.try_into().ok()
}

/// Twice what conntrack holds by default on a large machine; 24 bytes each.
const MAX_FLOWS: usize = 524_288;
/// Entries that are deleted between two dumps, about 70 bytes each.
const AT_ONCE: usize = 65_536;

/// VIPs that are read one by one. With 100,000 entries a pass costs an eighth to a fourth of reading them all.
const FEW: usize = 4;

/// NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET and _DELETE.
const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_ID: u16 = 12;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_F_CTA_IP_DST: u32 = 1 << 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
/// nf_conntrack_common.h.
const IPS_ASSURED: u32 = 1 << 2;
const IPS_DST_NAT: u32 = 1 << 5;
