//! Hosts of the segment that use addresses of the pool, and routers that answer for all of them: what Services get.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::text;
use super::deploy::{SERVICES, Scene, VIRTUALIPS, service};
use crate::lab::{netns, plan, wait_for};

/// What became of Services beside a host that has two addresses of the pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Conflict {
    /// Next in line, and the host's.
    pub next: Ipv4Addr,
    /// What a Service got instead.
    pub granted: Ipv4Addr,
    /// The other address of the host, which a Service asked for.
    pub asked: Ipv4Addr,
    /// The message of the refusal, and how long after the Service it came.
    pub refusal: String,
    pub refused_ms: f64,
    /// Attempts in which the answer came later than a Service waits: it got the address, and the answer is a remark.
    pub late: usize,
    /// From the end of the host to the address of the Service that had asked for it.
    pub freed_s: f64,
    /// What the pool says of a host that answers for every address, and what a Service got meanwhile.
    pub proxy: String,
    pub beside_proxy: Ipv4Addr,
}

pub fn conflict(scene: &Scene) -> Result<Conflict> {
    let result = beside_hosts(scene);
    // Whatever comes of it, the segment and the Services are as before.
    for host in [HOST, PROXY] {
        scene.lab.unplug(host)?;
    }
    router_proxies(scene, "0")?;
    // The proxy answered for the gateway, too: nodes must not send to a host that is gone until their kernels notice.
    let lab = scene.lab.state()?.plan;
    for node in &scene.nodes {
        netns::run("ip", &["-netns", &lab.netns(node), "neighbour", "flush", "dev", plan::UPLINK])?;
    }
    for name in ["conflict-auto", "conflict-asked", "conflict-proxy"] {
        release(scene, name)?;
    }
    result
}

fn beside_hosts(scene: &Scene) -> Result<Conflict> {
    let line = in_line(scene)?;
    let next = *line.first().context("no address is in line")?;
    let (first, last) = (u32::from(plan::POOL.0), u32::from(plan::POOL.1));
    let taken = taken(scene)?;
    // The last of the pool: not in line, unless the pool is small.
    let asked = (first..=last).rev().map(Ipv4Addr::from).find(|one| !taken.contains(one)).context("a free address")?;
    let host = scene.lab.plug_in(HOST, next)?;
    netns::ip(&host, &format!("address add {asked}/24 dev {}\n", plan::UPLINK))?;
    let mac = plan::mac_of(next).map(|byte| format!("{byte:02x}")).join(":");

    wait_for("the pool to leave out the host's address", PROBED_AGAIN, || Ok((left_out(scene)? > 0).then_some(())))?;
    scene.api.create(SERVICES, &service("conflict-auto", &json!({})))?;
    let granted = wait_for("an address beside the host's", WITHIN, || address_of(scene, "conflict-auto"))?;
    let (refusal, refused_ms, late) = refused(scene, asked, &mac)?;

    scene.lab.unplug(HOST)?;
    let gone = Instant::now();
    wait_for("the address that the host had", PROBED_AGAIN, || {
        Ok(address_of(scene, "conflict-asked")?.filter(|address| *address == asked))
    })?;
    let freed_s = gone.elapsed().as_secs_f64();
    let (proxy, beside_proxy) = beside_a_proxy(scene)?;
    Ok(Conflict { next, granted, asked, refusal, refused_ms, late, freed_s, proxy, beside_proxy })
}

/// A Service asks for an address that the host has. On a busy machine the answer may come later than a Service waits; then it is known
/// when the Service asks again.
fn refused(scene: &Scene, asked: Ipv4Addr, mac: &str) -> Result<(String, f64, usize)> {
    for late in 0..3 {
        let created = Instant::now();
        scene.api.create(SERVICES, &service("conflict-asked", &json!({"sheave.dev/addresses": asked})))?;
        let said = wait_for("the Service to name the host", WITHIN, || {
            let said = condition(&scene.api.get(&format!("{SERVICES}/conflict-asked"))?, ALLOCATED);
            Ok(said.filter(|said| text(said, "/reason") == "AnsweredByHost"))
        })?;
        let message = text(&said, "/message").to_owned();
        if !message.contains(mac) {
            bail!("the message does not name {mac}: {message}");
        }
        if text(&said, "/status") == "False" {
            return Ok((message, created.elapsed().as_secs_f64() * 1e3, late));
        }
        release(scene, "conflict-asked")?;
    }
    bail!("{asked} was granted three times although the host has answered")
}

