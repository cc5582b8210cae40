//! `make bench-controller`: what 10,000 Services cost the controller, and MetalLB's beside it: a table. How to read it: bench/README.md.
//!
//! A cluster for each, the control plane alone. Read: [`subject`] (what is measured) → [`measure`] (in which order) → [`services`] and
//! [`cluster`] (what is asked of the API server) → [`watch`] (what is seen of it) → [`report`] (the table).

mod cluster;
mod measure;
mod program;
mod report;
mod requests;
mod services;
mod subject;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use sheave_bench::measure::exit;
use sheave_tests::lab::{Lab, LabConfig, netns, quiet};

use measure::{Measured, Rates, Settings};
use subject::Subject;

/// What many Services cost the controller, and MetalLB's beside it.
#[derive(Parser)]
struct Arguments {
    /// Services
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(20..=20_000))]
    count: u32,
    /// One of them alone; may be repeated
    #[arg(long, value_enum)]
    only: Vec<Subject>,
    /// How long the controllers are watched at rest, in seconds. Sheave's looks at everything once a minute
    #[arg(long, default_value_t = 60)]
    rest: u64,
    /// Writes the figures as JSON, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// Leaves the controllers' logs in this folder
    #[arg(long)]
    logs: Option<PathBuf>,
}

fn main() -> ExitCode {
    exit("bench-controller", run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<bool> {
    sheave_tests::lab::down_on_interrupt(LAB)?;
    let own = std::env::temp_dir().join(format!("sheave-bench-controller-{}", std::process::id()));
    let folder = arguments.logs.as_ref().unwrap_or(&own);
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let settings = Settings { count: arguments.count as usize, rest: Duration::from_secs(arguments.rest) };
    let subjects =
        if arguments.only.is_empty() { vec![Subject::Sheave, Subject::MetalLb] } else { arguments.only.clone() };
    let (mut measured, mut failed) = (Vec::new(), None);
    for subject in subjects {
        match one(subject, &settings, folder).with_context(|| format!("{subject:?}; logs: {}", folder.display())) {
            Ok(figures) => measured.push(figures),
            // What was measured before is shown all the same.
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    if arguments.logs.is_none() && failed.is_none() {
        std::fs::remove_dir_all(&own)?;
    }
    let report = report::Report::new(settings.count, measured);
    println!("{report}");
    if let Some(file) = &arguments.json {
        report.write(file)?;
    }
    failed.map_or(Ok(report.as_promised()), Err)
}

/// A cluster of its own: what one leaves in the store is no burden of the other.
fn one(subject: Subject, settings: &Settings, folder: &Path) -> Result<(Subject, Rates, Measured)> {
    let config = LabConfig { name: LAB.into(), nodes: 0, sheave: false, progress: quiet, ..LabConfig::default() };
    let lab = Lab::temporary(config)?;
    lab.kubectl(&["create", "namespace", cluster::NAMESPACE])?;
    let installed = subject.install(&lab, folder).context("install")?;
    let inside = lab.state()?.plan.netns(program::PLACE);
    let (rates, measured) = netns::inside(&inside, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(measure::all(&lab, subject, installed, settings))
    })?;
    Ok((subject, rates, measured))
}

const LAB: &str = "ctlbench";
