//! `sheave endpoint`: the address of the API servers, on the members themselves. No API server is asked.

mod init;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Endpoint {
    /// Check this machine and its segment, then write the endpoint's file and what starts the speaker, and print what the distribution
    /// must be told.
    Init(Box<init::Args>),
}

impl Endpoint {
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Init(args) => init::run(&args),
        }
    }
}
