//! AF_PACKET socket for ARP (RFC 826): announces VIPs (RFC 5227 section 3), probes other kernels and addresses that are to be free
//! (RFC 5227 section 2.1.1).

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use ebpf_common::PROGRAM_QUERY;
use pnet::packet::Packet;
use pnet::packet::arp::{ArpHardwareTypes, ArpOperation, ArpOperations, ArpPacket, MutableArpPacket};
use pnet::packet::ethernet::{EtherTypes, EthernetPacket, MutableEthernetPacket};
use pnet::util::MacAddr;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use speaker_core::conflict::Claim;

use super::{Mac, filter};

const FRAME: usize = 14 + 28;

/// An ARP frame of another host about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub ip: Ipv4Addr,
    pub mac: Mac,
    /// It was a reply to us, not a question or an announcement; a reply to all or to others is an announcement.
    pub reply: bool,
    /// A program of ours has answered, which takes packets from this node ([`PROGRAM_QUERY`]).
    pub program: bool,
}

/// An ARP frame with an address as sender, of whichever host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimant {
    pub ip: Ipv4Addr,
    pub mac: Mac,
    /// What a speaker's announcement says of it.
    pub claim: Option<Claim>,
    /// It answers our own announcement: the address is the sender of what was asked, too.
    pub to_announcement: bool,
}

/// One frame that waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    Neighbour(Neighbour),
    /// Not about another host; it has taken its share of the turn all the same.
    Ignored,
}

pub struct ArpSocket {
    socket: Socket,
    ifindex: u32,
    mac: Mac,
}

impl ArpSocket {
    pub fn open(ifindex: u32, mac: Mac) -> io::Result<Self> {
        let protocol = i32::from((libc::ETH_P_ARP as u16).to_be());
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), Some(Protocol::from(protocol)))?;
        // Before the bind, and until nodes are known: nothing.
        socket.attach_filter(&filter::arp(&BTreeSet::new()))?;
        socket.bind(&link_address(ifindex, libc::ETH_P_ARP)?)?;
        Ok(Self { socket, ifindex, mac })
    }

    /// Frames of other senders than these are dropped before the queue from now on; at most [`filter::MAX_ADDRESSES`].
    pub fn set_nodes(&self, nodes: &BTreeSet<Ipv4Addr>) -> io::Result<()> {
        self.socket.attach_filter(&filter::arp(nodes))
    }

    /// Frames of other senders than between these two are dropped before the queue from now on; `None`: all are.
    pub fn set_range(&self, range: Option<(Ipv4Addr, Ipv4Addr)>) -> io::Result<()> {
        self.socket.attach_filter(&filter::arp_between(range))
    }

    /// The uplink's own address changed. Whether it did.
    pub fn set_mac(&mut self, mac: Mac) -> bool {
        std::mem::replace(&mut self.mac, mac) != mac
    }

    /// Announces to the segment that `vip` is at our MAC, in request and in reply form: some hosts take only one. The request form carries
    /// the claim in a field that receivers ignore (RFC 5227 section 3); that of the reply form must be our MAC (Linux, `arp_is_garp`).
    pub fn announce(&self, vip: Ipv4Addr, claim: Option<Claim>) -> io::Result<()> {
        let target_mac = claim.map_or(Mac::default(), |claim| Mac(claim.bytes()));
        self.send(Mac::BROADCAST, ArpOperations::Request, vip, vip, target_mac)?;
        self.send(Mac::BROADCAST, ArpOperations::Reply, vip, vip, self.mac)
    }

    /// The request form of an announcement to one owner of another cluster alone: other hosts learn nothing from it.
    pub fn concede(&self, vip: Ipv4Addr, to: Mac, claim: Claim) -> io::Result<()> {
        self.send(to, ArpOperations::Request, vip, vip, Mac(claim.bytes()))
    }

    /// Queries the kernel at `target` for its address, and whether a program of ours runs there: unicast if its MAC is known.
    /// Without an address of our own the request is a probe (RFC 5227 section 2.1.1), from which the others take nothing.
    pub fn probe(&self, own: Option<Ipv4Addr>, target: Ipv4Addr, mac: Option<Mac>) -> io::Result<()> {
        let own = own.unwrap_or(Ipv4Addr::UNSPECIFIED);
        self.send(mac.unwrap_or(Mac::BROADCAST), ArpOperations::Request, own, target, Mac(PROGRAM_QUERY))
    }

    /// Probes whether a host has the address (RFC 5227 section 2.1.1): from nobody, so that nobody learns anything from it.
    pub fn probe_address(&self, target: Ipv4Addr) -> io::Result<()> {
        self.send(Mac::BROADCAST, ArpOperations::Request, Ipv4Addr::UNSPECIFIED, target, Mac::default())
    }

    /// The next frame; `None` when nothing waits.
    pub fn receive(&self) -> io::Result<Option<Frame>> {
        self.next(|bytes| parse(bytes, self.mac).map_or(Frame::Ignored, Frame::Neighbour))
    }

    /// The same of a socket with [`Self::set_range`]; the inner `None`: a frame that claims nothing.
    pub fn receive_claimant(&self) -> io::Result<Option<Option<Claimant>>> {
        self.next(|bytes| claimant(bytes, self.mac))
    }

    fn next<T>(&self, read: impl FnOnce(&[u8]) -> T) -> io::Result<Option<T>> {
        loop {
            let mut buffer = [MaybeUninit::<u8>::uninit(); 128];
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length.min(buffer.len()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            // SAFETY: recv initialised the first `length` bytes, and `length` is at most the buffer's size.
            let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
            return Ok(Some(read(bytes)));
        }
    }

    fn send(&self, to: Mac, op: ArpOperation, sender: Ipv4Addr, target: Ipv4Addr, target_mac: Mac) -> io::Result<()> {
        let frame = build(self.mac, to, op, sender, target, target_mac);
        self.socket.send_to(&frame, &link_address(self.ifindex, libc::ETH_P_ARP)?).map(|_| ())
    }
}

