//! Opens new connections at a fixed rate: when does the first one succeed, does any fail?

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpSocket;
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
    let connected = OnceLock::new();
    let attempt = async {
        let socket = bound(arguments.to)?;
        timeout(within, greeted(socket, arguments.to, &connected)).await.map_err(io::Error::from)?
    };
    print_report(&super::single_threaded()?.block_on(attempt)?)
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
                    let attempt = Attempt::make(to, within).await;
                    attempts.lock().expect("no panic").push(attempt);
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

/// The handshake is done.
struct Connected {
    at_ns: u64,
    local: SocketAddr,
}

struct Attempt {
    begun_ns: u64,
    connected_ns: Option<u64>,
    ended_ns: u64,
    error: Option<String>,
    /// See [`Failure::server_late`].
    server_late: bool,
    local_port: u16,
}

impl Attempt {
    async fn make(to: SocketAddr, within: Duration) -> Self {
        let connected = OnceLock::new();
        let begun_ns = now_ns();
        let socket = bound(to);
        // Known before anything is sent: an attempt that is not answered has one too.
        let local_port =
            socket.as_ref().ok().and_then(|socket| socket.local_addr().ok()).map_or(0, |local| local.port());
        let greeted = async { greeted(socket?, to, &connected).await };
        tokio::pin!(greeted);
        let outcome = timeout(within, &mut greeted).await;
        let ended_ns = now_ns();
        let mut server_late = false;
        let error = match outcome {
            Ok(outcome) => outcome.err().map(|error| error.to_string()),
            Err(_) => {
                let then = match timeout(AFTERWARDS, &mut greeted).await {
                    Ok(Ok(Greeting { waited_ms, .. })) => {
                        server_late = is_server_late(milliseconds(begun_ns, now_ns()), waited_ms, within);
                        format!("greeted by a pod that let it wait for {waited_ms:.0} ms,")
                    }
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "still nothing".to_owned(),
                };
                Some(format!("timed out, {then} after {:.0} ms", milliseconds(begun_ns, now_ns())))
            }
        };
        let error = error.map(|error| match connected.get() {
            Some(Connected { at_ns, local }) => {
                format!("{error}; {local} connected after {:.0} ms", milliseconds(begun_ns, *at_ns))
            }
            None => format!("{error}; not connected"),
        });
        Self {
            begun_ns,
            connected_ns: connected.get().map(|connected| connected.at_ns),
            ended_ns,
            error,
            server_late,
            local_port,
        }
    }
}

fn report(arguments: &Arguments, started_ns: u64, marks: &[u64], mut attempts: Vec<Attempt>) -> ConnectReport {
    attempts.sort_by_key(|attempt| attempt.begun_ns);
    let succeeded = || attempts.iter().filter(|attempt| attempt.error.is_none());
    let failed = || attempts.iter().filter(|attempt| attempt.error.is_some());
    let settle_ns = arguments.settle_ms * 1_000_000;
    let later = |one: &Attempt| {
        let excused = || marks.iter().any(|mark| is_excused(one, *mark, settle_ns));
        marks.first().is_some_and(|first| one.begun_ns >= *first) && !excused()
    };
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
                server_late: one.server_late,
                local_port: one.local_port,
            })
            .collect(),
    }
}

/// What a fault meets on its way, or connected and waiting for a busy pod's greeting, is that fault's doing.
fn is_excused(one: &Attempt, mark: u64, settle_ns: u64) -> bool {
    let met = one.connected_ns.is_some_and(|connected| connected < mark && mark < one.ended_ns);
    met || (mark.saturating_sub(ON_ITS_WAY_NS)..mark + settle_ns).contains(&one.begun_ns)
}

/// Of an attempt that was greeted too late: whether it had been in time without the server's part of it.
fn is_server_late(greeted_after_ms: f64, waited_ms: f64, within: Duration) -> bool {
    greeted_after_ms - waited_ms < within.as_secs_f64() * 1e3
}

/// A socket with a port of its own.
fn bound(to: SocketAddr) -> io::Result<TcpSocket> {
    let (socket, any) = match to {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        SocketAddr::V6(_) => (TcpSocket::new_v6()?, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
    };
    socket.bind(SocketAddr::new(any, 0))?;
    Ok(socket)
}

/// `connected`: receives a message when the handshake is done, whatever comes then.
async fn greeted(socket: TcpSocket, to: SocketAddr, connected: &OnceLock<Connected>) -> io::Result<Greeting> {
    let stream = socket.connect(to).await?;
    let local = stream.local_addr()?;
    connected.get_or_init(|| Connected { at_ns: now_ns(), local });
    // Ends with a reset: thousands of sockets in TIME_WAIT would use up the source ports.
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    let mut line = String::new();
    BufReader::new(stream).take(LINE_LIMIT).read_line(&mut line).await?;
    if line.is_empty() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    Ok(serde_json::from_str(&line)?)
}

/// How long a failed attempt is followed: a late answer shows the cause (after 1 s the pod repeats its SYN-ACK).
const AFTERWARDS: Duration = Duration::from_secs(3);
const FAILURES_KEPT: usize = 20_000;
/// An attempt on an idle machine takes a tenth of this.
const ON_ITS_WAY_NS: u64 = 50_000_000;
const LINE_LIMIT: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_fault_meets_is_its_doing() {
        const MS: u64 = 1_000_000;
        let attempt = |begun: u64, connected: Option<u64>, ended: u64| Attempt {
            begun_ns: begun * MS,
            connected_ns: connected.map(|at| at * MS),
            ended_ns: ended * MS,
            error: None,
            server_late: false,
            local_port: 0,
        };
        let excused = |one| is_excused(&one, 10_000 * MS, 300 * MS);
        assert!(excused(attempt(9960, None, 10_960)) && excused(attempt(10_299, None, 11_299)));
        assert!(excused(attempt(9800, Some(9801), 10_800)), "waiting for the greeting");
        assert!(!excused(attempt(9800, None, 10_800)), "its SYN was lost before");
        assert!(!excused(attempt(9800, Some(9801), 9900)) && !excused(attempt(10_300, Some(10_301), 11_300)));
    }

    #[test]
    fn a_server_is_late_if_the_way_alone_would_have_been_in_time() {
        let late = |greeted_after_ms, waited_ms| is_server_late(greeted_after_ms, waited_ms, Duration::from_secs(1));
        assert!(late(1300.0, 1299.0) && late(1300.0, 301.0));
        assert!(!late(1005.0, 0.0) && !late(2144.0, 108.0), "a SYN that was lost, whatever the server did then");
    }
}
