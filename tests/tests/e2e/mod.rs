//! A lab for a whole test program: started once, steps in order, removed also when a step panics, and nothing left.

#![allow(dead_code, reason = "each test program uses some of the steps")]

pub mod services;
pub mod steps;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use anyhow::Result;
use sheave_tests::lab::{self, Lab, LabConfig, ProxyMode};
use sheave_tests::scenario::{self, Scene};

/// A step asserts by panicking or by an error, and returns figures worth printing.
pub type Step = (&'static str, u8, fn(&Scene) -> Result<String>);

/// Runs all steps, or those whose names contain `$STEPS`, on one lab, whatever becomes of single ones, and panics at the end with all that failed.
pub fn run(name: &str, proxy_mode: ProxyMode, steps: &[Step]) {
    lab::down_on_interrupt(name).expect("handlers for Ctrl-C");
    Lab::remove(name).expect("what an earlier run left is removed");
    let only = std::env::var("STEPS").unwrap_or_default();
    let steps: Vec<&Step> = steps.iter().filter(|(step, ..)| step.contains(&only)).collect();
    assert!(!steps.is_empty(), "STEPS={only:?} names no step");
    let guard = Guard(name.to_owned());
    let began = Instant::now();
    let config = LabConfig { name: name.to_owned(), proxy_mode, ..LabConfig::default() };
    let lab = Lab::up(config).unwrap_or_else(|error| panic!("no lab: {error:#}"));
    let mut failed = match scenario::deploy(&lab, 2) {
        Ok(scene) => walk(&scene, &steps),
        Err(error) => vec![format!("deploy: {error:#}")],
    };
    eprintln!("{name}: {} s", began.elapsed().as_secs());
    drop(guard);
    let left = scenario::leftovers(name).expect("this machine can be looked at");
    if !left.is_empty() {
        failed.push(format!("left behind: {left:#?}"));
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

fn walk(scene: &Scene, steps: &[&Step]) -> Vec<String> {
    let mut failed = Vec::new();
    for (name, times, step) in steps.iter().copied() {
        for number in 1..=*times {
            let began = Instant::now();
            let whole = scenario::settle(scene);
            let result = whole.and_then(|()| {
                catch_unwind(AssertUnwindSafe(|| step(scene)))
                    .unwrap_or_else(|panic| Err(anyhow::anyhow!(message(&panic))))
            });
            let seconds = began.elapsed().as_secs_f64();
            match result {
                Ok(figures) => eprintln!("{name} {number}/{times} ({seconds:.1} s): {figures}"),
                Err(error) => {
                    lab::rest_if_interrupted();
                    eprintln!("{name} {number}/{times} FAILED ({seconds:.1} s): {error:#}");
                    failed.push(format!("{name} {number}/{times}: {error:#}"));
                    mend(scene);
                }
            }
        }
    }
    failed
}

/// A failed step must not fail the next ones.
fn mend(scene: &Scene) {
    let Ok(state) = scene.lab.state() else { return };
    for node in scene.nodes.iter().filter(|node| !state.nodes.contains_key(*node)) {
        if let Err(error) = scenario::restore(scene, node) {
            eprintln!("{node} did not come back: {error:#}");
        }
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "a panic".to_owned())
}

struct Guard(String);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(error) = Lab::remove(&self.0) {
            eprintln!("the lab {:?} is not removed: {error:#}", self.0);
        }
    }
}
