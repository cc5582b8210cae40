//! What speakers say of the endpoint, and obey: status, page, events and drains, by their local sockets and the page's port.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;
use sheave_endpoint::local::{DRAIN, DrainRequest, EVENTS, STATUS};
use sheave_endpoint::status::events::{Change, Event, Events};
use sheave_endpoint::status::{State, Status};
use sheave_tests::lab::wait::wait_for;

use crate::client::Connection;
use crate::command::{self, Follower};
use crate::world::{CLIENT, MEMBERS, VIP, World};
use crate::{MANY, PATIENCE, alive, reached, until_only};

const PAGE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7488);

pub fn a_drained_member_keeps_its_connections_and_gets_no_new_ones(
    world: &mut World,
    held: &mut [Connection],
) -> Result<()> {
    let of_b = held.iter().filter(|connection| connection.member == "b").count();
    ensure!(of_b > 0, "no connection is held to b");
    let follower = Follower::start(world, "b")?;
    // By another member's speaker.
    let began = Instant::now();
    command::drain(world, "a", "b")?;
    let took = began.elapsed();
    let late = until_only(world, &["a", "c"])?;
    println!("drained member: said after {took:?}, last new connection to it {late:?} later, {of_b} open ones live");
    ensure!(late < Duration::from_secs(2));
    alive(held)?;
    follower.find(|event| matches!(&event.change, Change::DrainBegan { member, by_force: false } if member == "b"))?;
    ensure!(world.owner()? != Some("b") || status(world, "a")?.addresses[0].owner.as_deref() != Some("b"));
    for node in MEMBERS {
        wait_for(&format!("{node} to show the drain"), PATIENCE, || {
            let status = status(world, node)?;
            let mut shown = status.ports.iter().flat_map(|port| &port.members).filter(|server| server.member == "b");
            let all = shown.clone().count() > 0 && shown.all(|server| server.state == State::Drained);
            Ok((all && status.member("b").is_some_and(|member| member.drained.is_some())).then_some(()))
        })?;
    }
    the_page_shows_it(world, of_b)?;
    // Over a restart of its speaker, also as its own word.
    world.kill_speaker("b")?;
    world.start_speaker("b")?;
    wait_for("b's speaker", PATIENCE, || Ok(status(world, "b").ok().filter(|status| status.not_ready.is_empty())))?;
    ensure!(status(world, "b")?.member("b").is_some_and(|member| member.drained.is_some()), "b forgot its drain");
    for _ in 0..MANY {
        ensure!(world.connect(CLIENT, 6443)?.member != "b", "a new connection reached b after the restart");
    }
    alive(held)?;
    the_last_member_stays(world)?;
    for member in ["a", "b"] {
        command::undrain(world, "c", member)?;
    }
    // It has followed into the next run of the speaker.
    let ended = |event: &Event| matches!(&event.change, Change::DrainEnded { member } if member == "b");
    follower.find(ended).context("after the restart of the speaker")?;
    wait_for("all to serve again", PATIENCE, || Ok((reached(world)? == names(&MEMBERS)).then_some(())))?;
    alive(held)
}

fn the_last_member_stays(world: &World) -> Result<()> {
    command::drain(world, "b", "a")?;
    let refused = command::fails(world, "b", &["drain", "c"])?;
    ensure!(refused.contains("c is the last member"), "{refused}");
    let unknown = command::fails(world, "b", &["drain", "d"])?;
    ensure!(unknown.contains("has a, b, c"), "{unknown}");
    until_only(world, &["c"])?;
    let table = command::succeeds(world, "b", &["status"])?;
    ensure!(table.matches("Drained").count() >= 2 && table.contains(&VIP.to_string()), "{table}");
    let json = command::succeeds(world, "b", &["status", "--output", "json"])?;
    let shown: Status = serde_json::from_str(&json)?;
    ensure!(shown.member("a").is_some_and(|member| member.drained.is_some()), "{json}");
    Ok(())
}

/// It names who is drained, and the connections that go on.
fn the_page_shows_it(world: &World, open: usize) -> Result<()> {
    wait_for("the connections to be counted", PATIENCE, || {
        let status = status(world, "c")?;
        let of_b = status.ports.iter().flat_map(|port| &port.members).filter(|server| server.member == "b");
        let counted: u64 = of_b.filter_map(|server| server.connections).sum();
        Ok((counted == open as u64).then_some(()))
    })?;
    let stream = world.inside("c", || Ok(TcpStream::connect(PAGE)?))?;
    let (code, html) = http(stream, "GET", "/", "")?;
    ensure!(code == 200 && html.contains(">Drained<"), "{code}: {html}");
    for words in [&VIP.to_string(), "Port 8443 to 6443", "Came in here", "<b>a</b>"] {
        ensure!(html.contains(words), "{words} is not on the page: {html}");
    }
    if let Some(path) = std::env::var_os("SHEAVE_STATUS_PAGE") {
        std::fs::write(path, &html)?;
    }
    let stream = world.inside("c", || Ok(TcpStream::connect(PAGE)?))?;
    let (code, json) = http(stream, "GET", "/status.json", "")?;
    let shown: Status = serde_json::from_str(&json)?;
    ensure!(code == 200 && shown.node == "c" && shown.peers.iter().all(|peer| peer.alive), "{json}");
    let new: u64 = MEMBERS
        .iter()
        .filter_map(|node| status(world, node).ok())
        .flat_map(|status| status.ports)
        .filter_map(|port| Some(port.traffic?.connections))
        .sum();
    ensure!(new >= 2 * MANY as u64, "{new} connections came in at all nodes together");
    // Nothing on it changes anything.
    let stream = world.inside("c", || Ok(TcpStream::connect(PAGE)?))?;
    ensure!(http(stream, "PUT", DRAIN, &request("c", true, true)?)?.0 == 404, "the page's port takes drains");
    let metrics = metrics(world, "c")?;
    let drained = "sheave_endpoint_member_drained{member=\"b\"} 1";
    ensure!(metrics.contains(drained) && metrics.contains("sheave_endpoint_owner{"), "{metrics}");
    Ok(())
}

