//! The DaemonSet's speaker on members whose host speaker serves, and the other way round: installed, upgraded, deleted under load, while it
//! owns and serves the address of a Service. Its pod is the same program with the same paths as in manifests/base/speaker.yaml; its API
//! server is away, so it goes by what it has on disk.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sheave_api::local::DRAIN;
use sheave_tests::lab::wait::wait_for;

use crate::client::Connection;
use crate::load::Load;
use crate::status::is_ready;
use crate::world::{CLIENT, MEMBERS, Program, SERVICE_VIP, World, address};
use crate::{MANY, PATIENCE, alive, reached};

const PROBES: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7482);
/// Of `/readyz`.
const STANDS_BY: (u16, &str) = (200, "ok\nnote: HostSpeaker\n");
const SERVICE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(SERVICE_VIP), 443);

pub fn the_daemonset_costs_no_connection(world: &mut World, held: &mut [Connection]) -> Result<()> {
    for node in MEMBERS {
        wait_for(&format!("{node}'s speaker"), PATIENCE, || Ok(is_ready(world, node).then_some(())))?;
    }
    let load = Load::start(world);
    for node in MEMBERS {
        world.start_pod(node)?;
    }
    for node in MEMBERS {
        serves(world, node).context("installed")?;
    }
    let mut of_service = a_service_is_served(world).context("installed")?;
    for node in MEMBERS {
        let rules = world.rules(node, "sheave-services")?;
        ensure!(
            rules.contains("192.0.2.101") && !rules.contains("192.0.2.100"),
            "{node} took the endpoint's address: {rules}"
        );
    }
    alive(held).context("installed")?;
    load.goes_on().context("installed")?;
    for node in MEMBERS {
        world.end(node, Program::Pod, Signal::SIGTERM)?;
        world.start_pod(node)?;
        serves(world, node).context("upgraded")?;
    }
    alive(held).context("upgraded")?;
    alive(&mut of_service).context("the Service's, upgraded")?;
    load.goes_on().context("upgraded")?;
    ensure!(
        world.uninstall("a", &["--host-speaker"]).is_err_and(|said| format!("{said:#}").contains("HostSpeakerRuns"))
    );
    the_other_keys_stay(world, held, &mut of_service)?;
    load.goes_on().context("rotated")?;
    for node in MEMBERS {
        world.end(node, Program::Pod, Signal::SIGTERM)?;
        world.uninstall(node, &[]).context("the DaemonSet's uninstall")?;
        world.uninstall(node, &["--check"]).context("it leaves nothing of its own")?;
        let tables = world.tables(node)?;
        ensure!(tables.contains("ip sheave\n") && !tables.contains("ip sheave-services"), "{node} has {tables}");
    }
    alive(held).context("deleted")?;
    load.goes_on().context("deleted")?;
    let opened = load.stop()?;
    println!(
        "DaemonSet installed, upgraded, deleted: {opened} connections opened meanwhile, {} held, 0 lost; {} of a Service held meanwhile",
        held.len(),
        of_service.len()
    );
    // It is the endpoint's where a host speaker is; the next ones are also without.
    world.cluster_grants_the_vip = false;
    without_a_place_it_stands_by(world, held)?;
    the_daemonset_hands_over(world, held)
}

/// Owned by a node with a host speaker, and served by all of them.
fn a_service_is_served(world: &World) -> Result<Vec<Connection>> {
    let connect = world.connector_to(CLIENT, SERVICE);
    wait_for("the Service", PATIENCE, || Ok(connect().ok()))?;
    let held = std::iter::repeat_with(&connect).take(MANY).collect::<Result<Vec<_>, _>>().context("the Service")?;
    let reached: BTreeSet<&str> = held.iter().map(|connection| connection.member.as_str()).collect();
    ensure!(reached == MEMBERS.into(), "the Service is served by {reached:?}");
    ensure!(held.iter().all(|connection| connection.seen == address(CLIENT)), "the client's address is lost");
    let owner = world.owner_of(SERVICE_VIP)?.context("the Service's address has no owner")?;
    println!("a Service's address is owned by {owner}, beside its host speaker");
    Ok(held)
}

