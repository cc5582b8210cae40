//! A pool of the whole segment, nodes, gateway and API server included, and many Services at once: whatever has an address there stays
//! reachable.

mod reach;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::text;
use super::deploy::{SERVICES, Scene, TCP_PORT, VIRTUALIPS, service};
use super::settle::{forget_neighbours, greet};
use crate::lab::{netns, plan, wait_for};
pub use reach::Reached;
use reach::Watch;

/// What became of the Services and of everything else on the segment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WholeSegment {
    pub services: usize,
    /// From the first creation until every Service had an address or a refusal.
    pub decided_ms: f64,
    pub granted: BTreeSet<Ipv4Addr>,
    /// Of those, answered by a pod when the client connected.
    pub served: usize,
    /// Reason by Service, of those that were refused.
    pub refused: BTreeMap<String, String>,
    /// Services whose address or refusal is not what it must be, with what it is.
    pub untrue: Vec<String>,
    /// `status.excludedBy` of the pool.
    pub left_out: BTreeMap<String, i64>,
    /// By target: what clients saw throughout.
    pub reached: BTreeMap<String, Reached>,
}

/// Makes the demo's pool the whole segment, creates so many Services, connects to each, deletes them. Whatever comes of it, the pool and
/// the Services are as before afterwards.
pub fn whole_segment(scene: &Scene, services: usize) -> Result<WholeSegment> {
    let wishes = wishes(scene, services)?;
    let watch = Watch::start(scene)?;
    let report = widened(scene, |scene| {
        let report = created(scene, &wishes);
        delete(scene, &wishes).and(report)
    });
    let reached = watch.finish()?;
    report.map(|report| WholeSegment { reached, ..report })
}

/// A Service of the scenario.
struct Wish {
    name: String,
    /// The address that it asks for, and the refusal that this must lead to.
    asks: Option<(Ipv4Addr, &'static str)>,
}

/// Some ask for what no Service may have.
fn wishes(scene: &Scene, services: usize) -> Result<Vec<Wish>> {
    let barred = barred(scene)?;
    let others = [
        (scene.vip, "AddressInUse"),
        (plan::CLIENT, "AddressNotInPool"),
        // Pods reach the API server by it.
        (plan::API_SERVICE, "AddressOfAPIServer"),
        (Ipv4Addr::new(10, 96, 7, 7), "AddressInServiceRange"),
        (Ipv4Addr::new(224, 0, 0, 18), "MulticastAddress"),
    ];
    let mut asks = barred.into_iter().chain(others);
    Ok((0..services).map(|number| Wish { name: format!("segment-{number}"), asks: asks.next() }).collect())
}

/// Addresses of the segment that no Service may have, and why.
fn barred(scene: &Scene) -> Result<BTreeMap<Ipv4Addr, &'static str>> {
    let mut barred = BTreeMap::from([
        (plan::address(0), "NetworkAddress"),
        (plan::address(255), "BroadcastAddress"),
        (plan::ROUTER, "AddressOfGateway"),
    ]);
    barred.extend(scene.lab.state()?.plan.control_plane().iter().map(|(_, address)| (*address, "AddressOfAPIServer")));
    for node in &scene.nodes {
        barred.insert(scene.node_address(node)?, "AddressOfNode");
    }
    Ok(barred)
}

/// While the demo's pool is the whole segment. The client is excluded: nothing in the cluster knows that it has its address.
fn widened(scene: &Scene, run: impl FnOnce(&Scene) -> Result<WholeSegment>) -> Result<WholeSegment> {
    let segment = format!("{}/24", plan::address(0));
    set_pool(scene, &json!({"addresses": [segment], "exclusions": [plan::CLIENT]}), 256)?;
    let report = run(scene);
    let (first, last) = plan::POOL;
    let before = i64::from(last.octets()[3] - first.octets()[3]) + 1;
    set_pool(scene, &json!({"addresses": [format!("{first}-{last}")], "exclusions": null}), before)?;
    report
}

/// Returns when the controller has seen it: the pool has so many addresses then.
fn set_pool(scene: &Scene, spec: &Value, total: i64) -> Result<()> {
    scene.api.patch(POOL, &json!({ "spec": spec }))?;
    wait_for(&format!("the pool to have {total} addresses"), WITHIN, || {
        Ok((scene.api.get(POOL)?["status"]["total"] == total).then_some(()))
    })
}