/// A reader that waits has the event of a killed server as soon as it is out.
pub fn a_reader_that_waits_is_told(world: &mut World) -> Result<()> {
    let before = events(world, "a", 0, 0, 0)?;
    let follower = Follower::start(world, "a")?;
    // It begins with those that are known, then it waits.
    follower.find(|event| event.sequence == before.after)?;
    let began = Instant::now();
    world.signal_server("b", Signal::SIGKILL)?;
    let first = follower.next()?;
    println!("reader of events: told {:?} after the kill", began.elapsed());
    ensure!(is_member_change(&first.change, "b", State::Serving, State::Failing), "{first:?}");
    ensure!(first.sequence == before.after + 1);
    // All nodes have followed.
    until_only(world, &["a", "c"])?;
    world.start_server("b")?;
    wait_for("b to serve again", PATIENCE, || Ok(reached(world)?.contains("b").then_some(())))
}

/// What the story did, as a node has it that lived through all of it: a server killed and back, then its owner lost.
pub fn events_are_in_order(world: &World, node: &str, lost: &str) -> Result<()> {
    let found = events(world, node, 0, 0, 0)?;
    ensure!(found.missed == 0 && found.events.is_sorted_by(|a, b| a.sequence + 1 == b.sequence && a.at <= b.at));
    let mut rest = found.events.iter();
    let mut next = |what: &str, is: &dyn Fn(&Change) -> bool| {
        rest.by_ref()
            .find(|event| is(&event.change))
            .with_context(|| format!("{what}: not in order in {:#?}", found.events))
    };
    next("b is drained", &|change| matches!(change, Change::DrainBegan { member, by_force: false } if member == "b"))?;
    next("b is not drained", &|change| matches!(change, Change::DrainEnded { member } if member == "b"))?;
    let killed = next("b fails", &|change| is_member_change(change, "b", State::Serving, State::Failing))?;
    ensure!(matches!(&killed.change, Change::MemberChanged { reason, .. } if reason == "Refused"), "{killed:?}");
    next("b serves", &|change| is_member_change(change, "b", State::Failing, State::Serving))?;
    let frozen = next("c fails", &|change| is_member_change(change, "c", State::Serving, State::Failing))?;
    ensure!(matches!(&frozen.change, Change::MemberChanged { reason, .. } if reason == "Silent"), "{frozen:?}");
    next("c serves", &|change| is_member_change(change, "c", State::Failing, State::Serving))?;
    next("another owner", &|change| {
        matches!(change, Change::OwnerChanged { address, from: Some(from), to: Some(to), .. }
            if *address == VIP && from == lost && to != lost)
    })?;
    Ok(())
}

fn is_member_change(change: &Change, of: &str, was: State, is: State) -> bool {
    matches!(change, Change::MemberChanged { member, from, to, .. } if member == of && *from == was && *to == is)
}

pub fn metrics(world: &World, node: &str) -> Result<String> {
    let stream = world.inside(node, || Ok(TcpStream::connect("127.0.0.1:7487")?))?;
    Ok(http(stream, "GET", "/metrics", "")?.1)
}

/// Whether the speaker of the endpoint on this node has nothing against serving.
pub fn is_ready(world: &World, node: &str) -> bool {
    status(world, node).is_ok_and(|status| status.not_ready.is_empty())
}

/// As the speaker on this node has it.
pub fn status(world: &World, node: &str) -> Result<Status> {
    answer(ask(world, node, "GET", STATUS, "")?)
}

fn events(world: &World, node: &str, run: u64, after: u64, wait: u64) -> Result<Events> {
    answer(ask(world, node, "GET", &format!("{EVENTS}?run={run}&after={after}&wait={wait}"), "")?)
}

fn request(member: &str, drained: bool, force: bool) -> Result<String> {
    Ok(serde_json::to_string(&DrainRequest { member: member.into(), drained, force })?)
}

fn answer<T: DeserializeOwned>((code, body): (u16, String)) -> Result<T> {
    ensure!(code == 200, "{code}: {body}");
    Ok(serde_json::from_str(&body)?)
}

fn ask(world: &World, node: &str, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
    http(UnixStream::connect(world.socket(node))?, method, path, body)
}

fn http(mut stream: impl Read + Write, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no answer: {text}"))?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("a status")?;
    Ok((code, body.to_owned()))
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
