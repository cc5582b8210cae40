//! The file is changed while the speakers serve: by a rename, in place, and with mistakes.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use sheave_tests::lab::wait::wait_for;

use crate::client::{Connection, Failure};
use crate::load::Load;
use crate::status::{is_ready, metrics, status};
use crate::world::{CLIENT, KEY, MEMBERS, NEXT_KEY, Program, World};
use crate::{MANY, PATIENCE, alive, reached, until_only};

/// A port that the file has not at the start.
const NEW_PORT: u16 = 10443;

pub fn a_changed_file_costs_no_connection(world: &mut World, held: &mut Vec<Connection>) -> Result<()> {
    let load = Load::start(world);
    a_port_comes_and_a_source_is_admitted(world)?;
    alive(held).context("another port")?;
    load.goes_on().context("another port")?;
    a_member_goes_and_comes_back(world, held, &load)?;
    the_key_is_rotated_there_and_back(world)?;
    alive(held).context("other keys")?;
    load.goes_on().context("other keys")?;
    refused_files_change_nothing(world)?;
    alive(held).context("refused files")?;
    load.goes_on().context("refused files")?;
    the_file_is_read_on_a_signal(world)?;
    alive(held).context("a signal")?;
    let opened = load.stop()?;
    println!("changed files: {opened} connections opened meanwhile, {} held, 0 lost", held.len());
    Ok(())
}

fn a_port_comes_and_a_source_is_admitted(world: &World) -> Result<()> {
    ensure!(world.connect(CLIENT, NEW_PORT).is_err(), "port {NEW_PORT} is served already");
    for node in MEMBERS {
        world.replace_file(node, |text| {
            let text =
                text.replace("- {listen: 8443,", &format!("- {{listen: {NEW_PORT}, target: 6443}}\n- {{listen: 8443,"));
            text.replace("[198.51.100.0/24]", "[198.51.100.0/24, 192.0.2.0/24]")
        })?;
    }
    for from in [CLIENT].into_iter().chain(MEMBERS) {
        wait_for(&format!("port {NEW_PORT} for {from}"), PATIENCE, || Ok(world.connect(from, NEW_PORT).ok()))?;
    }
    wait_for("the client to be admitted", PATIENCE, || Ok(world.connect(CLIENT, 9443).ok()))?;
    // On every node: nothing fails any more.
    for node in MEMBERS {
        wait_for(&format!("{node} to show the port"), PATIENCE, || {
            Ok(status(world, node)?.ports.iter().any(|port| port.listen == NEW_PORT).then_some(()))
        })?;
    }
    for _ in 0..MANY {
        world.connect(CLIENT, NEW_PORT).context("the new port")?;
    }
    // And it goes.
    for node in MEMBERS {
        world.replace_file(node, |text| text.replace("[198.51.100.0/24, 192.0.2.0/24]", "[198.51.100.0/24]"))?;
    }
    wait_for("the client to be barred", PATIENCE, || Ok(world.connect(CLIENT, 9443).is_err().then_some(())))?;
    match world.connect(CLIENT, 9443) {
        Err(Failure::Silent) => Ok(()),
        other => bail!("a client outside the source ranges: {other:?}"),
    }
}

/// The connections to the others live. Those to the member end with its place in the file.
fn a_member_goes_and_comes_back(world: &mut World, held: &mut Vec<Connection>, load: &Load) -> Result<()> {
    let line = world.member_line("c");
    world.end("c", Program::HostSpeaker, Signal::SIGTERM)?;
    for node in ["a", "b"] {
        world.replace_file(node, |text| text.replace(&line, ""))?;
    }
    for node in ["a", "b"] {
        wait_for(&format!("{node} to have two members"), PATIENCE, || {
            Ok((status(world, node)?.members.len() == 2).then_some(()))
        })?;
    }
    until_only(world, &["a", "b"])?;
    held.retain(|connection| connection.member != "c");
    alive(held).context("a member less")?;
    load.goes_on().context("a member less")?;
    for node in ["a", "b"] {
        world.replace_file(node, |text| text.replace("members:\n", &format!("members:\n{line}")))?;
    }
    world.start_speaker("c")?;
    wait_for("c's speaker", PATIENCE, || Ok(is_ready(world, "c").then_some(())))?;
    wait_for("c to serve again", PATIENCE, || Ok(reached(world)?.contains("c").then_some(())))?;
    alive(held).context("a member more")?;
    load.goes_on().context("a member more")?;
    held.extend(std::iter::repeat_with(|| world.connect(CLIENT, 6443)).take(MANY).collect::<Result<Vec<_>, _>>()?);
    Ok(())
}

