//! Two clusters on one segment whose pools overlap: who answers for an address that both have granted, what both say of it, and what
//! becomes of open connections. docs/services.md, *Two owners of one address*.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use speaker_core::conflict::{self, SETTLED};

use super::api::text;
use super::deploy::{SERVICE, SERVICES, Scene, VIRTUALIPS, service};
use super::http;
use super::settle::{forget_neighbours, greet};
use crate::lab::{ClientKind, netns, plan, wait_for};
use crate::traffic::report::{ArpReport, HeldState, HoldReport};
use crate::traffic::{self, Running};

/// Two clusters that have the same pool. The first one's segment is watched.
pub struct Pair {
    pub scenes: [Scene; 2],
    /// The one that keeps an address which both have owned for long.
    pub keeps: usize,
}

impl Pair {
    /// Not yet joined.
    pub fn new(scenes: [Scene; 2]) -> Result<Self> {
        let [one, other] = [number(&scenes[0])?, number(&scenes[1])?];
        ensure!(one != other, "both clusters have the number {one}, which one in 65,536 pairs has");
        Ok(Self { scenes, keeps: usize::from(other < one) })
    }

    fn keeper(&self) -> &Scene {
        &self.scenes[self.keeps]
    }

    fn yielder(&self) -> &Scene {
        &self.scenes[1 - self.keeps]
    }

    /// Which cluster's node has this address.
    fn cluster_of(&self, mac: &str) -> Option<usize> {
        let is_of = |scene: &Scene| scene.nodes.iter().any(|node| scene.lab.mac(node).is_ok_and(|found| found == mac));
        self.scenes.iter().position(is_of)
    }

    fn watch(&self, addresses: &[Ipv4Addr]) -> Result<Watch> {
        let one = |address: &Ipv4Addr| traffic::arp_watch(&self.scenes[0].lab, &address.to_string());
        Ok(Watch(addresses.iter().map(one).collect::<Result<_>>()?))
    }
}

/// Who answers for some addresses.
struct Watch(Vec<Running<ArpReport>>);

/// What was seen of one address.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answered {
    pub address: String,
    /// From the first frame of the second cluster that answered or announced it to the last one of the first: 0 if only one did, or one
    /// after the other.
    pub by_both_ms: f64,
    /// The cluster of the last frame.
    pub last: Option<usize>,
}

impl Watch {
    fn end(self, pair: &Pair) -> Result<Vec<Answered>> {
        self.0.into_iter().map(|one| one.report().map(|report| answered(pair, &report))).collect()
    }
}

fn answered(pair: &Pair, report: &ArpReport) -> Answered {
    let clusters: BTreeMap<&str, Option<usize>> =
        report.answerers.iter().map(|one| (one.mac.as_str(), pair.cluster_of(&one.mac))).collect();
    let frames: Vec<(u64, usize)> =
        report.answers.iter().filter_map(|one| Some((one.at_ns, clusters[one.mac.as_str()]?))).collect();
    let span = |cluster| {
        let mut times = frames.iter().filter(|(_, of)| *of == cluster).map(|(at, _)| *at);
        let first = times.next()?;
        Some((first, times.next_back().unwrap_or(first)))
    };
    let both = span(0).zip(span(1)).map(|(one, other)| one.1.min(other.1).saturating_sub(one.0.max(other.0)));
    Answered {
        address: report.ip.clone(),
        by_both_ms: both.unwrap_or_default() as f64 / 1e6,
        last: frames.last().map(|(_, cluster)| *cluster),
    }
}

/// Both clusters have owned the same addresses when they meet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Met {
    pub addresses: Vec<Answered>,
    /// From the moment at which they met until both named it everywhere.
    pub named_ms: f64,
    /// What became of the connections to the cluster that keeps the addresses: alive, of so many.
    pub kept: (usize, usize),
    /// The same of the one that yields. They cannot live on: its clients reach the other one.
    pub yielded: (usize, usize),
    /// From a client of each: new connections that the keeper's pods answered.
    pub new: usize,
}

