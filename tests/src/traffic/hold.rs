//! Keeps many connections open, sends on each, and reports what became of them.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::clock::{milliseconds, now_ns, watch_itself};
use super::control::{Control, print_report, say_ready};
use super::ports::SourcePorts;
use super::report::{Greeting, Held, HeldState, HoldCounts, HoldReport, Late};
use super::tcp_info::tcp_info;

#[derive(clap::Args)]
pub struct Arguments {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long, default_value_t = 200)]
    connections: u16,
    /// Between two records on one connection
    #[arg(long, default_value_t = 10)]
    interval_ms: u64,
    /// First of consecutive source ports; by default a place that was not used for minutes, below the ports that other
    /// programs get, so that no conntrack entry of an earlier connection is met
    #[arg(long)]
    source_port: Option<u16>,
    /// How long after the request for the report an echo still counts as life
    #[arg(long, default_value_t = 5000)]
    grace_ms: u64,
    /// Opens another connection in the place of one that ended, so that the number stays
    #[arg(long)]
    reopen: bool,
    /// Seconds until the report; by default until `report` or the end of stdin
    #[arg(long)]
    duration: Option<f64>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let control = Control::start(arguments.duration)?;
    let report = super::single_threaded()?.block_on(hold(arguments, &control))?;
    print_report(&report)
}

async fn hold(arguments: &Arguments, control: &Control) -> Result<HoldReport> {
    let started_ns = now_ns();
    let holder = Arc::new(Holder::new(arguments, control));
    let watched = holder.clone();
    tokio::spawn(watch_itself(move |Late { until_ns, ms }| {
        if watched.control.mark_ns().is_some_and(|mark| until_ns > mark) {
            let mut longest = lock(&watched.late_ms);
            *longest = longest.max(ms);
        }
    }));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..arguments.connections {
        let first = lock(&holder.ports).next(bind)?;
        // Spread over the interval: one burst of all connections would measure this program.
        let phase = arguments.interval_ms * 1_000 * u64::from(number) / u64::from(arguments.connections);
        let (tell, connected) = tokio::sync::oneshot::channel();
        tokio::spawn(holder.clone().keep(first, Duration::from_micros(phase), tell));
        tasks.spawn(connected);
        while tasks.len() >= CONNECTING_AT_ONCE {
            tasks.join_next().await;
        }
    }
    while tasks.join_next().await.is_some() {}
    say_ready()?;

    control.wanted().await;
    let report_ns = now_ns();
    let tracks = holder.stop();
    tracks.iter().for_each(|track| lock(track).report_wanted());
    let deadline = report_ns + arguments.grace_ms * 1_000_000;
    while now_ns() < deadline && tracks.iter().any(|track| lock(track).undecided()) {
        sleep(Duration::from_millis(5)).await;
    }
    let mark_ns = control.mark_ns();
    let connections: Vec<_> = tracks.iter().map(|track| lock(track).held(mark_ns)).collect();
    Ok(HoldReport {
        started_ns,
        report_ns,
        reopen_failed: holder.reopen_failed.load(Ordering::Relaxed),
        late_ms: *lock(&holder.late_ms),
        ..summary(arguments.to, mark_ns, connections)
    })
}

/// What all connections share.
struct Holder {
    to: SocketAddr,
    every: Duration,
    reopen: bool,
    control: Control,
    ports: Mutex<SourcePorts>,
    /// Of every connection that there was; `None` once the report is being made.
    tracks: Mutex<Option<Vec<Arc<Mutex<Track>>>>>,
    reopen_failed: AtomicU64,
    /// The longest after the mark that this program itself did not run, or was busy.
    late_ms: Mutex<f64>,
}

impl Holder {
    fn new(arguments: &Arguments, control: &Control) -> Self {
        Self {
            to: arguments.to,
            every: Duration::from_millis(arguments.interval_ms),
            reopen: arguments.reopen,
            control: control.clone(),
            ports: Mutex::new(SourcePorts::new(arguments.source_port, arguments.connections)),
            tracks: Mutex::new(Some(Vec::new())),
            reopen_failed: AtomicU64::new(0),
            late_ms: Mutex::new(0.0),
        }
    }

