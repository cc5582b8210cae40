//! Step 1: Ethernet, IPv4, TCP and UDP headers.
//!
//! Read first: RFC 791 section 3.1 (IPv4 header), RFC 9293 section 3.1 (TCP), RFC 768 (UDP), RFC 1122 section 3.2.1.3 (addresses
//! that are no source). The rule: a frame too short to name a VIP is not ours and passes; a frame to a VIP that contradicts
//! itself is dropped as malformed.

use ebpf_common::{FlowTuple, Verdict};

use crate::frame::{Frame, Mac};

/// The Ethernet header.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub dst: Mac,
    pub src: Mac,
    pub ethertype: u16,
}

#[inline(always)]
pub fn ethernet(frame: &impl Frame) -> Result<Link, Verdict> {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] =
        frame.read::<ETHERNET_LEN>(0).ok_or(Verdict::NotOurs)?;
    let link =
        Link { dst: [d0, d1, d2, d3, d4, d5], src: [s0, s1, s2, s3, s4, s5], ethertype: u16::from_be_bytes([t0, t1]) };
    match link.ethertype {
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => Err(Verdict::Vlan),
        _ => Ok(link),
    }
}

/// The fixed part of an IPv4 header, not yet judged.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    header_len: usize,
    total_len: usize,
    id: u16,
    fragment: u16,
    ttl: u8,
    proto: u8,
    src: [u8; 4],
    pub dst: [u8; 4],
}

#[inline(always)]
pub fn ipv4(frame: &impl Frame, link: &Link) -> Result<Header, Verdict> {
    if link.ethertype != ETHERTYPE_IPV4 {
        return Err(Verdict::NotOurs);
    }
    let [first, _, l0, l1, i0, i1, f0, f1, ttl, proto, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        frame.read::<IPV4_LEN>(ETHERNET_LEN).ok_or(Verdict::NotOurs)?;
    // Another version in an IPv4 frame: the layout is unknown.
    if first >> 4 != 4 {
        return Err(Verdict::NotOurs);
    }
    Ok(Header {
        header_len: usize::from(first & 0xf) * 4,
        total_len: usize::from(u16::from_be_bytes([l0, l1])),
        id: u16::from_be_bytes([i0, i1]),
        fragment: u16::from_be_bytes([f0, f1]),
        ttl,
        proto,
        src: [s0, s1, s2, s3],
        dst: [d0, d1, d2, d3],
    })
}

/// An IPv4 packet to a VIP, or a fragment of one, its lengths within the frame.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub src: [u8; 4],
    pub dst: [u8; 4],
    pub proto: u8,
    pub ttl: u8,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset as one word.
    pub flags: u16,
    /// The header has options (RFC 791 section 3.1). They are carried along and not read.
    pub options: bool,
    /// Where the transport header begins, from the start of the frame.
    pub transport: usize,
    /// Length of the transport header and what follows it; padding of the frame not counted.
    pub transport_len: usize,
}

#[inline(always)]
pub fn packet(frame: &impl Frame, header: &Header) -> Result<Packet, Verdict> {
    if header.header_len < IPV4_LEN
        || header.total_len < header.header_len
        || ETHERNET_LEN + header.total_len > frame.len()
        || !may_be_source(header.src)
    {
        return Err(Verdict::Malformed);
    }
    Ok(Packet {
        src: header.src,
        dst: header.dst,
        proto: header.proto,
        ttl: header.ttl,
        id: header.id,
        flags: header.fragment,
        options: header.header_len > IPV4_LEN,
        transport: ETHERNET_LEN + header.header_len,
        transport_len: header.total_len - header.header_len,
    })
}

impl Packet {
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        self.flags & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0
    }

    /// Any but the first: it has no ports.
    #[inline(always)]
    pub fn is_later_fragment(&self) -> bool {
        self.flags & FRAGMENT_OFFSET != 0
    }
}

/// RFC 1122 section 3.2.1.3: "this" network, loopback, multicast and reserved addresses are never a source. An answer to one
/// would make us a reflector; RFC 9293 section 3.9.2.3 forbids it for TCP.
#[inline(always)]
fn may_be_source(addr: [u8; 4]) -> bool {
    !(addr[0] == 0 || addr[0] == 127 || addr[0] >= 224)
}

