//! What can go wrong with a node, a speaker or the control plane, as commands.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::hold::NftHold;
use super::plan::{POD_RANGE, ProxyMode, UPLINK};
use super::process::Recorded;
use super::refuse::NftRefusal;
use super::state::State;
use super::{Lab, address, control_plane, disk, kube_proxy, kubelet, netns, node, pinned, service, topology};

/// One fault, or its end. The command `fault` uses the same names.
#[derive(Clone, Debug, PartialEq, Eq, clap::Subcommand)]
pub enum Fault {
    /// The node loses power: its link and everything behind it are gone at once
    PowerOff { node: String },
    /// The node starts again: kernel state is fresh, pods and images come back from its disk
    PowerOn { node: String },
    /// The cable is pulled at the switch: the node loses its carrier
    Cut { node: String },
    /// The switch loses every frame of the node's port, the carrier stays: no program notices
    Silence { node: String },
    /// Ends `cut` and `silence`
    Heal { node: String },
    /// The node's own device goes down (its routes go with it)
    LinkDown { node: String },
    /// Ends `link-down`: the device and the routes are back
    LinkUp { node: String },
    /// The node's uplink gets another MAC address; the next time the one of before
    ChangeMac { node: String },
    /// The node's uplink gets another IP address, the next time the one of before; kubelet starts anew with it
    ChangeAddress { node: String },
    /// The switch loses everything that goes to the speakers' multicast group
    FilterMulticast,
    /// Ends `filter-multicast`
    PassMulticast,
    /// The switch loses all adverts and flow reports between two nodes; everything else goes on
    PartSpeakers { node: String, other: String },
    /// Ends `part-speakers`
    JoinSpeakers,
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
    /// The switch loses all packets between the node and the API servers; everything else goes on
    ApiCut { node: String },
    /// Ends `api-cut`
    ApiHeal { node: String },
    /// SIGKILL for the speakers of all nodes, at the same moment
    KillAllSpeakers,
    /// All speaker pods are deleted at the same moment, gracefully
    DeleteAllSpeakerPods,
    /// The node's kube-proxy ends and stays away; its rules stay
    KubeProxyStop { node: String },
    /// kube-proxy starts again; if it runs it is killed first
    KubeProxyStart { node: String },
    /// kube-proxy starts anew in a mode, which need not be that of the lab
    KubeProxyMode { node: String, mode: ProxyMode },
    /// kube-proxy's rules are removed behind its back
    KubeProxyFlush { node: String },
    /// Sheave's nftables table is deleted
    NftDelete { node: String },
    /// Sheave's XDP link is detached by force; its pin stays
    XdpDetach { node: String },
    /// The pin of Sheave's XDP link is removed, which was the only reference to it
    XdpUnpin { node: String },
    /// Every nft that the node's speaker starts is held for so long; returns when it is over
    HoldNft { node: String, seconds: u64 },
    /// Every change of Sheave's nftables table is refused for so long, its rules stay in force; returns when it is over
    RefuseNft { node: String, seconds: u64 },
    /// The disk of the node's state directory is full, for every container that starts from now on
    FillDisk { node: String },
    /// Ends `fill-disk`, for every container that starts from now on; for those that run there is room again
    FreeDisk { node: String },
    /// Every TCP probe of the node's pods by its kubelet is refused; whatever else goes to them passes
    ProbesFail { node: String },
    /// Ends `probes-fail`
    ProbesPass { node: String },
    /// The node gets the label that excludes it from external load balancers
    Exclude { node: String },
    /// Ends `exclude`
    Include { node: String },
    /// The node is cordoned and its pods are evicted; returns when they are gone
    Drain { node: String },
    /// Ends `drain`: pods may be placed on the node again
    Uncordon { node: String },
    /// The Node object is deleted; the machine and all that is on it go on
    DeleteNode { node: String },
    /// The node's kubelet starts anew, and registers the node if it is not there
    RestartKubelet { node: String },
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
            Fault::LinkDown { node } => self.on_powered(&node, |state| topology::set_uplink(state, &node, false)),
            Fault::LinkUp { node } => self.on_powered(&node, |state| topology::set_uplink(state, &node, true)),
            Fault::ChangeMac { node } => self.on_powered(&node, |state| address::change_mac(&state.plan, &node)),
            Fault::ChangeAddress { node } => self.change(|state| address::change_address(state, &node)),
            Fault::FilterMulticast => self.change(|state| topology::set_multicast(&state.plan, false)),
            Fault::PassMulticast => self.change(|state| topology::set_multicast(&state.plan, true)),
            Fault::PartSpeakers { node, other } => self.change(|state| {
                state.plan.node_number(&node)?;
                state.plan.node_number(&other)?;
                topology::set_speakers_between(&state.plan, Some([node.as_str(), other.as_str()]))
            }),
            Fault::JoinSpeakers => self.change(|state| topology::set_speakers_between(&state.plan, None)),
            Fault::KillSpeaker { node } => self.signal_speaker(&node, Signal::SIGKILL),
            Fault::StopSpeaker { node } => self.signal_speaker(&node, Signal::SIGSTOP),
            Fault::ContSpeaker { node } => self.signal_speaker(&node, Signal::SIGCONT),
            Fault::DeleteSpeakerPod { node } => self.delete_speaker_pod(&node),
            Fault::ApiStop { server } => self.each_api_server(server.as_deref(), control_plane::stop_api_server),
            Fault::ApiStart { server } => self.each_api_server(server.as_deref(), |state, role| {
                control_plane::stop_api_server(state, role)?;
                control_plane::start_api_server(state, role)
            }),
            Fault::ApiCut { node } => self.set_api(&node, false),
            Fault::ApiHeal { node } => self.set_api(&node, true),
            Fault::KillAllSpeakers => self.kill_all_speakers(),
            Fault::DeleteAllSpeakerPods => self.delete_speaker_pods(|_| true),
            Fault::KubeProxyStop { node } => self.on_powered(&node, |state| kube_proxy::stop(state, &node)),
            Fault::KubeProxyStart { node } => self.on_powered(&node, |state| kube_proxy::start(state, &node)),
            Fault::KubeProxyMode { node, mode } => {
                self.on_powered(&node, |state| kube_proxy::set_mode(state, &node, mode))
            }
            Fault::KubeProxyFlush { node } => self.on_powered(&node, |state| kube_proxy::flush(state, &node)),
            Fault::NftDelete { node } => self.nft(&node, "delete table ip sheave"),
            Fault::HoldNft { node, seconds } => {
                let hold = NftHold::begin(self, &node)?;
                sleep(Duration::from_secs(seconds));
                hold.end().map(drop)
            }
            Fault::RefuseNft { node, seconds } => {
                let refusal = NftRefusal::begin(self, &node)?;
                sleep(Duration::from_secs(seconds));
                refusal.end()
            }
            Fault::FillDisk { node } => self.on_powered(&node, |state| disk::fill(state, &node)),
            Fault::FreeDisk { node } => self.on_powered(&node, |state| disk::free(state, &node)),
            Fault::ProbesFail { node } => self.nft(&node, &refuse_probes()),
            Fault::ProbesPass { node } => self.nft(&node, &format!("delete table ip {PROBES}")),
            Fault::XdpDetach { node } => pinned::detach(&self.xdp_pin(&node)?),
            Fault::XdpUnpin { node } => {
                let pin = self.xdp_pin(&node)?;
                fs::remove_file(&pin).with_context(|| pin.display().to_string())
            }
            Fault::Exclude { node } => self.kubectl(&["label", "node", &node, EXCLUDED, "--overwrite"]).map(drop),
            Fault::Include { node } => {
                let label = EXCLUDED.trim_end_matches('=');
                self.kubectl(&["label", "node", &node, &format!("{label}-")]).map(drop)
            }
            Fault::Drain { node } => self.kubectl(&[&["drain", &node], &DRAIN_FLAGS[..]].concat()).map(drop),
            Fault::Uncordon { node } => self.kubectl(&["uncordon", &node]).map(drop),
            Fault::DeleteNode { node } => self.kubectl(&["delete", "node", &node]).map(drop),
            Fault::RestartKubelet { node } => self.on_powered(&node, |state| kubelet::restart(state, &node)),
        }
    }

    /// Whether the speaker's XDP program is attached to the node's uplink, from the kernel.
    pub fn xdp_attached(&self, node: &str) -> Result<bool> {
        pinned::attached(&self.xdp_pin(node)?)
    }

    /// Whether the node has Sheave's nftables table.
    pub fn nft_table(&self, node: &str) -> Result<bool> {
        let netns = self.powered(node)?.plan.netns(node);
        // The list of tables is short; that of the table itself is long, and its absence an error.
        let tables = netns::inside(&netns, || netns::run("nft", &["list tables ip"]))?;
        Ok(tables.lines().any(|line| line.trim() == "table ip sheave"))
    }

    pub fn kube_proxy_runs(&self, node: &str) -> Result<bool> {
        Ok(kube_proxy::process_of(&self.powered(node)?, node)?.is_some())
    }

    /// The mode in which the node's kube-proxy is, or starts.
    pub fn kube_proxy_mode(&self, node: &str) -> Result<ProxyMode> {
        kube_proxy::mode_of(&self.state()?.plan, node)
    }

    /// The process of the node's speaker, or `None` while it has none: the DaemonSet's, also beside a host speaker.
    pub fn speaker(&self, node: &str) -> Result<Option<Recorded>> {
        let state = self.powered(node)?;
        service::process_in_pod(&state, node, SPEAKER)
    }

    /// Commands of nft(8) on a node.
    fn nft(&self, node: &str, commands: &str) -> Result<()> {
        let netns = self.powered(node)?.plan.netns(node);
        netns::inside(&netns, || netns::run("nft", &[commands]).map(drop))
    }

    fn signal_speaker(&self, node: &str, signal: Signal) -> Result<()> {
        match self.speaker(node)? {
            Some(speaker) => speaker.signal(signal),
            None => bail!("node {node} runs no process {SPEAKER}"),
        }
    }

    /// All are found before the first is killed.
    fn kill_all_speakers(&self) -> Result<()> {
        let state = self.state()?;
        let found = state.nodes.keys().map(|node| self.speaker(node)).collect::<Result<Vec<_>>>()?;
        found.into_iter().flatten().try_for_each(|speaker| speaker.signal(Signal::SIGKILL))
    }

    fn delete_speaker_pod(&self, node: &str) -> Result<()> {
        self.powered(node)?;
        self.delete_speaker_pods(|pod| pod["spec"]["nodeName"] == node).with_context(|| format!("node {node}"))
    }

    fn delete_speaker_pods(&self, chosen: impl Fn(&serde_json::Value) -> bool) -> Result<()> {
        let list = self.kubectl(&["get", "pods", "--all-namespaces", "-o", "json"])?;
        let list: serde_json::Value = serde_json::from_str(&list)?;
        let pods = list["items"].as_array().context("a list of pods")?;
        let runs_speaker = |pod: &&serde_json::Value| {
            let containers = pod["spec"]["containers"].as_array();
            containers
                .is_some_and(|all| all.iter().any(|one| one["image"].as_str().is_some_and(|i| i.contains(SPEAKER))))
        };
        let text = |pod: &serde_json::Value, field: &str| pod["metadata"][field].as_str().map(str::to_owned);
        let found: Vec<_> = pods.iter().filter(runs_speaker).filter(|pod| chosen(pod)).collect();
        let Some(namespace) = found.first().and_then(|pod| text(pod, "namespace")) else {
            bail!("there is no pod with an image {SPEAKER}")
        };
        let names: Vec<_> = found.iter().filter_map(|pod| text(pod, "name")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        self.kubectl(&[&["--namespace", &namespace, "delete", "pod", "--wait=true"], &names[..]].concat()).map(drop)
    }

    fn xdp_pin(&self, node: &str) -> Result<std::path::PathBuf> {
        self.powered(node)?.nodes.get(node).map(pinned::link).with_context(|| format!("node {node}"))
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

    /// At the switch: the node needs no power for it, and its power ends no cut.
    fn set_api(&self, node: &str, reachable: bool) -> Result<()> {
        self.change(|state| {
            state.plan.node_number(node)?;
            topology::set_api(&state.plan, node, reachable)
        })
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
    let node = node::power_on(state, name)?;
    state.nodes.insert(name.to_owned(), node);
    // It may have lost power with another address.
    topology::way_to_pods(state, name)
}

/// The MAC address of a node's uplink, as tests see it in ARP answers.
pub fn uplink_mac(netns: &str) -> Result<String> {
    // sysfs shows the devices of the namespace that mounted it, so this uses netlink.
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

/// What the node itself begins: kubelet runs in the node's network namespace.
fn refuse_probes() -> String {
    format!(
        "add table ip {PROBES}; add chain ip {PROBES} output {{ type filter hook output priority 0; }}; \
         add rule ip {PROBES} output ip daddr {POD_RANGE} tcp flags & (syn | ack) == syn reject with tcp reset"
    )
}

const SPEAKER: &str = "sheave-speaker";
const PROBES: &str = "lab-probes";
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers=";
/// What stands in the way of a drain without being lost by it: pods that come back on the node, and volumes of no worth.
const DRAIN_FLAGS: [&str; 4] = ["--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=60s"];
