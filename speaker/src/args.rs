//! Flags and environment into typed configuration. Nothing else in the speaker reads either.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use sheave_endpoint::Endpoint;

/// Owns, announces and forwards VIPs of Kubernetes Services on this node.
#[derive(Parser, Debug)]
#[command(name = "sheave-speaker", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// How log lines look.
    #[arg(long, global = true, env = "SHEAVE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// What is logged: a tracing filter such as `info` or `sheave_speaker=debug`. The Kubernetes client's own errors are left out
    /// by default: each watch logs once that it fails and once that it works again.
    #[arg(long, global = true, env = "SHEAVE_LOG", default_value = "info,kube_client=off")]
    pub log: String,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run until SIGTERM; then hand over what this node owns and leave the packet path in place.
    Run(RunArgs),
    /// The API server endpoint: own, announce and forward the addresses of a file, without Kubernetes, until SIGTERM.
    Endpoint(EndpointArgs),
    /// Remove everything the speaker left on this node: XDP link, pinned maps, nftables table, changed sysctls. Those of a host speaker
    /// (`endpoint`) stay, unless they are asked for.
    Uninstall(UninstallArgs),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Json,
    Text,
}

/// The answer to a UDP client of an unserved port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UdpUnserved {
    /// ICMP port unreachable (RFC 1122 section 3.2.2.1).
    Unreachable,
    /// Nothing.
    Silent,
}

#[derive(ClapArgs, Debug, Clone)]
pub struct PathArgs {
    /// Directory on a BPF file system for pinned maps and the XDP link.
    #[arg(long, default_value = "/sys/fs/bpf/sheave")]
    pub pin_dir: PathBuf,
    /// Directory that outlives the pod: keys, last known state, boot epoch, original sysctls.
    #[arg(long, default_value = "/var/lib/sheave")]
    pub state_dir: PathBuf,
    /// A Unix socket that root alone can open: what must work without an API server (`sheave drain --local`).
    #[arg(long, default_value = sheave_api::local::SOCKET)]
    pub local_socket: PathBuf,
    /// Where the node's `/proc/sys/net` is writable.
    #[arg(long, default_value = "/host/proc/sys/net")]
    pub sysctl_dir: PathBuf,
    /// The nft program.
    #[arg(long, default_value = "nft")]
    pub nft: PathBuf,
}

#[derive(ClapArgs, Debug, Clone)]
pub struct UninstallArgs {
    #[command(flatten)]
    pub paths: PathArgs,
    /// Stay until SIGTERM when all is removed: for a DaemonSet, which starts a program that ends again.
    #[arg(long)]
    pub stay: bool,
    /// Remove nothing; succeed only if nothing is left.
    #[arg(long, conflicts_with = "stay")]
    pub check: bool,
    /// Also what a host speaker (`endpoint`) left: from then on the DaemonSet serves this node. Refused while it runs.
    #[arg(long)]
    pub host_speaker: bool,
}

/// What is not here is in the file.
#[derive(ClapArgs, Debug, Clone)]
pub struct EndpointArgs {
    /// The file of the endpoint (endpoint/example.yaml), readable by its owner alone.
    #[arg(long)]
    pub config: PathBuf,
    /// Directory on a BPF file system for pinned maps and the XDP link.
    #[arg(long, default_value = "/sys/fs/bpf/sheave")]
    pub pin_dir: PathBuf,
    /// Directory for the last known state, boot epoch, original sysctls. Where it cannot be written the speaker works without.
    #[arg(long, default_value = "/var/lib/sheave-endpoint")]
    pub state_dir: PathBuf,
    /// A Unix socket that root alone can open (`sheave endpoint status`, `events`, `drain`).
    #[arg(long, default_value = sheave_endpoint::local::SOCKET)]
    pub local_socket: PathBuf,
    /// Where the node's `/proc/sys/net` is writable.
    #[arg(long, default_value = "/proc/sys/net")]
    pub sysctl_dir: PathBuf,
    /// The nft program.
    #[arg(long, default_value = "nft")]
    pub nft: PathBuf,
    /// Where /livez and /readyz are served, to everybody.
    #[arg(long, default_value = "127.0.0.1:7486")]
    pub probe_listen: SocketAddr,
    /// Where /metrics is served: on the loopback, since there is no API server to say who else may read them.
    #[arg(long, default_value = "127.0.0.1:7487", value_parser = loopback)]
    pub metrics_listen: SocketAddr,
    /// Where the status page is served, to everybody who reaches it: /, /status.json, /events.json. They change nothing.
    #[arg(long, default_value = "127.0.0.1:7488")]
    pub status_listen: SocketAddr,
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|error| format!("{error}; an address and port such as 127.0.0.1:7487"))?;
    if address.ip().is_loopback() { Ok(address) } else { Err("an address of the loopback, such as 127.0.0.1".into()) }
}