/// Two proxies: the lab's router, whose kernel leaves probes alone, and a host that has every address of the segment as its own.
fn beside_a_proxy(scene: &Scene) -> Result<(String, Ipv4Addr)> {
    router_proxies(scene, "1")?;
    let proxy = scene.lab.plug_in(PROXY, plan::address(99))?;
    // It answers probes alone, which come from nobody: with its answers to others the segment would be its own.
    let only_probes = "add table arp proxy\n\
                       add chain arp proxy input { type filter hook input priority 0; }\n\
                       add rule arp proxy input arp saddr ip != 0.0.0.0 drop\n";
    netns::inside(&proxy, || netns::run("nft", &[only_probes]).map(drop))?;
    netns::ip(&proxy, &format!("route add local {}/24 dev lo\n", plan::address(0)))?;
    let says = wait_for("the pool to name the proxy", PROBED_AGAIN, || {
        let said = condition(&scene.api.get(POOL)?, "ProxyArp").filter(|said| text(said, "/status") == "True");
        Ok(said.map(|said| text(&said, "/message").to_owned()))
    })?;
    scene.api.create(SERVICES, &service("conflict-proxy", &json!({})))?;
    let granted = wait_for("an address beside the proxy", WITHIN, || address_of(scene, "conflict-proxy"))?;
    Ok((says, granted))
}

fn router_proxies(scene: &Scene, value: &str) -> Result<()> {
    let router = scene.lab.state()?.plan.netns("router");
    netns::sysctl(&router, &[(&format!("ipv4/conf/{}/proxy_arp", plan::UPLINK), value)])
}

/// Addresses that were probed ahead and that nobody has, lowest first.
fn in_line(scene: &Scene) -> Result<BTreeSet<Ipv4Addr>> {
    wait_for("a speaker's answer", WITHIN, || {
        let probes = scene.api.list(PROBES)?;
        let results = probes.iter().filter_map(|probe| probe.pointer("/status/results")?.as_array().cloned()).flatten();
        let silent = results.filter(|result| result.get("macs").is_none());
        let silent: BTreeSet<Ipv4Addr> = silent.filter_map(|result| text(&result, "/address").parse().ok()).collect();
        let line: BTreeSet<Ipv4Addr> = &silent - &taken(scene)?;
        Ok((!line.is_empty()).then_some(line))
    })
}

fn taken(scene: &Scene) -> Result<BTreeSet<Ipv4Addr>> {
    scene.api.list(VIRTUALIPS)?.iter().map(|vip| Ok(text(vip, "/spec/address").parse()?)).collect()
}

/// How many addresses of the pool are left out because hosts have them.
fn left_out(scene: &Scene) -> Result<i64> {
    let pool = scene.api.get(POOL)?;
    let entries = pool.pointer("/status/excludedBy").and_then(Value::as_array).cloned().unwrap_or_default();
    let ours = entries.iter().filter(|entry| text(entry, "/reason") == "AnsweredByHost");
    Ok(ours.filter_map(|entry| entry["count"].as_i64()).sum())
}

fn condition(object: &Value, kind: &str) -> Option<Value> {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array)?;
    conditions.iter().find(|condition| text(condition, "/type") == kind).cloned()
}

fn address_of(scene: &Scene, name: &str) -> Result<Option<Ipv4Addr>> {
    Ok(text(&scene.api.get(&format!("{SERVICES}/{name}"))?, "/status/loadBalancer/ingress/0/ip").parse().ok())
}

/// Nothing happens if there is no such Service.
fn release(scene: &Scene, name: &str) -> Result<()> {
    let path = format!("{SERVICES}/{name}");
    if scene.api.find(&path)?.is_none() {
        return Ok(());
    }
    scene.api.delete(&path)?;
    wait_for(&format!("{name} to be gone"), WITHIN, || Ok(scene.api.find(&path)?.is_none().then_some(())))
}

const HOST: &str = "printer";
const PROXY: &str = "proxy";
const ALLOCATED: &str = "sheave.dev/Allocated";
const POOL: &str = "/apis/sheave.dev/v1alpha1/addresspools/demo";
const PROBES: &str = "/apis/sheave.dev/v1alpha1/addressprobes";
const WITHIN: Duration = Duration::from_secs(20);
/// The lab's controllers have addresses probed again after 10 s.
const PROBED_AGAIN: Duration = Duration::from_secs(40);
