//! What can go wrong with a node, a speaker or the control plane, as commands.

use std::fs;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::plan::UPLINK;
use super::process::{self, Recorded};
use super::state::State;
use super::{Lab, control_plane, netns, node, topology};

/// One fault, or its end. `fault` of the command line has the same words.
#[derive(Clone, Debug, PartialEq, Eq, clap::Subcommand)]
pub enum Fault {
    /// The node loses power: its link and everything behind it are gone at once
    PowerOff { node: String },
    /// The node starts again: kernel state is fresh, pods and images come back from its disk
    PowerOn { node: String },
    /// The cable is pulled at the switch: the node loses its carrier
    Cut { node: String },
    /// The switch loses every frame of the node's port, the carrier stays: nobody is told
    Silence { node: String },
    /// Ends `cut` and `silence`
    Heal { node: String },
    /// The node's own device goes down (its routes go with it)
    LinkDown { node: String },
    /// Ends `link-down`: the device and the routes are back
    LinkUp { node: String },
    /// SIGKILL for the node's speaker; kubelet starts it again
    KillSpeaker { node: String },
    /// SIGSTOP for the node's speaker
    StopSpeaker { node: String },
    /// SIGCONT for the node's speaker
    ContSpeaker { node: String },
    /// The node's speaker pod is deleted, gracefully; its DaemonSet makes a new one
    DeleteSpeakerPod { node: String },
    /// The API server is killed (with several: the one named, else all)
    ApiStop { server: Option<String> },
    /// The API server starts again
    ApiStart { server: Option<String> },
}

impl Lab {
    /// Carries out one fault and returns when it has happened (not when the cluster has noticed).
    pub fn fault(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::PowerOff { node } => self.change(|state| node::power_off(state, &node)),
            Fault::PowerOn { node } => self.change(|state| power_on(state, &node)),
            Fault::Cut { node } => self.on_powered(&node, |state| topology::set_port(&state.plan, &node, false)),
            Fault::Silence { node } => {
                self.on_powered(&node, |state| topology::set_forwarding(&state.plan, &node, false))
            }
            Fault::Heal { node } => self.on_powered(&node, |state| {
                topology::set_port(&state.plan, &node, true)?;
                topology::set_forwarding(&state.plan, &node, true)
            }),
            Fault::LinkDown { node } => self.on_powered(&node, |state| topology::set_uplink(&state.plan, &node, false)),
            Fault::LinkUp { node } => self.on_powered(&node, |state| topology::set_uplink(&state.plan, &node, true)),
            Fault::KillSpeaker { node } => self.signal_speaker(&node, Signal::SIGKILL),
            Fault::StopSpeaker { node } => self.signal_speaker(&node, Signal::SIGSTOP),
            Fault::ContSpeaker { node } => self.signal_speaker(&node, Signal::SIGCONT),
            Fault::DeleteSpeakerPod { node } => self.delete_speaker_pod(&node),
            Fault::ApiStop { server } => self.each_api_server(server.as_deref(), control_plane::stop_api_server),
            Fault::ApiStart { server } => self.each_api_server(server.as_deref(), |state, role| {
                control_plane::stop_api_server(state, role)?;
                control_plane::start_api_server(state, role)
            }),
        }
    }

    /// The process of the node's speaker, or `None` while it has none.
    pub fn speaker(&self, node: &str) -> Result<Option<Recorded>> {
        let state = self.powered(node)?;
        let inode = netns::inode(&state.plan.netns(node))?;
        let found = process::in_netns(inode).into_iter().find(|(_, name)| name == SPEAKER);
        Ok(found.and_then(|(pid, _)| Recorded::of(pid).ok()))
    }

    fn signal_speaker(&self, node: &str, signal: Signal) -> Result<()> {
        match self.speaker(node)? {
            Some(speaker) => speaker.signal(signal),
            None => bail!("node {node} runs no process {SPEAKER}"),
        }
    }

    fn delete_speaker_pod(&self, node: &str) -> Result<()> {
        self.powered(node)?;
        let field = format!("spec.nodeName={node}");
        let list = self.kubectl(&["get", "pods", "--all-namespaces", "--field-selector", &field, "-o", "json"])?;
        let list: serde_json::Value = serde_json::from_str(&list)?;
        let pods = list["items"].as_array().context("a list of pods")?;
        let runs_speaker = |pod: &&serde_json::Value| {
            let containers = pod["spec"]["containers"].as_array();
            containers
                .is_some_and(|all| all.iter().any(|one| one["image"].as_str().is_some_and(|i| i.contains(SPEAKER))))
        };
        let Some(pod) = pods.iter().find(runs_speaker) else { bail!("node {node} has no pod with an image {SPEAKER}") };
        let (namespace, name) = (pod["metadata"]["namespace"].as_str(), pod["metadata"]["name"].as_str());
        let (namespace, name) = (namespace.context("namespace")?, name.context("name")?);
        self.kubectl(&["--namespace", namespace, "delete", "pod", name, "--wait=true"]).map(drop)
    }

    fn each_api_server(&self, one: Option<&str>, work: impl Fn(&mut State, &str) -> Result<()>) -> Result<()> {
        self.change(|state| {
            let all: Vec<_> = state.plan.control_plane().into_iter().map(|(role, _)| role).collect();
            if let Some(one) = one
                && !all.iter().any(|role| role == one)
            {
                bail!("server: there is no API server {one:?}; there are: {}", all.join(", "));
            }
            all.iter().filter(|role| one.is_none_or(|one| one == *role)).try_for_each(|role| work(state, role))
        })
    }

    fn on_powered(&self, node: &str, work: impl FnOnce(&State) -> Result<()>) -> Result<()> {
        self.powered(node)?;
        self.change(|state| work(state))
    }

    fn powered(&self, node: &str) -> Result<State> {
        let state = self.state()?;
        state.plan.node_number(node)?;
        if !state.nodes.contains_key(node) {
            bail!("node {node} has no power: `sheave-lab fault power-on {node}`");
        }
        Ok(state)
    }
}

fn power_on(state: &mut State, name: &str) -> Result<()> {
    let plan = state.plan.clone();
    plan.node_number(name)?;
    if state.nodes.contains_key(name) {
        bail!("node {name} has power already");
    }
    // What an interrupted power-on left.
    topology::remove_node(&plan, name)?;
    let node = node::power_on(&plan, name)?;
    state.nodes.insert(name.to_owned(), node);
    Ok(())
}

/// The MAC address of a node's uplink, as tests see it in ARP answers.
pub fn uplink_mac(netns: &str) -> Result<String> {
    // sysfs shows the devices of the namespace that mounted it, so this asks netlink.
    let text = netns::run("ip", &["-netns", netns, "-json", "link", "show", "dev", UPLINK])?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    Ok(links[0]["address"].as_str().context("address of the uplink")?.to_owned())
}

/// Memory and processor time of a process, for the figures of the tests.
pub fn usage(process: &Recorded) -> Result<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid))?;
    let fields: Vec<_> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
    let ticks = fields.get(11).context("utime")?.parse::<u64>()? + fields.get(12).context("stime")?.parse::<u64>()?;
    Ok((kilobytes * 1024, ticks))
}

const SPEAKER: &str = "sheave-speaker";
