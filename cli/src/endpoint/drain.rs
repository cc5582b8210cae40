//! `sheave endpoint drain` and `undrain`: a member keeps its connections and gets no new ones.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args as ClapArgs;
use hyper::Method;
use sheave_endpoint::local::{DRAIN, DrainRequest, STATUS};
use sheave_endpoint::status::{State, Status};
use tokio::time::{Instant, sleep};

use super::At;
use crate::local::Socket;

#[derive(ClapArgs)]
pub struct Drain {
    /// The member's name in the file. Any member's speaker takes the request, also for one that is off.
    member: String,
    /// Also the last member that gets new connections: clients are refused then.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    at: At,
}

#[derive(ClapArgs)]
pub struct Undrain {
    /// The member's name in the file.
    member: String,
    #[command(flatten)]
    at: At,
}

/// Hand-overs are waited for so long.
const WITHIN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// Exit code 1 if the member still owns an address.
pub async fn begin(args: &Drain) -> Result<ExitCode> {
    let (socket, member) = (args.at.socket(), &args.member);
    let status = ask(&socket, member, true, args.force).await?;
    let status =
        wait(&socket, status, |status| owned(status, member).is_empty() && takes_nothing(status, member)).await?;
    println!("{member} is drained{}: it gets no new connections{}", by_force(args), open(&status, member));
    let owned = owned(&status, member);
    if owned.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("{member} owns until another node can: {}", owned.join(", "));
    Ok(ExitCode::FAILURE)
}

pub async fn end(args: &Undrain) -> Result<ExitCode> {
    ask(&args.at.socket(), &args.member, false, false).await?;
    println!("{} gets new connections while it answers, and may own addresses", args.member);
    Ok(ExitCode::SUCCESS)
}

async fn ask(socket: &Socket, member: &str, drained: bool, force: bool) -> Result<Status> {
    let request = DrainRequest { member: member.to_owned(), drained, force };
    socket.ask(Method::PUT, DRAIN, Some(&request)).await
}

/// The status once this holds, or the time for it is over.
async fn wait(socket: &Socket, mut status: Status, holds: impl Fn(&Status) -> bool) -> Result<Status> {
    let until = Instant::now() + WITHIN;
    while !holds(&status) && Instant::now() < until {
        // The socket reports states, not changes.
        sleep(PAUSE).await;
        status = socket.get(STATUS).await?;
    }
    Ok(status)
}

fn owned(status: &Status, member: &str) -> Vec<String> {
    let owned = status.addresses.iter().filter(|address| address.owner.as_deref() == Some(member));
    owned.map(|address| address.address.to_string()).collect()
}

fn takes_nothing(status: &Status, member: &str) -> bool {
    let mut servers = status.ports.iter().flat_map(|port| &port.members).filter(|server| server.member == member);
    servers.all(|server| matches!(server.state, State::Drained | State::Failing))
}

fn by_force(args: &Drain) -> &'static str {
    if args.force { " by force" } else { "" }
}

/// How many go on, where they are counted.
fn open(status: &Status, member: &str) -> String {
    let servers = status.ports.iter().flat_map(|port| &port.members).filter(|server| server.member == member);
    let counted: Option<u64> = servers.map(|server| server.connections).sum();
    counted.map_or_else(|| ", and keeps those that it has".to_owned(), |count| format!(", and keeps {count} open ones"))
}
