//! The server in the pods: says who it is, then echoes. TCP and UDP, works as PID 1.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};

use super::report::Greeting;

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
}

pub fn run(arguments: Arguments) -> Result<()> {
    super::single_threaded()?.block_on(serve(arguments))
}

async fn serve(arguments: Arguments) -> Result<()> {
    let me = Arc::new((arguments.name, arguments.node));
    for port in arguments.tcp {
        let listener = listen(port).with_context(|| format!("tcp port {port}"))?;
        tokio::spawn(accept(listener, me.clone()));
    }
    for port in arguments.udp {
        let socket =
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await.with_context(|| format!("udp port {port}"))?;
        tokio::spawn(answer(socket, me.clone()));
    }
    // As PID 1 the default action of these signals would not happen.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into())?)
}

async fn accept(listener: TcpListener, me: Arc<(String, String)>) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let greeting = Greeting { pod: me.0.clone(), node: me.1.clone(), client: client.to_string() };
                tokio::spawn(async move {
                    // The client sees how a connection ends; there is nobody to tell here.
                    let _ = echo(stream, &greeting).await;
                });
            }
            Err(error) => eprintln!("accept: {error}"),
        }
    }
}

async fn echo(mut stream: TcpStream, greeting: &Greeting) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut line = serde_json::to_vec(greeting)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(stream.shutdown().await?),
            length => stream.write_all(&buffer[..length]).await?,
        }
    }
}

/// The reply is the datagram, then " POD NODE".
async fn answer(socket: UdpSocket, me: Arc<(String, String)>) {
    let suffix = format!(" {} {}", me.0, me.1);
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
