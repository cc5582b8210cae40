//! AF_PACKET socket for DHCP (RFC 2131): datagrams from a host without an address to all, and what servers send to the client's port.
//!
//! A UDP socket would not do: the client's port may be in use by the host's own DHCP client, and the kernel sends nothing from no address.

use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, RawFd};

use pnet::packet::Packet;
use pnet::packet::ethernet::{EtherTypes, EthernetPacket, MutableEthernetPacket};
use pnet::packet::ip::IpNextHeaderProtocols;
use pnet::packet::ipv4::{self, Ipv4Packet, MutableIpv4Packet};
use pnet::packet::udp::{self, MutableUdpPacket, UdpPacket};
use socket2::{Domain, Protocol, Socket, Type};

use super::arp::link_address;
use super::{Mac, filter};

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
const CLIENT: u16 = 68;
const SERVER: u16 = 67;
/// Longest frame that is read; a longer one is cut, and no offer.
const MAX_FRAME: usize = 2048;

pub struct DhcpSocket {
    socket: Socket,
    ifindex: u32,
    mac: Mac,
}

/// A datagram to the client's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub from: Mac,
    pub message: Vec<u8>,
}

impl DhcpSocket {
    pub fn open(ifindex: u32, mac: Mac) -> io::Result<Self> {
        let protocol = i32::from((libc::ETH_P_IP as u16).to_be());
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), Some(Protocol::from(protocol)))?;
        // Before the bind: else all IPv4 of the node would wait here.
        socket.attach_filter(&filter::dhcp_client())?;
        socket.bind(&link_address(ifindex, libc::ETH_P_IP)?)?;
        Ok(Self { socket, ifindex, mac })
    }

    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        let frame = build(self.mac, message);
        self.socket.send_to(&frame, &link_address(self.ifindex, libc::ETH_P_IP)?).map(|_| ())
    }

    /// The next datagram; `None` when nothing waits. One that is none is skipped.
    pub fn receive(&self) -> io::Result<Option<Datagram>> {
        loop {
            let mut buffer = [MaybeUninit::<u8>::uninit(); MAX_FRAME];
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length.min(buffer.len()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            // SAFETY: recv initialised the first `length` bytes, and `length` is at most the buffer's size.
            let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
            if let Some(datagram) = parse(bytes) {
                return Ok(Some(datagram));
            }
        }
    }
}

impl AsRawFd for DhcpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn build(own: Mac, message: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET + IPV4 + UDP + message.len()];
    let mut ethernet = MutableEthernetPacket::new(&mut frame).expect("the buffer holds an Ethernet header");
    ethernet.set_destination(Mac::BROADCAST.into());
    ethernet.set_source(own.into());
    ethernet.set_ethertype(EtherTypes::Ipv4);
    let (from, to) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    let mut ip = MutableIpv4Packet::new(&mut frame[ETHERNET..]).expect("the buffer holds an IPv4 header");
    ip.set_version(4);
    ip.set_header_length(5);
    ip.set_total_length((IPV4 + UDP + message.len()) as u16);
    ip.set_ttl(64);
    ip.set_next_level_protocol(IpNextHeaderProtocols::Udp);
    ip.set_source(from);
    ip.set_destination(to);
    ip.set_checksum(ipv4::checksum(&ip.to_immutable()));
    let mut datagram = MutableUdpPacket::new(&mut frame[ETHERNET + IPV4..]).expect("the buffer holds a UDP header");
    datagram.set_source(CLIENT);
    datagram.set_destination(SERVER);
    datagram.set_length((UDP + message.len()) as u16);
    datagram.set_payload(message);
    datagram.set_checksum(udp::ipv4_checksum(&datagram.to_immutable(), &from, &to));
    frame
}

/// The filter has looked at ports and protocol; a frame that waited since before it was attached it has not.
fn parse(bytes: &[u8]) -> Option<Datagram> {
    let ethernet = EthernetPacket::new(bytes)?;
    let ip = Ipv4Packet::new(ethernet.payload())?;
    let udp = UdpPacket::new(ip.payload())?;
    let plain =
        ethernet.get_ethertype() == EtherTypes::Ipv4 && ip.get_next_level_protocol() == IpNextHeaderProtocols::Udp;
    let length = usize::from(udp.get_length()).checked_sub(UDP)?;
    let message = udp.payload().get(..length)?.to_vec();
    (plain && (udp.get_source(), udp.get_destination()) == (SERVER, CLIENT))
        .then(|| Datagram { from: ethernet.get_source().into(), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);

    /// As a server would send it: ports the other way round.
    fn answer(message: &[u8]) -> Vec<u8> {
        let mut frame = build(OWN, message);
        frame[ETHERNET + IPV4..ETHERNET + IPV4 + 4].copy_from_slice(&[0, 67, 0, 68]);
        frame
    }

    #[test]
    fn a_frame_reads_as_it_was_built() {
        let frame = answer(b"offer");
        assert_eq!(parse(&frame), Some(Datagram { from: OWN, message: b"offer".to_vec() }));
        assert_eq!(parse(&build(OWN, b"discover")), None, "to a server");
        for length in 0..frame.len() {
            assert_eq!(parse(&frame[..length]), None, "cut to {length} bytes");
        }
        let sum = ipv4::checksum(&Ipv4Packet::new(&frame[ETHERNET..]).unwrap());
        assert_eq!(Ipv4Packet::new(&frame[ETHERNET..]).unwrap().get_checksum(), sum);
    }

    #[test]
    fn the_filter_takes_answers_and_nothing_else() {
        let filter = filter::dhcp_client();
        let taken = |frame: &[u8]| filter::tests::taken(&filter, frame);
        let frame = answer(&[0; 300]);
        assert!(taken(&frame));
        for (what, at, value) in [
            ("another protocol", 12, 0x86),
            ("options", ETHERNET, 0x46),
            ("a fragment", ETHERNET + 7, 1),
            ("the first fragment", ETHERNET + 6, 0x20),
            ("TCP", ETHERNET + 9, 6),
            ("another port", ETHERNET + IPV4 + 3, 67),
        ] {
            let mut frame = frame.clone();
            frame[at] = value;
            assert!(!taken(&frame), "{what}");
        }
    }
}
