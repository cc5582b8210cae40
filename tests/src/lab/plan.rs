//! What a lab looks like before anything exists: names of namespaces and devices, addresses, folders.
//!
//! Every name follows from the lab's own name, so that `down` can clean up after a crash with nothing but that name.
//! The addresses may be the same in two labs: each lives in network namespaces of its own. Labs to be joined differ in their first nodes.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use sheave_endpoint::preset::Preset;

/// What the caller of [`super::Lab::up`] chooses.
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// Lower-case letters and digits, at most 12: it becomes part of namespace and cgroup names.
    pub name: String,
    /// None: the control plane alone.
    pub nodes: u8,
    /// The number of the first node. 1: the addresses of the module's constants. More: a lab that shares no address, no name of a node and
    /// no pod range with a lab of the nodes before, so that both can be joined ([`super::Lab::join`]).
    pub first_node: u8,
    pub proxy_mode: ProxyMode,
    /// API servers on one etcd, each in a namespace of its own.
    pub api_servers: u8,
    /// Install Sheave from `manifests/overlays/lab` and wait until it is rolled out.
    pub sheave: bool,
    /// The API server gives Services ClusterIPs of IPv6 as well. Nodes and pods have IPv4 only.
    pub dual_stack: bool,
    /// The address of the cluster's DNS, where pods ask for names; the lab itself runs none.
    pub dns: Option<Ipv4Addr>,
    /// The API servers stand on the nodes, each with an etcd member, behind an address that the nodes serve themselves. Nothing of it is
    /// started: see [`super::ha`].
    pub endpoint: Option<Endpoint>,
    /// Called with the seconds since the start and what happens now; [`to_stderr`] or [`quiet`] fit most callers.
    pub progress: fn(f64, &str),
}

impl Default for LabConfig {
    fn default() -> Self {
        Self {
            name: "lab".to_owned(),
            nodes: 3,
            first_node: 1,
            proxy_mode: ProxyMode::Nftables,
            api_servers: 1,
            sheave: true,
            dual_stack: false,
            dns: None,
            endpoint: None,
            progress: to_stderr,
        }
    }
}

/// One address in front of the API servers on the nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub address: Ipv4Addr,
    pub balancer: Balancer,
}

/// What answers for the endpoint's address, on the nodes themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Balancer {
    /// The program `sheave-speaker`, from the files that `sheave endpoint init` writes for this distribution.
    Sheave(PathBuf, Distribution),
    /// keepalived and HAProxy, as a distribution's documentation sets them up.
    KeepalivedHaproxy(Guide),
}

/// Whose documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Guide {
    Kubeadm,
    K3s,
}

/// What `--preset` of `sheave endpoint init` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    Kubeadm,
    K3s,
    Rke2,
    K0s,
    #[value(name = "microk8s")]
    MicroK8s,
}

impl Distribution {
    pub fn preset(self) -> Preset {
        match self {
            Self::Kubeadm => Preset::Kubeadm,
            Self::K3s => Preset::K3s,
            Self::Rke2 => Preset::Rke2,
            Self::K0s => Preset::K0s,
            Self::MicroK8s => Preset::MicroK8s,
        }
    }

    /// Whether its API servers answer nobody whom they do not know: k3s and RKE2 say 401 to `/readyz` without a client's certificate.
    pub fn is_anonymous_refused(self) -> bool {
        matches!(self, Self::K3s | Self::Rke2)
    }
}

impl Endpoint {
    /// HAProxy cannot have the port of the API server beside it.
    pub fn port(&self) -> u16 {
        match self.balancer {
            Balancer::Sheave(..) => self.api_port(),
            Balancer::KeepalivedHaproxy(_) => HAPROXY_PORT,
        }
    }

    /// What the distribution serves beside the API.
    pub fn further_ports(&self) -> Vec<u16> {
        let Balancer::Sheave(_, distribution) = self.balancer else { return Vec::new() };
        distribution.preset().distribution().ports.iter().skip(1).map(|(port, _)| *port).collect()
    }

    /// Of the API servers.
    pub fn api_port(&self) -> u16 {
        let of_preset = match self.balancer {
            Balancer::Sheave(_, distribution) => distribution.preset().distribution().ports.first(),
            Balancer::KeepalivedHaproxy(_) => None,
        };
        of_preset.map_or(API_PORT, |(port, _)| *port)
    }
}

/// Progress as lines on stderr, for commands.
pub fn to_stderr(seconds: f64, what: &str) {
    eprintln!("[{seconds:5.1}s] {what}");
}

/// No progress, for tests.
pub fn quiet(_: f64, _: &str) {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ProxyMode {
    Nftables,
    Iptables,
}

impl std::fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

/// The part of the configuration that outlives `up`: it is recorded with the lab's state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub name: String,
    pub nodes: u8,
    #[serde(default = "first")]
    pub first_node: u8,
    pub api_servers: u8,
    pub proxy_mode: ProxyMode,
    #[serde(default)]
    pub dual_stack: bool,
    pub dns: Option<Ipv4Addr>,
    pub endpoint: Option<Endpoint>,
}

