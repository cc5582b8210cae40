//! What a lab has started, on disk: every command of the lab reads it, changes it under a lock and writes it back.
//!
//! Nothing is kept in memory between two operations, so a demo, a test and `sheave-lab fault` can work on one lab.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::interrupt::Busy;
use super::plan::{Plan, lab_dir, node_address, node_name};
use super::process::Recorded;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    pub plan: Plan,
    /// Where the API server answers on this machine's loopback.
    pub relay_port: u16,
    /// Network namespaces, by name.
    pub namespaces: Vec<String>,
    /// Processes by name: etcd, kube-apiserver-cp, …
    pub processes: BTreeMap<String, Recorded>,
    /// The first process of each node that runs; ending it ends the whole node and its mounts with it.
    pub nodes: BTreeMap<String, Node>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    /// `unshare`, which waits for the first process.
    pub keeper: Recorded,
    /// PID 1 of the node.
    pub init: Recorded,
    /// When it got power, in seconds of the day's clock as Kubernetes writes it.
    pub since: u64,
    /// The address of its uplink, if that has changed since.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
}

impl State {
    pub fn new(plan: &Plan) -> Self {
        Self {
            plan: plan.clone(),
            relay_port: 0,
            namespaces: Vec::new(),
            processes: BTreeMap::new(),
            nodes: BTreeMap::new(),
        }
    }

    pub fn load(lab: &str) -> Result<Self> {
        let path = file(lab);
        let text = fs::read(&path)
            .with_context(|| format!("there is no lab {lab:?} ({}); labs: {}", path.display(), names()))?;
        serde_json::from_slice(&text).with_context(|| format!("malformed {}", path.display()))
    }

    /// Written to a new file and renamed: a crash leaves the old or the new one.
    pub fn save(&self) -> Result<()> {
        let path = file(&self.plan.name);
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(self)?).with_context(|| new.display().to_string())?;
        fs::rename(&new, &path).with_context(|| path.display().to_string())
    }

    /// Of a node's uplink now; without power, the address that it will have.
    pub fn node_address(&self, name: &str) -> Result<Ipv4Addr> {
        self.plan.node_number(name).map(|number| self.address_of(number))
    }

    pub fn address_of(&self, number: u8) -> Ipv4Addr {
        let changed = self.nodes.get(&node_name(number)).and_then(|node| node.address);
        changed.unwrap_or(node_address(number))
    }

    pub fn every_process(&self) -> impl Iterator<Item = &Recorded> {
        let nodes = self.nodes.values().flat_map(|node| [&node.init, &node.keeper]);
        nodes.chain(self.processes.values())
    }
}

/// Changes the recorded state under the lab's lock.
pub fn change<T>(lab: &str, work: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
    let _busy = Busy::begin();
    let _lock = lock(lab)?;
    let mut state = State::load(lab)?;
    let result = work(&mut state)?;
    state.save()?;
    Ok(result)
}

/// One operation at a time on a lab. Released when dropped, or when the process dies.
pub fn lock(lab: &str) -> Result<Flock<File>> {
    fs::create_dir_all(lab_dir(lab)).with_context(|| format!("folder {} (root is needed)", lab_dir(lab).display()))?;
    let path = lab_dir(lab).join("lock");
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).with_context(|| path.display().to_string())
}

/// The labs of this machine, for messages.
pub fn names() -> String {
    let entries = fs::read_dir(super::plan::LABS).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn file(lab: &str) -> PathBuf {
    Path::new(&lab_dir(lab)).join("state.json")
}
