//! Packets that no well-behaved kernel would send, and what comes back.

use std::io::Read;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use pnet_packet::Packet;
use pnet_packet::icmp::{IcmpPacket, IcmpTypes, MutableIcmpPacket};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv4::{self, Ipv4Packet};
use pnet_packet::tcp::{self, MutableTcpPacket, TcpFlags, TcpPacket};
use socket2::{Domain, Protocol, Socket, Type};

use crate::world::CLIENT;

/// A segment from the client with the given flags; `intact`: with the right checksum.
pub fn tcp_segment(from: u16, to: (Ipv4Addr, u16), flags: u8, intact: bool) -> Vec<u8> {
    numbered_segment(from, to, flags, 1000, intact)
}

pub fn numbered_segment(from: u16, (vip, port): (Ipv4Addr, u16), flags: u8, sequence: u32, intact: bool) -> Vec<u8> {
    let mut bytes = vec![0; TcpPacket::minimum_packet_size()];
    let mut segment = MutableTcpPacket::new(&mut bytes).expect("20 bytes");
    segment.set_source(from);
    segment.set_destination(port);
    segment.set_sequence(sequence);
    segment.set_acknowledgement(2000);
    segment.set_data_offset(5);
    segment.set_flags(flags);
    segment.set_window(1024);
    let checksum = tcp::ipv4_checksum(&segment.to_immutable(), &CLIENT, &vip);
    segment.set_checksum(if intact { checksum } else { !checksum });
    bytes
}

pub fn icmp_echo() -> Vec<u8> {
    let mut bytes = vec![0; 16];
    let mut echo = MutableIcmpPacket::new(&mut bytes).expect("16 bytes");
    echo.set_icmp_type(IcmpTypes::EchoRequest);
    let checksum = pnet_packet::icmp::checksum(&echo.to_immutable());
    echo.set_checksum(checksum);
    bytes
}

/// "Port unreachable" about a segment from a VIP's port to this port of the client.
pub fn icmp_error(vip: (Ipv4Addr, u16), to: u16) -> Vec<u8> {
    let mut bytes = vec![3, 3, 0, 0, 0, 0, 0, 0];
    let mut quoted = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
    quoted.extend(vip.0.octets());
    quoted.extend(CLIENT.octets());
    let checksum = ipv4::checksum(&Ipv4Packet::new(&quoted).expect("20 bytes")).to_be_bytes();
    quoted[10..12].copy_from_slice(&checksum);
    bytes.extend(quoted);
    bytes.extend(vip.1.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes.extend([0; 4]);
    let mut error = MutableIcmpPacket::new(&mut bytes).expect("36 bytes");
    let checksum = pnet_packet::icmp::checksum(&error.to_immutable());
    error.set_checksum(checksum);
    bytes
}

/// The sequence number with which the client began from a port, from the VIP's answer, which a raw socket receives too. Answers to its other
/// ports may be repeated meanwhile.
pub fn initial_sequence(socket: &Socket, vip: Ipv4Addr, port: u16) -> u32 {
    let mut buffer = [0; 2048];
    loop {
        let length = (&*socket).read(&mut buffer).expect("a SYN-ACK");
        let packet = Ipv4Packet::new(&buffer[..length]).expect("a raw socket delivers whole IP packets");
        let segment = TcpPacket::new(packet.payload()).expect("a TCP segment");
        let answers = packet.get_source() == vip && segment.get_destination() == port;
        if answers && segment.get_flags() == TcpFlags::SYN | TcpFlags::ACK {
            return segment.get_acknowledgement() - 1;
        }
    }
}

/// Empties conntrack of the thread's namespace: IPCTNL_MSG_CT_DELETE without a tuple.
pub fn flush_conntrack() -> anyhow::Result<()> {
    let netlink =
        Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(libc::NETLINK_NETFILTER)))?;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let header = [&20_u32.to_ne_bytes()[..], &0x0102_u16.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]].concat();
    netlink.send(&[&header[..], &[libc::AF_INET as u8, 0, 0, 0]].concat())?;
    let mut answer = [0; 256];
    let length = (&netlink).read(&mut answer)?;
    anyhow::ensure!(length >= 20 && answer[16..20] == [0; 4], "not flushed: {answer:?}");
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    Tcp { from: u16, to: u16, flags: u8 },
    Icmp { kind: u8 },
}

/// The next packet from that address within the socket's patience, its own reply to nothing left out.
pub fn receive(socket: &Socket, from: Ipv4Addr) -> Option<Reply> {
    let deadline = Instant::now() + Duration::from_secs(1);
    while Instant::now() < deadline {
        let mut buffer = [MaybeUninit::uninit(); 2048];
        let length = socket.recv(&mut buffer).ok()?;
        // SAFETY: recv has written so many bytes.
        let bytes: Vec<u8> = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
        let packet = Ipv4Packet::new(&bytes).expect("a raw socket delivers whole IP packets");
        if packet.get_source() != from {
            continue;
        }
        return match packet.get_next_level_protocol() {
            IpNextHeaderProtocols::Tcp => TcpPacket::new(packet.payload()).map(|segment| Reply::Tcp {
                from: segment.get_source(),
                to: segment.get_destination(),
                flags: segment.get_flags(),
            }),
            _ => IcmpPacket::new(packet.payload()).map(|icmp| Reply::Icmp { kind: icmp.get_icmp_type().0 }),
        };
    }
    None
}