/// What a packet is about: the flow from a client to the VIP, and what of it the packet carries.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    pub flow: FlowTuple,
    pub content: Content,
}

#[derive(Clone, Copy, Debug)]
pub enum Content {
    Tcp(Tcp),
    Udp,
    /// An ICMP error about a packet of the flow.
    Error,
}

impl Content {
    /// The first segment of a connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        matches!(self, Content::Tcp(tcp) if tcp.flags & (Tcp::SYN | Tcp::ACK) == Tcp::SYN)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Tcp {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    /// Bytes of data in the segment.
    pub data_len: u32,
}

impl Tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

#[inline(always)]
pub fn subject(frame: &impl Frame, packet: &Packet) -> Result<Subject, Verdict> {
    let content = match packet.proto {
        PROTO_TCP => Content::Tcp(tcp(frame, packet)?),
        PROTO_UDP => udp(frame, packet).map(|()| Content::Udp)?,
        _ => return Err(Verdict::Protocol),
    };
    Ok(Subject { flow: flow(frame, packet)?, content })
}

/// Of the first fragment of a datagram. What its header says of the length is about the whole.
#[inline(always)]
pub fn first_fragment(frame: &impl Frame, packet: &Packet) -> Result<Subject, Verdict> {
    if packet.transport_len < UDP_LEN {
        return Err(Verdict::Malformed);
    }
    Ok(Subject { flow: flow(frame, packet)?, content: Content::Udp })
}

#[inline(always)]
fn flow(frame: &impl Frame, packet: &Packet) -> Result<FlowTuple, Verdict> {
    let [s0, s1, d0, d1] = frame.read::<4>(packet.transport).ok_or(Verdict::Malformed)?;
    let (src_port, dst_port) = ([s0, s1], [d0, d1]);
    Ok(FlowTuple { src: packet.src, dst: packet.dst, src_port, dst_port, proto: packet.proto })
}

#[inline(always)]
fn tcp(frame: &impl Frame, packet: &Packet) -> Result<Tcp, Verdict> {
    if packet.transport_len < TCP_LEN {
        return Err(Verdict::Malformed);
    }
    let [q0, q1, q2, q3, a0, a1, a2, a3, offset, flags] =
        frame.read::<10>(packet.transport + 4).ok_or(Verdict::Malformed)?;
    let header_len = usize::from(offset >> 4) * 4;
    if header_len < TCP_LEN || header_len > packet.transport_len {
        return Err(Verdict::Malformed);
    }
    Ok(Tcp {
        seq: u32::from_be_bytes([q0, q1, q2, q3]),
        ack: u32::from_be_bytes([a0, a1, a2, a3]),
        flags,
        data_len: (packet.transport_len - header_len) as u32,
    })
}

#[inline(always)]
fn udp(frame: &impl Frame, packet: &Packet) -> Result<(), Verdict> {
    if packet.transport_len < UDP_LEN {
        return Err(Verdict::Malformed);
    }
    let len = frame.read::<2>(packet.transport + 4).ok_or(Verdict::Malformed)?;
    let len = usize::from(u16::from_be_bytes(len));
    if len < UDP_LEN || len > packet.transport_len {
        return Err(Verdict::Malformed);
    }
    Ok(())
}

pub const MAC_LEN: usize = 6;
pub const ETHERNET_LEN: usize = 14;
pub const IPV4_LEN: usize = 20;
pub const TCP_LEN: usize = 20;
pub const UDP_LEN: usize = 8;

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// 802.1Q.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// 802.1ad.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

pub const PROTO_ICMP: u8 = 1;
pub const PROTO_TCP: u8 = 6;
pub const PROTO_UDP: u8 = 17;

/// RFC 791 section 3.1, beside "don't fragment" and the reserved bit.
const MORE_FRAGMENTS: u16 = 0x2000;
pub const FRAGMENT_OFFSET: u16 = 0x1fff;
