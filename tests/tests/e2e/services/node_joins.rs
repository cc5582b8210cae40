//! A machine joins the cluster with an address that a Service has: it must not be cut off. The Service keeps the grant and is not served.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sheave_tests::lab::{netns, wait_for};
use sheave_tests::scenario::Scene;
use sheave_tests::scenario::api::text;
use sheave_tests::scenario::deploy::VIRTUALIPS;
use sheave_tests::scenario::settle::forget_neighbours;

use super::clients::{from, tcp, wait_served};
use super::{Room, Server, WITHIN};

pub fn with_a_vip(scene: &Scene) -> Result<String> {
    const LAST: u8 = 212;
    let room = Room::open(scene, "joins")?;
    room.start(&[Server::on(0, "joins-1", "joins")])?;
    let vip = room.service("joins", LAST, "", "selector: {app: joins}")?;
    wait_served(scene, vip).context("before")?;
    let result = joins(&room, vip);
    // Whatever comes of it.
    scene.api.delete(NODE_PATH)?;
    scene.lab.unplug(NODE)?;
    forget_neighbours(scene)?;
    let said = result?;
    room.remark("joins", "AddressAllocated")?;
    wait_served(scene, vip).with_context(|| format!("after it is gone: {:?}", entry(scene, vip)))?;
    Ok(said)
}

fn joins(room: &Room<'_>, vip: Ipv4Addr) -> Result<String> {
    let scene = room.scene;
    let granted = text(&entry(scene, vip)?, "/metadata/uid").to_owned();
    let machine = scene.lab.plug_in(NODE, vip)?;
    let listener = netns::inside(&machine, || Ok(TcpListener::bind(tcp(vip))?))?;
    // It ends with the program.
    std::thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            // A client that has gone needs no answer.
            client.write_all(NODE.as_bytes()).ok();
        }
    });
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {"unschedulable": true},
        "status": {"addresses": [{"type": "InternalIP", "address": vip}]},
    });
    scene.api.create(NODES, &node)?;
    let message = room.remark("joins", "AddressOfNode")?;
    ensure!(message.contains(&vip.to_string()) && message.contains(NODE), "{message}");
    let mut status = serde_json::Value::Null;
    wait_for("the VirtualIP to say so", WITHIN, || {
        status = entry(scene, vip)?["status"].take();
        Ok((status["owner"].is_null() && status["reason"] == "AddressOfNode").then_some(()))
    })
    .with_context(|| format!("{status}"))?;
    ensure!(text(&entry(scene, vip)?, "/metadata/uid") == granted, "the grant has changed");
    forget_neighbours(scene)?;
    from(scene, "client", || {
        wait_for("the machine to answer", WITHIN, || Ok((answer(vip).ok().as_deref() == Some(NODE)).then_some(())))?;
        for _ in 0..FEW {
            let by = answer(vip).context("the machine")?;
            ensure!(by == NODE, "'{by}' answers at the machine's address");
        }
        Ok(())
    })?;
    Ok(format!("{FEW} connections reach the machine; {message}"))
}

fn entry(scene: &Scene, vip: Ipv4Addr) -> Result<serde_json::Value> {
    scene.api.get(&format!("{VIRTUALIPS}/{vip}"))
}

fn answer(vip: Ipv4Addr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&tcp(vip), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

const NODE: &str = "joiner";
const NODES: &str = "/api/v1/nodes";
const NODE_PATH: &str = "/api/v1/nodes/joiner";
const FEW: usize = 10;
const PATIENCE: Duration = Duration::from_secs(2);
