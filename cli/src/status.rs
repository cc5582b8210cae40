//! `sheave status`: which node holds which address. Exit code 1 if an address has no owner or a speaker is not ready.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use comfy_table::{Table, presets};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use sheave_api::VirtualIP;

#[derive(ClapArgs)]
pub struct Args {
    /// Namespace that Sheave is installed in.
    #[arg(long, default_value = "sheave-system")]
    namespace: String,
    /// For machines.
    #[arg(long)]
    json: bool,
}

pub async fn run(client: Client, args: &Args) -> Result<ExitCode> {
    let vips = Api::<VirtualIP>::all(client.clone()).list(&ListParams::default()).await.context("list VirtualIPs")?;
    let selector = ListParams::default().labels("app.kubernetes.io/name=sheave-speaker");
    let pods = Api::<Pod>::namespaced(client, &args.namespace).list(&selector).await.context("list speakers")?;
    let addresses: Vec<Value> = vips.iter().map(address).collect();
    let speakers: Vec<Value> = pods.iter().map(speaker).collect();
    let whole = addresses.iter().all(|address| !address["owner"].is_null())
        && speakers.iter().all(|speaker| speaker["ready"] == Value::Bool(true));
    if args.json {
        println!("{:#}", json!({ "addresses": addresses, "speakers": speakers }));
    } else {
        print("ADDRESS POOL SERVICES OWNER SINCE TERM REASON", &addresses);
        println!();
        print("NODE READY RESTARTS", &speakers);
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn address(vip: &VirtualIP) -> Value {
    let status = vip.status.clone().unwrap_or_default();
    let services = vip.spec.services.iter().map(|service| format!("{}/{}", service.namespace, service.name));
    json!({
        "address": vip.spec.address,
        "pool": vip.spec.pool,
        "services": services.collect::<Vec<_>>().join(","),
        "owner": status.owner,
        "since": status.since,
        "term": status.term,
        "reason": status.reason,
    })
}

fn speaker(pod: &Pod) -> Value {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    json!({
        "node": pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_else(|| pod.name_any()),
        "ready": !containers.is_empty() && containers.iter().all(|container| container.ready),
        "restarts": containers.iter().map(|container| container.restart_count).sum::<i32>(),
    })
}

/// Column names in lower case are the keys of the rows.
fn print(columns: &str, rows: &[Value]) {
    let names: Vec<&str> = columns.split(' ').collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(&names);
    for row in rows {
        table.add_row(names.iter().map(|name| match &row[name.to_lowercase()] {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }));
    }
    println!("{table}");
}
