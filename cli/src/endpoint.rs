//! `sheave endpoint`: the address of the API servers, on the members themselves, by the local socket of the node's speaker
//! (`sheave-speaker endpoint`), and before there is one. No API server is asked.

pub mod drain;
pub mod events;
mod init;
pub mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use crate::local::Socket;

#[derive(Subcommand)]
pub enum Endpoint {
    /// Check this machine and its segment, then write the endpoint's file and what starts the speaker, and print what the distribution
    /// must be told.
    Init(Box<init::Args>),
    /// Owner, members and peers. Exit code 1 if an address has no owner, or a port no member that gets new connections.
    Status(status::Args),
    /// Owners, members and drains that change.
    Events(events::Args),
    /// Let a member keep its connections and get no new ones, and own addresses only while no other node can; over restarts.
    Drain(drain::Drain),
    /// End this.
    Undrain(drain::Undrain),
}

/// Where the speaker is asked.
#[derive(ClapArgs)]
pub struct At {
    /// The speaker's socket.
    #[arg(long, default_value = sheave_endpoint::local::SOCKET)]
    socket: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    /// An object, or one in each line.
    Json,
}

pub async fn run(command: &Endpoint) -> Result<ExitCode> {
    match command {
        Endpoint::Init(args) => init::run(args),
        Endpoint::Status(args) => status::run(args).await,
        Endpoint::Events(args) => events::run(args).await,
        Endpoint::Drain(args) => drain::begin(args).await,
        Endpoint::Undrain(args) => drain::end(args).await,
    }
}

impl At {
    fn socket(&self) -> Socket {
        Socket(self.socket.clone())
    }
}