impl AsFd for ArpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for ArpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn build(own: Mac, to: Mac, op: ArpOperation, sender: Ipv4Addr, target: Ipv4Addr, target_mac: Mac) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    let mut ethernet = MutableEthernetPacket::new(&mut frame).expect("the buffer holds an Ethernet header");
    ethernet.set_destination(to.into());
    ethernet.set_source(own.into());
    ethernet.set_ethertype(EtherTypes::Arp);
    let mut arp = MutableArpPacket::new(&mut frame[14..]).expect("the buffer holds an ARP packet");
    arp.set_hardware_type(ArpHardwareTypes::Ethernet);
    arp.set_protocol_type(EtherTypes::Ipv4);
    arp.set_hw_addr_len(6);
    arp.set_proto_addr_len(4);
    arp.set_operation(op);
    arp.set_sender_hw_addr(own.into());
    arp.set_sender_proto_addr(sender);
    arp.set_target_hw_addr(target_mac.into());
    arp.set_target_proto_addr(target);
    frame
}

fn parse(bytes: &[u8], own: Mac) -> Option<Neighbour> {
    let ethernet = EthernetPacket::new(bytes)?;
    if ethernet.get_ethertype() != EtherTypes::Arp {
        return None;
    }
    let arp = ArpPacket::new(ethernet.payload())?;
    let shape = (arp.get_hardware_type(), arp.get_protocol_type(), arp.get_hw_addr_len(), arp.get_proto_addr_len());
    if shape != (ArpHardwareTypes::Ethernet, EtherTypes::Ipv4, 6, 4) {
        return None;
    }
    let mac = Mac::from(arp.get_sender_hw_addr());
    // Group addresses name no host; our own frames come back on some switches; a sender that is not the frame's is no sender.
    if mac == own
        || mac != Mac::from(ethernet.get_source())
        || mac.0[0] & 1 == 1
        || arp.get_sender_proto_addr().is_unspecified()
    {
        return None;
    }
    let reply = arp.get_operation() == ArpOperations::Reply && Mac::from(ethernet.get_destination()) == own;
    let program = reply && Mac::from(arp.get_target_hw_addr()) == Mac(PROGRAM_QUERY);
    Some(Neighbour { ip: arp.get_sender_proto_addr(), mac, reply, program })
}

fn claimant(bytes: &[u8], own: Mac) -> Option<Claimant> {
    let Neighbour { ip, mac, reply, .. } = parse(bytes, own)?;
    let arp = ArpPacket::new(bytes.get(14..)?)?;
    let is_own = arp.get_target_proto_addr() == ip;
    let announces = arp.get_operation() == ArpOperations::Request && is_own;
    let claim = Claim::of(Mac::from(arp.get_target_hw_addr()).0).filter(|_| announces);
    Some(Claimant { ip, mac, claim, to_announcement: reply && is_own })
}

