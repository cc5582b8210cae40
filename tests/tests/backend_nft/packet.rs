//! Packets that no well-behaved kernel would send, and what comes back.

use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use pnet_packet::Packet;
use pnet_packet::icmp::{IcmpPacket, IcmpTypes, MutableIcmpPacket};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv4::Ipv4Packet;
use pnet_packet::tcp::{self, MutableTcpPacket, TcpPacket};
use socket2::Socket;

use crate::world::CLIENT;

/// A segment from the client with the given flags; `intact`: with the right checksum.
pub fn tcp_segment(from: u16, (vip, port): (Ipv4Addr, u16), flags: u8, intact: bool) -> Vec<u8> {
    let mut bytes = vec![0; TcpPacket::minimum_packet_size()];
    let mut segment = MutableTcpPacket::new(&mut bytes).expect("20 bytes");
    segment.set_source(from);
    segment.set_destination(port);
    segment.set_sequence(1000);
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
