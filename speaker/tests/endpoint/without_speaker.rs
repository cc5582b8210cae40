//! A member on which no speaker runs: two others check it for all, and translate for it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sheave_endpoint::status::State;
use sheave_tests::lab::wait::wait_for;

use crate::status::{is_ready, status};
use crate::world::{CLIENT, MEMBERS, Program, World, address};
use crate::{MANY, PATIENCE, reached, until_only};

const MEMBER: &str = "c";
const OTHERS: [&str; 2] = ["a", "b"];

pub fn it_is_checked_and_reached_through_two(world: &mut World) -> Result<()> {
    let (line, without) = (world.member_line(MEMBER), world.member_line(MEMBER).replace('}', ", speaker: false}"));
    world.end(MEMBER, Program::HostSpeaker, Signal::SIGTERM)?;
    for node in OTHERS {
        world.replace_file(node, |text| text.replace(&line, &without))?;
    }
    for node in OTHERS {
        wait_for(&format!("{node} to show who translates for {MEMBER}"), PATIENCE, || {
            let server = status(world, node)?.ports.remove(0).members.into_iter().find(|one| one.member == MEMBER);
            Ok(server.filter(|one| one.via == OTHERS && one.state == State::Serving).map(drop))
        })?;
    }
    wait_for("it to be reached", PATIENCE, || Ok(reached(world)?.contains(MEMBER).then_some(())))?;
    // It sees the node that translates; the others see the client.
    let mut through = BTreeSet::new();
    for _ in 0..2 * MANY {
        let connection = world.connect(CLIENT, 6443)?;
        match connection.member == MEMBER {
            true => drop(through.insert(connection.seen)),
            false => ensure!(connection.seen == address(CLIENT), "{} saw {}", connection.member, connection.seen),
        }
    }
    ensure!(through == OTHERS.map(address).into(), "{MEMBER} was reached through {through:?}");

    // Also its death is seen, by those who check it.
    world.signal_server(MEMBER, Signal::SIGKILL)?;
    let took = until_only(world, &OTHERS)?;
    println!("member without a speaker: through {through:?}; killed: new connections reach the others after {took:?}");
    world.start_server(MEMBER)?;
    for node in OTHERS {
        world.replace_file(node, |text| text.replace(&without, &line))?;
    }
    let member = MEMBERS.into_iter().find(|node| *node == MEMBER).context("a member")?;
    world.start_speaker(member)?;
    wait_for("its speaker", PATIENCE, || Ok(is_ready(world, MEMBER).then_some(())))?;
    wait_for("it to serve again", PATIENCE, || Ok(reached(world)?.contains(MEMBER).then_some(())))
}
