//! `sheave finalizers remove`: where the controller is gone for good, deletions of Services would wait for ever.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args as ClapArgs, Subcommand};
use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use kube::api::{ListParams, Patch, PatchParams, WatchParams};
use kube::core::WatchEvent;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use sheave_api::{CLEANUP_FINALIZER, ServiceRef, VirtualIP};

#[derive(Subcommand)]
pub enum Command {
    /// Take the finalizer off the Services that VirtualIPs name, and off no other. Prints only, unless --yes.
    Remove(Args),
}

#[derive(ClapArgs)]
pub struct Args {
    /// Namespace that Sheave is, or was, installed in.
    #[arg(long, default_value = "sheave-system")]
    namespace: String,
    /// Do it.
    #[arg(long)]
    yes: bool,
}

pub async fn remove(client: Client, args: &Args) -> Result<ExitCode> {
    let held = held(&client).await?;
    if held.is_empty() {
        println!("no Service of the ledger (kubectl get virtualips) has the finalizer {CLEANUP_FINALIZER}");
        return Ok(ExitCode::SUCCESS);
    }
    if args.yes {
        no_controller_leads(&client, &args.namespace).await?;
    }
    for (service, address) in &held {
        let name = format!("{}/{} ({address})", service.namespace, service.name);
        if args.yes {
            take_off(&client, service).await.with_context(|| format!("Service {name}"))?;
            println!("{name}: finalizer {CLEANUP_FINALIZER} removed");
        } else {
            println!("{name}: finalizer {CLEANUP_FINALIZER} would be removed");
        }
    }
    if !args.yes {
        println!("nothing was changed; --yes does it");
    }
    Ok(ExitCode::SUCCESS)
}

/// Services that the ledger names and that have the finalizer, with an address of each.
async fn held(client: &Client) -> Result<BTreeMap<ServiceRef, String>> {
    let ledger = Api::<VirtualIP>::all(client.clone()).list(&ListParams::default()).await;
    let ledger = ledger.with_context(|| {
        format!(
            "list VirtualIPs: they are the ledger; where their definition is gone, take the finalizer {CLEANUP_FINALIZER} off by hand \
             (kubectl edit service)"
        )
    })?;
    let mut held = BTreeMap::new();
    for vip in ledger {
        for named in vip.spec.services {
            let api = Api::<Service>::namespaced(client.clone(), &named.namespace);
            let found = api.get_opt(&named.name).await;
            let found = found.with_context(|| format!("read Service {}/{}", named.namespace, named.name))?;
            let holds = |service: &Service| {
                service.uid().as_deref() == Some(&named.uid)
                    && service.finalizers().iter().any(|name| name == CLEANUP_FINALIZER)
            };
            if found.is_some_and(|service| holds(&service)) {
                held.insert(named, vip.spec.address.clone());
            }
        }
    }
    Ok(held)
}

/// Of this very Service, and no other finalizer. One that has gone is as good.
async fn take_off(client: &Client, service: &ServiceRef) -> Result<()> {
    let api = Api::<Service>::namespaced(client.clone(), &service.namespace);
    let metadata = json!({ "uid": service.uid, "$deleteFromPrimitiveList/finalizers": [CLEANUP_FINALIZER] });
    let patch = Patch::Strategic(json!({ "metadata": metadata }));
    match api.patch(&service.name, &PatchParams::default(), &patch).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop).context("take the finalizer off"),
    }
}

/// A controller would put the finalizers back. A leader renews its Lease several times in the Lease's duration; clocks are not compared.
async fn no_controller_leads(client: &Client, namespace: &str) -> Result<()> {
    let api = Api::<Lease>::namespaced(client.clone(), namespace);
    let lease = api.get_opt(LEASE).await.with_context(|| format!("read Lease {namespace}/{LEASE}"))?;
    let Some(lease) = lease else { return Ok(()) };
    let (version, spec) = (lease.resource_version().unwrap_or_default(), lease.spec.unwrap_or_default());
    let Some(holder) = spec.holder_identity.filter(|holder| !holder.is_empty()) else { return Ok(()) };
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(MOST);
    let renewals = WatchParams::default().fields(&format!("metadata.name={LEASE}")).timeout(seconds.clamp(1, MOST));
    let events = api.watch(&renewals, &version).await.with_context(|| format!("watch Lease {namespace}/{LEASE}"))?;
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event.with_context(|| format!("watch Lease {namespace}/{LEASE}"))? {
            WatchEvent::Added(_) | WatchEvent::Modified(_) => {
                bail!(
                    "a controller leads ({holder} renews Lease {namespace}/{LEASE}) and would put the finalizers back; stop it first"
                )
            }
            WatchEvent::Error(status) => bail!("watch Lease {namespace}/{LEASE}: {}", status.message),
            WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) => {}
        }
    }
    Ok(())
}

/// Name of the Lease that the controller's replicas compete for.
const LEASE: &str = "sheave-controller";
/// The longest that a controller's Lease may last, and near the longest watch.
const MOST: u32 = 290;