/// First accepted on all members, then signed with, then the only one.
fn the_key_is_rotated_there_and_back(world: &World) -> Result<()> {
    for (before, next) in [(KEY, NEXT_KEY), (NEXT_KEY, KEY)] {
        let previous = format!("previousKey: {before}\n");
        for node in MEMBERS {
            let both = format!("key: {next}\n{previous}");
            world.replace_file(node, |text| text.replace(&format!("key: {before}\n"), &both))?;
        }
        for node in MEMBERS {
            wait_for(&format!("{node} to sign with the next key"), PATIENCE, || {
                let metrics = metrics(world, node)?;
                let has = |line: &str| metrics.lines().any(|found| found == line);
                Ok((has("sheave_keys_accepted 2") && has("sheave_keys_rotating 0")).then_some(()))
            })?;
        }
        for node in MEMBERS {
            world.replace_file(node, |text| text.replace(&previous, ""))?;
        }
        for node in MEMBERS {
            wait_for(&format!("{node} to accept one key"), PATIENCE, || {
                Ok(metrics(world, node)?.lines().any(|found| found == "sheave_keys_accepted 1").then_some(()))
            })?;
            let peers = status(world, node)?.peers;
            ensure!(peers.iter().all(|peer| peer.alive), "peers of {node} after the rotation: {peers:?}");
        }
    }
    Ok(())
}

/// Each is named, in status and metrics; what was there before is served.
fn refused_files_change_nothing(world: &World) -> Result<()> {
    let before = status(world, "a")?.file.context("a has a file")?;
    ensure!(before.refused.is_none(), "{before:?}");
    let mistakes = [
        ("- listen: 6443\n", "- {listen: 6443, chek: tls}\n", vec!["ports[0]", "chek", "check"]),
        (
            "key:",
            "timing: {profile: steady}\nkey:",
            vec!["timing.interval: 200ms", "50ms until the speaker is restarted"],
        ),
        ("{name: a,", "{name: z,", vec!["members: this host: z at 192.0.2.11", "a at 192.0.2.11 until"]),
        ("health: {caFile: ", "health: {caFile: /nowhere, clientCert: ", vec!["health.clientKey is missing"]),
    ];
    for (from, to, words) in mistakes {
        let text = world.file("a")?;
        ensure!(text.contains(from), "{from} is not in {text}");
        world.write_file("a", &text.replace(from, to))?;
        let refused = wait_for(&format!("{to:?} to be refused"), PATIENCE, || {
            let file = status(world, "a")?.file.context("a has a file")?;
            ensure!(file.taken == before.taken, "{to:?} was taken over");
            Ok(file.refused.filter(|refused| {
                let all = refused.because.join("\n");
                words.iter().all(|word| all.contains(word))
            }))
        })?;
        println!("refused: {}", refused.because.join("; "));
        ensure!(metrics(world, "a")?.contains("sheave_endpoint_file_refused{node=\"a\"} 1"), "the metric");
        for _ in 0..MANY {
            world.connect(CLIENT, 6443).with_context(|| format!("{to:?}"))?;
        }
        world.write_file("a", &text)?;
        wait_for("the file to be in order", PATIENCE, || {
            Ok(status(world, "a")?.file.filter(|file| file.refused.is_none()))
        })?;
    }
    ensure!(metrics(world, "a")?.contains("sheave_endpoint_file_refused{node=\"a\"} 0"), "the metric");
    Ok(())
}

fn the_file_is_read_on_a_signal(world: &World) -> Result<()> {
    let before = status(world, "b")?.file.context("b has a file")?.taken;
    world.replace_file("b", |text| text.replace(&format!("- {{listen: {NEW_PORT}, target: 6443}}\n"), ""))?;
    world.hang_up("b")?;
    wait_for("b to take its file over", PATIENCE, || {
        let file = status(world, "b")?.file.context("b has a file")?;
        Ok((file.taken > before && file.refused.is_none()).then_some(()))
    })?;
    world.hang_up("b")?;
    wait_for("b's log", PATIENCE, || {
        Ok((world.speaker_log("b")?.matches("SIGHUP: the file is read again").count() == 2).then_some(()))
    })?;
    for node in ["a", "c"] {
        world.replace_file(node, |text| text.replace(&format!("- {{listen: {NEW_PORT}, target: 6443}}\n"), ""))?;
    }
    wait_for("the port to be gone", PATIENCE, || Ok(world.connect(CLIENT, NEW_PORT).is_err().then_some(())))
}
