//! Nodes are taken out of service in good order.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::watch::{Options, Watch};
use super::workload::wait_rolled_out;
use super::{Setup, Survival, survive};
use crate::lab::Fault;
use crate::scenario::deploy::Scene;
use crate::scenario::settle::wait_holder;

/// Cordon, the label that excludes it from load balancers, eviction of its pods; then back; then the next node.
pub fn each_node(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::REOPEN, |watch| scene.nodes.iter().try_for_each(|node| drain(watch, node)))
}

/// The owner alone.
pub fn owner(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::REOPEN, |watch| drain(watch, &wait_holder(scene, &scene.nodes)?))
}

fn drain(watch: &mut Watch<'_>, node: &str) -> Result<()> {
    let (scene, name) = (watch.scene, || node.to_owned());
    watch.leaving(&[node])?;
    watch.order(&format!("{node} is drained"))?;
    scene.lab.fault(Fault::Exclude { node: name() })?;
    scene.lab.fault(Fault::Drain { node: name() })?;
    wait_rolled_out(scene)?;
    watch.note(&format!("{node} is empty"));
    sleep(EMPTY_FOR);
    watch.note(&format!("{node} is back"));
    scene.lab.fault(Fault::Include { node: name() })?;
    scene.lab.fault(Fault::Uncordon { node: name() })?;
    sleep(EMPTY_FOR);
    Ok(())
}

/// Every pod moves at some time.
const EMPTY_FOR: Duration = Duration::from_secs(2);