impl Plan {
    pub fn new(config: &LabConfig) -> Result<Self> {
        check_name(&config.name)?;
        if config.nodes > MAX_NODES {
            bail!("nodes: {} is not between 0 and {MAX_NODES}", config.nodes);
        }
        if config.first_node == 0 || config.first_node > MAX_NODES + 1 - config.nodes.max(1) {
            bail!("first-node: {} leaves no numbers for {} nodes up to {MAX_NODES}", config.first_node, config.nodes);
        }
        if config.nodes == 0 && config.sheave {
            bail!("nodes: 0 leaves Sheave nowhere to run; start the lab without it, or with 1 to {MAX_NODES} nodes");
        }
        if !(1..=MAX_API_SERVERS).contains(&config.api_servers) {
            bail!("api-servers: {} is not between 1 and {MAX_API_SERVERS}", config.api_servers);
        }
        if config.endpoint.is_some() && (config.nodes == 0 || config.sheave) {
            bail!(
                "endpoint: the API servers stand on nodes (there are {}), and Sheave is installed later",
                config.nodes
            );
        }
        Ok(Self {
            name: config.name.clone(),
            nodes: config.nodes,
            first_node: config.first_node,
            api_servers: config.api_servers,
            dual_stack: config.dual_stack,
            proxy_mode: config.proxy_mode,
            dns: config.dns,
            endpoint: config.endpoint.clone(),
        })
    }

    pub fn node_numbers(&self) -> Range<u8> {
        self.first_node..self.first_node + self.nodes
    }

    pub fn node_names(&self) -> Vec<String> {
        self.node_numbers().map(node_name).collect()
    }

    /// Of what is no node: the address that the constants give, or one of the same order for a lab beside.
    pub fn own_address(&self, usual: Ipv4Addr) -> Ipv4Addr {
        let [.., last] = usual.octets();
        if self.first_node == 1 { usual } else { address(BESIDE + last) }
    }

    /// The number of a node, or an error that names the valid ones.
    pub fn node_number(&self, name: &str) -> Result<u8> {
        match self.node_numbers().find(|number| node_name(*number) == name) {
            Some(number) => Ok(number),
            None => {
                bail!("node: there is no {name:?} in lab {:?}; its nodes: {}", self.name, self.node_names().join(", "))
            }
        }
    }

    /// Of a node's uplink: see [`mac_of`]. The first byte may change.
    pub fn node_of_mac(&self, mac: &[u8; 6]) -> Option<String> {
        let node = |number: &u8| mac_of(node_address(*number))[1..] == mac[1..];
        self.node_numbers().find(node).map(node_name)
    }

    pub fn netns(&self, role: &str) -> String {
        format!("{}{role}", netns_prefix(&self.name))
    }

    /// Where the API servers are: on the nodes, or in namespaces of their own.
    pub fn control_plane(&self) -> Vec<(String, Ipv4Addr)> {
        match self.endpoint {
            Some(_) => self.node_numbers().map(|number| (node_name(number), node_address(number))).collect(),
            None => self.control_plane_alone(),
        }
    }

    /// Where the cluster's parts find an API server.
    pub fn api(&self) -> SocketAddrV4 {
        match &self.endpoint {
            Some(endpoint) => SocketAddrV4::new(endpoint.address, endpoint.port()),
            None => SocketAddrV4::new(self.control_plane()[0].1, API_PORT),
        }
    }

    /// Namespaces of API servers alone: the first is `cp` and holds etcd and the controllers too.
    pub fn control_plane_alone(&self) -> Vec<(String, Ipv4Addr)> {
        if self.endpoint.is_some() {
            return Vec::new();
        }
        (1..=self.api_servers)
            .map(|number| match number {
                1 => ("cp".to_owned(), self.own_address(address(2))),
                _ => (format!("cp{number}"), self.own_address(address(4 + number))),
            })
            .collect()
    }

    pub fn dir(&self) -> PathBuf {
        lab_dir(&self.name)
    }

    pub fn node_dir(&self, node: &str) -> PathBuf {
        self.dir().join(node)
    }

    pub fn log(&self, what: &str) -> PathBuf {
        self.dir().join("logs").join(format!("{what}.log"))
    }
}

/// An address of the segment by its last number.
pub const fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 77, last)
}

pub const fn node_address(number: u8) -> Ipv4Addr {
    address(10 + number)
}

/// A network card has the same address after a loss of power: it is made of the IP address that the plan gives.
pub const fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [2, 0, a, b, c, d]
}

pub fn node_name(number: u8) -> String {
    format!("node{number}")
}

pub fn pod_range(number: u8) -> String {
    format!("10.244.{number}.0/24")
}

/// The switch's port for a namespace.
pub fn port(role: &str) -> String {
    format!("p-{role}")
}

pub fn netns_prefix(lab: &str) -> String {
    format!("sheave-{lab}-")
}

pub fn lab_dir(lab: &str) -> PathBuf {
    Path::new(LABS).join(lab)
}

