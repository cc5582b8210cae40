//! `make conformance`: Kubernetes' own specs of LoadBalancers and Services, in the lab, each by itself.

mod cluster;
mod junit;
mod report;
mod results;
mod suite;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use cluster::Cluster;
use report::Report;
use results::Results;
use sheave_bench::measure::{self, Modes};
use sheave_bench::pipe;
use sheave_tests::lab::{self, ProxyMode};
use suite::{Group, Suite};

/// Runs every spec whose name matches, except those that this commit has passed in this mode before. Exit code 0: all 17 LoadBalancers
/// specs passed at their first attempt, and no Services spec that passes without Sheave fails with it; 1: they did not; 2: it could not
/// be carried out.
#[derive(Parser)]
struct Arguments {
    #[arg(long, value_enum, default_value = "both")]
    mode: Modes,
    /// Only specs whose name contains this; several are separated by "|". The others count as failed unless they passed before
    #[arg(long, default_value = "")]
    only: String,
    /// Forgets what is known of the selected specs at this commit
    #[arg(long)]
    again: bool,
    /// The table of what is known, nothing else
    #[arg(long)]
    print: bool,
    /// Judges only the selected specs: for a part of the suite in CI
    #[arg(long)]
    selected: bool,
    /// Name of the lab
    #[arg(long, default_value = "conformance")]
    name: String,
    /// Leaves the lab up: for one mode
    #[arg(long)]
    keep: bool,
    /// On a lab that an earlier run has left up, which stays up: for its mode
    #[arg(long)]
    attach: bool,
}

/// Whether Sheave is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Without,
    With,
}

fn main() -> ExitCode {
    measure::exit("conformance", run(&Arguments::parse()))
}

/// Whether every mode is as it must be.
fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.print {
        pipe::end_without_reader();
    }
    let stays = arguments.keep || arguments.attach;
    if stays && arguments.mode == Modes::Both {
        bail!("mode: \"both\" needs two labs; with --keep or --attach it must be nftables or iptables");
    }
    let suite = Suite::open()?;
    let only: Vec<&str> = arguments.only.split('|').collect();
    let selected = |spec: &&String| only.iter().any(|part| spec.contains(part));
    if !suite.all().any(|spec| selected(&spec)) {
        bail!(
            "only: no spec's name contains {:?}; target/conformance/e2e.test --list-tests lists them",
            arguments.only
        );
    }
    if !stays {
        lab::down_on_interrupt(&arguments.name)?;
    }
    let mut good = true;
    for mode in arguments.mode.each() {
        let results = Results::open(mode)?;
        if !arguments.print {
            run_mode(arguments, &suite, &results, mode, &selected)?;
        }
        let report = Report::new(&suite, &results, mode, &selected)?;
        println!("{report}");
        good &= report.is_good(arguments.selected);
    }
    Ok(good)
}

/// One lab: Services without Sheave first, then Sheave, then everything with it.
fn run_mode(
    arguments: &Arguments,
    suite: &Suite,
    results: &Results,
    mode: ProxyMode,
    selected: &dyn Fn(&&String) -> bool,
) -> Result<()> {
    let mut wanted = Vec::new();
    for (side, group) in
        [(Side::Without, Group::Services), (Side::With, Group::LoadBalancers), (Side::With, Group::Services)]
    {
        for spec in suite.specs(group).iter().filter(|spec| selected(spec)) {
            if arguments.again {
                results.forget(side, spec)?;
            }
            if !results.is_passed(side, spec)? {
                wanted.push((side, spec));
            }
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let mut cluster =
        if arguments.attach { Cluster::attach(&arguments.name, mode)? } else { Cluster::up(&arguments.name, mode)? };
    if cluster.side() == Side::With {
        let all = wanted.len();
        wanted.retain(|(side, _)| *side == Side::With);
        eprintln!("Sheave is installed: {} specs without it are left out", all - wanted.len());
    }
    let count = wanted.len();
    let ran = wanted.into_iter().enumerate().try_for_each(|(index, (side, spec))| {
        cluster.to(side)?;
        eprintln!("{} of {count} ({mode}, {side} Sheave): {spec}", index + 1);
        let state = suite.run(&cluster, spec, &results.next(side, spec)?)?;
        eprintln!("  {state}");
        lab::rest_if_interrupted();
        Ok(())
    });
    lab::rest_if_interrupted();
    if !arguments.keep && !arguments.attach {
        cluster.down()?;
    }
    ran
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Without => "without",
            Self::With => "with",
        })
    }
}