/// The endpoint's key is rotated, by restarts of the host speakers.
fn the_other_keys_stay(world: &mut World, held: &mut [Connection], of_service: &mut [Connection]) -> Result<()> {
    let owner = world.owner_of(SERVICE_VIP)?;
    for node in MEMBERS {
        world.give_next_key(node)?;
        world.end(node, Program::HostSpeaker, Signal::SIGTERM)?;
        serves(world, node).context("between two host speakers")?;
        alive(of_service).context("the Service's, between two host speakers")?;
        world.start_speaker(node)?;
        wait_for(&format!("{node}'s speaker"), PATIENCE, || Ok(is_ready(world, node).then_some(())))?;
        serves(world, node).context("with the next host speaker")?;
    }
    alive(held).context("rotated")?;
    alive(of_service).context("the Service's, rotated")?;
    ensure!(world.owner_of(SERVICE_VIP)? == owner, "the Service's address moved with the endpoint's key");
    world.connector_to(CLIENT, SERVICE)().context("a new connection to the Service")?;
    Ok(())
}

/// A host speaker of an earlier version has no place beside it; its successor has.
fn without_a_place_it_stands_by(world: &mut World, held: &mut [Connection]) -> Result<()> {
    std::fs::remove_file(world.pin("b", "sheave/next"))?;
    world.start_pod("b")?;
    stands_by(world, "b")?;
    world.end("b", Program::HostSpeaker, Signal::SIGTERM)?;
    stands_by(world, "b").context("between two host speakers")?;
    alive(held).context("between two host speakers")?;
    world.start_speaker("b")?;
    wait_for("b's speaker", PATIENCE, || Ok(is_ready(world, "b").then_some(())))?;
    serves(world, "b")?;
    alive(held).context("with the next one")
}

/// Where the pod was first.
fn the_daemonset_hands_over(world: &mut World, held: &mut [Connection]) -> Result<()> {
    world.start_pod("c")?;
    serves(world, "c")?;
    let pod = world.pid("c", Program::Pod)?;
    world.end("c", Program::HostSpeaker, Signal::SIGTERM)?;
    world.uninstall("c", &["--host-speaker"])?;
    wait_for("the pod of c to serve alone", PATIENCE, || {
        let tables = world.tables("c")?;
        let alone = tables.contains("ip sheave\n") && !tables.contains("ip sheave-services");
        Ok((alone && !world.pin("c", "sheave-services").exists()).then_some(()))
    })?;
    serves(world, "c").context("alone")?;
    world.connector_to(CLIENT, SERVICE)().context("the Service")?;
    world.start_speaker("c")?;
    wait_for("c's speaker", PATIENCE, || Ok(is_ready(world, "c").then_some(())))?;
    wait_for("c to serve", PATIENCE, || Ok(reached(world)?.contains("c").then_some(())))?;
    wait_for("the pod of c beside it", PATIENCE, || {
        Ok((world.pin("c", "sheave-services").exists() && world.tables("c")?.contains("ip sheave-services\n"))
            .then_some(()))
    })?;
    serves(world, "c").context("it hands over")?;
    ensure!(world.pid("c", Program::Pod)? == pod, "the pod's container started again");
    world.connector_to(CLIENT, SERVICE)().context("the Service")?;
    // Those to c were without rules of ours meanwhile.
    let others = held.iter_mut().filter(|connection| connection.member != "c");
    for connection in others {
        connection.ask().with_context(|| format!("a connection to {}", connection.member))?;
    }
    ["b", "c"].into_iter().try_for_each(|node| world.end(node, Program::Pod, Signal::SIGTERM))
}

/// Says that it is ready, and not that it stands by.
fn serves(world: &World, node: &str) -> Result<()> {
    let mut said = None;
    let found = wait_for(&format!("the pod of {node} to serve"), PATIENCE, || {
        said = readyz(world, node).ok();
        Ok(said.as_ref().filter(|(status, text)| *status == 200 && !text.contains("HostSpeaker")).map(drop))
    });
    found.with_context(|| format!("it says {said:?}"))
}

/// Serves nothing, and says so everywhere.
fn stands_by(world: &World, node: &str) -> Result<()> {
    let mut said = None;
    let found = wait_for(&format!("the pod of {node} to stand by"), PATIENCE, || {
        said = readyz(world, node).ok();
        Ok(said.as_ref().filter(|(status, text)| (*status, text.as_str()) == STANDS_BY).map(drop))
    });
    found.with_context(|| format!("it says {said:?}"))?;
    let stream = UnixStream::connect(world.pod_socket(node)).context("the pod's socket")?;
    let (status, text) = get(stream, DRAIN)?;
    ensure!(status == 409 && text.contains("HostSpeaker: "), "its socket says {status} {text}");
    Ok(())
}

fn readyz(world: &World, node: &str) -> Result<(u16, String)> {
    world.inside(node, || get(TcpStream::connect(PROBES)?, "/readyz"))
}

fn get(mut stream: impl Read + Write, path: &str) -> Result<(u16, String)> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).context("a status")?;
    Ok((status, answer.split_once("\r\n\r\n").context("a body")?.1.to_owned()))
}
