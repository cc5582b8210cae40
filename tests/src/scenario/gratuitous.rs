//! ARP frames that nobody asked for: gratuitous ones in both forms (RFC 5227 section 3), for the address of the baseline; and forged replies.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use pnet_packet::MutablePacket;
use pnet_packet::arp::{ArpHardwareTypes, ArpOperation, ArpOperations, MutableArpPacket};
use pnet_packet::ethernet::{EtherTypes, MutableEthernetPacket};

/// Sends one of each form from the network of the calling thread.
pub fn announce(device: &str, ip: Ipv4Addr, mac: &str) -> Result<()> {
    let mac = parse(mac)?;
    let all = [0xff; 6];
    send(device, &[ArpOperations::Request, ArpOperations::Reply].map(|operation| frame(operation, ip, mac, all, ip)))
}

/// Tells `victim` alone, its MAC and IP address, that `ip` is at [`FORGER`].
pub fn forge(device: &str, ip: Ipv4Addr, victim: (&str, Ipv4Addr)) -> Result<()> {
    send(device, &[frame(ArpOperations::Reply, ip, parse(FORGER)?, parse(victim.0)?, victim.1)])
}

fn send(device: &str, frames: &[Vec<u8>]) -> Result<()> {
    let index = nix::net::if_::if_nametoindex(device).with_context(|| format!("device {device}"))?;
    // SAFETY: plain system calls with structures that outlive them; the descriptor is ours alone.
    unsafe {
        let raw = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if raw < 0 {
            bail!("AF_PACKET socket: {}", std::io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(raw);
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = i32::try_from(index)?;
        for frame in frames {
            let (bytes, length) = (frame.as_ptr().cast(), frame.len());
            let address = (&raw const to).cast();
            if libc::sendto(socket.as_raw_fd(), bytes, length, 0, address, size_of_val(&to) as u32) < 0 {
                bail!("send on {device}: {}", std::io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

fn frame(operation: ArpOperation, ip: Ipv4Addr, mac: [u8; 6], to: [u8; 6], target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0; FRAME];
    let mut ethernet = MutableEthernetPacket::new(&mut frame).expect("long enough");
    ethernet.set_destination(to.into());
    ethernet.set_source(mac.into());
    ethernet.set_ethertype(EtherTypes::Arp);
    let mut arp = MutableArpPacket::new(ethernet.payload_mut()).expect("long enough");
    arp.set_hardware_type(ArpHardwareTypes::Ethernet);
    arp.set_protocol_type(EtherTypes::Ipv4);
    arp.set_hw_addr_len(6);
    arp.set_proto_addr_len(4);
    arp.set_operation(operation);
    arp.set_sender_hw_addr(mac.into());
    arp.set_sender_proto_addr(ip);
    arp.set_target_hw_addr(to.into());
    arp.set_target_proto_addr(target);
    frame
}

fn parse(mac: &str) -> Result<[u8; 6]> {
    let bytes: Option<Vec<u8>> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).with_context(|| format!("MAC address {mac:?}"))
}

const FRAME: usize = 42;
/// No device has it.
pub const FORGER: &str = "02:66:00:00:00:66";
