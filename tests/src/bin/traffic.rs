//! `sheave-traffic`: the server in the pods and the clients that measure what becomes of connections.

use std::process::ExitCode;

use clap::Parser;
use sheave_tests::traffic::{arp, connect, handshakes, hold, probe, relay, serve};

/// Measuring commands print `ready`, obey `mark [NS]` and `report` on stdin, and print one JSON report.
#[derive(Parser)]
#[command(name = "sheave-traffic", version)]
enum Command {
    /// Sends a greeting and echoes: what runs in the pods
    Serve(serve::Arguments),
    /// Keeps many TCP connections open and reports what became of them
    Hold(hold::Arguments),
    /// UDP probes at a fixed rate: how long does no pod answer?
    Probe(probe::Arguments),
    /// New TCP connections at a fixed rate: the first success, the failures
    Connect(connect::Arguments),
    /// One connection, the server's line
    Get(connect::GetArguments),
    /// Which node answers ARP for an address, and when
    ArpWatch(arp::Arguments),
    /// Completes TLS handshakes and says nothing
    #[command(hide = true)]
    Handshakes(handshakes::Arguments),
    /// Joins an inherited listening socket with a server
    #[command(hide = true)]
    Relay(relay::Arguments),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Hold(arguments) => hold::run(&arguments),
        Command::Probe(arguments) => probe::run(&arguments),
        Command::Connect(arguments) => connect::run(&arguments),
        Command::Get(arguments) => connect::get(&arguments),
        Command::ArpWatch(arguments) => arp::run(&arguments),
        Command::Handshakes(arguments) => handshakes::run(&arguments),
        Command::Relay(arguments) => relay::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sheave-traffic: {error:#}");
            ExitCode::FAILURE
        }
    }
}
