//! Placements are written and deleted, and the owners of VirtualIPs awaited.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use sheave_api::local::LocalDrain;
use sheave_api::{Placement, PlacementSpec, SpeakerState, VirtualIP};
use tokio::time::{Instant, timeout_at};

/// A hand-over takes some milliseconds, and its status two writes. A node that was about to become ready may need longer.
pub const WITHIN: Duration = Duration::from_secs(10);

pub struct Writer {
    pub client: Client,
    /// The API server checks what is written, and keeps nothing.
    pub dry_run: bool,
}

impl Writer {
    /// Made, or replaced. What is about an address goes with its VirtualIP.
    pub async fn apply(&self, spec: PlacementSpec, vip: Option<&VirtualIP>) -> Result<String> {
        let name = spec.name();
        let owners = vip.map(|vip| {
            json!([{
                "apiVersion": VirtualIP::api_version(&()),
                "kind": VirtualIP::kind(&()),
                "name": vip.name_any(),
                "uid": vip.uid(),
            }])
        });
        let object = json!({
            "apiVersion": Placement::api_version(&()),
            "kind": Placement::kind(&()),
            "metadata": { "name": name, "ownerReferences": owners },
            "spec": spec,
        });
        let params = PatchParams { dry_run: self.dry_run, ..PatchParams::apply("sheave").force() };
        let written = self.api().patch(&name, &params, &Patch::Apply(object)).await;
        written.with_context(|| format!("write Placement {name}"))?;
        Ok(name)
    }

    /// The one that was there.
    pub async fn delete(&self, name: &str) -> Result<Option<Placement>> {
        let was = self.api().get_opt(name).await.with_context(|| format!("read Placement {name}"))?;
        let Some(was) = was else { return Ok(None) };
        let params = DeleteParams { dry_run: self.dry_run, ..DeleteParams::default() };
        match self.api().delete(name, &params).await {
            Ok(_) => Ok(Some(was)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(error).with_context(|| format!("delete Placement {name}")),
        }
    }

    fn api(&self) -> Api<Placement> {
        Api::all(self.client.clone())
    }
}

pub async fn virtual_ip(client: &Client, address: Ipv4Addr) -> Result<VirtualIP> {
    let api = Api::<VirtualIP>::all(client.clone());
    let found = api.get_opt(&address.to_string()).await.with_context(|| format!("read VirtualIP {address}"))?;
    found.with_context(|| format!("{address} is granted to no Service (kubectl get virtualips lists those that are)"))
}

/// What the node owns, by the status of the VirtualIPs.
pub async fn owned(client: &Client, node: &str) -> Result<Vec<VirtualIP>> {
    let all = Api::<VirtualIP>::all(client.clone()).list(&ListParams::default()).await.context("list VirtualIPs")?;
    Ok(all.into_iter().filter(|vip| owner(vip) == Some(node)).collect())
}

/// Whether the node comes to own the address in time.
pub async fn wait_owner(client: &Client, address: Ipv4Addr, node: &str) -> Result<bool> {
    let config = watcher::Config::default().fields(&format!("metadata.name={address}"));
    Ok(owned_until(client, config, node, |owned| owned.contains(&address)).await?.contains(&address))
}

/// What the node still owns once it has handed over all but those that are `stuck`, or the time for it is over.
pub async fn wait_empty(client: &Client, node: &str, stuck: &BTreeSet<Ipv4Addr>) -> Result<BTreeSet<Ipv4Addr>> {
    owned_until(client, watcher::Config::default(), node, |owned| owned.is_subset(stuck)).await
}

/// The addresses that the node owns, when that is as wanted or the time is over.
async fn owned_until(
    client: &Client,
    config: watcher::Config,
    node: &str,
    wanted: impl Fn(&BTreeSet<Ipv4Addr>) -> bool,
) -> Result<BTreeSet<Ipv4Addr>> {
    let until = Instant::now() + WITHIN;
    let (mut owned, mut listed) = (BTreeSet::new(), false);
    let mut events = std::pin::pin!(watcher::watcher(Api::<VirtualIP>::all(client.clone()), config));
    while !(listed && wanted(&owned)) {
        let Ok(event) = timeout_at(until, events.try_next()).await else { break };
        match event.context("watch VirtualIPs")? {
            Some(Event::Init) => (owned, listed) = (BTreeSet::new(), false),
            Some(Event::InitDone) => listed = true,
            Some(Event::InitApply(vip) | Event::Apply(vip)) => {
                let address = vip.spec.address.parse::<Ipv4Addr>();
                match address {
                    Ok(address) if owner(&vip) == Some(node) => _ = owned.insert(address),
                    Ok(address) => _ = owned.remove(&address),
                    // IPv6 is not served: no node owns it.
                    Err(_) => {}
                }
            }
            Some(Event::Delete(vip)) => owned.retain(|address| address.to_string() != vip.spec.address),
            None => break,
        }
    }
    ensure!(listed, "VirtualIPs not listed within {} s", WITHIN.as_secs());
    Ok(owned)
}

/// The drain that was made on the node itself.
pub async fn drained_there(client: &Client, node: &str) -> Result<Option<LocalDrain>> {
    let state = Api::<SpeakerState>::all(client.clone()).get_opt(node).await;
    let state = state.with_context(|| format!("read SpeakerState {node}"))?;
    Ok(state.and_then(|state| state.status?.drained))
}

fn owner(vip: &VirtualIP) -> Option<&str> {
    vip.status.as_ref()?.owner.as_deref()
}