/// `protocol`: `ETH_P_…`.
pub fn link_address(ifindex: u32, protocol: i32) -> io::Result<SockAddr> {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is the address type of AF_PACKET and fits into sockaddr_storage.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (protocol as u16).to_be();
    address.sll_ifindex = i32::try_from(ifindex).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    address.sll_halen = 6;
    // SAFETY: the storage holds a sockaddr_ll, and this is its length.
    Ok(unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) })
}

impl From<Mac> for MacAddr {
    fn from(mac: Mac) -> Self {
        MacAddr::from(mac.0)
    }
}

impl From<MacAddr> for Mac {
    fn from(mac: MacAddr) -> Self {
        Mac(mac.octets())
    }
}

#[cfg(test)]
mod tests {
    use speaker_core::conflict::Owner;

    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    #[test]
    fn a_frame_reads_as_it_was_built() {
        let sender = Ipv4Addr::new(192, 0, 2, 7);
        let frame = build(OTHER, OWN, ArpOperations::Reply, sender, Ipv4Addr::new(192, 0, 2, 1), OWN);
        assert_eq!(parse(&frame, OWN), Some(Neighbour { ip: sender, mac: OTHER, reply: true, program: false }));
        assert_eq!(parse(&frame, OTHER), None, "our own frame");
        for length in 0..frame.len() {
            assert_eq!(parse(&frame[..length], OWN), None, "cut to {length} bytes");
        }
    }

    #[test]
    fn an_announcement_carries_its_claim_and_nothing_else_does() {
        let (vip, claim) = (Ipv4Addr::new(192, 0, 2, 7), Claim { state: Owner::Settled, cluster: 0x1234 });
        let sent = |op, target, mac| claimant(&build(OTHER, Mac::BROADCAST, op, vip, target, mac), OWN);
        let found = |claim| Some(Claimant { ip: vip, mac: OTHER, claim, to_announcement: false });
        assert_eq!(sent(ArpOperations::Request, vip, Mac(claim.bytes())), found(Some(claim)));
        assert_eq!(sent(ArpOperations::Request, vip, Mac::default()), found(None), "a host's announcement");
        assert_eq!(sent(ArpOperations::Reply, vip, Mac(claim.bytes())), found(None), "a reply");
        assert_eq!(sent(ArpOperations::Request, Ipv4Addr::new(192, 0, 2, 1), Mac(claim.bytes())), found(None));
        assert_eq!(sent(ArpOperations::Request, vip, Mac(PROGRAM_QUERY)), found(None));
    }

    #[test]
    fn an_answer_to_our_announcement_is_told_from_one_to_a_probe_and_from_an_announcement() {
        let vip = Ipv4Addr::new(192, 0, 2, 7);
        let replied = |to, target| {
            claimant(&build(OTHER, to, ArpOperations::Reply, vip, target, OWN), OWN).map(|found| found.to_announcement)
        };
        assert_eq!(replied(OWN, vip), Some(true));
        assert_eq!(replied(OWN, Ipv4Addr::UNSPECIFIED), Some(false), "a probe comes from nobody");
        assert_eq!(replied(OWN, Ipv4Addr::new(192, 0, 2, 1)), Some(false), "this node's kernel has asked");
        assert_eq!(replied(Mac::BROADCAST, vip), Some(false), "told to all");
    }

    /// Any host may send one of these; a sign of life it is not.
    #[test]
    fn a_reply_to_all_is_an_announcement() {
        let sender = Ipv4Addr::new(192, 0, 2, 7);
        for to in [Mac::BROADCAST, Mac([2, 0, 0, 0, 0, 3])] {
            let frame = build(OTHER, to, ArpOperations::Reply, sender, sender, Mac(PROGRAM_QUERY));
            assert_eq!(parse(&frame, OWN), Some(Neighbour { ip: sender, mac: OTHER, reply: false, program: false }));
        }
    }

    #[test]
    fn a_sender_that_is_not_the_frames_is_ignored() {
        let mut frame = build(OTHER, OWN, ArpOperations::Reply, Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::LOCALHOST, OWN);
        frame[11] ^= 1;
        assert_eq!(parse(&frame, OWN), None);
    }

    #[test]
    fn only_a_reply_is_a_programs_answer() {
        let sender = Ipv4Addr::new(192, 0, 2, 7);
        for (op, answer) in [(ArpOperations::Reply, true), (ArpOperations::Request, false)] {
            let frame = build(OTHER, OWN, op, sender, Ipv4Addr::new(192, 0, 2, 1), Mac(PROGRAM_QUERY));
            assert_eq!(parse(&frame, OWN), Some(Neighbour { ip: sender, mac: OTHER, reply: answer, program: answer }));
        }
    }
}
