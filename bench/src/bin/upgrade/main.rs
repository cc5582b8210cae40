//! `make bench-upgrade`: a running cluster with Sheave of an earlier commit is upgraded to this one, under open connections.

mod commit;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use commit::Commit;
use sheave_bench::survival::{Run, Runs};
use sheave_tests::lab::plan::repository;
use sheave_tests::lab::{self, Lab, LabConfig, ProxyMode};
use sheave_tests::scenario::{self, Scene, survive};

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
    /// Leaves the lab up after the first repetition
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Modes {
    Nftables,
    Iptables,
    Both,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("upgrade: {error:#}");
            ExitCode::from(2)
        }
    }
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
            let config = LabConfig { name: arguments.name.clone(), proxy_mode, sheave: false, ..LabConfig::default() };
            let lab = Lab::up(config)?;
            let measured = on_lab(arguments, &before, &lab, proxy_mode, repetition);
            lab::rest_if_interrupted();
            if !arguments.keep {
                lab.down()?;
            }
            let mut measured = measured?.into_iter();
            there.runs.extend(measured.next());
            back.runs.extend(measured);
            if arguments.keep {
                break;
            }
        }
    }
    println!("{there}");
    if arguments.back {
        println!("{back}");
    }
    Ok(there.whole())
}

/// The upgrade, and the way back if it is asked for.
fn on_lab(
    arguments: &Arguments,
    before: &Commit,
    lab: &Lab,
    proxy_mode: ProxyMode,
    repetition: usize,
) -> Result<Vec<Run>> {
    lab.import(&before.images)?;
    lab.apply_overlay(&before.overlay)?;
    let scene = scenario::deploy::apply(lab, PODS_PER_NODE)?;
    let now = repository().join("manifests/overlays/lab");
    let mut steps = vec![(format!("upgrade from {}", before.name), &now)];
    if arguments.back {
        steps.push((format!("back to {}", before.name), &before.overlay));
    }
    let mut runs = Vec::new();
    for (what, overlay) in steps {
        eprintln!("{what} {} ({proxy_mode})", repetition + 1);
        let setup =
            survive::Setup { connections: arguments.connections, compare: !arguments.alone, ..Default::default() };
        let survival = survive::version::applied(&scene, &setup, overlay, &what)?;
        let run = Run { scenario: what, proxy_mode, repetition, survival: Some(survival), error: None };
        if let Some(file) = &arguments.json {
            Runs::append(file, &run)?;
        }
        eprintln!("{}", run.summary());
        if !run.is_whole() {
            print_logs(&scene);
        }
        runs.push(run);
    }
    Ok(runs)
}

/// Warnings of all speakers and controllers, for whoever has to find out why.
fn print_logs(scene: &Scene) {
    for workload in ["daemonset/sheave-speaker", "deployment/sheave-controller"] {
        let logs = ["--namespace=sheave-system", "logs", workload, "--all-pods", "--prefix", "--tail=200"];
        match scene.lab.kubectl(&logs) {
            Ok(text) => eprintln!("{text}"),
            Err(error) => eprintln!("no logs of {workload}: {error:#}"),
        }
    }
}

impl Modes {
    fn each(self) -> Vec<ProxyMode> {
        match self {
            Self::Nftables => vec![ProxyMode::Nftables],
            Self::Iptables => vec![ProxyMode::Iptables],
            Self::Both => vec![ProxyMode::Nftables, ProxyMode::Iptables],
        }
    }
}

const PODS_PER_NODE: usize = 2;