/// Folders are kept below /run: they describe what runs, and that is gone after a reboot too.
pub fn check_name(name: &str) -> Result<()> {
    let fits = (1..=12).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !fits {
        bail!("name: {name:?} is not 1 to 12 lower-case letters and digits");
    }
    Ok(())
}

/// The repository this was built from (`SHEAVE_REPO` overrides), where binaries, images and manifests are found.
pub fn repository() -> PathBuf {
    match std::env::var_os("SHEAVE_REPO") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned(),
    }
}

/// Where the Kubernetes parts are: built by tests/kubernetes/build.sh, or `SHEAVE_KUBERNETES_BIN`.
pub fn kubernetes_bin() -> PathBuf {
    match std::env::var_os("SHEAVE_KUBERNETES_BIN") {
        Some(path) => PathBuf::from(path),
        None => repository().join("target/kubernetes"),
    }
}

pub const LABS: &str = "/run/sheave-lab";
pub const UPLINK: &str = "eth0";
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The second one of a cluster with both families.
pub const SERVICE_RANGE_V6: &str = "fd00:10:96::/112";
pub const POD_RANGE: &str = "10.244.0.0/16";
/// The first address of the service range: what `kubernetes.default` has.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
pub const API_PORT: u16 = 6443;
const HAPROXY_PORT: u16 = 8443;
pub const ROUTER: Ipv4Addr = address(3);
pub const CLIENT: Ipv4Addr = address(5);
pub const ROUTER_FAR_SIDE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub const FAR_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// What pools of the demo and the tests may hand out.
pub const POOL: (Ipv4Addr, Ipv4Addr) = (address(200), address(220));
/// In front of API servers on the nodes ([`Endpoint`]).
pub const ENDPOINT: Ipv4Addr = address(100);
const MAX_NODES: u8 = 20;
/// What is no node has addresses up to 9, and nodes from 11 on; of a lab beside it has them from here on, behind the last node.
const BESIDE: u8 = 30;
const MAX_API_SERVERS: u8 = 3;

/// Of labs that were recorded without it.
const fn first() -> u8 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_nodes_are_answered_with_the_valid_ones() {
        let plan = Plan::new(&LabConfig::default()).unwrap();
        assert_eq!(plan.node_number("node3").unwrap(), 3);
        let message = plan.node_number("node9").unwrap_err().to_string();
        assert!(message.contains("node1, node2, node3"), "{message}");
    }

    #[test]
    fn labs_to_be_joined_have_nothing_alike() {
        let one = Plan::new(&LabConfig { nodes: 2, ..LabConfig::default() }).unwrap();
        let other = Plan::new(&LabConfig { nodes: 2, first_node: 3, api_servers: 3, ..LabConfig::default() }).unwrap();
        assert_eq!(other.node_names(), ["node3", "node4"]);
        assert_eq!(other.node_number("node4").unwrap(), 4);
        assert!(other.node_number("node1").is_err());
        let addresses = |plan: &Plan| {
            let nodes =
                plan.node_numbers().map(node_address).chain([ROUTER, CLIENT].map(|usual| plan.own_address(usual)));
            nodes.chain(plan.control_plane().into_iter().map(|(_, address)| address)).collect::<Vec<_>>()
        };
        let (one, other) = (addresses(&one), addresses(&other));
        assert!(one.iter().all(|address| !other.contains(address)), "{one:?} and {other:?}");
        for (nodes, first_node) in [(1, 0), (2, MAX_NODES), (0, MAX_NODES + 1)] {
            let config = LabConfig { nodes, first_node, sheave: false, ..LabConfig::default() };
            assert!(Plan::new(&config).unwrap_err().to_string().starts_with("first-node: "));
        }
    }

    #[test]
    fn behind_an_endpoint_the_api_servers_are_the_nodes() {
        let endpoint = Some(Endpoint {
            address: ENDPOINT,
            balancer: Balancer::Sheave("sheave-speaker".into(), Distribution::Kubeadm),
        });
        let config = LabConfig { endpoint, sheave: false, ..LabConfig::default() };
        let plan = Plan::new(&config).unwrap();
        let servers: Vec<_> = (1..=3).map(|number| (node_name(number), node_address(number))).collect();
        assert_eq!((plan.control_plane(), plan.control_plane_alone()), (servers, Vec::new()));
        assert_eq!(plan.api(), SocketAddrV4::new(ENDPOINT, 6443));
        let alone = Plan::new(&LabConfig::default()).unwrap();
        assert_eq!(
            (alone.control_plane(), alone.api()),
            (alone.control_plane_alone(), SocketAddrV4::new(address(2), 6443))
        );
        for config in [LabConfig { nodes: 0, ..config.clone() }, LabConfig { sheave: true, ..config }] {
            assert!(Plan::new(&config).unwrap_err().to_string().starts_with("endpoint: "));
        }
    }

    #[test]
    fn names_that_would_collide_are_refused() {
        for name in ["", "a-b", "Lab", "averylonglabname"] {
            assert!(Plan::new(&LabConfig { name: name.to_owned(), ..LabConfig::default() }).is_err(), "{name}");
        }
    }
}
