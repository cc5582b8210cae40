//! Heartbeats that are none, sent from the segment to the real speakers: each must be refused for its own reason and move
//! nothing. A stranger has no key; what it can do is to send noise, to change what it overheard, and to repeat it. Under its own address none of
//! it passes the rules of a node; so it takes a node's.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use speaker_core::wire::advert::MAX_DATAGRAM;

use super::address::counted;
use super::deploy::Scene;
use super::settle::wait_holder;
use crate::lab::{netns, plan, wait_for};

/// What the speakers did with strange datagrams.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Forgery {
    /// Reason → by how much the counters of all speakers rose together.
    pub refused: BTreeMap<String, f64>,
    /// Datagrams sent of each kind.
    pub sent_of_each: usize,
    pub owner_before: String,
    pub owner_after: String,
    /// VIPs won or lost by any node meanwhile.
    pub transitions: f64,
}

/// Overhears one heartbeat, sends some of every kind of forgery to all speakers, and waits for the counters.
pub fn forged_heartbeats(scene: &Scene) -> Result<Forgery> {
    let owner_before = wait_holder(scene, &scene.nodes)?;
    let transitions = counted(scene, TRANSITIONS)?;
    let before = refusals(scene)?;
    let client = scene.lab.state()?.plan.netns("client");
    netns::inside(&client, || {
        let socket = open()?;
        let recorded = record(&socket)?;
        socket.set_multicast_ttl_v4(NEIGHBOUR)?;
        for _ in 0..OF_EACH {
            socket.send_to(&recorded, (GROUP, PORT)).context("send to the group")?;
        }
        let forger = forger()?;
        for (ttl, datagram) in forgeries(&recorded).into_iter().flat_map(|forgery| vec![forgery; OF_EACH]) {
            let packet = as_node(scene.node_address(&owner_before)?, ttl, &datagram)?;
            let to = SockAddr::from(SocketAddr::from((GROUP, PORT)));
            forger.send_to(&packet, &to).context("send to the group as a node")?;
        }
        Ok(())
    })?;
    let risen = || {
        let now = refusals(scene)?;
        anyhow::Ok(
            REASONS
                .map(|reason| (reason.to_owned(), now[reason] - before[reason]))
                .into_iter()
                .collect::<BTreeMap<_, _>>(),
        )
    };
    // What does not rise is for the caller to judge.
    let _ =
        wait_for("every counter to rise", COUNTED_WITHIN, || Ok(risen()?.values().all(|by| *by > 0.0).then_some(())));
    Ok(Forgery {
        refused: risen()?,
        sent_of_each: OF_EACH,
        owner_before,
        owner_after: wait_holder(scene, &scene.nodes)?,
        transitions: counted(scene, TRANSITIONS)? - transitions,
    })
}

fn refusals(scene: &Scene) -> Result<BTreeMap<&'static str, f64>> {
    let series = |reason| match reason {
        // The socket's filter takes it for a stranger's: it is not even queued.
        "ttl" => "sheave_datagrams_dropped_total{socket=\"heartbeat\"}".to_owned(),
        "stranger" => "sheave_guard_packets_total{guard=\"advert_stranger\"}".to_owned(),
        reason => format!("sheave_adverts_rejected_total{{reason=\"{reason}\"}}"),
    };
    REASONS.iter().map(|reason| Ok((*reason, counted(scene, &series(reason))?))).collect()
}

/// One for each of [`REASONS`] but the first, in that order, with its TTL. Offsets: speaker/core/src/wire/advert.rs.
fn forgeries(recorded: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let changed = |at: usize| {
        let mut copy = recorded.to_vec();
        copy[at] ^= 0x01;
        (NEIGHBOUR, copy)
    };
    let mut oversized = recorded.to_vec();
    oversized.resize(MAX_DATAGRAM + 1, 0);
    let (magic, version, key, cluster, epoch) = (0, 4, 7, 8, 16);
    vec![
        // As if a router had forwarded it.
        (NEIGHBOUR - 1, recorded.to_vec()),
        (NEIGHBOUR, recorded[..recorded.len() / 2].to_vec()),
        (NEIGHBOUR, oversized),
        changed(magic),
        changed(version),
        changed(key),
        changed(cluster),
        // A claim to be of a later incarnation, which only the key could make true.
        changed(epoch),
        (NEIGHBOUR, recorded.to_vec()),
    ]
}

fn open() -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT))))?;
    socket.join_multicast_v4(&GROUP, &plan::CLIENT).context("join the speakers' group")?;
    socket.set_multicast_if_v4(&plan::CLIENT)?;
    socket.set_multicast_loop_v4(false)?;
    socket.set_read_timeout(Some(WITHIN))?;
    Ok(socket.into())
}

/// Sends whole IPv4 packets.
fn forger() -> Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    socket.set_multicast_if_v4(&plan::CLIENT)?;
    socket.set_multicast_loop_v4(false)?;
    Ok(socket)
}

/// The kernel fills in what is 0 of the header: length, identification, checksum (raw(7)). Without a checksum of its own UDP has none (RFC 768).
fn as_node(source: Ipv4Addr, ttl: u32, datagram: &[u8]) -> Result<Vec<u8>> {
    const IP: usize = 20;
    const UDP: usize = 8;
    let mut packet = vec![0; IP];
    (packet[0], packet[8], packet[9]) = (0x45, u8::try_from(ttl)?, u8::try_from(libc::IPPROTO_UDP)?);
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&GROUP.octets());
    let length = u16::try_from(UDP + datagram.len())?;
    [PORT, PORT, length, 0].iter().for_each(|field| packet.extend(field.to_be_bytes()));
    packet.extend(datagram);
    Ok(packet)
}

fn record(socket: &UdpSocket) -> Result<Vec<u8>> {
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).context("no heartbeat was received")?;
    Ok(buffer[..length].to_vec())
}

const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 254);
const PORT: u16 = 7480;
const OF_EACH: usize = 3;
const REASONS: [&str; 10] = [
    "stranger",
    "ttl",
    "truncated",
    "oversized",
    "malformed",
    "wrong_version",
    "unknown_key",
    "wrong_cluster",
    "bad_mac",
    "replayed",
];
/// The TTL that only a neighbour can send (RFC 5082).
const NEIGHBOUR: u32 = 255;
const TRANSITIONS: &str = "sheave_vip_transitions_total";
const WITHIN: Duration = Duration::from_secs(3);
/// Those of nftables are read every 5 s.
const COUNTED_WITHIN: Duration = Duration::from_secs(20);
