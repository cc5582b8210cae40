//! `make bench-upgrade`: a running cluster with Sheave of an earlier commit is upgraded to this one, under open connections.

mod commit;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use commit::Commit;
use sheave_bench::measure::{self, Modes};
use sheave_bench::survival::{Run, Runs};
use sheave_tests::lab::plan::repository;
use sheave_tests::lab::{self, Lab, LabConfig, ProxyMode};
use sheave_tests::scenario::survive::version::{self, Version};
use sheave_tests::scenario::survive::{Setup, Survival};
use sheave_tests::scenario::{self, Scene};

/// A cluster with the images and manifests of another commit, open connections through a VIP, and then `kubectl apply` of those of
/// this one. Exit code 0: nothing was lost; 1: something was; 2: it could not be measured.
#[derive(Parser)]
struct Arguments {
    /// The commit that runs at first
    #[arg(long, default_value = "f452a5a")]
    from: String,
    #[arg(long, value_enum, default_value = "both")]
    proxy_mode: Modes,
    /// Repetitions in each mode, on a new cluster each
    #[arg(long, default_value_t = 2)]
    times: usize,
    /// Only this one
    #[arg(long, value_enum)]
    only: Option<Way>,
    /// And back to that commit, under other connections; what is lost then is printed and decides nothing
    #[arg(long)]
    back: bool,
    /// Connections of each path
    #[arg(long, default_value_t = 200)]
    connections: u16,
    /// Sheave alone, without the path that a cluster has today
    #[arg(long)]
    alone: bool,
    /// Adds every run to this file, at once
    #[arg(long)]
    json: Option<PathBuf>,
    /// Builds the images of that commit, and nothing else
    #[arg(long)]
    prepare: bool,
    /// Name of the lab
    #[arg(long, default_value = "upgrade")]
    name: String,
    /// Leaves the lab up: for one repetition of one way in one mode
    #[arg(long, requires = "only")]
    keep: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// All speakers, one after the other.
    Rolled,
    /// One speaker; then everything that changes rings and owners; then the others.
    HalfWay,
}

fn main() -> ExitCode {
    measure::exit("upgrade", run(&Arguments::parse()))
}

/// Whether the upgrade lost nothing.
fn run(arguments: &Arguments) -> Result<bool> {
    let before = Commit::build(&arguments.from)?;
    if arguments.prepare {
        return Ok(true);
    }
    if !arguments.keep {
        lab::down_on_interrupt(&arguments.name)?;
    }
    let (mut there, mut back) = (Runs::default(), Runs::default());
    for proxy_mode in arguments.proxy_mode.each() {
        for repetition in 0..arguments.times {
            for way in arguments.ways() {
                for run in on_new_lab(arguments, &before, proxy_mode, repetition, way)? {
                    let runs = if run.scenario.starts_with(BACK) { &mut back } else { &mut there };
                    runs.runs.push(run);
                }
            }
        }
    }
    println!("{there}");
    if arguments.back {
        println!("{back}");
    }
    Ok(there.whole())
}

/// A cluster of its own for each repetition: the upgrade, and with `--back` the way back.
fn on_new_lab(
    arguments: &Arguments,
    before: &Commit,
    proxy_mode: ProxyMode,
    repetition: usize,
    way: Way,
) -> Result<Vec<Run>> {
    let config = LabConfig { name: arguments.name.clone(), proxy_mode, sheave: false, ..LabConfig::default() };
    let lab = Lab::up(config)?;
    let measured = install(&lab, before).and_then(|scene| {
        let setup =
            Setup { connections: arguments.connections, compare: !arguments.alone, repetition, ..Setup::default() };
        measure(arguments, before, &scene, &setup, proxy_mode, way)
    });
    lab::rest_if_interrupted();
    if !arguments.keep {
        lab.down()?;
    }
    measured
}

fn install(lab: &Lab, before: &Commit) -> Result<Scene> {
    lab.import(&before.images)?;
    lab.apply_overlay(&before.overlay)?;
    lab.wait_rolled_out()?;
    scenario::deploy::apply(lab, PODS_PER_NODE)
}

fn measure(
    arguments: &Arguments,
    before: &Commit,
    scene: &Scene,
    setup: &Setup,
    proxy_mode: ProxyMode,
    way: Way,
) -> Result<Vec<Run>> {
    let old = Version { overlay: &before.overlay, tag: &before.name };
    let (manifests, on_delete) = (repository().join("manifests/overlays/lab"), commit::write_on_delete()?);
    let new = |overlay| Version { overlay, tag: TAG };
    let upgrade = format!("upgrade from {}", before.name);
    let mut steps: Vec<(String, Scenario, [Version<'_>; 2])> = Vec::new();
    match way {
        Way::Rolled => steps.push((upgrade, version::applied, [old, new(&manifests)])),
        Way::HalfWay => steps.push((format!("{upgrade}, stopped half-way"), version::half_way, [old, new(&on_delete)])),
    }
    if arguments.back && way == Way::Rolled {
        let old = Version { overlay: &before.overlay, tag: &before.name };
        steps.push((format!("{BACK} {}", before.name), version::applied, [new(&manifests), old]));
    }
    let mut runs = Vec::new();
    for (scenario, run, [from, to]) in steps {
        eprintln!("{scenario} {} ({proxy_mode})", setup.repetition + 1);
        let survival = Some(run(scene, setup, &from, &to)?);
        let run = Run { scenario, proxy_mode, repetition: setup.repetition, survival, error: None };
        if let Some(file) = &arguments.json {
            Runs::append(file, &run)?;
        }
        eprintln!("{}", run.summary());
        if !run.is_whole() {
            print_logs(scene);
        }
        runs.push(run);
    }
    Ok(runs)
}

/// What speakers and controllers logged last: the reader needs it to find out why.
fn print_logs(scene: &Scene) {
    for workload in ["daemonset/sheave-speaker", "deployment/sheave-controller"] {
        let logs = ["--namespace=sheave-system", "logs", workload, "--all-pods", "--prefix", "--tail=200"];
        match scene.lab.kubectl(&logs) {
            Ok(text) => eprintln!("{text}"),
            Err(error) => eprintln!("no logs of {workload}: {error:#}"),
        }
    }
}

impl Arguments {
    fn ways(&self) -> Vec<Way> {
        self.only.map_or_else(|| Way::value_variants().to_vec(), |only| vec![only])
    }
}

type Scenario = fn(&Scene, &Setup, &Version<'_>, &Version<'_>) -> Result<Survival>;

/// Of the images of this version.
const TAG: &str = "lab";
/// How the names of scenarios on the way back begin.
const BACK: &str = "back to";
const PODS_PER_NODE: usize = 2;
