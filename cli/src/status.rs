//! `sheave status`: which node holds which address, and which ones are preferred or drained. Exit code 1 if an address that is served has no
//! owner, or a speaker is not ready.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use comfy_table::{Table, presets};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sheave_api::{Placement, Refusal, SpeakerState, VirtualIP};

use crate::{local, placement};

#[derive(ClapArgs)]
pub struct Args {
    /// Namespace that Sheave is installed in.
    #[arg(long, default_value = "sheave-system")]
    namespace: String,
    /// For machines.
    #[arg(long)]
    pub json: bool,
}

pub async fn run(client: Client, args: &Args) -> Result<ExitCode> {
    let vips = Api::<VirtualIP>::all(client.clone()).list(&ListParams::default()).await.context("list VirtualIPs")?;
    let placements: Vec<Placement> = list(&client, "Placements").await?;
    let selector = ListParams::default().labels("app.kubernetes.io/name=sheave-speaker");
    let pods =
        Api::<Pod>::namespaced(client.clone(), &args.namespace).list(&selector).await.context("list speakers")?;
    let (preferred, mut drained) = placement::listed(&placements);
    let states: Vec<SpeakerState> = list(&client, "SpeakerStates").await?;
    for (node, drain) in drained_there(&states) {
        drained.entry(node).and_modify(|who| *who = format!("{who}; {drain}")).or_insert(drain);
    }
    let addresses: Vec<Value> = vips.iter().map(|vip| address(vip, &preferred)).collect();
    let speakers: Vec<Value> = pods.iter().map(|pod| speaker(pod, &drained)).collect();
    let conditions = conditions(&states);
    let whole = addresses.iter().all(|address| !address["owner"].is_null() || address["reason"] == RESERVED)
        && speakers.iter().all(|speaker| speaker["ready"] == Value::Bool(true));
    if args.json {
        println!("{:#}", json!({ "addresses": addresses, "speakers": speakers, "conditions": conditions }));
    } else {
        print("ADDRESS POOL SERVICES OWNER SINCE TERM REASON PREFERRED", &addresses);
        println!();
        print("NODE READY RESTARTS DRAINED", &speakers);
        if !conditions.is_empty() {
            println!();
            print("NODE CONDITION STATUS REASON MESSAGE", &conditions);
        }
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// By node, the drains that were made on the nodes themselves.
fn drained_there(states: &[SpeakerState]) -> impl Iterator<Item = (String, String)> {
    let drained = |state: &SpeakerState| Some((state.name_any(), local::who(state.status.as_ref()?.drained.as_ref()?)));
    states.iter().filter_map(drained)
}

/// What is not in order on nodes, as a chain of another's that drops packets to pods.
fn conditions(states: &[SpeakerState]) -> Vec<Value> {
    let of_node = |state: &SpeakerState| {
        let node = state.name_any();
        let all = state.status.iter().flat_map(|status| &status.conditions).filter(|one| one.status != "True");
        all.map(|one| {
            json!({
                "node": node,
                "condition": one.type_,
                "status": one.status,
                "reason": one.reason,
                "message": one.message,
            })
        })
        .collect::<Vec<_>>()
    };
    states.iter().flat_map(of_node).collect()
}

/// None where the definition is not installed: another version of Sheave.
async fn list<K>(client: &Client, kind: &str) -> Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    match Api::<K>::all(client.clone()).list(&ListParams::default()).await {
        Ok(listed) => Ok(listed.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("list {kind}")),
    }
}

fn address(vip: &VirtualIP, preferred: &BTreeMap<String, String>) -> Value {
    let status = vip.status.clone().unwrap_or_default();
    // No node owns one.
    let reserved = vip.address().is_some_and(|address| address.is_ipv6()).then(|| RESERVED.to_string());
    let services = vip.spec.services.iter().map(|service| format!("{}/{}", service.namespace, service.name));
    json!({
        "address": vip.spec.address,
        "pool": vip.spec.pool,
        "services": services.collect::<Vec<_>>().join(","),
        // A node's own address is no other's.
        "owner": vip.spec.node.clone().or(status.owner),
        "since": status.since,
        "term": status.term,
        "reason": reserved.or(status.reason),
        "preferred": preferred.get(&vip.spec.address),
    })
}

fn speaker(pod: &Pod, drained: &BTreeMap<String, String>) -> Value {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_else(|| pod.name_any());
    json!({
        "node": node,
        "drained": drained.get(&node),
        "ready": !containers.is_empty() && containers.iter().all(|container| container.ready),
        "restarts": containers.iter().map(|container| container.restart_count).sum::<i32>(),
    })
}

/// Why no node owns an address of IPv6.
const RESERVED: &str = Refusal::IPv6NotServed.as_str();

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_ipv6_is_reserved_and_owned_by_nobody() {
        let vip = |address: &str| {
            let object = json!({
                "metadata": { "name": sheave_api::virtual_ip_name(address.parse().unwrap()) },
                "spec": { "address": address, "pool": "p", "services": [{ "namespace": "a", "name": "b", "uid": "c" }] },
                "status": { "reason": "HandingOver" },
            });
            address_of(&serde_json::from_value(object).unwrap())
        };
        let address_reason = |row: &Value| (row["address"].clone(), row["reason"].clone());
        assert_eq!(address_reason(&vip("2001:db8::10")), (json!("2001:db8::10"), json!("IPv6NotServed")));
        assert_eq!(address_reason(&vip("192.0.2.1")), (json!("192.0.2.1"), json!("HandingOver")));
    }

    #[test]
    fn conditions_that_are_not_true_are_named_with_what_to_do() {
        let condition = |type_: &str, status: &str| {
            json!({
                "type": type_, "status": status, "reason": "because", "message": "do this",
                "lastTransitionTime": "2026-11-29T00:00:00Z",
            })
        };
        let object = json!({
            "metadata": { "name": "n1" }, "spec": {},
            "status": { "conditions": [condition("Ready", "True"), condition("ForwardingAllowed", "Unknown")] },
        });
        let found = conditions(&[serde_json::from_value(object).unwrap()]);
        assert_eq!(found.len(), 1);
        assert_eq!((&found[0]["node"], &found[0]["condition"]), (&json!("n1"), &json!("ForwardingAllowed")));
        assert_eq!((&found[0]["status"], &found[0]["message"]), (&json!("Unknown"), &json!("do this")));
    }

    fn address_of(vip: &VirtualIP) -> Value {
        address(vip, &BTreeMap::new())
    }
}
