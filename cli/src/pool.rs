//! `sheave pool move`: Services are given addresses from another pool. Else a grant moves only if its Service asks for another address, so this is
//! asked for by `--yes`.
//!
//! The order is an annotation of the VirtualIP, which the controller follows: the new address is granted and shown before the old one
//! is taken back. It goes with the VirtualIP; what could not move keeps its address and the order, until there is room or `--undo`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use sheave_api::status::{CONDITION_ALLOCATED, CONDITION_READY};
use sheave_api::{AddressPool, AddressRange, MOVE_ANNOTATION, ServiceRef, VirtualIP};
use tokio::time::{Instant, timeout_at};

#[derive(Subcommand)]
pub enum Command {
    /// Give Services addresses from another pool. Prints only, unless --yes: what is connected to the old addresses ends.
    Move(Move),
}

#[derive(Args)]
pub struct Move {
    /// The pool that the addresses are of now (kubectl get virtualips); it may be gone.
    from: String,
    /// The pool that the new addresses are to be of.
    #[arg(required_unless_present = "undo", conflicts_with = "undo")]
    to: Option<String>,
    /// Of this Service alone, and of those that share its address; may be repeated.
    #[arg(long = "service", value_name = "NAMESPACE/NAME")]
    services: Vec<ServiceName>,
    /// Do it.
    #[arg(long)]
    yes: bool,
    /// What has not moved yet is to stay.
    #[arg(long, conflicts_with = "yes")]
    undo: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ServiceName {
    namespace: String,
    name: String,
}

impl FromStr for ServiceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err("a Service is named NAMESPACE/NAME, as in default/web".into()),
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An address that is to move.
#[derive(Clone, Debug)]
struct Grant {
    address: IpAddr,
    /// Of the VirtualIP.
    name: String,
    uid: String,
    services: Vec<ServiceRef>,
    ordered: Option<String>,
}

impl Grant {
    fn services(&self) -> String {
        self.services.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

fn name(service: &ServiceRef) -> String {
    format!("{}/{}", service.namespace, service.name)
}

/// Exit code 1 if an address has not moved.
pub async fn move_to(client: Client, args: Move) -> Result<ExitCode> {
    let grants = of_pool(&client, &args.from, &args.services).await?;
    let Some(to) = &args.to else { return undo(&client, &args.from, &grants).await };
    if args.from == *to {
        bail!("pool '{to}' is both the one that addresses are to leave and the one that they are to come from");
    }
    let pool = Api::<AddressPool>::all(client.clone()).get_opt(to).await.context("read the AddressPool")?;
    let pool = pool.with_context(|| format!("there is no AddressPool '{to}'"))?;
    let ranges: Vec<AddressRange> = pool.spec.addresses.iter().filter_map(|entry| entry.parse().ok()).collect();
    let (adopted, grants): (Vec<Grant>, Vec<Grant>) =
        grants.into_iter().partition(|grant| ranges.iter().any(|range| range.contains(grant.address)));
    for grant in &adopted {
        println!("{} ({}) stays: pool '{to}' contains it", grant.address, grant.services());
    }
    if grants.is_empty() {
        println!("no address of pool '{}' is to move", args.from);
        return Ok(ExitCode::SUCCESS);
    }
    warn_of_pool(&pool, &grants);
    if !args.yes {
        for grant in &grants {
            println!("{} ({}) would move to pool '{to}'", grant.address, grant.services());
        }
        println!(
            "nothing was changed; --yes does it: connections to these addresses end, and clients that know them by number need the new ones"
        );
        return Ok(ExitCode::SUCCESS);
    }
    for grant in &grants {
        order(&client, grant, Some(to)).await?;
    }
    let left = wait_gone(&client, to, &grants).await?;
    for grant in &left {
        println!("{} ({}) has not moved: {}", grant.address, grant.services(), reasons(&client, grant).await?);
    }
    if left.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("what has not moved will when it can; sheave pool move {} --undo takes that back", args.from);
    Ok(ExitCode::FAILURE)
}

async fn undo(client: &Client, from: &str, grants: &[Grant]) -> Result<ExitCode> {
    let ordered: Vec<&Grant> = grants.iter().filter(|grant| grant.ordered.is_some()).collect();
    for grant in &ordered {
        order(client, grant, None).await?;
        println!("{} ({}) stays", grant.address, grant.services());
    }
    if ordered.is_empty() {
        println!("no address of pool '{from}' was to move");
    }
    Ok(ExitCode::SUCCESS)
}

/// What the ledger has of this pool; with `services`, what these have of it, each of which must have some.
async fn of_pool(client: &Client, pool: &str, services: &[ServiceName]) -> Result<Vec<Grant>> {
    let all = Api::<VirtualIP>::all(client.clone()).list(&ListParams::default()).await.context("list VirtualIPs")?;
    let grants = all.into_iter().filter(|vip| vip.spec.pool == pool && vip.spec.node.is_none()).filter_map(|vip| {
        Some(Grant {
            address: vip.address()?,
            name: vip.name_any(),
            uid: vip.uid()?,
            ordered: vip.annotations().get(MOVE_ANNOTATION).cloned(),
            services: vip.spec.services,
        })
    });
    let mut grants: Vec<Grant> = grants.collect();
    grants.sort_by_key(|grant| grant.address);
    let names = |grant: &Grant, wanted: &ServiceName| {
        grant.services.iter().any(|one| (&one.namespace, &one.name) == (&wanted.namespace, &wanted.name))
    };
    for wanted in services {
        ensure!(grants.iter().any(|grant| names(grant, wanted)), "{wanted} has no address of pool '{pool}'");
    }
    if !services.is_empty() {
        grants.retain(|grant| services.iter().any(|wanted| names(grant, wanted)));
    }
    Ok(grants)
}

/// What the pool's status says against it. The controller decides; a pool that has been made just now has no status yet.
fn warn_of_pool(pool: &AddressPool, grants: &[Grant]) {
    let name = pool.name_any();
    let Some(status) = &pool.status else { return };
    if let Some(ready) = status.conditions.iter().find(|one| one.type_ == CONDITION_READY && one.status == "False") {
        println!("pool '{name}' is not ready ({}): {}", ready.reason, ready.message);
    }
    for (family, free) in [("IPv4", status.available_ipv4), ("IPv6", status.available_ipv6)] {
        let wanted = grants.iter().filter(|grant| grant.address.is_ipv4() == (family == "IPv4")).count();
        if i64::try_from(wanted).is_ok_and(|wanted| wanted > free) {
            println!("pool '{name}' has {free} {family} addresses left for {wanted}");
        }
    }
}

/// On this very VirtualIP. One that has gone has nothing to move.
async fn order(client: &Client, grant: &Grant, to: Option<&str>) -> Result<()> {
    let metadata = json!({ "uid": grant.uid, "annotations": { MOVE_ANNOTATION: to } });
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    let api = Api::<VirtualIP>::all(client.clone());
    match api.patch(&grant.name, &PatchParams::default(), &patch).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop).with_context(|| format!("annotate VirtualIP {}", grant.name)),
    }
}

/// Says what has moved, as it happens. Returns what is left when nothing more does.
async fn wait_gone(client: &Client, to: &str, grants: &[Grant]) -> Result<Vec<Grant>> {
    let mut left: BTreeMap<&str, &Grant> = grants.iter().map(|grant| (grant.uid.as_str(), grant)).collect();
    // By Service and family, in the pool that they move to.
    let mut new: BTreeMap<(String, bool), IpAddr> = BTreeMap::new();
    let mut listed: Option<BTreeSet<String>> = None;
    let mut until = Instant::now() + NOTHING_MORE;
    let watch = watcher::watcher(Api::<VirtualIP>::all(client.clone()), watcher::Config::default());
    let mut events = std::pin::pin!(watch);
    while !left.is_empty() {
        let Ok(event) = timeout_at(until, events.try_next()).await else { break };
        let before = left.len();
        match event.context("watch VirtualIPs")? {
            Some(Event::Init) => listed = Some(BTreeSet::new()),
            Some(Event::InitApply(vip)) => {
                if let (Some(listed), Some(uid)) = (&mut listed, vip.uid()) {
                    listed.insert(uid);
                }
                note(&vip, to, &mut new);
            }
            Some(Event::Apply(vip)) => note(&vip, to, &mut new),
            Some(Event::InitDone) => {
                if let Some(listed) = listed.take() {
                    let (stay, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
                        left.into_iter().partition(|(uid, _)| listed.contains(*uid));
                    gone.into_values().for_each(|grant| say_moved(grant, &new));
                    left = stay;
                }
            }
            Some(Event::Delete(vip)) => {
                if let Some(grant) = vip.uid().and_then(|uid| left.remove(uid.as_str())) {
                    say_moved(grant, &new);
                }
            }
            None => break,
        }
        if left.len() < before {
            until = Instant::now() + NOTHING_MORE;
        }
    }
    Ok(left.into_values().cloned().collect())
}

fn note(vip: &VirtualIP, to: &str, new: &mut BTreeMap<(String, bool), IpAddr>) {
    if let Some(address) = vip.address().filter(|_| vip.spec.pool == to) {
        let services = vip.spec.services.iter();
        new.extend(services.map(|service| ((service.uid.clone(), address.is_ipv4()), address)));
    }
}

fn say_moved(grant: &Grant, new: &BTreeMap<(String, bool), IpAddr>) {
    for service in &grant.services {
        let name = name(service);
        match new.get(&(service.uid.clone(), grant.address.is_ipv4())) {
            Some(address) => println!("{name}: {} is {address} now", grant.address),
            None => println!("{name}: {} is taken back", grant.address),
        }
    }
}

/// What the conditions of its Services say.
async fn reasons(client: &Client, grant: &Grant) -> Result<String> {
    let mut said = BTreeSet::new();
    for service in &grant.services {
        let api = Api::<Service>::namespaced(client.clone(), &service.namespace);
        let found = api.get_opt(&service.name).await.with_context(|| format!("read Service {}", name(service)))?;
        let conditions = found.and_then(|found| found.status?.conditions).unwrap_or_default();
        let ours = conditions.into_iter().find(|condition| condition.type_ == CONDITION_ALLOCATED);
        said.extend(ours.map(|condition| format!("{} ({})", condition.reason, condition.message)));
    }
    if said.is_empty() {
        return Ok("no Service says why; does a controller lead?".into());
    }
    Ok(said.into_iter().collect::<Vec<_>>().join("; "))
}

/// A move takes some milliseconds and four writes; a thousand at once wait for one another.
const NOTHING_MORE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_by_namespace_and_name() {
        let name = |text: &str| text.parse::<ServiceName>().map(|name| name.to_string());
        assert_eq!(name("default/web"), Ok("default/web".into()));
        for bad in ["web", "/web", "default/", "a/b/c", ""] {
            assert!(name(bad).unwrap_err().contains("NAMESPACE/NAME"), "{bad}");
        }
    }
}
