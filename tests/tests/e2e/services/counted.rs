//! A Service's counters, read from running speakers: what came in is counted once, on whichever node, and goes to whichever other one.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Context, Result, bail, ensure};
use sheave_tests::lab::wait_for;
use sheave_tests::scenario::http;

use super::clients::{OUTSIDE, TRIES as SYNS, from, greeted_by, is_dropped, refused};
use super::{Room, WITHIN};

/// The sums over all speakers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    packets: f64,
    bytes: f64,
    new_flows: f64,
    resets: f64,
    denied: f64,
}

impl Sums {
    fn since(self, before: Self) -> Self {
        Self {
            packets: self.packets - before.packets,
            bytes: self.bytes - before.bytes,
            new_flows: self.new_flows - before.new_flows,
            resets: self.resets - before.resets,
            denied: self.denied - before.denied,
        }
    }
}

/// Of a Service with source ranges, which the second client outside is not in. Nothing else may send to it meanwhile.
pub fn counted(room: &Room<'_>, name: &str, vip: Ipv4Addr) -> Result<String> {
    let (role, address) = OUTSIDE[0];
    // Datagrams: so many packets of a known length, to pods on all nodes. A packet that is sent on to its pod's node comes in there as well.
    let before = at_rest(room, name, vip)?;
    datagrams(room, role, vip)?;
    let sent = Sums { packets: MANY as f64, bytes: (MANY * DATAGRAM) as f64, ..Sums::default() };
    counts(room, name, vip, before, "datagrams", |new| new == sent)?;
    // Connections: a SYN each.
    let before = at_rest(room, name, vip)?;
    let pods = greeted_by(room.scene, role, address, vip, MANY)?;
    ensure!(pods.len() == room.scene.nodes.len(), "not every node has answered: {pods:?}");
    let flows = Sums { new_flows: MANY as f64, ..Sums::default() };
    let new = counts(room, name, vip, before, "connections", |new| {
        Sums { packets: 0.0, bytes: 0.0, ..new } == flows && new.packets >= 3.0 * MANY as f64
    })?;
    bounded(room)?;
    // What is denied is not counted as the Service's traffic.
    let before = at_rest(room, name, vip)?;
    ensure!(is_dropped(room.scene, OUTSIDE[1].0, vip)?, "the other client is not denied");
    let denied = counts(room, name, vip, before, "denied packets", |new| {
        new.denied >= 1.0 && Sums { denied: 0.0, ..new } == Sums::default()
    })?;
    Ok(format!(
        "{MANY} datagrams and {MANY} connections counted once, {} packets of these; denied {}",
        new.packets, denied.denied
    ))
}

/// Of a Service without any pod: each SYN is answered by a reset of the node where it comes in.
pub fn resets(room: &Room<'_>, name: &str, vip: Ipv4Addr) -> Result<()> {
    // A table of a moment ago still leads a SYN to the node that had a pod, which refuses it by its rules.
    wait_for("all SYNs to be reset where they come in", WITHIN, || {
        let before = at_rest(room, name, vip)?;
        refused(room.scene, OUTSIDE[0].0, vip)?;
        let new = at_rest(room, name, vip)?.since(before);
        ensure!(new.resets <= SYNS as f64, "{SYNS} SYNs were counted more than once: {new:?}");
        Ok((new.resets == SYNS as f64 && new.new_flows == 0.0).then_some(()))
    })
}

fn datagrams(room: &Room<'_>, role: &str, vip: Ipv4Addr) -> Result<()> {
    from(room.scene, role, || {
        for _ in 0..MANY {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(WITHIN))?;
            socket.connect((vip, 53))?;
            socket.send(&[7; DATAGRAM - HEADERS])?;
            socket.recv(&mut [0; 512])?;
        }
        Ok(())
    })
}

/// Two sums that are equal: nothing is under way any more.
fn at_rest(room: &Room<'_>, name: &str, vip: Ipv4Addr) -> Result<Sums> {
    let mut last = None;
    wait_for("the counters to rest", WITHIN, || {
        let now = sums(room, name, vip)?;
        Ok((last.replace(now) == Some(now)).then_some(now))
    })
}

fn counts(
    room: &Room<'_>,
    name: &str,
    vip: Ipv4Addr,
    before: Sums,
    what: &str,
    is_all: impl Fn(Sums) -> bool,
) -> Result<Sums> {
    let mut last = Sums::default();
    let all = wait_for(&format!("{what} to be counted"), WITHIN, || {
        last = sums(room, name, vip)?.since(before);
        Ok(is_all(last).then_some(last))
    });
    let Ok(all) = all else { bail!("{what}: {last:?}") };
    // Not more of them a moment later.
    let rested = at_rest(room, name, vip)?.since(before);
    ensure!(is_all(rested), "{what}: {all:?}, then {rested:?}");
    Ok(rested)
}

fn sums(room: &Room<'_>, name: &str, vip: Ipv4Addr) -> Result<Sums> {
    let (scene, namespace) = (room.scene, room.namespace);
    let mut sums = Sums::default();
    for node in &scene.nodes {
        let metrics = http::metrics(&scene.lab, scene.node_address(node)?)?;
        let of = |metric: &str| {
            let series =
                format!("sheave_service_{metric}_total{{name=\"{name}\",namespace=\"{namespace}\",vip=\"{vip}\"}}");
            http::value(&metrics, &series).with_context(|| format!("{node} has no {series}"))
        };
        sums.packets += of("packets")?;
        sums.bytes += of("bytes")?;
        sums.new_flows += of("new_flows")?;
        sums.resets += of("resets")?;
        of("second_chances")?;
        let denied = format!("sheave_denied_packets_total{{name=\"{name}\",namespace=\"{namespace}\"}}");
        sums.denied += http::value(&metrics, &denied).unwrap_or_default();
    }
    Ok(sums)
}

/// As many series as Services at addresses, and one for all that have none of their own.
fn bounded(room: &Room<'_>) -> Result<()> {
    let scene = room.scene;
    let mut seen = (0, 0);
    let all = wait_for("as many series as Services", WITHIN, || {
        let granted = scene.api.list("/apis/sheave.dev/v1alpha1/virtualips")?;
        let services = granted.iter().filter_map(|one| one.pointer("/spec/services")?.as_array()).map(Vec::len);
        let expected = services.sum::<usize>() + 1;
        let has = |node: &String| -> Result<bool> {
            let metrics = http::metrics(&scene.lab, scene.node_address(node)?)?;
            let series = metrics.lines().filter(|line| line.starts_with("sheave_service_packets_total{")).count();
            seen = (series, expected);
            Ok(series == expected)
        };
        Ok(scene.nodes.iter().map(has).collect::<Result<Vec<bool>>>()?.iter().all(|has| *has).then_some(()))
    });
    all.with_context(|| format!("last: {seen:?}"))
}

/// So many that no node has no part in them by accident: (2/3)^60.
const MANY: usize = 60;
/// IP header included.
const DATAGRAM: usize = 100;
const HEADERS: usize = 28;
