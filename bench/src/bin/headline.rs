//! `make bench-headline`: the promises with counts. A table for people, JSON for records.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use sheave_bench::table::Table;
use sheave_tests::lab::{self, Lab, LabConfig, ProxyMode};
use sheave_tests::scenario::measure::Observed;
use sheave_tests::scenario::{self, NodeLoss, Scene, SpeakerFault};

/// Repeats every scenario on one real cluster and prints minimum, median and maximum. About ten minutes; --quick: two.
#[derive(Parser)]
struct Arguments {
    /// Two repetitions of each scenario
    #[arg(long)]
    quick: bool,
    /// Only scenarios whose name contains this
    #[arg(long)]
    only: Option<String>,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9))]
    nodes: u8,
    #[arg(long, value_enum, default_value = "nftables")]
    proxy_mode: ProxyMode,
    #[arg(long, default_value_t = 200)]
    connections: u16,
    /// Also writes the figures and every single report to this file
    #[arg(long)]
    json: Option<std::path::PathBuf>,
    /// Name of the lab
    #[arg(long, default_value = "headline")]
    name: String,
}

/// A scenario and how often it is repeated.
struct Part {
    name: &'static str,
    times: u8,
    run: fn(&Scene, &Arguments, u8, &mut Table) -> Result<()>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("headline: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether every count was complete.
fn run(arguments: &Arguments) -> Result<bool> {
    lab::down_on_interrupt(&arguments.name)?;
    let lab = Lab::up(LabConfig {
        name: arguments.name.clone(),
        nodes: arguments.nodes,
        proxy_mode: arguments.proxy_mode,
        ..LabConfig::default()
    })?;
    let measured = measure(arguments, &lab);
    lab::rest_if_interrupted();
    lab.down()?;
    let table = measured?;
    print!("{table}");
    if let Some(file) = &arguments.json {
        table.write(file)?;
        eprintln!("written: {}", file.display());
    }
    Ok(table.complete())
}

fn measure(arguments: &Arguments, lab: &Lab) -> Result<Table> {
    let scene = scenario::deploy(lab, 2)?;
    let mut table = Table::default();
    for part in PARTS {
        if arguments.only.as_ref().is_some_and(|only| !part.name.contains(only.as_str())) {
            continue;
        }
        let times = if arguments.quick { part.times.min(2) } else { part.times };
        for number in 1..=times {
            eprintln!("{} {number}/{times}", part.name);
            scenario::settle(&scene)?;
            if let Err(error) = (part.run)(&scene, arguments, number, &mut table) {
                // One repetition that cannot be measured is a finding, not the end of all others.
                eprintln!("{} {number}/{times}: {error:#}", part.name);
                table.failed(part.name, &error);
                recover(&scene)?;
            }
        }
    }
    Ok(table)
}

/// Every fault that a repetition left is repaired.
fn recover(scene: &Scene) -> Result<()> {
    let powered = scene.lab.state()?.nodes;
    for node in scene.nodes.iter().filter(|node| !powered.contains_key(*node)) {
        scenario::restore(scene, node)?;
    }
    Ok(())
}

fn owner_loss(scene: &Scene, arguments: &Arguments, _: u8, table: &mut Table) -> Result<()> {
    let report = scenario::owner_loss(scene, arguments.connections)?;
    scenario::restore(scene, &report.lost)?;
    node_loss(table, "owner loss", &report)
}

fn other_node_loss(scene: &Scene, arguments: &Arguments, _: u8, table: &mut Table) -> Result<()> {
    let report = scenario::other_node_loss(scene, arguments.connections)?;
    scenario::restore(scene, &report.lost)?;
    node_loss(table, "other node loss", &report)
}

fn api_server_down(scene: &Scene, arguments: &Arguments, _: u8, table: &mut Table) -> Result<()> {
    let report = scenario::api_server_down_then_owner_loss(scene, arguments.connections)?;
    scenario::restore(scene, &report.lost)?;
    node_loss(table, "API server down, owner loss", &report)
}

fn speaker_kill(scene: &Scene, arguments: &Arguments, _: u8, table: &mut Table) -> Result<()> {
    speaker_fault(table, "speaker SIGKILL", &scenario::speaker_kill(scene, arguments.connections)?)
}

fn speaker_stop(scene: &Scene, arguments: &Arguments, _: u8, table: &mut Table) -> Result<()> {
    speaker_fault(table, "speaker SIGSTOP", &scenario::speaker_stop_and_cont(scene, arguments.connections)?)
}

fn graceful_delete(scene: &Scene, arguments: &Arguments, _: u8, table: &mut Table) -> Result<()> {
    speaker_fault(table, "graceful deletion", &scenario::graceful_delete(scene, arguments.connections)?)
}

fn speaker_restarts(scene: &Scene, arguments: &Arguments, _: u8, table: &mut Table) -> Result<()> {
    let reports = scenario::speaker_restarts(scene, arguments.connections)?;
    let names = ["restart, owner", "restart, backend", "restart, all in turn"];
    names.iter().zip(&reports).try_for_each(|(name, report)| speaker_fault(table, name, report))
}

fn client_address(scene: &Scene, _: &Arguments, _: u8, table: &mut Table) -> Result<()> {
    let report = scenario::client_address(scene, 60)?;
    for (client, place) in report.clients.iter().zip(["segment", "router"]) {
        table.count("client address", &format!("seen, client {place}"), client.saw_client, client.connections);
    }
    let worked = report.other_ways_worked;
    table.count("client address", "NodePort and ClusterIP", worked, worked + report.other_ways_failed.len());
    table.report("client address", &report)
}

fn first_answer(scene: &Scene, _: &Arguments, number: u8, table: &mut Table) -> Result<()> {
    let report = scenario::first_answer(scene, number)?;
    table.value("first answer", "after the Service's creation (goal <= 300)", "ms", report.first_answer_ms);
    table.report("first answer", &report)
}

fn resources(scene: &Scene, _: &Arguments, _: u8, table: &mut Table) -> Result<()> {
    let report = scenario::resources(scene, Duration::from_secs(10))?;
    table.value("resources", "speaker, memory (goal <= 25)", "MB", report.speaker_mb);
    table.value("resources", "controller, memory (goal <= 40)", "MB", report.controller_mb);
    table.value("resources", "idle speaker, of a core (goal <= 1)", "%", report.idle_speaker_percent);
    table.value("resources", "speaker just after a change, of a core", "%", report.changed_speaker_percent);
    for (name, size) in &report.images {
        table.value("resources", &format!("image {name}"), "MB", *size);
    }
    table.report("resources", &report)
}

fn baseline(scene: &Scene, arguments: &Arguments, _: u8, table: &mut Table) -> Result<()> {
    let takeover = table.median("owner loss", TAKEOVER).unwrap_or(TAKEOVER_IF_NOT_MEASURED_MS);
    let report = scenario::baseline(scene, arguments.connections, takeover)?;
    scenario::restore(scene, &report.lost)?;
    let connections = &report.observed.connections;
    table.value("without Sheave, node loss", "alive", "", connections.alive as f64);
    table.value("without Sheave, node loss", "of", "", connections.eligible as f64);
    let (served, of) = (report.new_connections_served, report.new_connections);
    table.value(
        "without Sheave, node loss",
        "new connections served after it, %",
        "",
        served as f64 / of as f64 * 100.0,
    );
    table.report("without Sheave, node loss", &report)
}

fn node_loss(table: &mut Table, name: &str, report: &NodeLoss) -> Result<()> {
    let Observed { connections, claims, probes, new_connections, .. } = &report.observed;
    table.count(name, "connections alive", connections.alive, connections.eligible);
    table.count(name, "pod lost: reset", connections.pod_lost.reset, connections.pod_lost.opened);
    if let Some(slowest) = connections.pod_lost.slowest_reset_ms {
        table.value(name, "pod lost: last reset (goal <= 300)", "ms", slowest);
    }
    if let Some(takeover) = claims.takeover_ms.filter(|_| report.lost == report.owner_before) {
        table.value(name, TAKEOVER, "ms", takeover);
    }
    table.value(name, "UDP outage (goal p99 <= 200)", "ms", probes.longest_outage_ms);
    table.value(name, "longest TCP pause (goal <= 450)", "ms", connections.longest_pause_ms);
    if let Some(new) = new_connections {
        table.value(name, "new connections that failed after 300 ms", "", new.failed_later as f64);
    }
    table.report(name, report)
}

fn speaker_fault(table: &mut Table, name: &str, report: &SpeakerFault) -> Result<()> {
    let Observed { connections, claims, probes, .. } = &report.observed;
    table.count(name, "connections alive", connections.alive, connections.eligible);
    table.value(name, "longest TCP pause", "ms", connections.longest_pause_ms);
    table.value(name, "UDP probes lost", "", probes.lost as f64);
    table.value(name, "UDP outage", "ms", probes.longest_outage_ms);
    if FENCED.contains(&name) {
        table.value(name, "old owner claims until (goal <= 150)", "ms", claims.old_owner_until_ms.unwrap_or_default());
        if let Some(takeover) = claims.takeover_ms {
            table.value(name, TAKEOVER, "ms", takeover);
        }
    }
    table.report(name, report)
}

/// Where the lease ends the claims. A speaker that is deleted hands over first, some time after `kubectl` was started.
const FENCED: [&str; 2] = ["speaker SIGKILL", "speaker SIGSTOP"];
const TAKEOVER: &str = "takeover";
const TAKEOVER_IF_NOT_MEASURED_MS: f64 = 200.0;
/// The counts of the promises: see bench/README.md.
const PARTS: [Part; 11] = [
    Part { name: "owner loss", times: 20, run: owner_loss },
    Part { name: "other node loss", times: 10, run: other_node_loss },
    Part { name: "speaker SIGKILL", times: 10, run: speaker_kill },
    Part { name: "speaker SIGSTOP", times: 10, run: speaker_stop },
    Part { name: "graceful deletion", times: 10, run: graceful_delete },
    Part { name: "API server down, owner loss", times: 2, run: api_server_down },
    Part { name: "speaker restarts", times: 2, run: speaker_restarts },
    Part { name: "client address", times: 2, run: client_address },
    Part { name: "first answer", times: 10, run: first_answer },
    Part { name: "without Sheave", times: 2, run: baseline },
    Part { name: "resources", times: 1, run: resources },
];
