//! Ports that are not served beside ports that are: of a protocol, and of their number.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sheave_tests::lab::wait_for;
use sheave_tests::scenario::Scene;
use sheave_tests::scenario::settle::greet;

use super::clients::{OUTSIDE, echo, from, greeted_by, open_at, wait_served, wait_served_at};
use super::{Asked, Room, Server, WITHIN};

pub fn ports(scene: &Scene) -> Result<String> {
    let room = Room::open(scene, "ports")?;
    room.start(&[Server::on(0, "ports-1", "all"), Server::on(1, "ports-2", "all")])?;
    let many = one_too_many(&room)?;
    let grown = one_more(&room)?;
    let mixed = mixed(&room)?;
    Ok(format!("{many}; {grown}; {mixed}"))
}

/// So many from the first one on, as a list in one line.
fn listed(count: u16) -> String {
    let port = |port| format!("{{name: p{port}, protocol: TCP, port: {port}, targetPort: web}}");
    let all: Vec<String> = (FIRST..FIRST + count).map(port).collect();
    format!("[{}]", all.join(", "))
}

/// A Service of many ports gets one more: connections to the others go on, open ones and new ones.
fn one_more(room: &Room<'_>) -> Result<String> {
    let (scene, more) = (room.scene, "selector: {app: all}\n  allocateLoadBalancerNodePorts: false");
    let with = |count| room.service_with("grows", 212, Asked { ports: &listed(count), more, ..Asked::default() });
    let vip = with(MANY)?;
    let [first, last, added] = [FIRST, FIRST + MANY - 1, FIRST + MANY].map(|port| (vip, port).into());
    wait_served_at(scene, first)?;
    wait_served_at(scene, last)?;
    let held = [first, last].map(|to| open_at(scene, "client", to));
    let stop = AtomicBool::new(false);
    let opened = thread::scope(|scope| {
        let load = scope.spawn(|| {
            from(scene, "client", || {
                let mut opened = 0;
                while !stop.load(Ordering::Acquire) {
                    for to in [first, last] {
                        greet(to).with_context(|| format!("connection {opened}, to {to}"))?;
                        opened += 1;
                    }
                }
                Ok(opened)
            })
        });
        let grown = with(MANY + 1).and_then(|_| wait_served_at(scene, added));
        stop.store(true, Ordering::Release);
        let opened = load.join().expect("the load");
        grown.and(opened)
    })?;
    for connection in held {
        ensure!(echo(&connection?)? == 1, "an open connection ended");
    }
    Ok(format!("{MANY} ports and one more: {opened} connections to the others meanwhile"))
}

/// 1,001 ports: the first 1,000 are served, above all the first and the last of them; the other one is refused, and named.
fn one_too_many(room: &Room<'_>) -> Result<String> {
    let scene = room.scene;
    let more = "selector: {app: all}\n  allocateLoadBalancerNodePorts: false";
    let vip = room.service_with("many", 220, Asked { ports: &listed(SERVED + 1), more, ..Asked::default() })?;
    for port in [FIRST, FIRST + SERVED - 1] {
        for (role, _) in OUTSIDE {
            served(scene, role, vip, port)?;
        }
    }
    let beyond = FIRST + SERVED;
    let message = room.remark("many", "TooManyPorts")?;
    ensure!(message.contains(&format!("not served: port {beyond}/TCP")), "{message}");
    let service = scene.api.get(&room.path("services", "many"))?;
    let shown = service.pointer("/status/loadBalancer/ingress/0/ports").and_then(Value::as_array);
    let refused = shown.into_iter().flatten().filter(|port| !port["error"].is_null());
    let refused: Vec<(u64, &str)> = refused
        .map(|port| (port["port"].as_u64().unwrap_or_default(), port["error"].as_str().unwrap_or_default()))
        .collect();
    ensure!(refused == [(beyond.into(), "sheave.dev/TooManyPorts")], "{refused:?}");
    for (role, _) in OUTSIDE {
        match from(scene, role, || Ok(TcpStream::connect_timeout(&(vip, beyond).into(), PATIENCE)))? {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            other => bail!("{role} to port {beyond}: {other:?} instead of a reset"),
        }
    }
    Ok(format!("ports {FIRST} and {} of {} answer, {beyond} is refused", beyond - 1, SERVED + 1))
}

/// A port of SCTP takes no other one down.
fn mixed(room: &Room<'_>) -> Result<String> {
    let scene = room.scene;
    let ports = "[{name: signal, protocol: SCTP, port: 38412}, {name: web, protocol: TCP, port: 80, targetPort: web}]";
    let vip = room.service_with("mixed", 211, Asked { ports, more: "selector: {app: all}", ..Asked::default() })?;
    wait_served(scene, vip)?;
    for (role, address) in OUTSIDE {
        greeted_by(scene, role, address, vip, FEW)?;
    }
    let message = room.remark("mixed", "ProtocolNotServed")?;
    ensure!(message.contains("not served: port 38412/SCTP"), "{message}");
    Ok(format!("TCP beside SCTP: {} connections each", FEW))
}

fn served(scene: &Scene, role: &str, vip: Ipv4Addr, port: u16) -> Result<()> {
    let answered = from(scene, role, || {
        wait_for(&format!("an answer at port {port}"), WITHIN, || Ok(greet((vip, port).into()).ok())).map(drop)
    });
    answered.with_context(|| format!("{role} to {vip}"))
}

const FIRST: u16 = 3001;
/// Ports of a Service that are served.
const SERVED: u16 = 1000;
/// Of a Service that gets one more.
const MANY: u16 = 250;
const FEW: usize = 8;
const PATIENCE: Duration = Duration::from_secs(2);
