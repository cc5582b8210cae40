//! The DaemonSet on a cluster whose nodes serve their endpoint: installed, upgraded, deleted, and the keys of both rotated, under clients of
//! the endpoint and of a Service. Each returns what they saw, and judges nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use sheave_endpoint::preset::FILE;

use super::upkeep::{since, wait_serving};
use super::{Clients, Seen};
use crate::lab::ha::{Ha, Part};
use crate::lab::plan::{kubernetes_bin, repository};
use crate::lab::{Fault, Lab, wait_for};
use crate::scenario::api::text;
use crate::scenario::deploy::Scene;
use crate::scenario::http;
use crate::scenario::inside::on_node;
use crate::scenario::settle::wait_speakers;
use crate::scenario::survive::watch::{Options, Watch};
use crate::scenario::survive::{self, Setup, Survival, whole};
use crate::traffic::clock::now_ns;

/// What became of the clients while one thing happened.
#[derive(Debug, Serialize)]
pub struct Happened {
    pub owner_before: String,
    pub owner_after: String,
    pub seconds: f64,
    pub seen: Seen,
    /// Of a Service's clients, if there were any.
    pub service: Option<Survival>,
}

/// Under the clients of the endpoint alone.
pub fn under_clients(ha: &Ha, clients: &Clients, work: impl FnOnce() -> Result<()>) -> Result<Happened> {
    happened(ha, clients, || work().map(|()| None))
}

