//! Frames of the segment that say who has an address: ARP (RFC 826, RFC 5227), adverts of VRRP (RFC 9568, RFC 3768), heartbeats of other
//! members. Pure: bytes in, meaning out.

use std::fmt;
use std::net::Ipv4Addr;

use socket2::SockFilter;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Vec<String> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        f.write_str(&bytes.join(":"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The group of VRRP (RFC 9568 section 5.1.1.2).
pub const VRRP_GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
const VRRP: u8 = 112;
const UDP: u8 = 17;
/// Length of an ARP frame.
pub const ARP_FRAME: usize = 42;

/// What a frame of another host says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It has the address.
    Has { address: Ipv4Addr, mac: Mac },
    /// It is the master of a virtual router.
    Advert { router: Ipv4Addr, id: u8, version: u8, addresses: Vec<Ipv4Addr> },
    /// A speaker runs there.
    Heartbeat { from: Ipv4Addr },
}

/// A request for the target. Without an address of our own it is a probe (RFC 5227 section 2.1.1): nobody learns anything from it.
pub fn request(own: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> [u8; ARP_FRAME] {
    let mut frame = [0; ARP_FRAME];
    let parts: [&[u8]; 9] = [
        &[0xff; 6],
        &own.0,
        &[0x08, 0x06],
        // Ethernet, IPv4, lengths 6 and 4, request.
        &[0, 1, 0x08, 0, 6, 4, 0, 1],
        &own.0,
        &sender.octets(),
        &[0; 6],
        &target.octets(),
        &[],
    ];
    let bytes = parts.into_iter().flatten();
    frame.iter_mut().zip(bytes).for_each(|(to, byte)| *to = *byte);
    frame
}

/// `None`: it says nothing of that, or it is our own.
pub fn parse(frame: &[u8], own: Mac, heartbeat_port: u16) -> Option<Heard> {
    let source = Mac(array(frame, 6)?);
    if source == own {
        return None;
    }
    match array(frame, 12)? {
        [0x08, 0x06] => arp(frame.get(14..)?, own),
        [0x08, 0x00] => ipv4(frame.get(14..)?, heartbeat_port),
        _ => None,
    }
}

fn arp(packet: &[u8], own: Mac) -> Option<Heard> {
    if array::<6>(packet, 0)? != [0, 1, 0x08, 0, 6, 4] {
        return None;
    }
    let (mac, address) = (Mac(array(packet, 8)?), Ipv4Addr::from(array(packet, 14)?));
    // A probe has no sender's address; a group is no host.
    let is_host = !address.is_unspecified() && mac != own && mac.0[0] & 1 == 0;
    is_host.then_some(Heard::Has { address, mac })
}

fn ipv4(packet: &[u8], heartbeat_port: u16) -> Option<Heard> {
    let first = *packet.first()?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < 20 {
        return None;
    }
    let source = Ipv4Addr::from(array(packet, 12)?);
    let (ttl, protocol) = (*packet.get(8)?, *packet.get(9)?);
    // Longer than what it says: the frame's padding.
    let length = usize::from(u16::from_be_bytes(array(packet, 2)?));
    let payload = packet.get(header..length.min(packet.len()))?;
    match protocol {
        // From beyond a router neither is taken by those it is for.
        _ if ttl != 255 => None,
        VRRP => advert(payload, source),
        UDP => (u16::from_be_bytes(array(payload, 2)?) == heartbeat_port).then_some(Heard::Heartbeat { from: source }),
        _ => None,
    }
}

/// Versions 2 and 3 have the same first four bytes, and the addresses at the same place.
fn advert(packet: &[u8], router: Ipv4Addr) -> Option<Heard> {
    let (first, id, count) = (*packet.first()?, *packet.get(1)?, usize::from(*packet.get(3)?));
    let version = first >> 4;
    if !matches!(version, 2 | 3) || first & 0x0f != 1 {
        return None;
    }
    let addresses =
        (0..count).map(|index| Some(Ipv4Addr::from(array(packet, 8 + 4 * index)?))).collect::<Option<_>>()?;
    Some(Heard::Advert { router, id, version, addresses })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// What is queued at the socket: on a busy machine everything else is dropped before (classic BPF, Documentation/networking/filter.rst).
pub fn filter(heartbeat_port: u16) -> Vec<SockFilter> {
    let step = |code, then, otherwise, value| SockFilter::new(code, then, otherwise, value);
    vec![
        step(LOAD_HALF, 0, 0, 12),
        step(EQUAL, 7, 0, 0x0806),
        step(EQUAL, 0, 7, 0x0800),
        step(LOAD_BYTE, 0, 0, 23),
        step(EQUAL, 4, 0, u32::from(VRRP)),
        step(EQUAL, 0, 4, u32::from(UDP)),
        // The length of the IP header, then the destination port behind it.
        step(LOAD_HEADER, 0, 0, 14),
        step(LOAD_HALF_INDEXED, 0, 0, 16),
        step(EQUAL, 0, 1, u32::from(heartbeat_port)),
        step(RETURN, 0, 0, u32::MAX),
        step(RETURN, 0, 0, 0),
    ]
}

// include/uapi/linux/bpf_common.h and filter.h.
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_HEADER: u16 = 0xb1;
const LOAD_HALF_INDEXED: u16 = 0x48;
const EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use socket2::{Domain, Socket, Type};

    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 9]);
    const PORT: u16 = 7484;

    fn ip(protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![1, 0, 0x5e, 0, 0, 18];
        frame.extend(OTHER.0);
        frame.extend([0x08, 0x00, 0x45, 0xc0]);
        frame.extend(u16::to_be_bytes(20 + payload.len() as u16));
        frame.extend([0, 1, 0, 0, ttl, protocol, 0, 0, 192, 0, 2, 9, 224, 0, 0, 18]);
        frame.extend(payload);
        frame
    }

    /// As keepalived 2.2.7 sends it with version 2: authentication data behind the addresses.
    fn version_2() -> Vec<u8> {
        let mut packet = vec![0x21, 51, 100, 2, 0, 1, 0xaa, 0xbb, 192, 0, 2, 100, 192, 0, 2, 101];
        packet.extend([0; 8]);
        packet
    }

    fn vip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, last)
    }

    #[test]
    fn adverts_of_both_versions_name_their_addresses() {
        let advert = |version, addresses: &[u8]| Heard::Advert {
            router: vip(9),
            id: 51,
            version,
            addresses: addresses.iter().copied().map(vip).collect(),
        };
        assert_eq!(parse(&ip(112, 255, &version_2()), OWN, PORT), Some(advert(2, &[100, 101])));
        let version_3 = [0x31, 51, 100, 1, 0, 100, 0xaa, 0xbb, 192, 0, 2, 100];
        let mut frame = ip(112, 255, &version_3);
        // The switch fills short frames up.
        frame.resize(60, 0xff);
        assert_eq!(parse(&frame, OWN, PORT), Some(advert(3, &[100])));
        for (first, why) in [(0x41, "version 4"), (0x32, "no advert")] {
            let mut other = version_3;
            other[0] = first;
            assert_eq!(parse(&ip(112, 255, &other), OWN, PORT), None, "{why}");
        }
        assert_eq!(parse(&ip(112, 254, &version_3), OWN, PORT), None, "from beyond a router");
        let mut more = version_3;
        more[3] = 2;
        assert_eq!(parse(&ip(112, 255, &more), OWN, PORT), None, "fewer addresses than it says");
    }

    #[test]
    fn whoever_sends_arp_with_an_address_has_it() {
        let frame = request(OTHER, vip(9), vip(100));
        assert_eq!(parse(&frame, OWN, PORT), Some(Heard::Has { address: vip(9), mac: OTHER }));
        assert_eq!(parse(&frame, OTHER, PORT), None, "our own");
        let probe = request(OTHER, Ipv4Addr::UNSPECIFIED, vip(100));
        assert_eq!(parse(&probe, OWN, PORT), None, "a probe says nothing of its sender");
    }

    #[test]
    fn heartbeats_are_those_to_the_port() {
        let datagram = |port: u16| {
            let mut payload = vec![0x1d, 0x3c];
            payload.extend(port.to_be_bytes());
            payload.extend([0, 12, 0, 0, 1, 2, 3, 4]);
            ip(17, 255, &payload)
        };
        assert_eq!(parse(&datagram(PORT), OWN, PORT), Some(Heard::Heartbeat { from: vip(9) }));
        assert_eq!(parse(&datagram(PORT + 1), OWN, PORT), None);
    }

    #[test]
    fn no_cut_breaks_it() {
        for frame in [ip(112, 255, &version_2()), request(OTHER, vip(9), vip(100)).to_vec(), ip(17, 255, &[0; 8])] {
            for length in 0..frame.len() {
                let _ = parse(&frame[..length], OWN, PORT);
            }
            let mut longest = frame.clone();
            longest[14] = 0x4f;
            let _ = parse(&longest, OWN, PORT);
        }
    }

    /// By the kernel: it runs the filter on what one end of a local pair sends.
    #[test]
    fn the_filter_takes_what_is_parsed_and_nothing_else() {
        let taken = |packet: &[u8]| {
            let (mut from, mut to) = Socket::pair(Domain::UNIX, Type::DGRAM, None).unwrap();
            to.attach_filter(&filter(PORT)).unwrap();
            to.set_nonblocking(true).unwrap();
            // The kernel reports the drop to a local sender.
            let _ = from.write(packet);
            to.read(&mut [0; 2048]).is_ok()
        };
        let udp = |port: u16, options: usize| {
            let mut frame = ip(17, 255, &[]);
            frame[14] = 0x45 + u8::try_from(options).unwrap();
            frame.resize(34 + 4 * options, 0);
            frame.extend([0x1d, 0x3c]);
            frame.extend(port.to_be_bytes());
            frame.extend([0; 8]);
            frame
        };
        assert!(taken(&request(OTHER, vip(9), vip(100))));
        assert!(taken(&ip(112, 255, &version_2())));
        assert!(taken(&udp(PORT, 0)) && taken(&udp(PORT, 2)), "behind the options");
        assert!(!taken(&udp(PORT + 1, 0)) && !taken(&udp(80, 0)));
        assert!(!taken(&ip(6, 64, &[0; 40])), "TCP");
        let mut ipv6 = ip(112, 255, &version_2());
        ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
        assert!(!taken(&ipv6));
    }
}