fn created(scene: &Scene, wishes: &[Wish]) -> Result<WholeSegment> {
    let began = Instant::now();
    at_once(wishes, |wish| scene.api.create(SERVICES, &wished(wish)).map(drop))?;
    let decisions = wait_for("an address or a refusal for every Service", WITHIN, || {
        let decisions = decisions(scene)?;
        Ok((decisions.len() == wishes.len()).then_some(decisions))
    })?;
    let decided_ms = began.elapsed().as_secs_f64() * 1e3;
    let barred = barred(scene)?;
    let granted: BTreeSet<Ipv4Addr> =
        decisions.values().filter_map(|decision| decision.as_ref().ok()).copied().collect();
    let mut untrue: Vec<String> =
        wishes.iter().filter_map(|wish| untrue(wish, &decisions[&wish.name], &barred)).collect();
    let shown = decisions.values().filter(|decision| decision.is_ok()).count();
    if granted.len() != shown {
        untrue.push(format!("{shown} Services have an address, and only {} addresses differ", granted.len()));
    }
    let pool = scene.api.get(POOL)?;
    let left_out =
        pool.pointer("/status/excludedBy").and_then(Value::as_array).context("a count of what is left out")?;
    Ok(WholeSegment {
        services: wishes.len(),
        decided_ms,
        served: served(scene, &granted)?,
        granted,
        refused: decisions.into_iter().filter_map(|(name, decision)| Some((name, decision.err()?))).collect(),
        untrue,
        left_out: left_out
            .iter()
            .map(|entry| (text(entry, "/reason").to_owned(), entry["count"].as_i64().unwrap_or_default()))
            .collect(),
        reached: BTreeMap::new(),
    })
}

/// The address that a Service has, or the reason why it has none.
type Decision = Result<Ipv4Addr, String>;

/// Of all Services about which the controller has said something.
fn decisions(scene: &Scene) -> Result<BTreeMap<String, Decision>> {
    let services = scene.api.list(SERVICES)?;
    let decided = services.iter().filter_map(|service| {
        let name = text(service, "/metadata/name");
        let conditions = service.pointer("/status/conditions").and_then(Value::as_array)?;
        let ours = conditions.iter().find(|condition| condition["type"] == "sheave.dev/Allocated")?;
        let decision = match (text(ours, "/status"), text(ours, "/reason")) {
            ("True", _) => Ok(text(service, "/status/loadBalancer/ingress/0/ip").parse().ok()?),
            // On the way to an address.
            ("False", "Granting") => return None,
            ("False", reason) => Err(reason.to_owned()),
            _ => return None,
        };
        name.starts_with("segment-").then(|| (name.to_owned(), decision))
    });
    Ok(decided.collect())
}

/// What is wrong with a decision.
fn untrue(wish: &Wish, decision: &Decision, barred: &BTreeMap<Ipv4Addr, &str>) -> Option<String> {
    let is_right = match (wish.asks, decision) {
        (Some((_, expected)), Err(reason)) => reason == expected,
        (None, Ok(address)) => {
            let inside = address.octets()[..3] == plan::address(0).octets()[..3];
            inside && *address != plan::CLIENT && !barred.contains_key(address)
        }
        _ => false,
    };
    (!is_right).then(|| format!("{}, which asks for {:?}, has {decision:?}", wish.name, wish.asks))
}

/// Connects to each address as the client, which resolves it anew. Returns how many were answered by a pod in time.
fn served(scene: &Scene, granted: &BTreeSet<Ipv4Addr>) -> Result<usize> {
    wait_for("an owner of every address", WITHIN, || {
        let owned = scene.api.list(VIRTUALIPS)?;
        let owned = owned.iter().filter(|vip| !text(vip, "/status/owner").is_empty());
        let owned: BTreeSet<Ipv4Addr> = owned.filter_map(|vip| text(vip, "/spec/address").parse().ok()).collect();
        Ok(granted.is_subset(&owned).then_some(()))
    })?;
    forget_neighbours(scene)?;
    let client = scene.lab.state()?.plan.netns("client");
    netns::inside(&client, || {
        let answers = granted.iter().map(|address| {
            let to = SocketAddr::from((*address, TCP_PORT));
            wait_for(&format!("a pod behind {address}"), ANSWERED, || Ok(greet(to).ok()))
        });
        answers.collect::<Result<Vec<_>>>().map(|answers| answers.len())
    })
}

fn delete(scene: &Scene, wishes: &[Wish]) -> Result<()> {
    at_once(wishes, |wish| scene.api.delete(&format!("{SERVICES}/{}", wish.name)))?;
    wait_for("the ledger to be as before", WITHIN, || {
        let left = scene.api.list(VIRTUALIPS)?;
        let ours = left.iter().any(|vip| text(vip, "/spec/services/0/name").starts_with("segment-"));
        Ok((!ours).then_some(()))
    })
}

/// Several at a time, as a GitOps tool does it.
fn at_once(wishes: &[Wish], work: impl Fn(&Wish) -> Result<()> + Sync) -> Result<()> {
    let parts = wishes.chunks(wishes.len().div_ceil(WRITERS));
    std::thread::scope(|scope| {
        let writers: Vec<_> = parts.map(|part| scope.spawn(|| part.iter().try_for_each(&work))).collect();
        writers.into_iter().try_for_each(|writer| writer.join().map_err(|_| anyhow!("a writer panicked"))?)
    })
}

fn wished(wish: &Wish) -> Value {
    let annotations = wish.asks.map_or(json!({}), |(address, _)| json!({"sheave.dev/addresses": address}));
    let mut service = service(&wish.name, &annotations);
    service["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
    service
}

const POOL: &str = "/apis/sheave.dev/v1alpha1/addresspools/demo";
const WRITERS: usize = 8;
const WITHIN: Duration = Duration::from_secs(120);
/// An owner has claimed it; its rules may take a moment.
const ANSWERED: Duration = Duration::from_secs(10);
