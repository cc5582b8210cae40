//! `make demo-endpoint`: three real API servers behind one address that their nodes serve themselves, and what clients notice when they
//! die, freeze, lose power, or when none of them lives.

mod story;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use serde::Serialize;
use sheave_bench::promise;
use sheave_bench::screen::{Colour, Screen};
use sheave_tests::endpoint::judge::Promise;
use sheave_tests::lab::{self, Balancer, Distribution, Lab, ha, image};
use sheave_tests::scenario::{self, InTime};

/// Shows on this machine what the API server endpoint does, with real API servers, etcd members, kubelets and kube-proxies. It takes about
/// five minutes and cleans up after itself.
/// Exit code 0: every promise held; 1: one is broken, or the lab left something behind; 2: the demo could not be carried out; 3: the
/// machine was too busy to judge a promise about time, the others held.
#[derive(Parser)]
pub struct Arguments {
    /// Open watches, each on a connection of its own
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    watches: u16,
    /// Seconds without any API server
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(5..=600))]
    none_for: u16,
    /// Without kubelets, containerd and kube-proxies on the nodes
    #[arg(long)]
    no_kubelets: bool,
    /// Faults whose heading contains this, and what comes before all of them
    #[arg(long, default_value = "")]
    only: String,
    /// Whose ports, paths and authentication: the nodes serve from the files that `sheave endpoint init` writes for it
    #[arg(long, value_enum, default_value = "kubeadm")]
    preset: Distribution,
    /// The speaker; by default the one that `make images` builds
    #[arg(long)]
    speaker: Option<PathBuf>,
    /// Also with wrong clocks: a speaker that is a test build, as `make image-next` builds it
    #[arg(long)]
    wrong_clock: Option<PathBuf>,
    /// Name of the lab
    #[arg(long, default_value = "demoep")]
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
    /// By fault: what the clients saw, as sheave_tests::endpoint has it.
    faults: Vec<(String, serde_json::Value)>,
    promises: Vec<Promise>,
    seconds: f64,
}

fn main() -> ExitCode {
    promise::exit_code("demo-endpoint", run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<InTime> {
    let began = Instant::now();
    let screen = Screen::new(arguments.json);
    let speaker = arguments.speaker.clone().unwrap_or_else(|| image::static_binary("sheave-speaker"));
    let speaker = std::fs::canonicalize(&speaker).with_context(|| format!("--speaker {}", speaker.display()))?;
    lab::down_on_interrupt(&arguments.name)?;
    screen.heading("Sheave: one address in front of three API servers, served by their own nodes");
    screen.progress("three nodes, nothing runs on them yet");
    let progress = if arguments.json { lab::quiet } else { lab::to_stderr };
    let lab = Lab::up(ha::config(&arguments.name, Balancer::Sheave(speaker, arguments.preset), progress))?;
    let told = story::tell(arguments, screen, &lab);
    lab::rest_if_interrupted();
    let left = if arguments.keep {
        eprintln!("the lab {0:?} stays up: target/debug/sheave-lab --name {0} status, … down", arguments.name);
        None
    } else {
        screen.progress("removing the lab");
        lab.down()?;
        Some(scenario::leftovers(&arguments.name)?)
    };
    let (faults, promises) = told?;
    let report = Report { faults, promises, seconds: began.elapsed().as_secs_f64() };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    verdict(screen, &report, left.as_deref());
    let outcomes = report.promises.iter().map(|promise| promise.outcome);
    Ok(if left.is_none_or(|left| left.is_empty()) { promise::overall(outcomes) } else { InTime::Broken })
}

/// `left`: what the removed lab left behind; `None` if it stays.
fn verdict(screen: Screen, report: &Report, left: Option<&[String]>) {
    let of = |outcome| report.promises.iter().filter(|promise| promise.outcome == outcome).count();
    screen.heading("All together");
    screen.line(&format!("{} promises held", screen.of(of(InTime::Kept), report.promises.len())));
    for promise in report.promises.iter().filter(|promise| promise.outcome != InTime::Kept) {
        promise_line(screen, promise);
    }
    let seconds = report.seconds;
    match left {
        None => screen.line(&format!("{seconds:.0} s; the lab stays up (--keep)")),
        Some([]) => screen.line(&format!("{seconds:.0} s; of the lab no process, namespace or mount is left")),
        Some(left) => {
            screen.line(&screen.paint(Colour::Bad, &format!("{seconds:.0} s; left behind: {}", left.join(", "))))
        }
    }
}

fn promise_line(screen: Screen, promise: &Promise) {
    let mark = match promise.outcome {
        InTime::Kept => screen.paint(Colour::Good, "held"),
        InTime::Broken => screen.paint(Colour::Bad, "BROKEN"),
        InTime::TooBusy => screen.paint(Colour::Strong, "machine too busy to judge"),
    };
    screen.line(&format!("{mark}  {}", promise.name));
    screen.line(&format!("      {}", promise.seen));
}
