//! Services that share an address: what each says holds for its own ports alone.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};
use sheave_tests::lab::{plan, wait_for};
use sheave_tests::scenario::Scene;
use sheave_tests::scenario::settle::greet;

use super::clients::{OUTSIDE, client_of, from, greetings, wait_served};
use super::{Asked, Room, Server, WITHIN};

/// One with source ranges and session affinity; one of other pods, with externalTrafficPolicy Local and neither.
pub fn address(scene: &Scene) -> Result<String> {
    const LAST: u8 = 208;
    let key = ", sheave.dev/allow-shared-ip: shared";
    let room = Room::open(scene, "shared")?;
    room.start(&[
        Server::on(0, "web-1", "web"),
        Server::on(1, "web-2", "web"),
        Server::on(1, "other-1", "other"),
        Server::on(2, "other-2", "other"),
    ])?;
    let web = format!(
        "selector: {{app: web}}\n  sessionAffinity: ClientIP\n  loadBalancerSourceRanges: [{}/32]",
        plan::CLIENT
    );
    let vip = room.service_with("web", LAST, Asked { annotations: key, more: &web, ..Asked::default() })?;
    let other = Asked {
        annotations: key,
        ports: "[{name: other, port: 8081, targetPort: web}]",
        more: "selector: {app: other}\n  externalTrafficPolicy: Local",
        ..Asked::default()
    };
    ensure!(room.service_with("other", LAST, other)? == vip);
    wait_served(scene, vip)?;

    let [(client, _), (far, _)] = OUTSIDE;
    let web: BTreeSet<String> = greetings(scene, client, vip, MANY)?.into_iter().map(|one| one.pod).collect();
    ensure!(web.len() == 1 && web.iter().all(|pod| pod.starts_with("web-")), "one client has one pod: {web:?}");
    let denied = from(scene, far, || Ok(TcpStream::connect_timeout(&(vip, 80).into(), PATIENCE).is_err()))?;
    ensure!(denied, "a client outside the source ranges is admitted at port 80");
    for (role, address) in OUTSIDE {
        // Of the ranges and the affinity of port 80 this one has nothing.
        wait_for(&format!("both pods to answer {role} at port 8081"), WITHIN, || {
            let by = by_pod(scene, role, address, (vip, 8081).into())?;
            Ok((by == ["other-1", "other-2"].map(String::from).into()).then_some(()))
        })?;
    }

    // One goes: the other one stays as it was.
    scene.api.delete(&room.path("services", "web"))?;
    from(scene, client, || {
        wait_for("port 80 to be refused", WITHIN, || {
            Ok(TcpStream::connect_timeout(&(vip, 80).into(), PATIENCE).is_err().then_some(()))
        })
    })?;
    let by = by_pod(scene, far, OUTSIDE[1].1, (vip, 8081).into())?;
    ensure!(by.len() == 2, "{by:?}");
    Ok(format!("{vip}: port 80 by {web:?} alone and for one client, port 8081 by both of its pods for all"))
}

/// None of the connections may fail; each pod sees the client's own address.
fn by_pod(scene: &Scene, role: &str, seen: Ipv4Addr, to: SocketAddr) -> Result<BTreeSet<String>> {
    let all = from(scene, role, || (0..MANY).map(|_| greet(to)).collect::<Result<Vec<_>>>())?;
    for greeting in &all {
        ensure!(client_of(greeting)? == seen, "{role} to {to} was seen as another: {greeting:?}");
    }
    Ok(all.into_iter().map(|greeting| greeting.pod).collect())
}

const MANY: usize = 40;
const PATIENCE: Duration = Duration::from_secs(2);
