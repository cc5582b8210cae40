//! Opens new connections at a fixed rate: when does the first one succeed, does any fail?

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::clock::{milliseconds, now_ns};
use super::control::{Control, print_report, say_ready};
use super::report::{ConnectReport, Failure, Greeting};

#[derive(clap::Args)]
pub struct Arguments {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long, default_value_t = 5)]
    interval_ms: u64,
    /// For connecting and the server's first line together
    #[arg(long, default_value_t = 1000)]
    timeout_ms: u64,
    /// Failures are counted from this long after each mark
    #[arg(long, default_value_t = 300)]
    settle_ms: u64,
    #[arg(long)]
    duration: Option<f64>,
}

/// For people: one connection, the server's line.
#[derive(clap::Args)]
pub struct GetArguments {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long, default_value_t = 3000)]
    timeout_ms: u64,
}

pub fn get(arguments: &GetArguments) -> Result<()> {
    let within = Duration::from_millis(arguments.timeout_ms);
    let greeting = super::single_threaded()?.block_on(attempt(arguments.to, within))?;
    print_report(&greeting)
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let control = Control::start(arguments.duration)?;
    let report = super::single_threaded()?.block_on(measure(arguments, &control))?;
    print_report(&report)
}

async fn measure(arguments: &Arguments, control: &Control) -> Result<ConnectReport> {
    let attempts = Arc::new(Mutex::new(Vec::<Attempt>::new()));
    let started_ns = now_ns();
    let within = Duration::from_millis(arguments.timeout_ms);
    let mut ticks = interval(Duration::from_millis(arguments.interval_ms));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut open = tokio::task::JoinSet::new();
    say_ready()?;
    let wanted = control.wanted();
    tokio::pin!(wanted);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let (to, attempts) = (arguments.to, attempts.clone());
                open.spawn(async move {
                    let begun_ns = now_ns();
                    let result = attempt(to, within).await.map(drop).map_err(|error| error.to_string());
                    let ended_ns = now_ns();
                    attempts.lock().expect("no panic").push(Attempt { begun_ns, ended_ns, error: result.err() });
                });
            }
            Some(_) = open.join_next(), if !open.is_empty() => {}
            () = &mut wanted => break,
        }
    }
    while open.join_next().await.is_some() {}
    let attempts = std::mem::take(&mut *attempts.lock().expect("no panic"));
    Ok(report(arguments, started_ns, &control.marks(), attempts))
}

struct Attempt {
    begun_ns: u64,
    ended_ns: u64,
    error: Option<String>,
}

fn report(arguments: &Arguments, started_ns: u64, marks: &[u64], mut attempts: Vec<Attempt>) -> ConnectReport {
    attempts.sort_by_key(|attempt| attempt.begun_ns);
    let succeeded = || attempts.iter().filter(|attempt| attempt.error.is_none());
    let failed = || attempts.iter().filter(|attempt| attempt.error.is_some());
    let settle_ns = arguments.settle_ms * 1_000_000;
    // What a later fault meets on its way is that fault's doing.
    let excused =
        |begun: u64| marks.iter().any(|mark| (mark.saturating_sub(ON_ITS_WAY_NS)..mark + settle_ns).contains(&begun));
    let later = |one: &Attempt| marks.first().is_some_and(|first| one.begun_ns >= *first) && !excused(one.begun_ns);
    ConnectReport {
        to: arguments.to.to_string(),
        started_ns,
        mark_ns: marks.first().copied(),
        attempts: attempts.len() as u64,
        succeeded: succeeded().count() as u64,
        failed: failed().count() as u64,
        first_success_ns: succeeded().map(|attempt| attempt.ended_ns).min(),
        failed_after_mark: marks.first().map(|_| failed().filter(|one| later(one)).count() as u64),
        slowest_ms: succeeded().map(|one| milliseconds(one.begun_ns, one.ended_ns)).fold(0.0, f64::max),
        failures: failed()
            .take(FAILURES_KEPT)
            .map(|one| Failure {
                begun_ns: one.begun_ns,
                ms: milliseconds(one.begun_ns, one.ended_ns),
                error: one.error.clone().unwrap_or_default(),
                later: later(one),
            })
            .collect(),
    }
}

async fn attempt(to: SocketAddr, within: Duration) -> io::Result<Greeting> {
    let work = async {
        let stream = TcpStream::connect(to).await?;
        // Ends with a reset: thousands of sockets in TIME_WAIT would use up the source ports.
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        let mut line = String::new();
        BufReader::new(stream).take(LINE_LIMIT).read_line(&mut line).await?;
        if line.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        Ok(serde_json::from_str(&line)?)
    };
    timeout(within, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

const FAILURES_KEPT: usize = 20_000;
/// An attempt on a quiet machine takes a tenth of this.
const ON_ITS_WAY_NS: u64 = 50_000_000;
const LINE_LIMIT: u64 = 4096;
