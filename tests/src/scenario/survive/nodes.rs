//! Nodes lose power and come back.

use std::slice;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::watch::{Options, Watch};
use super::{Setup, Survival, survive};
use crate::lab::Fault;
use crate::scenario::deploy::Scene;
use crate::scenario::settle::{wait_holder, wait_nodes_down, wait_speakers};

/// The owner in one repetition, another node in the next.
pub fn back_after_5_s(scene: &Scene, setup: &Setup) -> Result<Survival> {
    back_after(scene, setup, Duration::from_secs(5))
}

/// As long as the cluster needs to notice, and to take the node's pods out of the Service.
pub fn back_after_30_s(scene: &Scene, setup: &Setup) -> Result<Survival> {
    back_after(scene, setup, Duration::from_secs(30))
}

/// Each is back, and so are its pods, before the next one loses power. What ends is opened anew: at the end every connection
/// to the first two has lived through the loss of the others.
pub fn one_after_the_other(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::REOPEN, |watch| {
        for node in &scene.nodes {
            watch.power_off(&[node])?;
            sleep(LOST_FOR);
            power_on(watch, &[node])?;
        }
        Ok(())
    })
}

/// A node that boots knows no peer's state, and the only peer cannot report it: its speaker is frozen from before the return on.
/// Open connections live there, and the node that is back decides where their packets go.
pub fn back_beside_a_frozen_speaker(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::REOPEN, |watch| {
        let back = &wait_holder(scene, &scene.nodes)?;
        let others: Vec<_> = scene.nodes.iter().filter(|node| *node != back).collect();
        let [frozen, lost] = others[..] else { bail!("three nodes are needed") };
        // Not both at once: a node that receives no other takes itself for cut off.
        for (node, down) in [(lost, 1.0), (back, 2.0)] {
            watch.power_off(&[node])?;
            wait_nodes_down(scene, slice::from_ref(frozen), down)?;
            sleep(LOST_FOR);
        }
        watch.fault(&format!("the speaker of {frozen} is frozen, power for {back}"))?;
        scene.lab.fault(Fault::StopSpeaker { node: frozen.clone() })?;
        scene.lab.fault(Fault::PowerOn { node: back.clone() })?;
        let taken = scene.lab.wait_back(back).and_then(|()| wait_holder(scene, slice::from_ref(back)));
        sleep(SETTLES);
        watch.note(&format!("the speaker of {frozen} goes on"));
        scene.lab.fault(Fault::ContSpeaker { node: frozen.clone() })?;
        power_on(watch, &[lost])?;
        taken.map(drop)
    })
}

/// Of five nodes. Both are back at the end.
pub fn two_at_once(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        let owner = wait_holder(scene, &scene.nodes)?;
        let others: Vec<_> = scene.nodes.iter().filter(|node| **node != owner).collect();
        let other = others[setup.repetition % others.len()];
        watch.power_off(&[&owner, other])?;
        let left: Vec<_> = others.into_iter().filter(|node| *node != other).cloned().collect();
        wait_nodes_down(scene, &left, 2.0)?;
        sleep(LOST_FOR);
        power_on(watch, &[&owner, other])
    })
}

/// A switch that converges, a virtual machine that moves to another host: nothing reaches the node, then it is there again with all
/// that it had; once with its carrier, once without. The owner in one repetition, another node in the next. With the flag that is made for
/// it: else the connections to its pods are reset at once.
pub fn unreachable_for_2_s(scene: &Scene, setup: &Setup) -> Result<Survival> {
    // Datagrams go to other nodes' pods at once.
    let options = Options { udp: false, flags: &["--return-window-ms=2500"], ..Options::default() };
    survive(scene, setup, options, |watch| {
        let node = struck(scene, setup)?;
        let [silence, cut] = [Fault::Silence { node: node.clone() }, Fault::Cut { node: node.clone() }];
        for (fault, what) in [(silence, "the switch loses its frames"), (cut, "its cable is pulled")] {
            watch.fault(&format!("{node}: {what}"))?;
            let began = Instant::now();
            scene.lab.fault(fault)?;
            sleep(UNREACHABLE_FOR.saturating_sub(began.elapsed()));
            scene.lab.fault(Fault::Heal { node: node.clone() })?;
            watch.note(&format!("{node} is back after {:.1} s", began.elapsed().as_secs_f64()));
            wait_speakers(scene)?;
            sleep(SETTLES);
        }
        Ok(())
    })
}

fn back_after(scene: &Scene, setup: &Setup, time: Duration) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        let node = struck(scene, setup)?;
        watch.power_off(&[&node])?;
        sleep(time);
        power_on(watch, &[&node])
    })
}

/// The owner in even repetitions, another node in odd ones.
pub fn struck(scene: &Scene, setup: &Setup) -> Result<String> {
    let owner = wait_holder(scene, &scene.nodes)?;
    if setup.repetition.is_multiple_of(2) {
        return Ok(owner);
    }
    scene.nodes.iter().find(|node| **node != owner).cloned().context("a second node")
}

/// Waits until the nodes and their pods are back, and every speaker serves and is known to all others; then until what was
/// moved has been moved.
pub fn power_on(watch: &mut Watch<'_>, nodes: &[&String]) -> Result<()> {
    let (scene, began) = (watch.scene, Instant::now());
    let names: Vec<_> = nodes.iter().map(|node| node.as_str()).collect();
    let names = names.join(" and ");
    watch.note(&format!("power for {names}"));
    nodes.iter().try_for_each(|node| scene.lab.fault(Fault::PowerOn { node: (*node).clone() }))?;
    nodes.iter().try_for_each(|node| scene.lab.wait_back(node))?;
    wait_speakers(scene)?;
    watch.note(&format!("{names} and all pods are back after {:.1} s", began.elapsed().as_secs_f64()));
    sleep(SETTLES);
    Ok(())
}

/// The length of the fault.
const LOST_FOR: Duration = Duration::from_secs(3);
/// Less than the window of the flag.
const UNREACHABLE_FOR: Duration = Duration::from_secs(2);
/// Well after a node's return: it is ready for new flows some moments after its speaker.
const SETTLES: Duration = Duration::from_secs(3);
