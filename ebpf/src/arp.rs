//! ARP about VIPs: answered from the kernel while the lease runs, silent on every other node. And other nodes' question for a program
//! of ours.
//!
//! Read first: RFC 826, RFC 5227 section 2.1 (probes), docs/election.md (lease).

use ebpf_common::{Config, Lease, PROGRAM_QUERY, Verdict};

use crate::forward::ethernet_bytes;
use crate::frame::{Frame, Mac};
use crate::parse::{self, ETHERNET_LEN, ETHERTYPE_ARP, Link};
use crate::tables::Tables;

/// ARP for IPv4 over Ethernet.
struct Arp {
    operation: u16,
    sender_mac: Mac,
    sender: [u8; 4],
    target_mac: Mac,
    target: [u8; 4],
}

#[inline(always)]
pub fn answer(frame: &mut impl Frame, tables: &impl Tables) -> Result<Verdict, Verdict> {
    let link = parse::link(frame)?;
    let arp = parse(frame)?;
    if let Some(config) = program_query(tables, &link, &arp) {
        reply(frame, config, &arp, PROGRAM_QUERY).ok_or(Verdict::NoRoom)?;
        return Ok(Verdict::ProgramAnswered);
    }
    let about_sender = tables.is_vip(arp.sender);
    let about_target = tables.is_vip(arp.target);
    if !about_sender && !about_target {
        return Err(Verdict::NotOurs);
    }
    let config = tables.config().ok_or(Verdict::NotReady)?;
    // A frame for one other station, flooded by a switch: that station answers.
    if !is_group(link.dst.mac()) && link.dst.mac() != config.mac {
        return Err(Verdict::NotOurs);
    }
    if about_sender || arp.operation != REQUEST {
        return Err(Verdict::ArpAnnouncement);
    }
    may_answer(tables, config, arp.target)?;
    // An address of no host: the answer would go to all ports.
    if is_group(arp.sender_mac) || arp.sender_mac == [0; 6] {
        return Err(Verdict::Malformed);
    }
    reply(frame, config, &arp, arp.sender_mac).ok_or(Verdict::NoRoom)?;
    Ok(Verdict::ArpAnswered)
}

/// A peer queries our program: one whose packets this node takes, because a search for a flow passes only where the program
/// answers. Other senders get the kernel's answer, as without us.
#[inline(always)]
fn program_query<'a>(tables: &'a impl Tables, link: &Link, arp: &Arp) -> Option<&'a Config> {
    if arp.operation != REQUEST || arp.target_mac != PROGRAM_QUERY || arp.sender_mac != link.src.mac() {
        return None;
    }
    let config = tables.config()?;
    let own = tables.node(config.self_slot)?;
    let is_for_us =
        config.self_slot != 0 && own.addr == arp.target && (is_group(link.dst.mac()) || link.dst.mac() == config.mac);
    (is_for_us && tables.peer(link.src).is_some()).then_some(config)
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
fn reply(frame: &mut impl Frame, config: &Config, arp: &Arp, target_mac: Mac) -> Option<()> {
    let mut names = [0; 20];
    names[0..6].copy_from_slice(&config.mac);
    names[6..10].copy_from_slice(&arp.target);
    names[10..16].copy_from_slice(&target_mac);
    names[16..20].copy_from_slice(&arp.sender);
    frame.write(0, ethernet_bytes(arp.sender_mac, config.mac, ETHERTYPE_ARP))?;
    frame.write(ETHERNET_LEN, (FIXED << 16 | u64::from(REPLY)).to_be_bytes())?;
    frame.write(ETHERNET_LEN + 8, names)
}

/// Anything but IPv4 over Ethernet is not ours, nor is a frame too short to name both addresses.
#[inline(always)]
fn parse(frame: &impl Frame) -> Result<Arp, Verdict> {
    let fixed = u64::from_be_bytes(frame.read(ETHERNET_LEN).ok_or(Verdict::NotOurs)?);
    let names = frame.read::<20>(ETHERNET_LEN + 8).ok_or(Verdict::NotOurs)?;
    let [m0, m1, m2, m3, m4, m5, s0, s1, s2, s3, t0, t1, t2, t3, t4, t5, target @ ..] = names;
    if fixed >> 16 != FIXED {
        return Err(Verdict::NotOurs);
    }
    let (sender_mac, target_mac) = ([m0, m1, m2, m3, m4, m5], [t0, t1, t2, t3, t4, t5]);
    Ok(Arp { operation: fixed as u16, sender_mac, sender: [s0, s1, s2, s3], target_mac, target })
}

/// The group bit of an Ethernet address: multicast or broadcast.
#[inline(always)]
fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

/// Hardware type Ethernet, protocol IPv4, address lengths 6 and 4.
const FIXED: u64 = 0x0001_0800_0604;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
