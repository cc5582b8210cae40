//! Structured logs on standard output, written by a thread of their own: a reader that does not read must not stop the
//! election loop. What does not fit into the queue is dropped and its number logged by the writer.

use anyhow::{Context, Result};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, LogFormat};

/// Lines that wait at most.
const QUEUE: usize = 10_000;

/// Off whatever filter the operator sets: the Kubernetes client logs the body of an answer that it cannot read, the Secret's as
/// well, and an error for each request that fails, without its cause. The caller of the request logs the whole chain.
const CLIENT: &str = "kube_client::client=off";

/// The guard writes what waits when it is dropped.
pub fn start(cli: &Cli) -> Result<WorkerGuard> {
    let filter = EnvFilter::try_new(&cli.log).with_context(|| format!("--log {:?}", cli.log))?;
    let filter = filter.add_directive(CLIENT.parse().context("our own directive")?);
    let (writer, guard) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(QUEUE).finish(std::io::stdout());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match cli.log_format {
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
        LogFormat::Text => subscriber.with_ansi(false).init(),
    }
    Ok(guard)
}
