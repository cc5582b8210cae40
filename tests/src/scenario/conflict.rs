//! Hosts of the segment that use addresses of the pool, and routers that answer for all of them: what Services get.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::text;
use super::deploy::{SERVICES, Scene, VIRTUALIPS, service};
use super::settle::forget_neighbours;
use super::{gratuitous, http, logs};
use crate::lab::{netns, plan, wait_for};
use crate::traffic::arp;

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
    /// What the pool says of a host that answers for every address.
    pub proxy: String,
    /// By controller: lines of its log that say so.
    pub proxy_said: Vec<usize>,
    /// Lines of the speakers' logs that take the router, which has answered the owner's announcement, for another owner of a VIP.
    pub router_named: Vec<String>,
    /// What a Service got meanwhile, while the first host had `used`, next in line, again.
    pub beside_proxy: Ipv4Addr,
    pub used: Ipv4Addr,
}

pub fn conflict(scene: &Scene) -> Result<Conflict> {
    let result = beside_hosts(scene);
    // Whatever comes of it, the segment and the Services are as before.
    for host in [HOST, PROXY] {
        scene.lab.unplug(host)?;
    }
    router_proxies(scene, false)?;
    // The proxy answered for the gateway, too: nodes must not send to a host that is gone until their kernels notice.
    let lab = scene.lab.state()?.plan;
    for node in &scene.nodes {
        netns::run("ip", &["-netns", &lab.netns(node), "neighbour", "flush", "dev", plan::UPLINK])?;
    }
    forget_neighbours(scene)?;
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
    let mac = mac_of(next);

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
    let beside = beside_a_proxy(scene)?;
    Ok(Conflict {
        next,
        granted,
        asked,
        refusal,
        refused_ms,
        late,
        freed_s,
        proxy: beside.says,
        proxy_said: beside.said,
        router_named: beside.router_named,
        beside_proxy: beside.granted,
        used: beside.used,
    })
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

struct BesideProxy {
    says: String,
    said: Vec<usize>,
    router_named: Vec<String>,
    used: Ipv4Addr,
    granted: Ipv4Addr,
}

/// Two proxies, one after the other: the lab's router, and a host that has every address of the segment as its own.
fn beside_a_proxy(scene: &Scene) -> Result<BesideProxy> {
    let router_named = beside_router(scene)?;
    let used = *in_line(scene)?.first().context("no address is in line")?;
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
    // A host's own answer counts beside the proxy's, and nothing else does.
    scene.lab.plug_in(HOST, used)?;
    let mac = mac_of(used);
    wait_for("the host's answer beside the proxy's", PROBED_AGAIN, || {
        // By whichever speaker: another one's answer of before may be there still.
        let found = results(scene)?.into_iter().filter(|result| text(result, "/address") == used.to_string());
        let mut macs = found.filter_map(|result| result["macs"].as_array().cloned());
        Ok(macs.any(|macs| macs.len() > 1 && macs.iter().any(|one| *one == mac)).then_some(()))
    })?;
    wait_for("the pool to leave out the host's address alone", WITHIN, || Ok((left_out(scene)? == 1).then_some(())))?;
    scene.api.create(SERVICES, &service("conflict-proxy", &json!({})))?;
    let granted = wait_for("an address beside the proxy", WITHIN, || address_of(scene, "conflict-proxy"))?;

    let warning = format!("ProxyArp: {} ", mac_of(plan::address(99)));
    let said = logs::of_controllers(scene)?.iter().map(|log| log.matches(&warning).count()).collect();
    Ok(BesideProxy { says, said, router_named, used, granted })
}

/// The router's kernel answers for the pool's addresses, announced ones too, but leaves probes alone. Returns what speakers say of it as
/// another owner of a VIP, a round of probes later.
fn beside_router(scene: &Scene) -> Result<Vec<String>> {
    let line = in_line(scene)?;
    let free = *line.last().context("no address is in line")?;
    router_proxies(scene, true)?;
    wait_for(&format!("the router to answer for {free}, of {line:?}"), WITHIN, || {
        is_answered(scene, free, plan::ROUTER)
    })?;
    announcement_is_answered(scene)?;
    let later = in_line(scene)?;
    ensure!(later.contains(&free), "{free} is in line no more: {later:?}");
    let named = router_named(scene)?;
    router_proxies(scene, false)?;
    Ok(named)
}

/// Proxy ARP of Linux answers announcements, too. Returns when the owner of the address has had such an answer.
fn announcement_is_answered(scene: &Scene) -> Result<()> {
    let owner = scene.owner()?.context("an owner")?.node;
    let mac = mac_of(scene.node_address(&owner)?);
    let (router, end) = (mac_of(plan::ROUTER), AtomicBool::new(false));
    netns::inside(&scene.lab.state()?.plan.netns(&owner), || {
        let socket = arp::open(plan::UPLINK)?;
        std::thread::scope(|scope| {
            let answer = scope.spawn(|| arp::claims(&socket, scene.vip, &end).any(|mac| mac == router));
            let answered = wait_for("the router to answer an announcement", WITHIN, || {
                if !answer.is_finished() {
                    gratuitous::announce(plan::UPLINK, scene.vip, &mac)?;
                }
                Ok(answer.is_finished().then_some(()))
            });
            end.store(true, Ordering::Release);
            answered
        })
    })
}

fn router_named(scene: &Scene) -> Result<Vec<String>> {
    let router = mac_of(plan::ROUTER);
    let mut named = Vec::new();
    for node in &scene.nodes {
        let log = logs::of_speaker(scene, node)?;
        let about = |line: &&str| line.contains("address_conflict") && line.contains(&router);
        named.extend(log.lines().filter(about).map(|line| format!("{node}: {line}")));
        let metrics = http::metrics(&scene.lab, scene.node_address(node)?)?;
        if http::value(&metrics, "sheave_address_conflicts") != Some(0.0) {
            named.push(format!("{node}: sheave_address_conflicts is not 0"));
        }
    }
    Ok(named)
}

/// The pool's addresses are behind the router, by its routes.
fn router_proxies(scene: &Scene, proxies: bool) -> Result<()> {
    let router = scene.lab.state()?.plan.netns("router");
    let (value, change) = if proxies { ("1", "replace") } else { ("0", "delete") };
    netns::sysctl(&router, &[(&format!("ipv4/conf/{}/proxy_arp", plan::UPLINK), value)])?;
    let routes = netns::run("ip", &["-netns", &router, "route", "show", BEHIND])?;
    if proxies || !routes.trim().is_empty() {
        netns::ip(&router, &format!("route {change} {BEHIND} dev eth1\n"))?;
    }
    Ok(())
}

/// Whether an ordinary ARP request of the client is answered by this host.
fn is_answered(scene: &Scene, address: Ipv4Addr, by: Ipv4Addr) -> Result<Option<()>> {
    let client = scene.lab.state()?.plan.netns("client");
    // The answer is the kernel's entry; whether the datagram can be sent is all the same.
    netns::inside(&client, || {
        let _ = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"x", (address, 9));
        Ok(())
    })?;
    let entry = netns::run("ip", &["-netns", &client, "neighbour", "show", &address.to_string()])?;
    Ok(entry.contains(&mac_of(by)).then_some(()))
}