    /// One connection, and with `reopen` its replacements. `tell` is dropped when the first has been opened.
    async fn keep(
        self: Arc<Self>,
        first: (TcpSocket, SocketAddr),
        phase: Duration,
        tell: tokio::sync::oneshot::Sender<()>,
    ) {
        let (socket, local) = first;
        let opened = open(socket, self.to).await;
        if let Some(track) = self.record(Track::new(local)) {
            drop(tell);
            match opened {
                Ok((stream, greeting)) => self.exchange(&stream, greeting, phase, &track).await,
                Err(error) => lock(&track).ended(HeldState::Failed, Some(error)),
            }
        }
        if !self.reopen {
            return;
        }
        loop {
            sleep(REOPEN_AFTER).await;
            let Ok((socket, local)) = lock(&self.ports).next(bind) else { return };
            match open(socket, self.to).await {
                Ok((stream, greeting)) => match self.record(Track::new(local)) {
                    Some(track) => self.exchange(&stream, greeting, phase, &track).await,
                    None => return,
                },
                Err(_) => drop(self.reopen_failed.fetch_add(1, Ordering::Relaxed)),
            }
        }
    }

    /// From the greeting to the end of the connection.
    async fn exchange(&self, stream: &TcpStream, greeting: Greeting, phase: Duration, track: &Mutex<Track>) {
        lock(track).connected(greeting, stream.local_addr().ok());
        sleep(phase).await;
        let (state, error) = match exchange(stream, self.every, track, &self.control).await {
            Ok(()) => (HeldState::Closed, None),
            Err(error) => (HeldState::Reset, Some(error)),
        };
        lock(track).ended(state, error);
    }

    fn record(&self, track: Track) -> Option<Arc<Mutex<Track>>> {
        let track = Arc::new(Mutex::new(track));
        lock(&self.tracks).as_mut()?.push(track.clone());
        Some(track)
    }

    fn stop(&self) -> Vec<Arc<Mutex<Track>>> {
        lock(&self.tracks).take().unwrap_or_default()
    }
}

fn summary(to: SocketAddr, mark_ns: Option<u64>, connections: Vec<Held>) -> HoldReport {
    let mut counts = HoldCounts::default();
    for held in &connections {
        match held.state {
            HeldState::Alive => counts.alive += 1,
            HeldState::Reset => counts.reset += 1,
            HeldState::Closed => counts.closed += 1,
            HeldState::Silent => counts.silent += 1,
            HeldState::Failed => counts.failed += 1,
        }
    }
    let alive = || connections.iter().filter(|held| held.state == HeldState::Alive);
    let after = alive().filter_map(|held| held.longest_pause_after_mark_ms).fold(0.0, f64::max);
    HoldReport {
        to: to.to_string(),
        mark_ns,
        counts,
        longest_pause_ms: alive().map(|held| held.longest_pause_ms).fold(0.0, f64::max),
        longest_pause_after_mark_ms: mark_ns.map(|_| after),
        connections,
        ..HoldReport::default()
    }
}

