//! The Deployment changes: more pods, fewer, others, none, none that is ready; or the Service's affinity, or its selector.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::nodes::power_on;
use super::watch::{Options, Watch};
use super::workload::{paint, restart, scale, select, set_affinity, wait_ready, wait_rolled_out};
use super::{Setup, Survival, survive};
use crate::lab::Fault;
use crate::scenario::baseline;
use crate::scenario::deploy::{SERVICE, Scene};
use crate::scenario::settle::wait_holder;

/// 6 → 12 → 3 on three nodes of two pods: twice as many, then a quarter of that.
pub fn scaled(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        let pods = scene.nodes.len() * scene.pods_per_node;
        scale_through(scene, watch, [pods * 2, pods / 2])
    })
}

/// Across 40 pods the ring's size changes, and with it nearly every row. All connections end and are opened anew while 44 pods come up;
/// those whose pods are among the 36 that stay must live.
pub fn scaled_across_ring_sizes(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options { reopen: true, new_connections: false, ..Options::default() }, |watch| {
        scale_through(scene, watch, [0, MORE_THAN_A_SMALL_RING_HAS, FEWER])
    })
}

/// Every pod is replaced: the connections of each end when it ends, and are opened anew.
pub fn rolled(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::REOPEN, |watch| {
        watch.order("every pod is replaced")?;
        restart(scene)?;
        wait_rolled_out(scene)
    })
}

/// The owner loses power when the first pods have been replaced, and is back before the update can end.
pub fn rolled_while_owner_is_lost(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::REOPEN, |watch| {
        let owner = wait_holder(scene, &scene.nodes)?;
        watch.order("every pod is replaced")?;
        restart(scene)?;
        sleep(IN_THE_MIDDLE);
        watch.power_off(&[&owner])?;
        sleep(LOST_FOR);
        power_on(watch, &[&owner])?;
        wait_rolled_out(scene)
    })
}

/// No pod is left to answer, then all are back. Every connection ends; new ones are opened only at the end.
pub fn to_none_and_back(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options { reopen: true, new_connections: false, ..Options::default() }, |watch| {
        watch.order("no pods")?;
        scale(scene, 0)?;
        wait_rolled_out(scene)?;
        sleep(BETWEEN);
        watch.note("all pods");
        scale(scene, scene.nodes.len() * scene.pods_per_node)?;
        wait_rolled_out(scene)
    })
}

/// Every pod fails its probe at the same time, as they do when all wait for the same database, and serves on. New connections are refused
/// meanwhile; UDP flows leave pods that do not serve, if only for the moment in which others still do.
pub fn none_ready_and_back(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options { new_connections: false, udp: false, ..Options::default() }, |watch| {
        watch.order("every probe fails")?;
        each(scene, |node| Fault::ProbesFail { node })?;
        let none = wait_ready(scene, 0);
        sleep(NOT_READY);
        watch.note("every probe succeeds");
        each(scene, |node| Fault::ProbesPass { node })?;
        none.and_then(|()| wait_rolled_out(scene))
    })
}

/// All flows of a client to one node, then each to its own again: whatever is open stays where it is.
pub fn affinity(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        for affinity in ["ClientIP", "None"] {
            watch.order(&format!("sessionAffinity {affinity}"))?;
            services(setup).iter().try_for_each(|service| set_affinity(scene, service, affinity))?;
            sleep(BETWEEN);
        }
        Ok(())
    })
}

/// Blue and green: the selector names the pods of one node, then those of the others, then all again. No pod ends, so no connection does,
/// whether the Service names its pod or not. (UDP flows leave pods that no longer serve, on both paths.)
pub fn selector(scene: &Scene, setup: &Setup) -> Result<Survival> {
    let first = &scene.nodes[0];
    survive(scene, setup, Options { udp: false, ..Options::default() }, |watch| {
        paint(scene, |pod| if pod.node == *first { "green" } else { "blue" })?;
        for (color, whose) in
            [(Some("green"), "the pods of one node"), (Some("blue"), "all others"), (None, "all pods")]
        {
            watch.order(&format!("the selector names {whose}"))?;
            services(setup).iter().try_for_each(|service| select(scene, service, color))?;
            sleep(UNNAMED);
        }
        Ok(())
    })
}

/// The selector names no pod at all, and all again. New connections are refused meanwhile.
pub fn selector_of_none(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options { udp: false, new_connections: false, ..Options::default() }, |watch| {
        for (color, whose) in [(Some("colorless"), "no pod"), (None, "all pods")] {
            watch.order(&format!("the selector names {whose}"))?;
            services(setup).iter().try_for_each(|service| select(scene, service, color))?;
            sleep(UNNAMED);
        }
        Ok(())
    })
}

/// Of the paths that are measured.
fn services(setup: &Setup) -> &'static [&'static str] {
    if setup.compare { &[SERVICE, baseline::NAME] } else { &[SERVICE] }
}

fn scale_through(scene: &Scene, watch: &mut Watch<'_>, steps: impl IntoIterator<Item = usize>) -> Result<()> {
    for replicas in steps {
        watch.order(&format!("{replicas} pods"))?;
        scale(scene, replicas)?;
        wait_rolled_out(scene)?;
        sleep(BETWEEN);
    }
    Ok(())
}

fn each(scene: &Scene, fault: impl Fn(String) -> Fault) -> Result<()> {
    scene.nodes.iter().try_for_each(|node| scene.lab.fault(fault(node.clone())))
}

/// Pods, before and after (`forwarding::maglev::size`: 40).
const MORE_THAN_A_SMALL_RING_HAS: usize = 44;
const FEWER: usize = 36;
/// How long clients are watched between two changes: what must not happen has nothing to be waited for.
const BETWEEN: Duration = Duration::from_secs(2);
/// Longer than flows whose pod is looked for have to wait.
const UNNAMED: Duration = Duration::from_secs(4);
const IN_THE_MIDDLE: Duration = Duration::from_secs(3);
/// The length of the fault.
const NOT_READY: Duration = Duration::from_secs(8);
const LOST_FOR: Duration = Duration::from_secs(8);
