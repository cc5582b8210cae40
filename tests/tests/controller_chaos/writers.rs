//! Services come, go and change: four writers, each with Services of its own.

use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sheave_tests::scenario::api::{Api, text};
use sheave_tests::sim::random::Random;

use super::SERVICES;

pub const WRITERS: usize = 4;
/// First addresses of the pools: networks for benchmarks (RFC 2544), of which no interface here has one.
pub const EAST: u32 = u32::from_be_bytes([198, 18, 0, 1]);
pub const WEST: u32 = u32::from_be_bytes([198, 19, 0, 1]);
/// Pairs of Services with this annotation share an address.
const SHARED: &str = "sheave.dev/allow-shared-ip";
const WISH: &str = "sheave.dev/addresses";

/// Changes one Service after the other until the time is over. How many changes were made.
pub fn write(api: &Api, number: usize, services: usize, mut random: Random, until: Instant) -> Result<usize> {
    let own: Vec<usize> = (number..services).step_by(WRITERS).collect();
    let mut exists = vec![false; own.len()];
    let mut changes = 0;
    while Instant::now() < until {
        let slot = random.below(own.len());
        let path = format!("{SERVICES}/{}", name(own[slot]));
        if !exists[slot] {
            api.create(SERVICES, &service(own[slot], services, &mut random)).context("create")?;
            exists[slot] = true;
        } else {
            match random.below(8) {
                0 | 1 => {
                    api.delete(&path)?;
                    exists[slot] = false;
                    // Until its address is released its name is taken.
                    wait_gone(api, &path, until)?;
                }
                2 | 3 => {
                    let wish = random.chance(700).then(|| wished(services, &mut random));
                    api.patch(&path, &json!({ "metadata": { "annotations": { WISH: wish } } }))?;
                }
                4 | 5 => {
                    let service = api.get(&path)?;
                    let is_ours = text(&service, "/spec/type") == "LoadBalancer";
                    let to = if is_ours { "ClusterIP" } else { "LoadBalancer" };
                    // The field may be set of this type alone.
                    let ports = if is_ours { Value::Null } else { json!(false) };
                    api.patch(&path, &json!({ "spec": { "type": to, "allocateLoadBalancerNodePorts": ports } }))?;
                }
                // Nothing that the controller decides by.
                _ => {
                    let label = json!({ "round": random.below(1000).to_string() });
                    api.patch(&path, &json!({ "metadata": { "labels": label } }))?;
                }
            }
        }
        changes += 1;
    }
    Ok(changes)
}

fn wait_gone(api: &Api, path: &str, until: Instant) -> Result<()> {
    while api.find(path)?.is_some() {
        if Instant::now() >= until {
            // The end of the run waits for it.
            return Ok(());
        }
        // A condition that is polled: the API server tells of it otherwise only in a watch per Service.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Ok(())
}

pub fn delete_all(api: &Api) -> Result<()> {
    for service in api.list(SERVICES)? {
        api.delete(&format!("{SERVICES}/{}", text(&service, "/metadata/name")))?;
    }
    Ok(())
}

/// Addresses of each pool.
pub fn half(services: usize) -> usize {
    services * 15 / 100
}

fn name(number: usize) -> String {
    format!("service-{number}")
}

fn service(number: usize, services: usize, random: &mut Random) -> Value {
    // Of ten Services eight are alone, and two share an address.
    let (shared, port) = match number % 10 {
        8 => (Some(number / 10), 80),
        9 => (Some(number / 10), 81),
        _ => (None, 80),
    };
    let wish = (shared.is_none() && random.chance(200)).then(|| wished(services, random));
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name(number),
            "annotations": annotations(shared, wish),
        },
        "spec": {
            "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
            "selector": { "app": name(number) }, "ports": [{ "port": port }],
        },
    })
}

fn annotations(shared: Option<usize>, wish: Option<String>) -> Value {
    let shared = shared.map(|key| (SHARED, format!("key-{key}")));
    json!(shared.into_iter().chain(wish.map(|wish| (WISH, wish))).collect::<std::collections::BTreeMap<_, _>>())
}

/// An address of one of the pools; one in thirty is beyond their ends.
fn wished(services: usize, random: &mut Random) -> String {
    let half = half(services);
    let first = if random.chance(500) { EAST } else { WEST };
    Ipv4Addr::from(first + random.below(half + half / 30 + 1) as u32).to_string()
}
