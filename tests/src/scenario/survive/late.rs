//! One node receives nothing from the API server for half a minute, and the API server nothing from it, while the pods change.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::nodes::struck;
use super::watch::{Options, Watch};
use super::workload::{restart, scale, wait_rolled_out};
use super::{Setup, Survival, survive};
use crate::lab::Fault;
use crate::scenario::deploy::Scene;
use crate::scenario::http;
use crate::scenario::settle::wait_speakers;

/// More pods, then fewer.
pub fn scaled(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::REOPEN, |watch| {
        let pods = scene.nodes.len() * scene.pods_per_node;
        cut(watch, setup, |second| match second {
            2 => scale(scene, pods * 2),
            12 => scale(scene, pods),
            _ => Ok(()),
        })
    })
}

/// All pods are replaced.
pub fn rolled(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::REOPEN, |watch| {
        cut(watch, setup, |second| if second == 2 { restart(scene) } else { Ok(()) })
    })
}

/// `change` is called in every second of the cut.
fn cut(watch: &mut Watch<'_>, setup: &Setup, change: impl Fn(u64) -> Result<()>) -> Result<()> {
    let (scene, node) = (watch.scene, struck(watch.scene, setup)?);
    watch.fault(&format!("{node} and the API server do not reach each other"))?;
    scene.lab.fault(Fault::ApiCut { node: node.clone() })?;
    let began = Instant::now();
    let mut differs: f64 = -1.0;
    let mut result = Ok(());
    for second in 0..CUT_SECONDS {
        result = result.and_then(|()| change(second));
        differs = differs.max(tables_that_differ(scene));
        sleep(Duration::from_secs(second + 1).saturating_sub(began.elapsed()));
    }
    scene.lab.fault(Fault::ApiHeal { node: node.clone() })?;
    watch.note(&format!("{node} and the API server reach each other"));
    watch.figure("peers whose table differs, most", differs);
    result?;
    scene.lab.wait_ready()?;
    wait_rolled_out(scene)?;
    wait_speakers(scene)?;
    sleep(AFTERWARDS);
    watch.figure("peers whose table differs, at the end", tables_that_differ(scene));
    Ok(())
}

/// The highest value of any speaker; -1 if none answers.
fn tables_that_differ(scene: &Scene) -> f64 {
    let each = scene.nodes.iter().filter_map(|node| {
        let metrics = http::metrics(&scene.lab, scene.node_address(node).ok()?).ok()?;
        http::value(&metrics, "sheave_table_differs")
    });
    each.fold(-1.0, f64::max)
}

/// Every pod ends in one of the two.
const CUT_SECONDS: u64 = 30;
const AFTERWARDS: Duration = Duration::from_secs(5);
