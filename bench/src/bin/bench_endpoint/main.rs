//! `make bench-endpoint`: the API server endpoint beside keepalived and HAProxy, under the same faults, one lab after the other.

mod faults;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::Serialize;
use sheave_bench::{commit, promise};
use sheave_tests::lab::ha::{self, Ha};
use sheave_tests::lab::{self, Balancer, Distribution, Guide, Lab, image};
use sheave_tests::scenario::{self, InTime};

use faults::{FAULTS, Measured};

/// The same faults with Sheave and with Debian's keepalived and HAProxy on the same three nodes, as guides set them up: a table and JSON.
/// Some three minutes for each of the seven. Exit code 0: Sheave kept its promises; 1: one is broken, or a fault could not be measured; 2: no
/// lab, or it left something behind; 3: the machine was too busy to judge a promise about time, the others held.
#[derive(Parser)]
pub struct Arguments {
    /// Faults whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Sheave from the files that `sheave endpoint init` writes for these distributions
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["kubeadm", "k3s", "rke2", "k0s", "microk8s"])]
    presets: Vec<Distribution>,
    /// keepalived and HAProxy as these guides have them
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["kubeadm", "k3s"])]
    guides: Vec<Guide>,
    /// Repetitions of each fault
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=20))]
    times: u8,
    /// Open watches, each on a connection of its own
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    watches: u16,
    /// The speaker; by default the one that `make images` builds
    #[arg(long)]
    speaker: Option<PathBuf>,
    /// Also writes everything that was seen to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Name of the lab
    #[arg(long, default_value = "benchep")]
    name: String,
}

/// One of those that are compared.
#[derive(Serialize)]
pub struct Column {
    name: String,
    measured: Vec<Measured>,
    /// Of what could not be measured: the fault, and why.
    failures: Vec<(String, String)>,
}

#[derive(Serialize)]
struct Report<'a> {
    commit: String,
    clean: bool,
    columns: &'a [Column],
}

fn main() -> ExitCode {
    promise::exit_code("bench-endpoint", run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<InTime> {
    let speaker = arguments.speaker.clone().unwrap_or_else(|| image::static_binary("sheave-speaker"));
    let speaker = std::fs::canonicalize(&speaker).with_context(|| format!("--speaker {}", speaker.display()))?;
    let known = FAULTS.iter().any(|fault| fault.name.contains(&arguments.only));
    ensure!(known, "--only {:?} names none of: {}", arguments.only, FAULTS.map(|fault| fault.name).join("; "));
    lab::down_on_interrupt(&arguments.name)?;
    let mut columns = Vec::new();
    for preset in &arguments.presets {
        let name = format!("Sheave, {}", preset.preset().distribution().name);
        columns.push(column(arguments, name, Balancer::Sheave(speaker.clone(), *preset))?);
    }
    let of_sheave = columns.len();
    for guide in &arguments.guides {
        let name = match guide {
            Guide::Kubeadm => "keepalived + HAProxy, kubeadm",
            Guide::K3s => "keepalived + HAProxy, k3s",
        };
        columns.push(column(arguments, name.into(), Balancer::KeepalivedHaproxy(*guide))?);
    }
    let (commit, clean) = commit::here()?;
    println!("{}", table::of(&columns));
    println!("commit {commit}{}, {} repetitions", if clean { "" } else { " with changes" }, arguments.times);
    if let Some(file) = &arguments.json {
        let text = serde_json::to_string_pretty(&Report { commit, clean, columns: &columns })?;
        std::fs::write(file, text + "\n").with_context(|| file.display().to_string())?;
    }
    Ok(verdict(&columns[..of_sheave]))
}

/// Whatever fails is in the column.
fn column(arguments: &Arguments, name: String, balancer: Balancer) -> Result<Column> {
    eprintln!("{name}");
    let mut column = Column { name, measured: Vec::new(), failures: Vec::new() };
    let lab = Lab::up(ha::config(&arguments.name, balancer, lab::to_stderr))?;
    let measured = Ha::of(&lab).and_then(|ha| faults::all(arguments, &ha, &mut column));
    lab::rest_if_interrupted();
    lab.down()?;
    let left = scenario::leftovers(&arguments.name)?;
    ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    if let Err(error) = measured {
        column.failures.push(("the cluster".into(), format!("{error:#}")));
    }
    Ok(column)
}

/// Promises are Sheave's alone.
fn verdict(of_sheave: &[Column]) -> InTime {
    let mut outcomes = Vec::new();
    for column in of_sheave {
        let promises = column.measured.iter().flat_map(|measured| &measured.promises);
        for promise in promises {
            if promise.outcome != InTime::Kept {
                println!("{:?} ({}): {} ({})", promise.outcome, column.name, promise.name, promise.seen);
            }
            outcomes.push(promise.outcome);
        }
        outcomes.extend((!column.failures.is_empty()).then_some(InTime::Broken));
    }
    promise::overall(outcomes)
}