pub fn meet(pair: &Pair) -> Result<Met> {
    for scene in &pair.scenes {
        scene.api.create(SERVICES, &service(SECOND, &json!({})))?;
    }
    let [one, other] = [0, 1].map(|cluster| addresses(&pair.scenes[cluster]));
    let (vips, others) = (one?, other?);
    ensure!(vips == others, "next in line were other addresses: {vips:?} and {others:?}");
    let owned = Instant::now();
    let held = |scene: &Scene| traffic::hold(&scene.lab, ClientKind::Segment, &scene.tcp(), HELD, 20);
    let (mut kept, mut yielded) = (held(pair.keeper())?, held(pair.yielder())?);
    let watch = pair.watch(&vips)?;
    wait_for("both to have owned them for long", WITHIN, || Ok((owned.elapsed() > SETTLED).then_some(())))?;

    let at = kept.mark()?;
    yielded.mark_at(at)?;
    pair.scenes[0].lab.join(&pair.scenes[1].lab)?;
    let met = Instant::now();
    for vip in &vips {
        wait_for("both clusters to name the conflict", NAMED, || Ok(both_name(pair, *vip)?.then_some(())))?;
    }
    for scene in &pair.scenes {
        wait_for("the metric of the conflicts", NAMED, || Ok((conflicts(scene)? == vips.len() as f64).then_some(())))?;
        for name in [SERVICE, SECOND] {
            wait_for("the Service to name the conflict", NAMED, || {
                Ok((reason(scene, name)? == CONFLICT).then_some(()))
            })?;
        }
    }
    let named_ms = met.elapsed().as_secs_f64() * 1e3;
    let mut new = 0;
    for scene in &pair.scenes {
        new += vips.iter().map(|vip| greeted_by(scene, *vip, pair.keeper())).sum::<Result<usize>>()?;
    }
    let alive = |report: &HoldReport| (report.count(HeldState::Alive, |_| true), report.connections.len());
    let (kept, yielded) = (alive(&kept.report()?), alive(&yielded.report()?));
    Ok(Met { addresses: watch.end(pair)?, named_ms, kept, yielded, new })
}

/// What becomes of addresses that one cluster has when the other asks for them, and of those that both ask for at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Asked {
    /// What the Service says that asks for an address which the other cluster has.
    pub refusal: String,
    /// Of an address that both asked for at once: the reason at each cluster, and who answers.
    pub at_once: Vec<([String; 2], Answered)>,
}

/// On one segment. Afterwards the keeper has the address asked for first, and the other one's Service waits for it.
pub fn ask(pair: &Pair) -> Result<Asked> {
    let (keeper, yielder) = (pair.keeper(), pair.yielder());
    keeper.api.create(SERVICES, &asks("taken", TAKEN))?;
    wait_for("an owner of the address", WITHIN, || Ok(owner(keeper, TAKEN)?.map(drop)))?;
    let refusal = refused(yielder)?;

    let watch = pair.watch(&AT_ONCE)?;
    let both: [Result<()>; 2] = std::thread::scope(|scope| {
        let threads = [0, 1].map(|cluster| {
            let api = pair.scenes[cluster].api.clone();
            scope.spawn(move || {
                AT_ONCE
                    .iter()
                    .try_for_each(|address| api.create(SERVICES, &asks(&at_once(*address), *address)).map(drop))
            })
        });
        threads.map(|thread| thread.join().unwrap_or_else(|_| bail!("a writer panicked")))
    });
    both.into_iter().collect::<Result<()>>()?;
    let mut reasons = Vec::new();
    for address in AT_ONCE {
        let mut seen = None;
        let decided = wait_for(&format!("one cluster to serve {address}, and both to say so"), NAMED, || {
            let now = [outcome(&pair.scenes[0], address)?, outcome(&pair.scenes[1], address)?];
            let is_decided = is_decided(&now);
            seen = Some(now.clone());
            Ok(is_decided.then(|| now.map(|one| one.reason)))
        });
        reasons.push(decided.with_context(|| format!("last seen: {seen:?}"))?);
    }
    let answered = watch.end(pair)?;
    Ok(Asked { refusal, at_once: reasons.into_iter().zip(answered).collect() })
}

/// What one cluster says of an address that both have been asked for.
#[derive(Clone, Debug)]
struct Outcome {
    owner: Option<String>,
    /// Of the Service's condition, which is False where it was refused.
    reason: String,
    granted: bool,
}

