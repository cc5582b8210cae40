//! A node's kubelet: it starts anew with the node's address of that time, and registers the node then.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use super::plan::Plan;
use super::service::{self, STARTS_WITHIN};
use super::state::State;
use super::wait::wait_for;

/// Ends it and returns when another one is there: boot.sh starts it again, as a service manager does.
pub fn restart(state: &State, name: &str) -> Result<()> {
    let old = service::process_of(state, name, PROGRAM)?.with_context(|| format!("{name} runs no kubelet"))?;
    old.end()?;
    let other = || Ok(service::process_of(state, name, PROGRAM)?.filter(|new| *new != old));
    wait_for(&format!("another kubelet on {name}"), STARTS_WITHIN, other).map(drop)
}

/// The `--node-ip` of the kubelet that starts next. boot.sh reads the file: the node's /run is a folder below the node's own.
pub fn set_address(plan: &Plan, name: &str, address: Ipv4Addr) -> Result<()> {
    let file = plan.node_dir(name).join("run/node-ip");
    fs::write(&file, address.to_string()).with_context(|| file.display().to_string())
}

const PROGRAM: &str = "kubelet";
