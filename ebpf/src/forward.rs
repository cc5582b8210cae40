//! Step 6: the packet unchanged to another node: MAC addresses, TTL, out of the interface it came in by.
//!
//! Read first: RFC 791 section 3.2 (time to live), RFC 1812 section 5.3.1.

use ebpf_common::{Config, RESERVED_FLAG, SearchState, Verdict};

use crate::checksum;
use crate::frame::{Frame, Mac};
use crate::parse::{ETHERNET_LEN, ETHERTYPE_IPV4, Packet};

/// The node's own address as source, else the switch learns the client behind this node.
#[inline(always)]
pub fn to_node(frame: &mut impl Frame, config: &Config, packet: &Packet, mac: Mac) -> Result<(), Verdict> {
    // A dispatched packet makes a hop: a loop of nodes that disagree about everything still ends. No ICMP "time exceeded": the
    // VIP is one hop for traceroute, and an answer here would be one more thing to abuse.
    if packet.ttl <= 1 {
        return Err(Verdict::TtlExpired);
    }
    let sum = frame.read::<2>(CHECKSUM_AT).ok_or(Verdict::Malformed)?;
    let old = u16::from_be_bytes([packet.ttl, packet.proto]);
    let sum = checksum::update(u16::from_be_bytes(sum), old, old - 0x0100);
    let [s0, s1] = sum.to_be_bytes();
    frame.write(TTL_AT, [packet.ttl - 1, packet.proto, s0, s1]).ok_or(Verdict::Malformed)?;
    addresses(frame, mac, config.mac).ok_or(Verdict::Malformed)
}

/// A fragment, with the reserved flag: else the receiver would take it for one in search.
#[inline(always)]
pub fn fragment_to_node(frame: &mut impl Frame, config: &Config, packet: &Packet, mac: Mac) -> Result<(), Verdict> {
    if packet.ttl <= 1 {
        return Err(Verdict::TtlExpired);
    }
    flags_and_ttl(frame, packet, packet.flags | RESERVED_FLAG, packet.ttl - 1)?;
    ethernet(frame, mac, config.mac).ok_or(Verdict::Malformed)
}

/// A packet in one piece with a state, as if it had made so many hops in search of its flow.
#[inline(always)]
pub fn with_search_state(
    frame: &mut impl Frame,
    config: &Config,
    packet: &Packet,
    mac: Mac,
    hop: u8,
) -> Result<(), Verdict> {
    let ttl = SearchState { hop, no_reset: false }.ttl();
    flags_and_ttl(frame, packet, packet.flags | RESERVED_FLAG, ttl)?;
    ethernet(frame, mac, config.mac).ok_or(Verdict::Malformed)
}

/// With the checksum that belongs to them.
#[inline(always)]
pub fn flags_and_ttl(frame: &mut impl Frame, packet: &Packet, flags: u16, ttl: u8) -> Result<(), Verdict> {
    let sum = frame.read::<2>(CHECKSUM_AT).ok_or(Verdict::Malformed)?;
    let sum = checksum::update(u16::from_be_bytes(sum), packet.flags, flags);
    let old = u16::from_be_bytes([packet.ttl, packet.proto]);
    let sum = checksum::update(sum, old, u16::from_be_bytes([ttl, packet.proto]));
    let ([f0, f1], [s0, s1]) = (flags.to_be_bytes(), sum.to_be_bytes());
    frame.write(FLAGS_AT, [f0, f1, ttl, packet.proto, s0, s1]).ok_or(Verdict::Malformed)
}

/// The addresses of an Ethernet header, which keeps its type.
#[inline(always)]
fn addresses(frame: &mut impl Frame, dst: Mac, src: Mac) -> Option<()> {
    // SAFETY: both are twelve bytes.
    frame.write::<12>(0, unsafe { core::mem::transmute::<[Mac; 2], [u8; 12]>([dst, src]) })
}

/// The Ethernet header of an IPv4 frame.
#[inline(always)]
pub fn ethernet(frame: &mut impl Frame, dst: Mac, src: Mac) -> Option<()> {
    frame.write(0, ethernet_bytes(dst, src, ETHERTYPE_IPV4))
}

#[inline(always)]
pub fn ethernet_bytes(dst: Mac, src: Mac, ethertype: u16) -> [u8; ETHERNET_LEN] {
    let [t0, t1] = ethertype.to_be_bytes();
    [dst[0], dst[1], dst[2], dst[3], dst[4], dst[5], src[0], src[1], src[2], src[3], src[4], src[5], t0, t1]
}

/// Flags and fragment offset.
const FLAGS_AT: usize = ETHERNET_LEN + 6;
pub const TTL_AT: usize = ETHERNET_LEN + 8;
pub const CHECKSUM_AT: usize = ETHERNET_LEN + 10;
