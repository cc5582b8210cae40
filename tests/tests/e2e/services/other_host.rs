//! A host that was off comes up with a VIP as its own address: it is named, and the VIP stays served; docs/services.md, *Two owners of one
//! address*.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheave_tests::lab::{netns, plan, wait_for};
use sheave_tests::scenario::api::text;
use sheave_tests::scenario::deploy::{NAMESPACE, SERVICE, SERVICES, VIRTUALIPS};
use sheave_tests::scenario::settle::forget_neighbours;
use sheave_tests::scenario::{Scene, http, logs};

use super::clients::{self, echo, greetings};

/// The Service that every step has.
pub fn comes_up(scene: &Scene) -> Result<String> {
    let result = beside(scene);
    // Whatever comes of it, the segment is as before.
    scene.lab.unplug(HOST)?;
    forget_neighbours(scene)?;
    result
}

fn beside(scene: &Scene) -> Result<String> {
    let vip = scene.vip;
    let owner = scene.owner()?.context("an owner")?;
    // Of a conflict that lasts only the first host is logged.
    wait_for("no conflict from before", ENDED, || {
        let metrics = http::metrics(&scene.lab, scene.node_address(&owner.node)?)?;
        Ok((http::value(&metrics, "sheave_address_conflicts") == Some(0.0)).then_some(()))
    })?;
    let held: Vec<_> = (0..HELD).map(|_| clients::open(scene, "client", vip)).collect::<Result<_>>()?;
    let host = scene.lab.plug_in(HOST, vip)?;
    let began = Instant::now();
    // Its kernel asks for the router, as that of any host that has something to send.
    netns::inside(&host, || Ok(UdpSocket::bind((vip, 0))?.send_to(b"x", (plan::ROUTER, 9))?))?;
    let named_by = wait_for("the VirtualIP to name the conflict", NAMED, || {
        let status = status(scene)?;
        Ok(text(&status, "/reason").starts_with("AddressConflict").then_some(status))
    })?;
    ensure!(text(&named_by, "/owner") == owner.node, "the owner changed: {named_by}");
    wait_for("the Service to name the conflict", NAMED, || Ok((reason(scene)? == "AddressConflict").then_some(())))?;
    let named = began.elapsed();
    wait_for("an Event", NAMED, || Ok(has_event(scene)?.then_some(())))?;
    let mac = plan::mac_of(vip).map(|byte| format!("{byte:02x}")).join(":");
    let log = logs::of_speaker(scene, &owner.node)?;
    let said: Vec<_> = log.lines().filter(|line| line.contains("address_conflict")).collect();
    let names_it = |line: &&str| line.contains(&mac) && line.contains(&vip.to_string());
    ensure!(said.iter().any(names_it), "the log names {mac} nowhere: {said:#?}");

    // Announced again: clients find the owner, whatever entry they had a moment ago.
    greetings(scene, "client", vip, NEW)?;
    for stream in &held {
        ensure!(echo(stream)? > 0, "a connection that was open before has ended");
    }

    scene.lab.unplug(HOST)?;
    let gone = Instant::now();
    wait_for("the VirtualIP to name no conflict", ENDED, || {
        Ok((!text(&status(scene)?, "/reason").contains("AddressConflict")).then_some(()))
    })?;
    wait_for("the Service to name no conflict", ENDED, || Ok((reason(scene)? == "AddressAllocated").then_some(())))?;
    let ended = gone.elapsed();
    greetings(scene, "client", vip, NEW)?;
    for stream in &held {
        ensure!(echo(stream)? > 0, "a connection that was open before has ended");
    }
    Ok(format!(
        "named after {:.1} s, {HELD} open connections live, {NEW} new ones; {:.1} s after the host was gone no longer named",
        named.as_secs_f64(),
        ended.as_secs_f64()
    ))
}

fn status(scene: &Scene) -> Result<Value> {
    Ok(scene.api.get(&format!("{VIRTUALIPS}/{}", scene.vip))?["status"].take())
}

/// Of our condition on the Service.
fn reason(scene: &Scene) -> Result<String> {
    let service = scene.api.get(&format!("{SERVICES}/{SERVICE}"))?;
    let conditions = service.pointer("/status/conditions").and_then(Value::as_array);
    let ours = conditions.into_iter().flatten().find(|one| one["type"] == "sheave.dev/Allocated");
    Ok(ours.map(|one| text(one, "/reason").to_owned()).unwrap_or_default())
}

fn has_event(scene: &Scene) -> Result<bool> {
    let events = scene.api.list(&format!("/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events"))?;
    let about =
        |event: &Value| text(event, "/regarding/name") == SERVICE && text(event, "/reason") == "AddressConflict";
    Ok(events.iter().any(about))
}

const HOST: &str = "twin";
/// Connections that are open before, and new ones.
const HELD: usize = 20;
const NEW: usize = 20;
/// It takes a second; the machine may be busy.
const NAMED: Duration = Duration::from_secs(10);
/// Three probes without an answer, 5 s apart, and the next look at the status.
const ENDED: Duration = Duration::from_secs(40);
