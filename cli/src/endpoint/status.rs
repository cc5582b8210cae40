//! `sheave endpoint status`, and `sheave status` on a node without a kubeconfig.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use sheave_endpoint::local::{SOCKET, STATUS};
use sheave_endpoint::status::{Status, table};

use super::{At, Output};
use crate::local::Socket;

#[derive(ClapArgs)]
pub struct Args {
    #[command(flatten)]
    at: At,
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub async fn run(args: &Args) -> Result<ExitCode> {
    print(&args.at.socket(), args.output).await
}

/// An endpoint's speaker has its socket here.
pub fn is_here() -> bool {
    Path::new(SOCKET).exists()
}

pub async fn instead(json: bool) -> Result<ExitCode> {
    eprintln!("no kubeconfig found: the API server endpoint, as this node's speaker has it");
    print(&Socket(SOCKET.into()), if json { Output::Json } else { Output::Text }).await
}

async fn print(socket: &Socket, output: Output) -> Result<ExitCode> {
    let status: Status = socket.get(STATUS).await?;
    match output {
        Output::Text => print!("{}", table(&status)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&status).context("the status as JSON")?),
    }
    Ok(if status.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
