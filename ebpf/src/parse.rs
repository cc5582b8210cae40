//! Step 1: Ethernet, IPv4, TCP and UDP headers.
//!
//! Read first: RFC 791 section 3.1 (IPv4 header), RFC 9293 section 3.1 (TCP), RFC 768 (UDP), RFC 1122 section 3.2.1.3 (addresses
//! that are no source). The rule: a frame too short to name a VIP is not ours and passes; a frame to a VIP that contradicts
//! itself is dropped as malformed.

use ebpf_common::{FlowWords, Verdict};

use crate::frame::{Frame, MacWord, Window};

/// What the frame carries. A tagged frame is not for this interface.
#[inline(always)]
pub fn ethertype(frame: &impl Frame) -> Result<u16, Verdict> {
    let header = frame.window::<ETHERNET_LEN>(0).ok_or(Verdict::NotOurs)?;
    match u16::from_be_bytes(header.half::<12>()) {
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => Err(Verdict::Vlan),
        ethertype => Ok(ethertype),
    }
}

/// The addresses of the Ethernet header.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub dst: MacWord,
    pub src: MacWord,
}

#[inline(always)]
pub fn link(frame: &impl Frame) -> Result<Link, Verdict> {
    let header = frame.window::<ETHERNET_LEN>(0).ok_or(Verdict::NotOurs)?;
    Ok(Link {
        dst: MacWord::new(header.word::<0>(), header.half::<4>()),
        src: MacWord::new(header.word::<6>(), header.half::<10>()),
    })
}

/// The fixed part of an IPv4 header, of which only the version is judged.
pub struct Header<W>(W);

#[inline(always)]
pub fn ipv4(frame: &impl Frame) -> Result<Header<impl Window>, Verdict> {
    let header = frame.window::<IPV4_LEN>(ETHERNET_LEN).ok_or(Verdict::NotOurs)?;
    let [first, _] = header.half::<0>();
    // Another version in an IPv4 frame: the layout is unknown.
    if first >> 4 != 4 { Err(Verdict::NotOurs) } else { Ok(Header(header)) }
}

impl<W: Window> Header<W> {
    #[inline(always)]
    pub fn dst(&self) -> [u8; 4] {
        self.0.word::<16>()
    }
}

/// An IPv4 packet to a VIP, or a fragment of one, its lengths within the frame.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Source and destination: [`FlowWords::addresses`].
    pub addresses: u64,
    pub proto: u8,
    pub ttl: u8,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset as one word.
    pub flags: u16,
    /// Of the header, in bytes. (One byte: so the verifier knows how large it may be, wherever it was kept.)
    pub header_len: u8,
    /// Length of header and data; padding of the frame not counted.
    pub total_len: u16,
}

#[inline(always)]
pub fn packet(frame: &impl Frame, header: &Header<impl Window>) -> Result<Packet, Verdict> {
    let Header(fields) = header;
    let [first, _] = fields.half::<0>();
    let header_len = usize::from(first & 0xf) * 4;
    let total_len = usize::from(u16::from_be_bytes(fields.half::<2>()));
    let addresses = FlowWords::addresses(fields.word::<12>(), header.dst());
    if header_len < IPV4_LEN
        || total_len < header_len
        || ETHERNET_LEN + total_len > frame.len()
        || !may_be_source(addresses as u8)
    {
        return Err(Verdict::Malformed);
    }
    let [ttl, proto] = fields.half::<8>();
    Ok(Packet {
        addresses,
        proto,
        ttl,
        id: u16::from_be_bytes(fields.half::<4>()),
        flags: u16::from_be_bytes(fields.half::<6>()),
        header_len: header_len as u8,
        total_len: total_len as u16,
    })
}

impl Packet {
    #[inline(always)]
    pub fn src(&self) -> [u8; 4] {
        self.words().src()
    }

    /// The VIP.
    #[inline(always)]
    pub fn dst(&self) -> [u8; 4] {
        self.words().dst()
    }

    #[inline(always)]
    fn words(&self) -> FlowWords {
        FlowWords { addresses: self.addresses, ports: 0 }
    }