async fn open(socket: TcpSocket, to: SocketAddr) -> io::Result<(TcpStream, Greeting)> {
    let work = async {
        let mut stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        let mut line = String::new();
        // The server sends nothing more until it receives something: nothing can be lost in this buffer.
        BufReader::new(&mut stream).read_line(&mut line).await?;
        let greeting = serde_json::from_str(&line)?;
        Ok((stream, greeting))
    };
    timeout(CONNECT_WITHIN, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Sends a number every interval and takes the echoes, until the connection ends.
async fn exchange(stream: &TcpStream, every: Duration, track: &Mutex<Track>, control: &Control) -> io::Result<()> {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut unsent: Vec<u8> = Vec::new();
    let mut unread: Vec<u8> = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                if let Some(pause) = unacknowledged(stream)? {
                    lock(track).unacknowledged(pause, control.mark_ns());
                }
                // When the socket is full nothing new is queued here: the echo that is awaited is an older one.
                if unsent.is_empty() {
                    unsent.extend_from_slice(&lock(track).next_record().to_be_bytes());
                }
                match stream.try_write(&unsent) {
                    Ok(length) => drop(unsent.drain(..length)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            readable = stream.readable() => {
                readable?;
                match stream.try_read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(length) => {
                        unread.extend_from_slice(&buffer[..length]);
                        let whole = unread.len() / RECORD * RECORD;
                        if let Some(last) = unread[..whole].chunks_exact(RECORD).next_back() {
                            let number = u64::from_be_bytes(last.try_into().expect("RECORD bytes"));
                            lock(track).echoed(number, (whole / RECORD) as u64, control.mark_ns());
                            unread.drain(..whole);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

/// For how long nothing has come from the other end's kernel although something is owed. Its program may sleep meanwhile; so this is
/// the part of a pause that the way there and back makes.
fn unacknowledged(stream: &TcpStream) -> io::Result<Option<Duration>> {
    let info = tcp_info(stream)?;
    Ok((info.tcpi_unacked > 0).then_some(Duration::from_millis(info.tcpi_last_ack_recv.into())))
}

/// What is known about one connection.
struct Track {
    local: SocketAddr,
    greeting: Option<Greeting>,
    connected_ns: u64,
    next: u64,
    last_echo_ns: u64,
    echoes: u64,
    longest_pause_ms: f64,
    longest_after_mark_ms: f64,
    unacknowledged_after_mark_ms: f64,
    /// The first record that was sent after the request for the report.
    proof: Option<u64>,
    alive: bool,
    end: Option<(HeldState, u64, Option<String>)>,
}

impl Track {
    fn new(local: SocketAddr) -> Self {
        Self {
            local,
            greeting: None,
            connected_ns: 0,
            next: 0,
            last_echo_ns: 0,
            echoes: 0,
            longest_pause_ms: 0.0,
            longest_after_mark_ms: 0.0,
            unacknowledged_after_mark_ms: 0.0,
            proof: None,
            alive: false,
            end: None,
        }
    }

    fn connected(&mut self, greeting: Greeting, local: Option<SocketAddr>) {
        self.local = local.unwrap_or(self.local);
        self.greeting = Some(greeting);
        self.connected_ns = now_ns();
        self.last_echo_ns = self.connected_ns;
    }

    fn next_record(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn echoed(&mut self, number: u64, count: u64, mark_ns: Option<u64>) {
        let now = now_ns();
        self.pause(now, mark_ns);
        self.last_echo_ns = now;
        self.echoes += count;
        self.alive |= self.proof.is_some_and(|proof| number >= proof);
    }

    fn pause(&mut self, now: u64, mark_ns: Option<u64>) {
        let pause = milliseconds(self.last_echo_ns, now);
        self.longest_pause_ms = self.longest_pause_ms.max(pause);
        if mark_ns.is_some_and(|mark| now > mark) {
            self.longest_after_mark_ms = self.longest_after_mark_ms.max(pause);
        }
    }

    fn unacknowledged(&mut self, pause: Duration, mark_ns: Option<u64>) {
        if mark_ns.is_some_and(|mark| now_ns() > mark) {
            let pause = pause.as_secs_f64() * 1e3;
            self.unacknowledged_after_mark_ms = self.unacknowledged_after_mark_ms.max(pause);
        }
    }

    fn ended(&mut self, state: HeldState, error: Option<io::Error>) {
        self.end = Some((state, now_ns(), error.map(|error| error.to_string())));
    }

    fn report_wanted(&mut self) {
        self.proof = Some(self.next);
    }

    fn undecided(&self) -> bool {
        self.end.is_none() && !self.alive
    }

    fn held(&mut self, mark_ns: Option<u64>) -> Held {
        if self.end.is_none() {
            self.pause(now_ns(), mark_ns);
        }
        let greeting = self.greeting.clone();
        let (pod, node, seen, started_ns) =
            greeting.map(|said| (said.pod, said.node, said.client, said.started_ns)).unwrap_or_default();
        let (state, ended_ns, error) = match self.end.clone() {
            Some((state, at, error)) => (state, Some(at), error),
            None if self.alive => (HeldState::Alive, None, None),
            None => (HeldState::Silent, None, None),
        };
        Held {
            state,
            local: self.local.to_string(),
            pod,
            node,
            started_ns,
            seen,
            connected_ns: self.connected_ns,
            last_echo_ns: self.last_echo_ns,
            ended_ns,
            error,
            echoes: self.echoes,
            longest_pause_ms: self.longest_pause_ms,
            longest_pause_after_mark_ms: mark_ns.map(|_| self.longest_after_mark_ms),
            unacknowledged_after_mark_ms: self.unacknowledged_after_mark_ms,
            mark_to_end_ms: mark_ns.zip(ended_ns).map(|(mark, end)| milliseconds(mark, end)),
        }
    }
}

fn bind(local: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(local)?;
    Ok(socket)
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().expect("no holder panics with it")
}

const RECORD: usize = 8;
const CONNECTING_AT_ONCE: usize = 50;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A client that tries again at once would only measure the outage, and burn source ports in it.
const REOPEN_AFTER: Duration = Duration::from_millis(100);
