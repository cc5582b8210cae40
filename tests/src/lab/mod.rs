//! The lab: a real Kubernetes cluster on one machine, every part in network namespaces of its own.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use sheave_tests::lab::{ClientKind, Fault, Lab, LabConfig};
//! sheave_tests::lab::down_on_interrupt("demo")?;          // Ctrl-C and SIGTERM clean up, exit code 130
//! let lab = Lab::up(LabConfig { name: "demo".into(), ..LabConfig::default() })?;
//! lab.kubectl(&["get", "nodes"])?;                         // stdout, or stderr as the error
//! lab.apply("kind: Namespace\n…")?;                        // kubectl apply -f -
//! let mut hold = lab.client_command(ClientKind::Segment, &lab.traffic()?.to_string_lossy())?;
//! hold.args(["hold", "--to", "192.168.77.200:80"]);        // std::process::Command, runs as the client
//! lab.fault(Fault::PowerOff { node: "node2".into() })?;
//! lab.down()                                               // dropping a Lab leaves the cluster up
//! # }
//! ```
//! Tests use [`Lab::temporary`], which is removed when it is dropped.
//!
//! - [`Lab::up`] returns when every node is Ready (with `sheave: true`: when Sheave is rolled out too); [`Lab::attach`]
//!   takes a lab that runs. A `Lab` is only a name: state is on disk, so it is `Clone`, `Send`, `Sync`, and several
//!   processes may work on one lab.
//! - Commands: [`Lab::client_command`] ([`ClientKind::Segment`] or behind the router), [`Lab::node_command`] (the node's
//!   network, mounts and processes: `bpftool`, `nft`, `ctr` see that node only), [`Lab::netns_command`].
//! - Kubernetes: [`Lab::kubeconfig`] works on this machine (a relay on loopback), [`Lab::kubectl`], [`Lab::apply`],
//!   [`Lab::install_sheave`], [`Lab::import_images`].
//! - Waiting: [`Lab::wait_ready`], [`Lab::wait_back`] after a power-on, [`wait_for`] for anything else.
//! - Faults: [`Fault`] has one variant per fault, carried out by [`Lab::fault`]; [`Lab::speaker`] finds a speaker's process.
//! - API servers on the nodes, behind an address that the nodes serve: [`ha`].
//! - Other hosts on the segment: [`Lab::plug_in`], [`Lab::unplug`]. Two labs on one segment: [`Lab::join`], [`Lab::part`].
//! - Addresses: [`plan`] (nodes .11 …, client .5, router .3, control plane .2, pool .200-.220 of 192.168.77.0/24).
//!
//! Each node is a real node for what runs on it: own /run, /var/lib, /var/log, /sys/fs/bpf (a bpffs), /proc, cut off from
//! the machine and from the other nodes, so manifests need nothing special. Logs: /run/sheave-lab/NAME/logs.

mod address;
mod alone;
mod certs;
mod cgroup;
mod cluster;
mod control_plane;
mod disk;
pub mod fault;
pub mod ha;
pub mod hold;
mod host;
pub mod image;
mod interrupt;
mod kube_proxy;
mod kubelet;
pub mod manifests;
mod needs;
pub mod netns;
mod node;
mod pinned;
pub mod plan;
pub mod process;
mod realtime;
pub mod refuse;
mod service;
mod state;
mod topology;
pub mod wait;
pub mod xdp;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

pub use alone::alone;
pub use fault::Fault;
pub use hold::NftHold;
pub use interrupt::{all_down_on_interrupt, down_on_interrupt, rest_if_interrupted};
pub use plan::{Balancer, Distribution, Endpoint, Guide, LabConfig, ProxyMode, quiet, to_stderr};
pub use refuse::NftRefusal;
pub use state::State;
pub use wait::wait_for;

/// A running lab, by its name.
#[derive(Clone, Debug)]
pub struct Lab {
    name: String,
}

/// Where a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientKind {
    /// On the nodes' segment: 192.168.77.5.
    Segment,
    /// Behind the router: 10.99.0.2.
    BehindRouter,
}

impl Lab {
    /// Starts a lab and waits until its nodes are Ready. What was started is removed again if that fails.
    pub fn up(config: LabConfig) -> Result<Self> {
        let lab = Self { name: config.name.clone() };
        // Before anything that is cleaned up after: it is somebody's.
        if State::load(&config.name).is_ok() {
            bail!("lab {0:?} is up already: `sheave-lab down --name {0}` removes it", config.name);
        }
        let started = cluster::up(&lab, &config);
        // An interruption makes a start fail: then the lab is being removed already.
        drop(interrupt::Busy::begin());
        match started {
            Ok(()) => Ok(lab),
            Err(error) if std::env::var_os("SHEAVE_LAB_KEEP").is_some() => Err(error),
            Err(error) => {
                lab.down().context("cleaning up after a failed start")?;
                Err(error)
            }
        }
    }

    /// A lab for a test: removed when dropped; what an earlier run of the same name has left is removed first.
    pub fn temporary(config: LabConfig) -> Result<Temporary> {
        Self::remove(&config.name)?;
        Self::up(config).map(Temporary)
    }

    /// A lab that was started before, also by another process.
    pub fn attach(name: &str) -> Result<Self> {
        plan::check_name(name)?;
        State::load(name)?;
        Ok(Self { name: name.to_owned() })
    }

    /// Removes every trace of a lab, also of a lab that crashed half-way. No lab is no error.
    pub fn remove(name: &str) -> Result<()> {
        plan::check_name(name)?;
        cluster::down(name)
    }