fn outcome(scene: &Scene, address: Ipv4Addr) -> Result<Outcome> {
    let said = said(scene, &at_once(address))?.unwrap_or_default();
    Ok(Outcome {
        owner: owner(scene, address)?,
        reason: text(&said, "/reason").to_owned(),
        granted: text(&said, "/status") == "True",
    })
}

/// One has an owner, the other says why it has none; both name the other one if both have granted the address. A Service names it by what
/// its controller's probe has found where that came too late for a refusal.
fn is_decided(both: &[Outcome; 2]) -> bool {
    let names = |one: &Outcome| [CONFLICT, ANSWERED_BY_HOST].contains(&one.reason.as_str());
    let owners = both.iter().filter(|one| one.owner.is_some()).count();
    let both_granted = both.iter().all(|one| one.granted);
    owners == 1 && both.iter().all(|one| names(one) || one.owner.is_some() && !both_granted)
}

/// The keeper's Services are deleted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Freed {
    pub addresses: Vec<Answered>,
    /// From the deletion until the other cluster had an owner of the address that both had granted, and named no conflict.
    pub resumed_s: f64,
    /// From the deletion until the Service that was refused had its address.
    pub granted_s: f64,
    /// New connections that the other cluster's pods answered.
    pub new: usize,
}

pub fn free(pair: &Pair) -> Result<Freed> {
    let (keeper, yielder) = (pair.keeper(), pair.yielder());
    let vips = [yielder.vip, TAKEN];
    let watch = pair.watch(&vips)?;
    let freed = Instant::now();
    for name in [SERVICE, "taken"] {
        keeper.api.delete(&format!("{SERVICES}/{name}"))?;
    }
    wait_for("the other cluster to serve the address", RESUMED, || Ok(owner(yielder, yielder.vip)?.map(drop)))?;
    let resumed_s = freed.elapsed().as_secs_f64();
    wait_for("its Service to name no conflict", NAMED, || {
        Ok((reason(yielder, SERVICE)? == "AddressAllocated").then_some(()))
    })?;
    wait_for(
        "the Service that was refused to have its address",
        PROBED_AGAIN,
        || Ok(owner(yielder, TAKEN)?.map(drop)),
    )?;
    let granted_s = freed.elapsed().as_secs_f64();
    let mut new = 0;
    for scene in &pair.scenes {
        new += vips.iter().map(|vip| greeted_by(scene, *vip, yielder)).sum::<Result<usize>>()?;
    }
    Ok(Freed { addresses: watch.end(pair)?, resumed_s, granted_s, new })
}

/// A Service asks for an address that the other cluster has. On a busy machine the answer may come later than a Service waits; then it is
/// known when the Service asks again.
fn refused(scene: &Scene) -> Result<String> {
    let path = format!("{SERVICES}/wants");
    for _ in 0..3 {
        scene.api.create(SERVICES, &asks("wants", TAKEN))?;
        let said = wait_for("the Service to name the other cluster's node", WITHIN, || {
            Ok(said(scene, "wants")?.filter(|said| [ANSWERED_BY_HOST, CONFLICT].contains(&text(said, "/reason"))))
        })?;
        if text(&said, "/status") == "False" {
            return Ok(format!("{}: {}", text(&said, "/reason"), text(&said, "/message")));
        }
        scene.api.delete(&path)?;
        wait_for("the Service to be gone", WITHIN, || Ok(scene.api.find(&path)?.is_none().then_some(())))?;
    }
    bail!("{TAKEN} was granted three times although the other cluster has it")
}

/// In the ledgers of both, and in the keeper's with an owner.
fn both_name(pair: &Pair, vip: Ipv4Addr) -> Result<bool> {
    for scene in &pair.scenes {
        let object = scene.api.get(&format!("{VIRTUALIPS}/{vip}"))?;
        if !text(&object, "/status/reason").starts_with(CONFLICT) {
            return Ok(false);
        }
    }
    Ok(owner(pair.keeper(), vip)?.is_some() && owner(pair.yielder(), vip)?.is_none())
}

/// The node that answers, by the ledger.
fn owner(scene: &Scene, vip: Ipv4Addr) -> Result<Option<String>> {
    let Some(object) = scene.api.find(&format!("{VIRTUALIPS}/{vip}"))? else { return Ok(None) };
    let owner = text(&object, "/status/owner");
    Ok((!owner.is_empty()).then(|| owner.to_owned()))
}

