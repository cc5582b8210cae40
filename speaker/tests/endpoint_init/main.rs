//! `sheave endpoint init` with real packets: for each distribution three machines on which it writes its files, speakers that are started
//! from these very files as unit or static pod would be, and clients of every port; and what it refuses, each for a real cause: a host that
//! answers, keepalived, taken ports, an image that containerd does not have, a certificate without the address.
//!
//! Needs root, nft, iproute2, ethtool, keepalived, util-linux, and containerd as tests/kubernetes/build.sh builds it. This program is
//! `sheave`, too, and the servers.

#[path = "../endpoint/client.rs"]
mod client;
mod refusals;
mod root;
mod server;
mod world;

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheave_endpoint::preset::{FILE, Preset, Run};
use sheave_tests::lab::wait::wait_for;

use world::{CLIENT, MEMBERS, Said, VIP, World};

const PATIENCE: Duration = Duration::from_secs(30);
/// Connections of one client that reach every member: each is missed by one in 3^20.
const MANY: usize = 40;
/// What every line of the tests asks for.
const MEMBERS_FLAG: &str = "--members a=192.0.2.11,b=192.0.2.12,c=192.0.2.13";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let result = match arguments.get(1).map(String::as_str) {
        Some("endpoint") => return sheave::main(),
        Some("serve") if arguments.len() > 3 => server::run(&arguments[2], arguments[3].as_ref(), &arguments[4..]),
        // Options of the test harness mean nothing here: it is one story.
        _ => told(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

fn told() -> Result<()> {
    let mut world = World::new()?;
    let story = story(&mut world);
    if story.is_err() {
        world.print_logs();
    }
    story
}

fn story(world: &mut World) -> Result<()> {
    refusals::story(world).context("refusals")?;
    for (preset, run, more) in [
        (Preset::Kubeadm, Run::StaticPod, "--image-is-imported --image sheave-speaker:1 --listen 8443:6443"),
        (Preset::K3s, Run::Systemd, ""),
        (Preset::Rke2, Run::StaticPod, "--image-is-imported --image sheave-speaker:1"),
        (Preset::K0s, Run::Systemd, "--timing steady"),
        (Preset::MicroK8s, Run::Systemd, "--with-join"),
    ] {
        serves(world, preset, run, more).with_context(|| preset.distribution().name)?;
    }
    Ok(())
}

/// From empty machines to every port on every member, by the files that were written.
fn serves(world: &mut World, preset: Preset, run: Run, more: &str) -> Result<()> {
    let began = Instant::now();
    world.install(preset)?;
    let distribution = preset.distribution();
    let flag = if run == Run::StaticPod { "static-pod" } else { "systemd" };
    let line = format!("--preset {} --run {flag} --vip {VIP} {MEMBERS_FLAG} {more}", preset.flag());
    let line = line.trim_end();
    let first = world.init("a", line)?;
    ensure!(first.code == Some(0), "{}", first.text);
    first.says(&[
        "192.0.2.100: no host answers for it",
        "written: /etc/sheave/endpoint.yaml (0600)",
        &VIP.to_string(),
    ])?;
    world.start_speaker("a", preset, run)?;
    // The second member is set up while the first one serves already: that is no other host.
    let served = wait_for("a to serve while b is set up", PATIENCE, || {
        world.copy_file("a", "b")?;
        let second = world.init("b", line)?;
        ensure!(second.code == Some(0), "{}", second.text);
        Ok(second.text.contains("served by member a, whose speaker is heard").then_some(second))
    })?;
    served.says(&["/etc/sheave/endpoint.yaml has all this already"])?;
    world.copy_file("a", "c")?;
    let third = world.init("c", line)?;
    ensure!(third.code == Some(0), "{}", third.text);
    let listened: BTreeSet<u16> = ports(world)?.into_iter().map(|(listen, _)| listen).collect();
    let targets: BTreeSet<u16> = ports(world)?.into_iter().map(|(_, target)| target).collect();
    let not_yet = world.init("a", &format!("--preset {} --run {flag} --check", preset.flag()))?;
    ensure!(not_yet.code == Some(1), "no API server runs: {}", not_yet.text);
    for node in MEMBERS {
        if node != "a" {
            world.start_speaker(node, preset, run)?;
        }
        world.start_server(node, &targets, &["kubernetes.default.svc", "192.0.2.100"])?;
    }
    for port in &listened {
        wait_for(&format!("port {port} of every member"), PATIENCE, || {
            let reached: BTreeSet<String> =
                (0..MANY).filter_map(|_| Some(world.connect(CLIENT, *port).ok()?.member)).collect();
            Ok((reached.len() == MEMBERS.len()).then_some(()))
        })?;
        let connection = world.connect(CLIENT, *port)?;
        ensure!(connection.seen == world::address(CLIENT), "the member saw {}", connection.seen);
    }
    let check = world.init("b", &format!("--preset {} --run {flag} --check", preset.flag()))?;
    ensure!(check.code == Some(0), "{}", check.text);
    check.says(&[
        "this machine is member b",
        "c 192.0.2.13:",
        "through 192.0.2.100:",
        "its certificate names 192.0.2.100",
    ])?;
    let mode = std::fs::metadata(world.root("c")?.at(FILE))?.mode() & 0o7777;
    ensure!(mode == 0o600, "{mode:o}");
    println!("{} ({flag}): ports {listened:?} on every member, after {:?}", distribution.name, began.elapsed());
    Ok(())
}

/// Listened and served, by the file.
fn ports(world: &World) -> Result<Vec<(u16, u16)>> {
    let text = std::fs::read_to_string(world.root("a")?.at(FILE))?;
    let endpoint = sheave_endpoint::Endpoint::parse(&text)?;
    Ok(endpoint.ports.iter().map(|port| (port.listen, port.target)).collect())
}

impl Said {
    pub fn says(&self, expected: &[&str]) -> Result<()> {
        for expected in expected {
            ensure!(self.text.contains(expected), "it does not say {expected:?}:\n{}", self.text);
        }
        Ok(())
    }
}
