//! sheave-controller: gives Services of type LoadBalancer addresses from pools.
//!
//! Read in the order of the flow: `watch` (IO: facts) → `index` (pure: what we know) → `whose` (pure: which Services are ours) → `request`
//! (pure: what a Service wants; `coverage`: how much of it is served) → `guards` (pure: what no Service may have) → `allocator` (pure:
//! which address) → `probes` (pure: whether a host uses it) → `advertisements` (pure: which L2Advertisements select it) → `plan` (pure: what must be written next) → `status` (pure: the patch) → `writer` (IO: only
//! while we lead). `lease` decides who leads, `driver` is the loop around it all.

mod admin;
mod advertisements;
mod allocator;
mod app;
mod args;
mod cache;
mod coverage;
mod driver;
mod error;
mod events;
mod family;
mod guards;
mod index;
mod keys;
mod lease;
mod metrics;
mod node_mode;
mod pace;
mod pauses;
mod places;
mod plan;
mod probes;
mod request;
#[cfg(test)]
mod scenarios;
mod status;
mod version;
mod view;
mod watch;
mod whose;
mod writer;

use std::io::IsTerminal;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tracing::error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::args::{Config, LogConfig, LogFormat};

/// One thread is plenty and saves memory; nothing here blocks.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config = Config::from_env();
    if let Err(error) = start_log(&config.log) {
        eprintln!("sheave-controller: --log: {error}");
        return ExitCode::from(2);
    }
    match run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("controller stopped: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    app::App::build(config).await?.run(stop).await
}

/// Without the Kubernetes client, whatever filter the operator sets: it logs the body of an answer that it cannot read, the
/// Secret's as well, and an error for each request that fails, without its cause. The caller of the request logs the whole chain.
fn log_filter(filter: &str) -> Result<EnvFilter, ParseError> {
    let filter = EnvFilter::builder().parse(filter)?;
    Ok(filter.add_directive("kube_client::client=off".parse()?))
}

fn start_log(config: &LogConfig) -> Result<(), ParseError> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(log_filter(&config.filter)?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text => log.with_target(false).init(),
    }
    Ok(())
}
