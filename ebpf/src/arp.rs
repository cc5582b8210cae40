//! ARP about VIPs: answered from the kernel while the lease runs, silent on every other node.
//!
//! Read first: RFC 826, RFC 5227 section 2.1 (probes), docs/election.md (lease).

use ebpf_common::{Config, Lease, Verdict};

use crate::forward::ethernet_bytes;
use crate::frame::{Frame, Mac};
use crate::parse::{ETHERNET_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, Link};
use crate::tables::Tables;

/// ARP for IPv4 over Ethernet.
struct Arp {
    operation: u16,
    sender_mac: Mac,
    sender: [u8; 4],
    target: [u8; 4],
}

#[inline(always)]
pub fn answer(frame: &mut impl Frame, tables: &impl Tables, link: &Link) -> Result<Verdict, Verdict> {
    let arp = parse(frame)?;
    let about_sender = tables.is_vip(arp.sender);
    let about_target = tables.is_vip(arp.target);
    if !about_sender && !about_target {
        return Err(Verdict::NotOurs);
    }
    let config = tables.config().ok_or(Verdict::NotReady)?;
    // A frame for one other station, flooded by a switch: that station answers.
    if !is_group(link.dst) && link.dst != config.mac {
        return Err(Verdict::NotOurs);
    }
    if about_sender || arp.operation != REQUEST {
        return Err(Verdict::ArpAnnouncement);
    }
    may_answer(tables, config, arp.target)?;
    // Nobody's address: an answer would go to everybody.
    if is_group(arp.sender_mac) || arp.sender_mac == [0; 6] {
        return Err(Verdict::Malformed);
    }
    reply(frame, config, &arp).ok_or(Verdict::NoRoom)?;
    Ok(Verdict::ArpAnswered)
}

/// The lease decides: the answers of a speaker that is dead, frozen or starved stop by themselves. For a while all other
/// requests are kept from the kernel, which would answer for any address of the node (no strictARP needed).
#[inline(always)]
fn may_answer(tables: &impl Tables, config: &Config, vip: [u8; 4]) -> Result<(), Verdict> {
    let Lease { until_ns, mute_until_ns } = tables.lease();
    let now = tables.now_ns();
    let own = tables.is_own(vip);
    if own && now < until_ns {
        return if config.mac == [0; 6] { Err(Verdict::NotReady) } else { Ok(()) };
    }
    Err(match (now < mute_until_ns, own) {
        (false, _) => Verdict::ArpMuteOver,
        (true, true) => Verdict::ArpLeaseOver,
        (true, false) => Verdict::ArpNotOwner,
    })
}

/// RFC 826 "Packet Reception": swap hardware and protocol fields, our own address as sender, the reply to the asker alone. A probe
/// (sender address 0.0.0.0, RFC 5227 section 2.1.1) is answered like any request, so that the prober sees the conflict.
#[inline(always)]
fn reply(frame: &mut impl Frame, config: &Config, arp: &Arp) -> Option<()> {
    let mut bytes = [0; ETHERNET_LEN + ARP_LEN];
    bytes[..ETHERNET_LEN].copy_from_slice(&ethernet_bytes(arp.sender_mac, config.mac, ETHERTYPE_ARP));
    bytes[14..22].copy_from_slice(&FIXED);
    bytes[21] = REPLY as u8;
    bytes[22..28].copy_from_slice(&config.mac);
    bytes[28..32].copy_from_slice(&arp.target);
    bytes[32..38].copy_from_slice(&arp.sender_mac);
    bytes[38..42].copy_from_slice(&arp.sender);
    frame.write(0, bytes)
}

/// Anything but IPv4 over Ethernet is not ours, nor is a frame too short to name both addresses.
#[inline(always)]
fn parse(frame: &impl Frame) -> Result<Arp, Verdict> {
    let fixed = frame.read::<8>(ETHERNET_LEN).ok_or(Verdict::NotOurs)?;
    let [m0, m1, m2, m3, m4, m5, s0, s1, s2, s3] = frame.read::<10>(ETHERNET_LEN + 8).ok_or(Verdict::NotOurs)?;
    let target = frame.read::<4>(ETHERNET_LEN + 24).ok_or(Verdict::NotOurs)?;
    if fixed[..6] != FIXED[..6] {
        return Err(Verdict::NotOurs);
    }
    Ok(Arp {
        operation: u16::from_be_bytes([fixed[6], fixed[7]]),
        sender_mac: [m0, m1, m2, m3, m4, m5],
        sender: [s0, s1, s2, s3],
        target,
    })
}

/// The group bit of an Ethernet address: multicast or broadcast.
#[inline(always)]
fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

const ARP_LEN: usize = 28;
/// Hardware type Ethernet, protocol IPv4, address lengths 6 and 4, no operation.
const FIXED: [u8; 8] = [0, 1, (ETHERTYPE_IPV4 >> 8) as u8, ETHERTYPE_IPV4 as u8, 6, 4, 0, 0];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