    /// Where the transport header begins, from the start of the frame.
    #[inline(always)]
    pub fn transport(&self) -> usize {
        ETHERNET_LEN + usize::from(self.header_len)
    }

    /// Length of the transport header and what follows it.
    #[inline(always)]
    pub fn transport_len(&self) -> usize {
        usize::from(self.total_len) - usize::from(self.header_len)
    }

    /// The header has options (RFC 791 section 3.1). They are carried along and not read.
    #[inline(always)]
    pub fn has_options(&self) -> bool {
        usize::from(self.header_len) > IPV4_LEN
    }

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
fn may_be_source(first_byte: u8) -> bool {
    !(first_byte == 0 || first_byte == 127 || first_byte >= 224)
}

/// What a packet is about: the flow from a client to the VIP, and what of it the packet carries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject {
    pub flow: FlowWords,
    pub content: Content,
}

#[derive(Clone, Copy, Debug, Default)]
pub enum Content {
    Tcp(Tcp),
    #[default]
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
    pub flags: u8,
}

impl Tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

#[inline(always)]
pub fn subject(frame: &impl Frame, packet: &Packet) -> Result<Subject, Verdict> {
    match packet.proto {
        PROTO_TCP => tcp(frame, packet),
        PROTO_UDP => udp(frame, packet),
        _ => Err(Verdict::Protocol),
    }
}

/// Of the first fragment of a datagram. What its header says of the length is about the whole.
#[inline(always)]
pub fn first_fragment(frame: &impl Frame, packet: &Packet) -> Result<Subject, Verdict> {
    if packet.transport_len() < UDP_LEN {
        return Err(Verdict::Malformed);
    }
    let header = frame.window::<4>(packet.transport()).ok_or(Verdict::Malformed)?;
    Ok(Subject { flow: flow(&header, packet), content: Content::Udp })
}

/// `header`: begins with the ports.
#[inline(always)]
fn flow(header: &impl Window, packet: &Packet) -> FlowWords {
    FlowWords::new(packet.addresses, [header.half::<0>(), header.half::<2>()], packet.proto)
}

#[inline(always)]
fn tcp(frame: &impl Frame, packet: &Packet) -> Result<Subject, Verdict> {
    if packet.transport_len() < TCP_LEN {
        return Err(Verdict::Malformed);
    }
    let header = frame.window::<14>(packet.transport()).ok_or(Verdict::Malformed)?;
    let [offset, flags] = header.half::<12>();
    let header_len = tcp_header_len(offset);
    if header_len < TCP_LEN || header_len > packet.transport_len() {
        return Err(Verdict::Malformed);
    }
    Ok(Subject { flow: flow(&header, packet), content: Content::Tcp(Tcp { flags }) })
}

/// What a reset answers to.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    /// Bytes of data.
    pub data_len: u32,
}

/// `packet`: TCP, whose [`subject`] was read.
#[inline(always)]
pub fn segment(frame: &impl Frame, packet: &Packet) -> Result<Segment, Verdict> {
    let header = frame.window::<14>(packet.transport()).ok_or(Verdict::Malformed)?;
    let [offset, flags] = header.half::<12>();
    Ok(Segment {
        seq: u32::from_be_bytes(header.word::<4>()),
        ack: u32::from_be_bytes(header.word::<8>()),
        flags,
        data_len: packet.transport_len().saturating_sub(tcp_header_len(offset)) as u32,
    })
}

/// By the byte that has the data offset.
#[inline(always)]
fn tcp_header_len(offset: u8) -> usize {
    usize::from(offset >> 4) * 4
}

#[inline(always)]
fn udp(frame: &impl Frame, packet: &Packet) -> Result<Subject, Verdict> {
    if packet.transport_len() < UDP_LEN {
        return Err(Verdict::Malformed);
    }
    let header = frame.window::<6>(packet.transport()).ok_or(Verdict::Malformed)?;
    let len = usize::from(u16::from_be_bytes(header.half::<4>()));
    if len < UDP_LEN || len > packet.transport_len() {
        return Err(Verdict::Malformed);
    }
    Ok(Subject { flow: flow(&header, packet), content: Content::Udp })
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