/// Under those of a Service as well.
pub fn under_all_clients(
    ha: &Ha,
    clients: &Clients,
    scene: &Scene,
    options: Options,
    work: impl FnOnce(&mut Watch<'_>) -> Result<()>,
) -> Result<Happened> {
    let setup = Setup { connections: CONNECTIONS, compare: false, ..Setup::default() };
    happened(ha, clients, || survive::observe(scene, &setup, options, work).map(Some))
}

fn happened(ha: &Ha, clients: &Clients, work: impl FnOnce() -> Result<Option<Survival>>) -> Result<Happened> {
    clients.fill()?;
    let owner_before = owner(ha)?;
    let from = now_ns();
    let worked = work();
    let time = since(from);
    let seen = clients.measure(from, time + AFTER)?;
    let (owner_after, service) = (owner(ha)?, worked.with_context(|| format!("clients saw {seen:?}"))?);
    Ok(Happened { owner_before, owner_after, seconds: time.as_secs_f64(), seen, service })
}

/// As the client has it, which resolves the address again and again.
fn owner(ha: &Ha) -> Result<String> {
    wait_for("an owner of the endpoint's address", WITHIN, || ha.owner())
}

/// The host speaker of a node has no place for another any more, as one of an earlier version, until it starts again.
pub fn take_place(ha: &Ha, node: &str) -> Result<()> {
    on_node(&ha.lab, node, "rm", &[&format!("{HOST_PINS}/next")]).map(drop)
}

/// What the SpeakerState of each node says of `Ready`: status and reason.
pub fn ready_reasons(lab: &Lab) -> Result<BTreeMap<String, (String, String)>> {
    let list: Value = serde_json::from_str(&lab.kubectl(&["get", "speakerstates", "-o", "json"])?)?;
    let of = |state: &Value| {
        let all = state.pointer("/status/conditions")?.as_array()?;
        let ready = all.iter().find(|condition| condition["type"] == "Ready")?;
        let name = text(state, "/metadata/name").to_owned();
        Some((name, (text(ready, "/status").to_owned(), text(ready, "/reason").to_owned())))
    };
    Ok(list["items"].as_array().context("a list")?.iter().filter_map(of).collect())
}

/// Waits until every node is Ready there, for this reason.
pub fn wait_ready_reasons(ha: &Ha, reason: impl Fn(&str) -> &'static str) -> Result<()> {
    let mut seen = BTreeMap::new();
    let waited = wait_for("SpeakerStates that are Ready", WITHIN, || {
        seen = ready_reasons(&ha.lab)?;
        let is_so =
            |node: &String| seen.get(node).is_some_and(|(status, because)| status == "True" && because == reason(node));
        Ok(ha.nodes().iter().all(is_so).then_some(()))
    });
    waited.with_context(|| format!("last seen: {seen:?}"))
}

/// Each address is in the tables and maps of its own speaker alone.
pub fn check_separate(ha: &Ha, scene: &Scene) -> Result<()> {
    let (endpoint, service) = (ha.address().ip().to_string(), scene.vip.to_string());
    for node in &scene.nodes {
        for (table, own, other) in [("sheave", &endpoint, &service), ("sheave-services", &service, &endpoint)] {
            let vips = on_node(&ha.lab, node, "nft", &["list", "set", "ip", table, "vips"])?;
            ensure!(vips.contains(own), "table {table} of {node} is not about {own}: {vips}");
            ensure!(!vips.contains(other), "table {table} of {node} is about {other}: {vips}");
        }
        let state = scene.api.get(&format!("{SPEAKER_STATES}/{node}"))?;
        let listed = state.pointer("/status/uplinks/0/addresses").context("addresses of the uplink")?;
        let listed = listed.as_array().is_some_and(|all| all.contains(&json!(endpoint)));
        ensure!(listed, "the endpoint's address is not among those of {node}: {state}");
    }
    Ok(())
}

/// `kubectl rollout restart`.
pub fn restart(scene: &Scene) -> Result<()> {
    scene.lab.kubectl(&[NAMESPACE, "rollout", "restart", DAEMON_SET])?;
    scene.lab.kubectl(&[NAMESPACE, "rollout", "status", DAEMON_SET, "--timeout=120s"])?;
    wait_speakers(scene)
}

/// Another image by its name, which has the same contents.
pub fn upgrade(scene: &Scene) -> Result<()> {
    let ctr = kubernetes_bin().join("ctr").to_string_lossy().into_owned();
    let [present, next] = [whole::IMAGE, NEXT].map(|image| format!("docker.io/library/{image}"));
    for node in &scene.nodes {
        on_node(&scene.lab, node, &ctr, &["--namespace=k8s.io", "images", "tag", "--force", &present, &next])?;
    }
    whole::set_image(scene, NEXT)?;
    wait_speakers(scene)
}

/// All host speakers end in order and start again, one after the other.
pub fn restart_host_speakers(ha: &Ha) -> Result<()> {
    ha.nodes().iter().try_for_each(|node| restart_host_speaker(ha, node))
}

pub fn restart_host_speaker(ha: &Ha, node: &str) -> Result<()> {
    let old = ha.process(node, Part::Speaker)?.with_context(|| format!("{node} runs no host speaker"))?;
    ha.terminate(node, Part::Speaker)?;
    wait_for(&format!("the host speaker of {node} to end"), WITHIN, || Ok((!old.alive()).then_some(())))?;
    ha.start(node, Part::Speaker)?;
    wait_serving(ha, node)
}

/// The Secret's key, as docs/election.md has it.
pub fn rotate_key_of_services(scene: &Scene) -> Result<()> {
    let old = scene.api.get(SECRET)?["data"]["current"].clone();
    scene.api.patch(SECRET, &json!({ "data": { "previous": old, "current": NEXT_KEY } }))?;
    wait_keys(scene, 2.0)?;
    scene.api.patch(SECRET, &json!({ "data": { "previous": null } }))?;
    wait_keys(scene, 1.0)
}

fn wait_keys(scene: &Scene, accepted: f64) -> Result<()> {
    wait_for("all speakers of Services to use the next key", ROTATED_WITHIN, || {
        for node in &scene.nodes {
            let metrics = http::metrics(&scene.lab, scene.node_address(node)?)?;
            let value = |name| http::value(&metrics, name);
            if value("sheave_keys_accepted") != Some(accepted) || value("sheave_keys_rotating") != Some(0.0) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}

/// The file's key, as docs/api-endpoint.md has it: the next one beside the one until now on all members, then alone.
pub fn rotate_key_of_endpoint(ha: &Ha) -> Result<()> {
    for script in [&format!(r"s|^key: \(.*\)$|key: {NEXT_KEY}\npreviousKey: \1|"), "/^previousKey: /d"] {
        for node in ha.nodes() {
            change_file(ha, &node, script)?;
        }
    }
    for node in ha.nodes() {
        let status = ha.status(&node)?;
        ensure!(status.peers.iter().all(|peer| peer.alive), "{node} does not receive all others: {:?}", status.peers);
    }
    Ok(())
}

/// By sed(1), and waits until the host speaker has taken it over.
fn change_file(ha: &Ha, node: &str, script: &str) -> Result<()> {
    let taken = |node: &str| ha.status(node)?.file.context("a speaker that reads its file again");
    let before = taken(node)?.taken;
    let text = || on_node(&ha.lab, node, "cat", &[FILE]);
    let old = text()?;
    on_node(&ha.lab, node, "sed", &["-i", script, FILE])?;
    ensure!(text()? != old, "{script} changes nothing in {FILE} of {node}");
    wait_for(&format!("the host speaker of {node} to take its file over"), WITHIN, || {
        let file = taken(node)?;
        if let Some(refused) = file.refused {
            bail!("{FILE} of {node} is refused: {}", refused.because.join(", "));
        }
        Ok((file.taken > before).then_some(()))
    })
}

/// The kubelets start anew, and with that give every pod another token, as they do in the end while they run. Returns when each speaker
/// has used its own.
pub fn renew_tokens(ha: &Ha) -> Result<()> {
    let before = tokens(ha)?;
    ensure!(ha.nodes().iter().all(|node| before.contains_key(node)), "no token of some speaker is logged: {before:?}");
    for node in ha.nodes() {
        ha.lab.fault(Fault::RestartKubelet { node })?;
    }
    wait_for("every speaker to use another token", RENEWED_WITHIN, || {
        let now = tokens(ha)?;
        let another = |(node, old): (&String, &BTreeSet<String>)| now.get(node).is_some_and(|all| !all.is_subset(old));
        Ok(before.iter().all(another).then_some(()))
    })
}

/// By node, the tokens that speakers have shown, as the API servers name them.
fn tokens(ha: &Ha) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut tokens = BTreeMap::<String, BTreeSet<String>>::new();
    for server in ha.nodes() {
        for event in ha.audit_of(&server, ACCOUNT)? {
            let extra = |name: &str| event["user"]["extra"][format!("authentication.kubernetes.io/{name}")][0].as_str();
            if let (Some(node), Some(token)) = (extra("node-name"), extra("credential-id")) {
                tokens.entry(node.to_owned()).or_default().insert(token.to_owned());
            }
        }
    }
    Ok(tokens)
}

/// Adverts that speakers refused because of their key, of Services and of the endpoint, on all nodes.
pub fn refused_for_keys(scene: &Scene) -> Result<[f64; 2]> {
    let (mut services, mut endpoint) = (0.0, 0.0);
    for node in &scene.nodes {
        services += refusals(&http::metrics(&scene.lab, scene.node_address(node)?)?);
        endpoint += refusals(&http::host_speaker_metrics(&scene.lab, node)?);
    }
    Ok([services, endpoint])
}

fn refusals(metrics: &str) -> f64 {
    let of = |reason| http::value(metrics, &format!("sheave_adverts_rejected_total{{reason=\"{reason}\"}}"));
    ["wrong_cluster", "unknown_key", "bad_mac"].into_iter().filter_map(of).sum()
}

/// The DaemonSet alone; returns when its pods are gone.
pub fn delete(scene: &Scene) -> Result<()> {
    scene.lab.kubectl(&[NAMESPACE, "delete", DAEMON_SET, "--wait"])?;
    wait_for("the speakers' pods to be gone", WITHIN, || {
        let pods = scene.lab.kubectl(&[NAMESPACE, "get", "pods", "-l", SPEAKERS, "-o", "name"])?;
        Ok(pods.trim().is_empty().then_some(()))
    })
}

/// As manifests/uninstall does it. Returns what of the DaemonSet's is left on the nodes, and what of the endpoint's is missing.
pub fn uninstall(scene: &Scene) -> Result<Vec<String>> {
    let overlay = repository().join("manifests/overlays/lab-uninstall").to_string_lossy().into_owned();
    scene.lab.kubectl(&["apply", "-k", &overlay])?;
    scene.lab.kubectl(&[NAMESPACE, "rollout", "status", "daemonset/sheave-uninstall", "--timeout=60s"])?;
    let mut wrong = Vec::new();
    for node in &scene.nodes {
        let found = on_node(&scene.lab, node, "sh", &["-c", WRONG])?;
        wrong.extend(found.lines().map(|line| format!("{node}: {line}")));
    }
    scene.lab.kubectl(&["delete", "-k", &overlay])?;
    Ok(wrong)
}

/// Prints a line for each thing.
const WRONG: &str = r#"
[ -e /sys/fs/bpf/sheave-services ] && echo "pins are left: $(ls /sys/fs/bpf/sheave-services)"
nft list tables | grep sheave-services
ls /var/lib/sheave | sed 's/^/left in the state directory: /'
nft list tables | grep -qx 'table ip sheave' || echo "the endpoint's table is missing"
[ -e /sys/fs/bpf/sheave/next ] || echo "the endpoint's pins are missing"
ip link show dev eth0 | grep -q xdp || echo "the endpoint's XDP program is missing"
true
"#;
const HOST_PINS: &str = "/sys/fs/bpf/sheave";
const NAMESPACE: &str = "--namespace=sheave-system";
const DAEMON_SET: &str = "daemonset/sheave-speaker";
const SPEAKERS: &str = "app.kubernetes.io/name=sheave-speaker";
const SPEAKER_STATES: &str = "/apis/sheave.dev/v1alpha1/speakerstates";
const SECRET: &str = "/api/v1/namespaces/sheave-system/secrets/sheave-keys";
const ACCOUNT: &str = "system:serviceaccount:sheave-system:sheave-speaker";
const NEXT: &str = "sheave-speaker:upgraded";
const NEXT_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
/// Of the Service. Each makes twenty records a second, beside three API servers.
const CONNECTIONS: u16 = 60;
/// What must not happen has nothing to be waited for.
const AFTER: Duration = Duration::from_secs(2);
const WITHIN: Duration = Duration::from_secs(60);
/// Kept keys are signed with for some seconds, until every peer has had the next one.
const ROTATED_WITHIN: Duration = Duration::from_secs(60);
/// A client reads its token's file once a minute, and a watch lasts about as long.
const RENEWED_WITHIN: Duration = Duration::from_secs(240);
