//! The server in the pods: sends a greeting, then echoes. TCP and UDP, works as PID 1.
//!
//! It ends as a decent server does. On SIGTERM it goes on serving, new connections too, for `--drain-seconds`: Kubernetes counts
//! a pod as not ready from the moment of its deletion, but clients receive that a little later. Then it stops listening, closes
//! every connection (FIN) and ends when the clients have closed theirs, a second later at most. A pod's grace period must be
//! longer than both. SIGINT ends it at once.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::clock::{now_ns, watch_itself};
use super::report::{Greeting, Late};
use super::tcp_info::tcp_info;

#[derive(clap::Args)]
pub struct Arguments {
    #[arg(long)]
    tcp: Vec<u16>,
    #[arg(long)]
    udp: Vec<u16>,
    /// What it calls itself
    #[arg(long, env = "POD_NAME", default_value = "unnamed")]
    name: String,
    #[arg(long, env = "NODE_NAME", default_value = "unknown")]
    node: String,
    /// How long it goes on serving after SIGTERM, before it closes its connections
    #[arg(long, default_value_t = 3.0)]
    drain_seconds: f64,
    /// How long it does not listen for TCP after it has started: a program that needs time
    #[arg(long, default_value_t = 0.0)]
    listen_after_seconds: f64,
}

/// The name in its greeting.
struct Identity {
    pod: String,
    node: String,
    started_ns: u64,
    /// The longest times that it did not run.
    late: Mutex<Vec<Late>>,
}

impl Identity {
    /// `last_ack_ms`: since the client's last acknowledgement came, which is that of the handshake: it has sent nothing since.
    fn greeting(&self, client: SocketAddr, last_ack_ms: u32) -> Greeting {
        Greeting {
            pod: self.pod.clone(),
            node: self.node.clone(),
            client: client.to_string(),
            started_ns: self.started_ns,
            waited_ms: last_ack_ms.into(),
            late: self.late.lock().expect("no holder panics with it").clone(),
        }
    }

    fn remember(&self, late: Late) {
        if late.ms < WORTH_TELLING_MS {
            return;
        }
        let mut all = self.late.lock().expect("no holder panics with it");
        all.push(late);
        all.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        all.truncate(LONGEST);
    }
}

pub fn run(arguments: Arguments) -> Result<()> {
    super::single_threaded()?.block_on(serve(arguments))
}

async fn serve(arguments: Arguments) -> Result<()> {
    let drain = Duration::try_from_secs_f64(arguments.drain_seconds).context("--drain-seconds")?;
    let me =
        Arc::new(Identity { pod: arguments.name, node: arguments.node, started_ns: now_ns(), late: Mutex::default() });
    let watched = me.clone();
    tokio::spawn(watch_itself(move |late| watched.remember(late)));
    // Everything that serves TCP has a receiver: when all are dropped everything is closed.
    let (close, closing) = watch::channel(false);
    let delay = Duration::try_from_secs_f64(arguments.listen_after_seconds).context("--listen-after-seconds")?;
    for port in arguments.tcp {
        let (me, closing) = (me.clone(), closing.clone());
        if delay.is_zero() {
            tokio::spawn(accept(listen(port)?, me, closing));
            continue;
        }
        tokio::spawn(async move {
            sleep(delay).await;
            match listen(port) {
                Ok(listener) => accept(listener, me, closing).await,
                Err(error) => eprintln!("{error:#}"),
            }
        });
    }
    for port in arguments.udp {
        let socket =
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await.with_context(|| format!("udp port {port}"))?;
        tokio::spawn(answer(socket, me.clone()));
    }
    drop(closing);
    // As PID 1 the default action of these signals would not happen.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => return Ok(()),
    }
    sleep(drain).await;
    close.send_replace(true);
    // A client that has not closed by then is not there any more.
    let _ = timeout(CLOSES_WITHIN, close.closed()).await;
    Ok(())
}

fn listen(port: u16) -> Result<TcpListener> {
    bound(port).with_context(|| format!("tcp port {port}"))
}

fn bound(port: u16) -> Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into())?)
}

async fn accept(listener: TcpListener, me: Arc<Identity>, mut closing: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = closing.wait_for(|closing| *closing) => return,
        };
        match accepted {
            Ok((stream, client)) => {
                let (me, closing) = (me.clone(), closing.clone());
                tokio::spawn(async move {
                    // The client sees how a connection ends; this side needs no report.
                    let _ = echo(stream, client, &me, closing).await;
                });
            }
            Err(error) => eprintln!("accept: {error}"),
        }
    }
}

async fn echo(
    mut stream: TcpStream,
    client: SocketAddr,
    me: &Identity,
    mut closing: watch::Receiver<bool>,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut line = serde_json::to_vec(&me.greeting(client, tcp_info(&stream)?.tcpi_last_ack_recv))?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut buffer = [0; 4096];
    loop {
        let length = tokio::select! {
            read = stream.read(&mut buffer) => read?,
            _ = closing.wait_for(|closing| *closing) => break,
        };
        match length {
            0 => return Ok(stream.shutdown().await?),
            length => stream.write_all(&buffer[..length]).await?,
        }
    }
    stream.shutdown().await?;
    // Read to the end: closing with something unread would be a reset.
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

/// The reply is the datagram, then " POD NODE STARTED", the last as in [`Greeting::started_ns`].
async fn answer(socket: UdpSocket, me: Arc<Identity>) {
    let suffix = format!(" {} {} {}", me.pod, me.node, me.started_ns);
    let mut buffer = vec![0; 2048];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, client)) => {
                let reply = [&buffer[..length], suffix.as_bytes()].concat();
                // A reply that cannot be sent is a lost datagram, as the client will find.
                let _ = socket.send_to(&reply, client).await;
            }
            Err(error) => eprintln!("receive: {error}"),
        }
    }
}

const BACKLOG: i32 = 4096;
const CLOSES_WITHIN: Duration = Duration::from_secs(1);
const WORTH_TELLING_MS: f64 = 100.0;
/// A greeting is one line of at most 4096 bytes.
const LONGEST: usize = 16;

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net;

    use super::*;

    #[test]
    fn a_greeting_says_how_long_the_connection_had_waited() -> Result<()> {
        let late = Duration::from_millis(300);
        let me = Identity { pod: "a".into(), node: "n".into(), started_ns: 1, late: Mutex::default() };
        super::super::single_threaded()?.block_on(async {
            let listener = listen(0)?;
            let to = (Ipv4Addr::LOCALHOST, listener.local_addr()?.port());
            let before = now_ns();
            let client = net::TcpStream::connect(to)?;
            // The fault itself: the program does not accept.
            std::thread::sleep(late);
            let (_close, closing) = watch::channel(false);
            let (stream, from) = listener.accept().await?;
            let server = echo(stream, from, &me, closing);
            let said = tokio::task::spawn_blocking(move || {
                let mut line = String::new();
                BufReader::new(client).read_line(&mut line).map(|_| line)
            });
            let (served, said) = tokio::join!(server, said);
            served?;
            let greeting: Greeting = serde_json::from_str(&said??)?;
            let at_most = (now_ns() - before) as f64 / 1e6 + JIFFY_MS;
            assert!((late.as_secs_f64() * 1e3 - JIFFY_MS..at_most).contains(&greeting.waited_ms), "{greeting:?}");
            Ok(())
        })
    }

    /// The kernel counts in these, at the coarsest (CONFIG_HZ = 100).
    const JIFFY_MS: f64 = 10.0;
}
