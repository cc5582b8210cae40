//! `make demo`: a real cluster, a Service, and the node that holds its address loses power under 200 connections.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use serde::Serialize;
use sheave_bench::promise::{self, Promise};
use sheave_bench::screen::{Colour, Screen};
use sheave_tests::lab::{self, Lab, LabConfig, ProxyMode};
use sheave_tests::scenario::address::ClientAddress;
use sheave_tests::scenario::baseline::Baseline;
use sheave_tests::scenario::{self, InTime, NodeLoss, Owner, Scene, SpeakerFault};

/// Shows on a real cluster on this machine what Sheave does. It takes less than a minute and cleans up after itself.
/// Exit code 0: every promise held; 1: one is broken, or the lab left something behind; 2: the demo could not be carried out; 3: the
/// machine was too busy to judge a promise about time, the others held.
#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9))]
    nodes: u8,
    #[arg(long, value_enum, default_value = "nftables")]
    proxy_mode: ProxyMode,
    #[arg(long, default_value_t = 200)]
    connections: u16,
    /// Name of the lab
    #[arg(long, default_value = "demo")]
    name: String,
    /// Leaves the lab up at the end
    #[arg(long)]
    keep: bool,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Everything that was seen, for `--json`.
#[derive(Serialize)]
struct Report {
    nodes: Vec<String>,
    proxy_mode: ProxyMode,
    address: std::net::Ipv4Addr,
    owner: Owner,
    client_address: ClientAddress,
    power_loss: NodeLoss,
    speaker_kill: SpeakerFault,
    baseline: Baseline,
    promises: Vec<Promise>,
    seconds: f64,
}

fn main() -> ExitCode {
    promise::exit_code("demo", run(&Arguments::parse()))
}

/// Whether the promises held, and nothing was left behind.
fn run(arguments: &Arguments) -> Result<InTime> {
    let began = Instant::now();
    let screen = Screen::new(arguments.json);
    lab::down_on_interrupt(&arguments.name)?;
    screen.heading("Sheave: open connections survive the death of the node that holds their address");
    screen.progress("starting a real Kubernetes cluster on this machine, and installing Sheave in it");
    let lab = Lab::up(LabConfig {
        name: arguments.name.clone(),
        nodes: arguments.nodes,
        proxy_mode: arguments.proxy_mode,
        progress: if arguments.json { lab::quiet } else { lab::to_stderr },
        ..LabConfig::default()
    })?;
    let shown = show(arguments, screen, &lab, began);
    lab::rest_if_interrupted();
    let left = if arguments.keep {
        eprintln!("the lab {0:?} stays up: target/debug/sheave-lab --name {0} status, … down", arguments.name);
        None
    } else {
        screen.progress("removing the lab");
        lab.down()?;
        Some(scenario::leftovers(&arguments.name)?)
    };
    let report = shown?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    verdict(screen, &report.promises, began, left.as_deref());
    let outcomes = report.promises.iter().map(|promise| promise.outcome);
    Ok(if left.is_none_or(|left| left.is_empty()) { promise::overall(outcomes) } else { InTime::Broken })
}

fn show(arguments: &Arguments, screen: Screen, lab: &Lab, began: Instant) -> Result<Report> {
    screen.progress("a Service with two pods on every node");
    let scene = scenario::deploy(lab, 2)?;
    let owner = scene.owner()?.context("the VirtualIP has an owner")?;
    cluster(screen, &scene, arguments, began)?;
    service(screen, &scene, &owner);

    let client_address = scenario::client_address(&scene, 30)?;
    clients(screen, &client_address);
    let power_loss = scenario::owner_loss(&scene, arguments.connections)?;
    lost_node(screen, &power_loss);

    screen.progress(&format!("{} gets its power back; waiting until the cluster is whole", power_loss.lost));
    scenario::restore(&scene, &power_loss.lost)?;
    let speaker_kill = scenario::speaker_kill(&scene, arguments.connections)?;
    killed_speaker(screen, &speaker_kill);

    let takeover = power_loss.observed.claims.takeover_ms.unwrap_or_default();
    let baseline = scenario::baseline(&scene, arguments.connections, takeover)?;
    compare(screen, &baseline, &power_loss);

    let mut promises = promise::after_node_loss(&power_loss);
    promises.extend(promise::after_speaker_loss(&speaker_kill));
    promises.push(promise::client_seen(&client_address));
    Ok(Report {
        nodes: scene.nodes.clone(),
        proxy_mode: arguments.proxy_mode,
        address: scene.vip,
        owner,
        client_address,
        power_loss,
        speaker_kill,
        baseline,
        promises,
        seconds: began.elapsed().as_secs_f64(),
    })
}

fn cluster(screen: Screen, scene: &Scene, arguments: &Arguments, began: Instant) -> Result<()> {
    let version = scene.api.get("/version")?;
    screen.heading("The cluster");
    screen.line(&format!(
        "Kubernetes {}, {} nodes, kube-proxy {}; kubelet, containerd and pods are real; up after {:.0} s",
        version["gitVersion"].as_str().unwrap_or("?"),
        scene.nodes.len(),
        arguments.proxy_mode,
        began.elapsed().as_secs_f64()
    ));
    let pods = scene.pods()?;
    for node in &scene.nodes {
        let here = pods.iter().filter(|pod| pod.node == *node).count();
        screen.line(&format!("{node}  {}  a Sheave speaker, {here} pods of the Service", scene.node_address(node)?));
    }
    Ok(())
}

