//! A SubnetScan: made, asked again, awaited, and deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use sheave_api::subnetscan::most;
use sheave_api::{DhcpServer, ProbeResult, SpeakerState, SubnetScan, SubnetScanStatus};
use tokio::time::timeout;

use super::range::Span;
use super::unable::Unable;

/// A speaker answers within a second.
const WITHIN: Duration = Duration::from_secs(8);
/// The same while it waits 4 s for DHCP servers.
const WITHIN_DHCP: Duration = Duration::from_secs(14);
/// One that is older was left behind by a command that was killed.
const LEFT_BEHIND_SECONDS: i64 = 120;
/// Speakers that are tried, one after the other.
const MOST_SPEAKERS: usize = 3;

/// What was found in a range.
#[derive(Debug, Default)]
pub struct Found {
    /// Whose speaker looked.
    pub node: String,
    pub results: Vec<ProbeResult>,
    pub proxies: BTreeSet<String>,
    pub servers: BTreeMap<String, DhcpServer>,
}

/// Probes a range from the first of these nodes whose speaker answers. `Unable::NoAnswer` has what each one said.
pub async fn look(
    client: &Client,
    states: &BTreeMap<String, SpeakerState>,
    nodes: &[String],
    range: Span,
) -> Result<Found> {
    let mut said = Vec::new();
    for node in nodes.iter().take(MOST_SPEAKERS) {
        let Some(state) = states.get(node) else { continue };
        let mut scan = Scan { api: Api::all(client.clone()), node: node.clone(), round: 0 };
        // However it ends, by Ctrl-C as well, nothing stays behind.
        let found = tokio::select! {
            found = scan.all(state, range) => found,
            interrupted = tokio::signal::ctrl_c() => {
                scan.end().await?;
                interrupted.context("wait for Ctrl-C")?;
                anyhow::bail!("interrupted; nothing was applied")
            }
        };
        scan.end().await?;
        match found? {
            Ok(found) => return Ok(found),
            Err(problem) => said.push(format!("{node}: {problem}")),
        }
    }
    Err(Unable::NoAnswer(said).into())
}

struct Scan {
    api: Api<SubnetScan>,
    node: String,
    /// Of the last request; 0: there is no object of ours.
    round: i64,
}

impl Scan {
    /// In requests of as many addresses as one may have; DHCP servers are looked for with the first. `Ok(Err)`: another speaker may answer.
    async fn all(&mut self, state: &SpeakerState, range: Span) -> Result<Result<Found, String>> {
        let mut found = Found { node: self.node.clone(), ..Found::default() };
        let addresses: Vec<Ipv4Addr> = range.addresses().collect();
        for chunk in addresses.chunks(most::ADDRESSES) {
            let dhcp = self.round == 0;
            self.ask(state, chunk, dhcp).await?;
            let within = if dhcp { WITHIN_DHCP } else { WITHIN };
            let Some(status) = self.answer(within).await? else {
                return Ok(Err(format!("no answer within {} s", within.as_secs())));
            };
            if let Some(problem) = status.problem {
                return Ok(Err(problem));
            }
            // What was not probed is not known to be free.
            let probed: BTreeSet<&str> = status.results.iter().map(|result| result.address.as_str()).collect();
            if let Some(missing) = chunk.iter().find(|address| !probed.contains(address.to_string().as_str())) {
                return Ok(Err(format!("{missing} was not probed")));
            }
            found.results.extend(status.results);
            found.proxies.extend(status.proxies);
            found.servers.extend(status.dhcp_servers.into_iter().map(|server| (server.server.clone(), server)));
        }
        Ok(Ok(found))
    }

    async fn ask(&mut self, state: &SpeakerState, addresses: &[Ipv4Addr], dhcp: bool) -> Result<()> {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let spec = json!({ "round": self.round + 1, "addresses": addresses, "dhcp": dhcp });
        if self.round > 0 {
            let patch = Patch::Merge(json!({ "spec": spec }));
            let patched = self.api.patch(&self.node, &PatchParams::default(), &patch).await;
            patched.with_context(|| format!("change SubnetScan {}", self.node))?;
        } else {
            self.make_room().await?;
            let owner = json!({
                "apiVersion": SpeakerState::api_version(&()),
                "kind": SpeakerState::kind(&()),
                "name": self.node,
                "uid": state.uid(),
            });
            let object = json!({ "metadata": { "name": self.node, "ownerReferences": [owner] }, "spec": spec });
            let object: SubnetScan = serde_json::from_value(object).context("make a SubnetScan")?;
            let made = self.api.create(&PostParams::default(), &object).await;
            made.with_context(|| format!("create SubnetScan {}", self.node))?;
        }
        self.round += 1;
        Ok(())
    }

    /// Another command's object is left alone while that may run.
    async fn make_room(&self) -> Result<()> {
        let there = self.api.get_opt(&self.node).await;
        let Some(there) = there.with_context(|| format!("read SubnetScan {}", self.node))? else { return Ok(()) };
        let made = there.creation_timestamp().map_or(0, |Time(at)| at.as_second());
        let seconds = Timestamp::now().as_second().saturating_sub(made);
        if seconds < LEFT_BEHIND_SECONDS {
            return Err(Unable::ScanUnderWay { node: self.node.clone(), seconds }.into());
        }
        self.delete().await
    }

    /// `None`: not in time.
    async fn answer(&self, within: Duration) -> Result<Option<SubnetScanStatus>> {
        let round = self.round;
        let answered = |scan: Option<&SubnetScan>| {
            scan.and_then(|scan| scan.status.as_ref()).is_some_and(|status| status.observed_round >= round)
        };
        match timeout(within, await_condition(self.api.clone(), &self.node, answered)).await {
            Ok(scan) => {
                let scan = scan.with_context(|| format!("watch SubnetScan {}", self.node))?;
                Ok(scan.and_then(|scan| scan.status))
            }
            Err(_) => Ok(None),
        }
    }

    async fn end(&self) -> Result<()> {
        if self.round > 0 { self.delete().await } else { Ok(()) }
    }

    async fn delete(&self) -> Result<()> {
        match self.api.delete(&self.node, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error).with_context(|| format!("delete SubnetScan {}", self.node)),
        }
    }
}