impl EndpointArgs {
    /// As the flags of a speaker, together with the file.
    pub fn run_args(self, node_name: String, node_ip: Ipv4Addr, interface: String, endpoint: &Endpoint) -> RunArgs {
        let Self {
            config: _,
            status_listen: _,
            pin_dir,
            state_dir,
            local_socket,
            sysctl_dir,
            nft,
            probe_listen,
            metrics_listen,
        } = self;
        let Endpoint { timing, group, .. } = endpoint;
        RunArgs {
            paths: PathArgs { pin_dir, state_dir, local_socket, sysctl_dir, nft },
            node_name,
            node_ip,
            interface: Some(interface),
            namespace: String::new(),
            heartbeat_group: group.address,
            heartbeat_port: group.heartbeat_port,
            report_port: group.report_port,
            drain_window_s: 86_400,
            heartbeat_interval_ms: u64::try_from(timing.interval.as_millis()).unwrap_or(u64::MAX),
            dead_intervals: timing.dead_intervals(),
            probe_listen,
            metrics_listen,
            udp_unserved: UdpUnserved::Unreachable,
            handover_timeout_ms: 2000,
            return_window_ms: 0,
        }
    }
}

#[derive(ClapArgs, Debug, Clone)]
pub struct RunArgs {
    #[command(flatten)]
    pub paths: PathArgs,
    /// Name of the Kubernetes Node this speaker runs on.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// The node's address on the segment.
    #[arg(long, env = "NODE_IP")]
    pub node_ip: Ipv4Addr,
    /// The uplink; default: the interface that carries the node's address.
    #[arg(long)]
    pub interface: Option<String>,
    /// Namespace of the Secret `sheave-keys`.
    #[arg(long, env = "POD_NAMESPACE", default_value = "sheave-system")]
    pub namespace: String,
    /// Group of the heartbeats. Link-local scope, so that no router forwards and no switch prunes it.
    #[arg(long, default_value = "224.0.0.254")]
    pub heartbeat_group: Ipv4Addr,
    #[arg(long, default_value_t = 7480, value_parser = clap::value_parser!(u16).range(1..))]
    pub heartbeat_port: u16,
    /// Port of the same group for flow reports between nodes. `--holdings-port` is the name of earlier versions.
    #[arg(long, alias = "holdings-port", default_value_t = 7481, value_parser = clap::value_parser!(u16).range(1..))]
    pub report_port: u16,
    /// Drain window in seconds: for so long a node that has lost a row reports that it has flows there.
    #[arg(long, default_value_t = 86_400, value_parser = clap::value_parser!(u64).range(60..=31_536_000))]
    pub drain_window_s: u64,
    /// Milliseconds between two heartbeats of a node.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(10..=1000))]
    pub heartbeat_interval_ms: u64,
    /// Intervals without a heartbeat after which a speaker counts as dead.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=10))]
    pub dead_intervals: u32,
    /// Where /livez and /readyz are served, to everybody: the kubelet of this node has no token.
    #[arg(long, default_value = "127.0.0.1:7482")]
    pub probe_listen: SocketAddr,
    /// Where /metrics is served. On the loopback to everybody; on any other address over TLS, to those whom the API server lets get the
    /// nonResourceURL /metrics.
    #[arg(long, default_value = "127.0.0.1:7483")]
    pub metrics_listen: SocketAddr,
    #[arg(long, value_enum, default_value_t = UdpUnserved::Unreachable)]
    pub udp_unserved: UdpUnserved,
    /// How long a stopping speaker waits for others to take its VIPs.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(0..=30_000))]
    pub handover_timeout_ms: u64,
    /// How long TCP connections to pods of a lost node wait for its return, before they are reset. Where nodes are virtual machines that move
    /// between hosts, or links flap: 2500. Set it on all nodes alike. 0: they are reset at once, so that clients of a dead node know.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=30_000))]
    pub return_window_ms: u64,
}

impl RunArgs {
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.heartbeat_interval_ms)
    }

    /// For so long a node may be silent before the rotation of keys counts it as gone.
    pub fn dead(&self) -> Duration {
        self.interval() * (self.dead_intervals + 1)
    }

    pub fn drain_window(&self) -> Duration {
        Duration::from_secs(self.drain_window_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_port_keeps_its_earlier_flag() {
        for flag in ["--report-port", "--holdings-port"] {
            let line = ["speaker", "run", "--node-name", "a", "--node-ip", "192.0.2.1", flag, "9999"];
            match Cli::try_parse_from(line).map(|cli| cli.command) {
                Ok(Command::Run(args)) => assert_eq!(args.report_port, 9999, "{flag}"),
                other => panic!("{flag}: {other:?}"),
            }
        }
    }
}