fn service(screen: Screen, scene: &Scene, owner: &Owner) {
    screen.heading("The Service");
    screen.line(&format!("demo/echo, type LoadBalancer, externalTrafficPolicy Cluster: {} (TCP and UDP)", scene.vip));
    let reason = match owner.order.first() {
        Some(first) if *first == owner.node => "it is first in rank",
        _ => "it was ready first, and there is no preemption: a node that serves keeps its address",
    };
    screen.line(&format!("{} holds the address: {reason} (term {})", owner.node, owner.term));
    screen.line(&format!("Rank, by a hash of address and node: {}", owner.order.join(", then ")));
}

fn clients(screen: Screen, report: &ClientAddress) {
    screen.heading("Clients");
    for (client, place) in report.clients.iter().zip(["on the nodes' segment", "behind a router"]) {
        screen.line(&format!(
            "{} {place}: pods on {} saw this very address in {} connections",
            client.client,
            client.nodes.join(", "),
            screen.of(client.saw_client, client.connections)
        ));
    }
}

fn lost_node(screen: Screen, report: &NodeLoss) {
    let NodeLoss { observed, lost, .. } = report;
    let (connections, pods) = (&observed.connections, &observed.connections.pod_lost);
    screen.heading(&format!(
        "{lost}, which holds the address, loses power under {} open connections",
        connections.opened
    ));
    let takeover = observed.claims.takeover_ms.map_or("?".to_owned(), |ms| format!("{ms:.0} ms"));
    screen.line(&format!("{} took over after {takeover}", report.owner_after));
    screen.line(&format!(
        "{} connections with a pod on the other nodes are alive; longest pause {:.0} ms",
        screen.of(connections.alive, connections.eligible),
        connections.longest_pause_ms
    ));
    screen.line(&format!(
        "{} connections whose pod died with {lost} were reset, the last after {:.0} ms",
        screen.of(pods.reset, pods.opened),
        pods.slowest_reset_ms.unwrap_or_default()
    ));
    screen.line(&format!("UDP, a probe a millisecond: no answer for {:.0} ms", observed.probes.longest_outage_ms));
}

fn killed_speaker(screen: Screen, report: &SpeakerFault) {
    let SpeakerFault { observed, node, .. } = report;
    screen.heading(&format!("SIGKILL for the speaker of {node}, which holds the address now"));
    let takeover = observed.claims.takeover_ms.map_or("?".to_owned(), |ms| format!("{ms:.0} ms"));
    let until = match observed.claims.old_owner_until_ms {
        Some(until) => format!("for {until:.0} ms more, until its lease in the kernel ended, then never again"),
        None => "no more".to_owned(),
    };
    screen.line(&format!("{node} answered ARP {until}; {} took over after {takeover}", report.owner_after));
    let connections = &observed.connections;
    screen.line(&format!(
        "{} connections are alive (no pod died); longest pause {:.0} ms",
        screen.of(connections.alive, connections.eligible),
        connections.longest_pause_ms
    ));
}

fn compare(screen: Screen, report: &Baseline, ours: &NodeLoss) {
    let connections = &report.observed.connections;
    screen.heading("For comparison: what clusters have today, in this same cluster");
    screen.line(&format!(
        "{} is answered by one node, kube-proxy forwards. The node loses power; the next one takes the address",
        report.address
    ));
    screen.line(&format!("after {:.0} ms: it is given the time that Sheave needed", report.given_takeover_ms));
    screen.line(&format!(
        "{} connections with a pod on the other nodes are alive (Sheave: {} of {})",
        screen.of(connections.alive, connections.eligible),
        ours.observed.connections.alive,
        ours.observed.connections.eligible
    ));
    screen.line(&format!(
        "{} of {} new connections succeed: the next node serves, but it still picks pods of the lost node too",
        report.new_connections_served, report.new_connections
    ));
    let seen = if report.saw_client { "the client's address" } else { "a node's address, not the client's" };
    screen.line(&format!("pods saw {seen}"));
}

/// `left`: what the removed lab left behind; `None` if it stays.
fn verdict(screen: Screen, promises: &[Promise], began: Instant, left: Option<&[String]>) {
    screen.heading("Promises");
    for promise in promises {
        let mark = match promise.outcome {
            InTime::Kept => screen.paint(Colour::Good, "held"),
            InTime::Broken => screen.paint(Colour::Bad, "BROKEN"),
            InTime::TooBusy => screen.paint(Colour::Strong, "machine too busy to judge"),
        };
        screen.line(&format!("{mark}  {}: {}", promise.name, promise.seen));
    }
    let seconds = began.elapsed().as_secs_f64();
    match left {
        None => screen.line(&format!("{seconds:.0} s; the lab stays up (--keep)")),
        Some([]) => screen.line(&format!("{seconds:.0} s; of the lab no process, namespace or mount is left")),
        Some(left) => {
            screen.line(&screen.paint(Colour::Bad, &format!("{seconds:.0} s; left behind: {}", left.join(", "))))
        }
    }
}
