//! `sheave-traffic`: the server in the pods and the clients that measure what becomes of connections.

use anyhow::Result;
use clap::Parser;
use sheave_tests::traffic::{relay, serve};

#[derive(Parser)]
#[command(name = "sheave-traffic", about, version)]
enum Command {
    /// Says who it is and echoes: what runs in the pods
    Serve(serve::Arguments),
    /// Joins an inherited listening socket with a server
    #[command(hide = true)]
    Relay(relay::Arguments),
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Relay(arguments) => relay::run(&arguments),
    }
}
