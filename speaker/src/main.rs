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
mod host_speaker;
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
mod stand_by;
mod state;
mod status;
mod thread_exits;
mod uninstall;
mod watch;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use app::Ended;
use args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let flush = match logging::start(&cli) {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("sheave-speaker: {error:#}");
            return ExitCode::from(2);
        }
    };
    let result = match cli.command {
        Command::Run(args) => app::run(args),
        Command::Endpoint(args) => app::run_endpoint(args).map(|()| Ended::Stopped),
        Command::Uninstall(args) => uninstall::run(&args).map(|()| Ended::Stopped),
    };
    match result {
        Ok(Ended::Stopped) => ExitCode::SUCCESS,
        Ok(Ended::Anew) => {
            drop(flush);
            begin_anew()
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "speaker stopped");
            ExitCode::FAILURE
        }
    }
}

/// As this process was started, in its place: its threads and locks end with it, and its container does not restart.
fn begin_anew() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    // By its name, which is that of the process; the file may have been replaced or removed.
    let program = std::env::current_exe().ok().filter(|program| program.exists());
    let program = program.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    // Returns only with an error.
    let error = std::process::Command::new(program).arg0(name).args(arguments).exec();
    eprintln!("sheave-speaker: start anew: {error}");
    ExitCode::FAILURE
}
