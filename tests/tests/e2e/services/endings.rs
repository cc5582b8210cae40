//! Pods that end, and a Service that has none; a connection that was idle for too long.

use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sheave_tests::lab::{netns, wait_for};
use sheave_tests::scenario::Scene;

use super::clients::{OUTSIDE, REFUSED_MS, datagram, echo, greeted_by, open, ping, refused, wait_refused, wait_served};
use super::{Endpoint, Room, Server, WITHIN, counted};

/// All pods end: while they serve they get new flows (KEP-1669), under both policies; then new flows are refused at once, the
/// address stays, and it answers pings.
pub fn terminating(scene: &Scene) -> Result<String> {
    let room = Room::open(scene, "endings")?;
    let server = |node, name| Server { drain_s: DRAIN_S, ..Server::on(node, name, "ending") };
    room.start(&[server(0, "one"), server(1, "two")])?;
    let cluster = room.service("cluster", 205, "", "selector: {app: ending}")?;
    let local = room.service("local", 206, "", "selector: {app: ending}\n  externalTrafficPolicy: Local")?;
    [cluster, local].into_iter().try_for_each(|vip| wait_served(scene, vip))?;
    let owners = [owner(scene, cluster)?, owner(scene, local)?];
    room.end(&["one", "two"])?;
    wait_for("both pods to serve while they terminate", WITHIN, || {
        serve_all(scene, &[cluster, local], 2)?;
        let end = |one: &Endpoint| one.terminating && one.serving && !one.ready;
        let endpoints: Vec<_> = room.slices("local")?.into_iter().flatten().collect();
        Ok((endpoints.len() == 2 && endpoints.iter().all(end)).then_some(()))
    })?;
    serve_all(scene, &[cluster, local], MANY)?;
    let late = room.slices("local")?.into_iter().flatten().filter(|one| one.serving).count();
    ensure!(late == 2, "the machine was too slow: a pod had ended before all connections were made");

    wait_for("no endpoint", WITHIN, || Ok(room.slices("local")?.iter().all(Vec::is_empty).then_some(())))?;
    let (mut slowest, mut tries, mut late) = ((0.0_f64, 0.0_f64), 0, 0);
    for vip in [cluster, local] {
        // The last speaker has the last slice a moment after the API server.
        wait_refused(scene, vip)?;
        let name = if vip == cluster { "cluster" } else { "local" };
        counted::resets(&room, name, vip)?;
        for (role, _) in OUTSIDE {
            let by = refused(scene, role, vip)?;
            slowest = (slowest.0.max(by.tcp_ms), slowest.1.max(by.udp_ms));
            (tries, late) = (tries + by.tries, late + by.late);
            ping(scene, role, vip)?;
        }
    }
    ensure!([owner(scene, cluster)?, owner(scene, local)?] == owners, "an address moved from {owners:?}");
    let (tcp, udp) = slowest;
    // What the kernel's own threads waited for a processor is not seen: a few may be late for that.
    ensure!(
        late * 10 <= tries,
        "{late} of {tries} refusals took longer than {REFUSED_MS} ms: {tcp:.1} ms, {udp:.1} ms (UDP)"
    );
    Ok(format!(
        "served to the end; then reset within {tcp:.1} ms, unreachable within {udp:.1} ms ({late} of {tries} late), owners stay"
    ))
}

/// A connection whose conntrack entry has expired is reset at its next segment, never answered by another pod.
pub fn idle(scene: &Scene) -> Result<String> {
    let open: Vec<_> = (0..CONNECTIONS).map(|_| open(scene, "client", scene.vip)).collect::<Result<_>>()?;
    let before: Vec<String> = scene.nodes.iter().map(|node| timeout(scene, node)).collect::<Result<_>>()?;
    set_timeouts(scene, &vec![SHORT_S.to_string(); before.len()])?;
    // Each entry is renewed with the short timeout, and then none more.
    let renewed = open.iter().try_for_each(|stream| echo(stream).map(|length| assert_eq!(length, 1)));
    // The acknowledgment of the last echo renews the entry once more.
    sleep(ACKNOWLEDGED);
    set_timeouts(scene, &before)?;
    renewed?;
    // The timeout itself has to pass.
    sleep(Duration::from_secs(SHORT_S) + PASSED);
    for stream in &open {
        match echo(stream) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => bail!("{}: {other:?} instead of a reset", stream.local_addr()?),
        }
    }
    Ok(format!("{} connections reset at their next segment", open.len()))
}

fn serve_all(scene: &Scene, vips: &[Ipv4Addr], connections: usize) -> Result<()> {
    for vip in vips {
        for (role, address) in OUTSIDE {
            greeted_by(scene, role, address, *vip, connections)?;
            datagram(scene, role, *vip).with_context(|| format!("a datagram from {role} to {vip}"))?;
        }
    }
    Ok(())
}

/// The owner of any address, by the VirtualIP's status.
pub fn owner(scene: &Scene, vip: Ipv4Addr) -> Result<(String, i64)> {
    let scene = of(scene, vip);
    let owner = wait_for(&format!("an owner of {vip}"), WITHIN, || scene.owner())?;
    Ok((owner.node, owner.term))
}

/// The same lab, with the eyes on another address.
pub fn of(scene: &Scene, vip: Ipv4Addr) -> Scene {
    let (lab, api, nodes) = (scene.lab.clone(), scene.api.clone(), scene.nodes.clone());
    Scene { lab, api, vip, nodes, pods_per_node: scene.pods_per_node }
}

fn timeout(scene: &Scene, node: &str) -> Result<String> {
    netns::inside(&scene.lab.state()?.plan.netns(node), || {
        Ok(fs::read_to_string(Path::new("/proc/sys/net").join(TIMEOUT)).context(TIMEOUT)?.trim().to_owned())
    })
}

fn set_timeouts(scene: &Scene, values: &[String]) -> Result<()> {
    let plan = scene.lab.state()?.plan;
    scene.nodes.iter().zip(values).try_for_each(|(node, value)| netns::sysctl(&plan.netns(node), &[(TIMEOUT, value)]))
}

const TIMEOUT: &str = "netfilter/nf_conntrack_tcp_timeout_established";
const SHORT_S: u64 = 1;
/// Entries expire within a second of their time (the kernel's garbage collection does not matter: an expired one is not found).
const PASSED: Duration = Duration::from_millis(500);
/// Linux delays an acknowledgment by 200 ms at most.
const ACKNOWLEDGED: Duration = Duration::from_millis(300);
const CONNECTIONS: usize = 12;
const MANY: usize = 20;
/// Long enough for all connections of the step.
const DRAIN_S: u8 = 6;
