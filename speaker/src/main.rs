//! The speaker: elects owners of VIPs, announces them, forwards with XDP.
//!
//! Read: (i) what is to be served: source.rs → watch.rs → view (speaker-core); (ii) who owns it: driver.rs → election, liveness, announce
//! (speaker-core) → io/; (iii) where packets go: dataplane/sync.rs → forwarding (speaker-core) → dataplane/maps.rs → ebpf/.

mod admin;
mod apiserver;
mod app;
mod args;
mod attributes;
mod backend;
mod backoff;
mod dataplane;
mod departed;
mod driver;
mod endpoint;
mod health;
mod host;
mod io;
mod keys;
mod local_drain;
mod local_socket;
mod logging;
mod mailbox;
mod metrics;
mod probing;
mod saver;
mod serving;
mod source;
mod speaker_state;
mod state;
mod status;
mod thread_exits;
mod uninstall;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let _flush = match logging::start(&cli) {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("sheave-speaker: {error:#}");
            return ExitCode::from(2);
        }
    };
    let result = match cli.command {
        Command::Run(args) => app::run(args),
        Command::Endpoint(args) => app::run_endpoint(args),
        Command::Uninstall(args) => uninstall::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "speaker stopped");
            ExitCode::FAILURE
        }
    }
}
