//! Programs that a node's first process keeps running, as a service manager does (boot.sh): kubelet, containerd, kube-proxy, and what
//! [`super::ha`] adds. A program is known by its name, the node's network namespace and its mounts: what runs in a pod has others.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::netns;
use super::plan::Plan;
use super::process::{self, Recorded};
use super::state::State;
use super::wait::wait_for;

pub fn process_of(state: &State, node: &str, program: &str) -> Result<Option<Recorded>> {
    find(state, node, program, |own| own)
}

/// The process of a pod that has the node's network.
pub fn process_in_pod(state: &State, node: &str, program: &str) -> Result<Option<Recorded>> {
    find(state, node, program, |own| !own)
}

/// `wanted`: whether it is one with the node's own mounts.
fn find(state: &State, node: &str, program: &str, wanted: fn(bool) -> bool) -> Result<Option<Recorded>> {
    let inode = netns::inode(&state.plan.netns(node))?;
    let own = state.nodes.get(node).and_then(|node| mounts_of(node.init.pid));
    let matches = |(pid, name): &(i32, String)| name == program && wanted(mounts_of(*pid) == own);
    Ok(process::in_netns(inode).into_iter().find(matches).and_then(|(pid, _)| Recorded::of(pid).ok()))
}

/// The mount namespace of a process.
fn mounts_of(pid: i32) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/mnt")).ok().map(|found| found.ino())
}

/// Keeps it from being started again, until the node boots.
pub fn keep_away(plan: &Plan, node: &str, program: &str) -> Result<()> {
    let file = stopped(plan, node, program);
    fs::write(&file, "").with_context(|| file.display().to_string())
}

/// Ends the process and keeps it from being started again.
pub fn stop(state: &State, node: &str, program: &str) -> Result<()> {
    keep_away(&state.plan, node, program)?;
    match process_of(state, node, program)? {
        Some(process) => process.end(),
        None => Ok(()),
    }
}

/// Returns when it runs: nothing happens if it does.
pub fn start(state: &State, node: &str, program: &str) -> Result<Recorded> {
    let file = stopped(&state.plan, node, program);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context(file.display().to_string()),
        _ => {}
    }
    wait_for(&format!("{program} on {node}"), STARTS_WITHIN, || process_of(state, node, program))
}

/// boot.sh looks for this file: the node's /run is a folder below the node's own.
fn stopped(plan: &Plan, node: &str, program: &str) -> PathBuf {
    plan.node_dir(node).join("run").join(format!("stop-{program}"))
}

pub const STARTS_WITHIN: Duration = Duration::from_secs(5);