/// Of both Services, once they have owners, in order.
fn addresses(scene: &Scene) -> Result<Vec<Ipv4Addr>> {
    let second =
        wait_for("an address of the second Service", WITHIN, || super::deploy::address_of(&scene.api, SECOND))?;
    wait_for("an owner of the second address", WITHIN, || Ok(owner(scene, second)?.map(drop)))?;
    Ok(vec![scene.vip, second])
}

/// By all speakers of the cluster.
fn conflicts(scene: &Scene) -> Result<f64> {
    let one = |node: &String| {
        let metrics = http::metrics(&scene.lab, scene.node_address(node)?)?;
        http::value(&metrics, "sheave_address_conflicts").context("sheave_address_conflicts")
    };
    scene.nodes.iter().map(one).sum()
}

fn said(scene: &Scene, name: &str) -> Result<Option<Value>> {
    let service = scene.api.get(&format!("{SERVICES}/{name}"))?;
    let conditions = service.pointer("/status/conditions").and_then(Value::as_array);
    Ok(conditions.into_iter().flatten().find(|one| one["type"] == "sheave.dev/Allocated").cloned())
}

/// Of our condition on the Service.
fn reason(scene: &Scene, name: &str) -> Result<String> {
    Ok(said(scene, name)?.map(|said| text(&said, "/reason").to_owned()).unwrap_or_default())
}

/// New connections of a cluster's client, which asks for the address anew: how many, all of which a pod of `by` must have answered.
fn greeted_by(scene: &Scene, vip: Ipv4Addr, by: &Scene) -> Result<usize> {
    forget_neighbours(scene)?;
    let client = scene.lab.state()?.plan.netns("client");
    netns::inside(&client, || {
        let greet = || greet((vip, super::deploy::TCP_PORT).into());
        wait_for(&format!("an answer at {vip}"), WITHIN, || Ok(greet().ok()))?;
        for _ in 0..NEW {
            let greeting = greet().with_context(|| format!("a connection to {vip}"))?;
            ensure!(by.nodes.contains(&greeting.node), "{vip} was answered by a pod of {}", greeting.node);
        }
        Ok(NEW)
    })
}

fn asks(name: &str, address: Ipv4Addr) -> Value {
    service(name, &json!({"sheave.dev/addresses": address}))
}

fn at_once(address: Ipv4Addr) -> String {
    format!("at-once-{}", address.octets()[3])
}

/// By which two clusters are put in order.
fn number(scene: &Scene) -> Result<u16> {
    let secret = scene.api.get("/api/v1/namespaces/sheave-system/secrets/sheave-keys")?;
    let bytes = base64(text(&secret, "/data/cluster-id"));
    let id = bytes.and_then(|bytes| bytes.try_into().ok()).context("the cluster's id")?;
    Ok(conflict::number(u64::from_le_bytes(id)))
}

/// RFC 4648 section 4.
fn base64(text: &str) -> Option<Vec<u8>> {
    let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::new());
    for letter in text.bytes().filter(|letter| *letter != b'=') {
        let value = ALPHABET.iter().position(|one| *one == letter)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const SECOND: &str = "second";
const CONFLICT: &str = "AddressConflict";
const ANSWERED_BY_HOST: &str = "AnsweredByHost";
/// Not next in line.
const TAKEN: Ipv4Addr = plan::address(220);
const AT_ONCE: [Ipv4Addr; 3] = [plan::address(217), plan::address(218), plan::address(219)];
/// Connections that are open before, and new ones of each client.
const HELD: u16 = 20;
const NEW: usize = 20;
const WITHIN: Duration = Duration::from_secs(20);
/// It takes a second; the machine may be busy.
const NAMED: Duration = Duration::from_secs(45);
/// Three probes without an answer, one a second.
const RESUMED: Duration = Duration::from_secs(20);
/// The lab's controllers have addresses probed again after 10 s.
const PROBED_AGAIN: Duration = Duration::from_secs(40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secrets_value_is_read() {
        assert_eq!(base64("AQEBAQEBAQE="), Some(vec![1; 8]));
        assert_eq!(base64("/+8="), Some(vec![0xff, 0xef]));
        assert_eq!(base64("!"), None);
    }
}
