//! `make bench-survive`: what connections survive, beside the path that a cluster has today.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use sheave_bench::measure::{self, Modes};
use sheave_bench::pipe;
use sheave_bench::survival::{Run, Runs};
use sheave_tests::lab::{self, Lab, LabConfig, ProxyMode};
use sheave_tests::scenario::survive::{SCENARIOS, Scenario, Setup};
use sheave_tests::scenario::{self, Scene};

/// Every change of the serving nodes under open connections, on a real cluster, with Sheave and with a node that answers for the
/// address while kube-proxy forwards. All of it takes hours: --only and --json measure it in pieces, --print prints them. Exit
/// code 0: Sheave lost nothing; 1: it did; 2: it could not be measured.
#[derive(Parser)]
struct Arguments {
    /// Repetitions of each scenario (random changes are made once)
    #[arg(long, default_value_t = 5)]
    times: usize,
    #[arg(long, value_enum, default_value = "both")]
    proxy_mode: Modes,
    /// Only scenarios whose name contains this; may be given several times
    #[arg(long)]
    only: Vec<String>,
    /// Connections of each path
    #[arg(long, default_value_t = 200)]
    connections: u16,
    /// Connections of each path during random changes
    #[arg(long, default_value_t = 1000)]
    many: u16,
    /// How long random changes go on
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Of random changes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Sheave alone
    #[arg(long)]
    alone: bool,
    /// Adds every run to this file, at once; at the end the table is made of everything in it
    #[arg(long)]
    json: Option<PathBuf>,
    /// Prints the table of such a file and measures nothing
    #[arg(long, conflicts_with = "json")]
    print: Option<PathBuf>,
    /// Prints the names of the scenarios
    #[arg(long)]
    list: bool,
    /// Name of the lab
    #[arg(long, default_value = "survive")]
    name: String,
    /// Uses a lab that is up, in whichever mode it is, for scenarios that need no more nodes, and leaves it up
    #[arg(long)]
    attach: bool,
}

fn main() -> ExitCode {
    measure::exit("survive", run(&Arguments::parse()))
}

/// Whether Sheave lost nothing.
fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.list || arguments.print.is_some() {
        pipe::end_without_reader();
    }
    if arguments.list {
        SCENARIOS.iter().for_each(|scenario| println!("{}", scenario.name));
        return Ok(true);
    }
    let runs = match &arguments.print {
        Some(file) => Runs::read(file)?,
        None => measure(arguments)?,
    };
    if runs.runs.is_empty() {
        bail!("nothing was measured");
    }
    println!("{runs}");
    Ok(runs.whole())
}

fn measure(arguments: &Arguments) -> Result<Runs> {
    let chosen: Vec<_> = SCENARIOS.iter().filter(|scenario| arguments.wants(scenario)).collect();
    if chosen.is_empty() {
        bail!("no scenario has a name with {:?}; --list prints them", arguments.only);
    }
    let mut runs = Runs::default();
    if arguments.attach {
        let lab = Lab::attach(&arguments.name)?;
        let nodes = lab.state()?.plan.nodes;
        let chosen: Vec<_> = chosen.into_iter().filter(|scenario| scenario.nodes <= nodes).collect();
        on_lab(arguments, &lab, &chosen, &mut runs)?;
    } else {
        lab::down_on_interrupt(&arguments.name)?;
        for proxy_mode in arguments.proxy_mode.each() {
            for nodes in [3, 5] {
                let chosen: Vec<_> = chosen.iter().filter(|scenario| scenario.nodes == nodes).copied().collect();
                if !chosen.is_empty() {
                    let name = arguments.name.clone();
                    let lab = Lab::up(LabConfig { name, nodes, proxy_mode, ..LabConfig::default() })?;
                    let measured = on_lab(arguments, &lab, &chosen, &mut runs);
                    lab::rest_if_interrupted();
                    lab.down()?;
                    measured?;
                }
            }
        }
    }
    match &arguments.json {
        Some(file) => Runs::read(file),
        None => Ok(runs),
    }
}

fn on_lab(arguments: &Arguments, lab: &Lab, chosen: &[&Scenario], runs: &mut Runs) -> Result<()> {
    // Every scenario waits for the whole cluster by itself, and repairs a broken one.
    let scene = scenario::deploy::apply(lab, 2)?;
    let proxy_mode = lab.state()?.plan.proxy_mode;
    for scenario in chosen {
        let times = if scenario.repeated { arguments.times } else { 1 };
        // Runs that a file holds already count: the next ones strike the next nodes, with the next seeds.
        let before = arguments.json.as_ref().map_or(Ok(Runs::default()), |file| Runs::read(file))?;
        let before = before.count(scenario.name, proxy_mode);
        for repetition in before..before + times {
            eprintln!("{} {} ({proxy_mode})", scenario.name, repetition + 1);
            let run = once(arguments, &scene, scenario, proxy_mode, repetition);
            if let Some(file) = &arguments.json {
                Runs::append(file, &run)?;
            }
            eprintln!("{}", run.summary());
            runs.runs.push(run);
        }
    }
    Ok(())
}

fn once(arguments: &Arguments, scene: &Scene, scenario: &Scenario, proxy_mode: ProxyMode, repetition: usize) -> Run {
    let setup = Setup {
        connections: if scenario.repeated { arguments.connections } else { arguments.many },
        compare: !arguments.alone,
        repetition,
        minutes: arguments.minutes,
        seed: arguments.seed,
    };
    let result = (scenario.run)(scene, &setup);
    lab::rest_if_interrupted();
    // One repetition that cannot be measured is a finding, not the end of all others.
    let (survival, error) = match result {
        Ok(survival) => (Some(survival), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    Run { scenario: scenario.name.to_owned(), proxy_mode, repetition, survival, error }
}

impl Arguments {
    fn wants(&self, scenario: &Scenario) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| scenario.name.contains(only.as_str()))
    }
}