fn mac_of(address: Ipv4Addr) -> String {
    plan::mac_of(address).map(|byte| format!("{byte:02x}")).join(":")
}

/// Addresses of the pool that were probed ahead and that nobody has, lowest first, by an answer of now: what another speaker has said
/// before stays in its object, also of addresses that the pool no longer has.
fn in_line(scene: &Scene) -> Result<BTreeSet<Ipv4Addr>> {
    let (first, last) = plan::POOL;
    let answered = |probe: &Value| probe.pointer("/status/observedRound").and_then(Value::as_i64);
    let names = |probe: &Value| text(probe, "/metadata/name").to_owned();
    let before: BTreeMap<_, _> = scene.api.list(PROBES)?.iter().map(|probe| (names(probe), answered(probe))).collect();
    wait_for("a speaker's answer with addresses in line", PROBED_AGAIN, || {
        let mut probes = scene.api.list(PROBES)?;
        probes.retain(|probe| answered(probe) > before.get(&names(probe)).copied().flatten());
        let silent = results_of(&probes).into_iter().filter(|result| result.get("macs").is_none());
        let silent = silent.filter_map(|result| text(&result, "/address").parse().ok());
        let silent: BTreeSet<Ipv4Addr> = silent.filter(|address| (first..=last).contains(address)).collect();
        let line: BTreeSet<Ipv4Addr> = &silent - &taken(scene)?;
        Ok((line.len() > 1).then_some(line))
    })
}

/// What speakers have answered.
fn results(scene: &Scene) -> Result<Vec<Value>> {
    Ok(results_of(&scene.api.list(PROBES)?))
}

fn results_of(probes: &[Value]) -> Vec<Value> {
    probes.iter().filter_map(|probe| probe.pointer("/status/results")?.as_array().cloned()).flatten().collect()
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
/// Where the addresses of the pool are.
const BEHIND: &str = "192.168.77.192/27";
const ALLOCATED: &str = "sheave.dev/Allocated";
const POOL: &str = "/apis/sheave.dev/v1alpha1/addresspools/demo";
const PROBES: &str = "/apis/sheave.dev/v1alpha1/addressprobes";
const WITHIN: Duration = Duration::from_secs(20);
/// The lab's controllers have addresses probed again after 10 s.
const PROBED_AGAIN: Duration = Duration::from_secs(40);
