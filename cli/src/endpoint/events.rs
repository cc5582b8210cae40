//! `sheave endpoint events`: what has changed, once or from now on. It replaces the notify scripts of keepalived.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use sheave_endpoint::local::{EVENTS, EventsQuery, MAX_WAIT};
use sheave_endpoint::status::event_line;
use sheave_endpoint::status::events::{Event, Events};
use tokio::time::sleep;

use super::{At, Output};
use crate::local::Socket;

#[derive(ClapArgs)]
pub struct Args {
    #[command(flatten)]
    at: At,
    /// Go on with those that come, also over restarts of the speaker, until interrupted.
    #[arg(short, long)]
    follow: bool,
    /// Leave out those that the speaker still has from before.
    #[arg(long, requires = "follow")]
    only_new: bool,
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// After a speaker did not answer.
const PAUSE: Duration = Duration::from_secs(1);

pub async fn run(args: &Args) -> Result<ExitCode> {
    let socket = args.at.socket();
    let mut found = ask(&socket, EventsQuery::default()).await?;
    if args.only_new {
        found.events.clear();
        found.missed = 0;
    }
    let (mut run, mut silent) = (found.run, false);
    loop {
        if !print(&found, args.output)? {
            return Ok(ExitCode::SUCCESS);
        }
        if !args.follow {
            return Ok(ExitCode::SUCCESS);
        }
        let query = EventsQuery { run, after: found.after, wait: MAX_WAIT };
        match ask(&socket, query).await {
            Ok(next) => {
                if next.run != run {
                    eprintln!("the speaker has started again: its events count from 1");
                }
                (run, silent) = (next.run, false);
                found = next;
            }
            Err(error) => {
                // A speaker restarts; each failure after the first is the same one.
                if !std::mem::replace(&mut silent, true) {
                    eprintln!("{error:#}; asking again");
                }
                found.events.clear();
                found.missed = 0;
                sleep(PAUSE).await;
            }
        }
    }
}

async fn ask(socket: &Socket, query: EventsQuery) -> Result<Events> {
    socket.get(&format!("{EVENTS}?{query}")).await
}

/// False once nobody reads any more.
fn print(found: &Events, output: Output) -> Result<bool> {
    if found.missed > 0 {
        eprintln!("{} events before these are not kept any more", found.missed);
    }
    let mut out = io::stdout().lock();
    for event in &found.events {
        let written = writeln!(out, "{}", line(event, output)?);
        if written.as_ref().is_err_and(|error| error.kind() == ErrorKind::BrokenPipe) {
            return Ok(false);
        }
        written.context("standard output")?;
    }
    out.flush().context("standard output")?;
    Ok(true)
}

fn line(event: &Event, output: Output) -> Result<String> {
    match output {
        Output::Text => Ok(format!("{} {}", event.at, event_line(event))),
        Output::Json => serde_json::to_string(event).context("an event as JSON"),
    }
}