    pub fn down(&self) -> Result<()> {
        Self::remove(&self.name)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is recorded about the lab now.
    pub fn state(&self) -> Result<State> {
        State::load(&self.name)
    }

    pub fn node_names(&self) -> Result<Vec<String>> {
        Ok(self.state()?.plan.node_names())
    }

    /// A way to one of several API servers alone, as the plan names them: the port of this machine's loopback.
    pub fn way_to(&self, server: &str) -> Result<u16> {
        self.change(|state| control_plane::start_way(state, server))
    }

    /// etcd starts again, with what is in its folder.
    pub fn start_etcd(&self) -> Result<()> {
        self.change(control_plane::start_etcd)
    }

    /// A kubeconfig of the administrator that works on this machine.
    pub fn kubeconfig(&self) -> PathBuf {
        plan::lab_dir(&self.name).join("kubeconfig")
    }

    /// Runs kubectl to its end and returns what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl_command().args(arguments).stdin(Stdio::null()).output().context("start kubectl")?;
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The administrator's kubeconfig for programs of the lab's clients and nodes: it names the API server's own address.
    pub fn kubeconfig_inside(&self) -> PathBuf {
        plan::lab_dir(&self.name).join("kubeconfig.segment")
    }

    /// kubectl as a command to be run by the caller.
    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new(plan::kubernetes_bin().join("kubectl"));
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// `kubectl apply -f -` of some YAML.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let mut child = self
            .kubectl_command()
            .args(["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start kubectl")?;
        child.stdin.take().expect("piped").write_all(manifest.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("kubectl apply: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A program run as a client. It is the program itself that gets the signals.
    pub fn client_command(&self, kind: ClientKind, program: &str) -> Result<Command> {
        self.netns_command(
            match kind {
                ClientKind::Segment => "client",
                ClientKind::BehindRouter => "far",
            },
            program,
        )
    }

    /// A program in one of the lab's network namespaces (`sw`, `cp`, `router`, `client`, `far`, `node1` …), with the
    /// machine's own files.
    pub fn netns_command(&self, role: &str, program: &str) -> Result<Command> {
        let mut command = Command::new(program);
        netns::enter(&mut command, &self.state()?.plan.netns(role))?;
        Ok(command)
    }

    /// A program on a node: in its network, with its mounts and processes. Ending the command ends the program.
    pub fn node_command(&self, node: &str, program: &str) -> Result<Command> {
        node::command(&self.state()?, node, program)
    }

    /// How many packets this machine has dropped since it started because a CPU had too many waiting: whatever went through any
    /// cable of any lab then (second column of /proc/net/softnet_stat).
    pub fn machine_dropped() -> Result<u64> {
        let text = std::fs::read_to_string(SOFTNET).context(SOFTNET)?;
        let each = text.lines().filter_map(|cpu| cpu.split_whitespace().nth(1));
        each.map(|count| u64::from_str_radix(count, 16).with_context(|| format!("{SOFTNET}: {count:?}"))).sum()
    }

    /// The MAC address of a node's uplink, as it appears in ARP answers: "aa:bb:…".
    pub fn mac(&self, node: &str) -> Result<String> {
        let state = self.state()?;
        state.plan.node_number(node)?;
        fault::uplink_mac(&state.plan.netns(node))
    }

    /// The program that makes and measures traffic.
    pub fn traffic(&self) -> Result<PathBuf> {
        crate::traffic::binary()
    }

    /// Packs what was built since and imports it on every node that has power.
    pub fn import_images(&self) -> Result<Vec<image::Image>> {
        cluster::import_images(self)
    }

    /// Imports images that were packed for this lab alone on every node that has power.
    pub fn import(&self, images: &[image::Image]) -> Result<()> {
        cluster::import(self, images)
    }

    /// `kubectl apply -k` of an overlay, as a user installs or upgrades.
    pub fn apply_overlay(&self, overlay: &Path) -> Result<()> {
        cluster::apply(self, overlay, &[])
    }

    /// Waits until every Deployment and DaemonSet is rolled out.
    pub fn wait_rolled_out(&self) -> Result<()> {
        cluster::wait_rolled_out(self)
    }

    /// Installs Sheave from `manifests/overlays/lab` and waits until it is rolled out.
    pub fn install_sheave(&self) -> Result<()> {
        cluster::install_sheave(self)
    }

    /// Waits until all nodes that have power are Ready.
    pub fn wait_ready(&self) -> Result<()> {
        cluster::wait_ready(self)
    }

    /// Waits until a node that got power again is back: its kubelet reports, and all its pods run anew and are Ready.
    pub fn wait_back(&self, node: &str) -> Result<()> {
        self.wait_all_back(&[node.to_owned()])
    }

    /// The same of several nodes.
    pub fn wait_all_back(&self, nodes: &[String]) -> Result<()> {
        cluster::wait_back(self, nodes)
    }

    fn change<T>(&self, work: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        state::change(&self.name, work)
    }
}

/// A lab that is removed when it is dropped, also by a test that panics.
#[derive(Debug)]
pub struct Temporary(Lab);

impl std::ops::Deref for Temporary {
    type Target = Lab;
    fn deref(&self) -> &Lab {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = self.0.down() {
            eprintln!("remove lab {:?}: {error:#}", self.0.name);
        }
    }
}

/// Lab names on this machine, for messages.
pub fn names() -> String {
    state::names()
}

const SOFTNET: &str = "/proc/net/softnet_stat";
