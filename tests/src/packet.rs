//! Frames for the packet tests, built field by field: `Eth { dst, src }.ipv4(from, to).ttl(1).tcp(1024, 80).syn().build()`.
//!
//! Checksums come from `pnet_packet`, which shares nothing with the packet path: it is the oracle.

use std::net::Ipv4Addr;

use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv4::{self, Ipv4Packet};
use pnet_packet::{Packet as _, tcp, udp};

pub type Mac = [u8; 6];
pub type Addr = [u8; 4];

pub const BROADCAST: Mac = [0xff; 6];

/// The Ethernet header.
#[derive(Clone, Copy, Debug)]
pub struct Eth {
    pub dst: Mac,
    pub src: Mac,
}

impl Eth {
    pub fn payload(self, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        [&self.dst[..], &self.src, &ethertype.to_be_bytes(), payload].concat()
    }

    pub fn arp(self, arp: Arp) -> Vec<u8> {
        self.payload(
            0x0806,
            &[&[0, 1, 8, 0, 6, 4, 0, arp.operation], &arp.sender_mac[..], &arp.sender, &arp.target_mac, &arp.target]
                .concat(),
        )
    }

    pub fn ipv4(self, src: Addr, dst: Addr) -> Ipv4 {
        Ipv4 { eth: self, src, dst, id: 0x1234, ttl: 64, fragment: 0x4000, options: Vec::new() }
    }
}

/// An ARP body for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug)]
pub struct Arp {
    pub operation: u8,
    pub sender_mac: Mac,
    pub sender: Addr,
    pub target_mac: Mac,
    pub target: Addr,
}

impl Arp {
    pub fn request(sender_mac: Mac, sender: Addr, target: Addr) -> Self {
        Self { operation: 1, sender_mac, sender, target_mac: [0; 6], target }
    }
}

/// The IPv4 header. Lengths and checksum are filled in.
#[derive(Clone, Debug)]
pub struct Ipv4 {
    eth: Eth,
    src: Addr,
    dst: Addr,
    id: u16,
    ttl: u8,
    fragment: u16,
    options: Vec<u8>,
}

impl Ipv4 {
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    pub fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    /// Flags and fragment offset as one number.
    pub fn fragment(mut self, fragment: u16) -> Self {
        self.fragment = fragment;
        self
    }

    /// Options, a multiple of four bytes.
    pub fn options(mut self, options: &[u8]) -> Self {
        assert!(options.len().is_multiple_of(4) && options.len() <= 40);
        self.options = options.to_vec();
        self
    }

    pub fn tcp(self, src_port: u16, dst_port: u16) -> Tcp {
        Tcp {
            ip: self,
            src_port,
            dst_port,
            seq: 0,
            ack: 0,
            flags: 0,
            window: 64240,
            options: Vec::new(),
            data: Vec::new(),
        }
    }

    pub fn udp(self, src_port: u16, dst_port: u16, data: &[u8]) -> Vec<u8> {
        let len = (8 + data.len()) as u16;
        let mut datagram =
            [&src_port.to_be_bytes()[..], &dst_port.to_be_bytes(), &len.to_be_bytes(), &[0, 0], data].concat();
        let sum =
            udp::ipv4_checksum(&udp::UdpPacket::new(&datagram).expect("a header"), &self.src.into(), &self.dst.into());
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
        self.payload(17, &datagram)
    }

    pub fn icmp(self, kind: u8, code: u8, rest: [u8; 4], data: &[u8]) -> Vec<u8> {
        let mut message = [&[kind, code, 0, 0][..], &rest, data].concat();
        let sum = pnet_packet::util::checksum(&message, 1);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        self.payload(1, &message)
    }

    pub fn payload(self, proto: u8, payload: &[u8]) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let mut header = vec![0x40 | (header_len / 4) as u8, 0];
        header.extend(((header_len + payload.len()) as u16).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, proto, 0, 0]);
        header.extend(self.src);
        header.extend(self.dst);
        header.extend(&self.options);
        let sum = ipv4::checksum(&Ipv4Packet::new(&header).expect("a header"));
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        self.eth.payload(0x0800, &[&header, payload].concat())
    }
}

/// The TCP header.
#[derive(Clone, Debug)]
pub struct Tcp {
    ip: Ipv4,
    src_port: u16,
    dst_port: u16,
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    data: Vec<u8>,
}

impl Tcp {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;

    pub fn syn(self) -> Self {
        self.flags(Self::SYN)
    }

    pub fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    pub fn seq(mut self, seq: u32) -> Self {
        self.seq = seq;
        self
    }

    pub fn ack(mut self, ack: u32) -> Self {
        self.ack = ack;
        self
    }

    pub fn window(mut self, window: u16) -> Self {
        self.window = window;
        self
    }

    pub fn options(mut self, options: &[u8]) -> Self {
        assert!(options.len().is_multiple_of(4) && options.len() <= 40);
        self.options = options.to_vec();
        self
    }

    pub fn data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self
    }

    pub fn build(self) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend(self.src_port.to_be_bytes());
        segment.extend(self.dst_port.to_be_bytes());
        segment.extend(self.seq.to_be_bytes());
        segment.extend(self.ack.to_be_bytes());
        segment.extend([((5 + self.options.len() / 4) << 4) as u8, self.flags]);
        segment.extend(self.window.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend(&self.options);
        segment.extend(&self.data);
        let (src, dst) = (self.ip.src.into(), self.ip.dst.into());
        let sum = tcp::ipv4_checksum(&tcp::TcpPacket::new(&segment).expect("a header"), &src, &dst);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        self.ip.payload(6, &segment)
    }
}

/// Returns what is wrong with the checksums of an Ethernet frame that carries IPv4.
pub fn check_sums(frame: &[u8]) -> Result<(), String> {
    let ip = Ipv4Packet::new(frame.get(14..).ok_or("no IPv4 header")?).ok_or("no IPv4 header")?;
    let header_len = usize::from(ip.get_header_length()) * 4;
    let header = Ipv4Packet::new(&ip.packet()[..header_len]).ok_or("no IPv4 header")?;
    equal("IPv4", ipv4::checksum(&header), ip.get_checksum())?;
    let payload = &ip.packet()[header_len..usize::from(ip.get_total_length())];
    let (src, dst) = (ip.get_source(), ip.get_destination());
    match ip.get_next_level_protocol() {
        IpNextHeaderProtocols::Tcp => tcp_sum(payload, src, dst),
        IpNextHeaderProtocols::Udp => {
            let udp = udp::UdpPacket::new(payload).ok_or("no UDP header")?;
            equal("UDP", udp::ipv4_checksum(&udp, &src, &dst), udp.get_checksum())
        }
        IpNextHeaderProtocols::Icmp => match pnet_packet::util::checksum(payload, payload.len()) {
            0 => Ok(()),
            rest => Err(format!("ICMP: the sum leaves {rest:#06x}")),
        },
        _ => Ok(()),
    }
}

fn tcp_sum(payload: &[u8], src: Ipv4Addr, dst: Ipv4Addr) -> Result<(), String> {
    let tcp = tcp::TcpPacket::new(payload).ok_or("no TCP header")?;
    equal("TCP", tcp::ipv4_checksum(&tcp, &src, &dst), tcp.get_checksum())
}

fn equal(what: &str, want: u16, have: u16) -> Result<(), String> {
    if want == have { Ok(()) } else { Err(format!("{what} checksum {have:#06x}, should be {want:#06x}")) }
}
