//! Joins a socket that listens in one network namespace with a server in another: the API server for this machine.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::FromRawFd;
use std::thread;

use anyhow::{Context, Result};

#[derive(clap::Args)]
pub struct Arguments {
    /// Number of an inherited socket that listens
    #[arg(long)]
    descriptor: i32,
    #[arg(long)]
    to: SocketAddr,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    // SAFETY: the parent process handed this descriptor over and has closed its own.
    let listener = unsafe { TcpListener::from_raw_fd(arguments.descriptor) };
    let to = arguments.to;
    loop {
        let (near, _) = listener.accept().context("accept")?;
        thread::spawn(move || match TcpStream::connect(to) {
            Ok(far) => join(near, far),
            Err(error) => eprintln!("{to}: {error}"),
        });
    }
}

fn join(near: TcpStream, far: TcpStream) {
    // Nothing is held back until what went before is acknowledged: an answer of two writes would take 40 ms.
    for stream in [&near, &far] {
        let _ = stream.set_nodelay(true);
    }
    let (Ok(near_reads), Ok(far_writes)) = (near.try_clone(), far.try_clone()) else { return };
    let back = thread::spawn(move || pump(far, near));
    pump(near_reads, far_writes);
    let _ = back.join();
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    let copied = io::copy(&mut from, &mut to);
    // A half-closed connection stays half-closed on the other side; a broken one ends both ways.
    let how = if copied.is_ok() { Shutdown::Write } else { Shutdown::Both };
    let _ = to.shutdown(how);
}
