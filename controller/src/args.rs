//! Flags and environment, read once into typed configuration. Nothing else reads either.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use ipnet::IpNet;
use sheave_api::AddressMode;

use crate::probes;
use crate::whose::{Classless, Policy};

/// Gives Services of type LoadBalancer addresses from AddressPools.
#[derive(Debug, Parser)]
#[command(name = "sheave-controller", version, about)]
struct Args {
    /// Namespace that the Lease and the Secret with the speakers' keys live in.
    #[arg(long, env = "POD_NAMESPACE", default_value = "sheave-system")]
    namespace: String,

    /// Name of this replica, unique among them; the pod's name.
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,

    /// Where /livez and /readyz are served, to everybody: the kubelet has no token.
    #[arg(long, default_value = "0.0.0.0:7474")]
    probe_listen: SocketAddr,

    /// Where /metrics is served. On the loopback to everybody; on any other address over TLS, to those whom the API server lets get the
    /// nonResourceURL /metrics.
    #[arg(long, default_value = "127.0.0.1:7475")]
    metrics_listen: SocketAddr,

    /// Name of the Lease that the replicas compete for.
    #[arg(long, default_value = "sheave-controller")]
    lease_name: String,

    /// How long after the leader's last sign of life another replica takes over.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=300))]
    lease_seconds: u16,

    /// Values of spec.loadBalancerClass of Services that are served; repeated or separated by commas.
    #[arg(long, value_delimiter = ',', default_value = sheave_api::LOAD_BALANCER_CLASS, value_parser = class)]
    load_balancer_class: Vec<String>,

    /// Whether Services without a class are served: `auto` means unless another owner of them was detected.
    #[arg(long, value_enum, default_value_t = Classless::Auto)]
    classless_services: Classless,

    /// What Services have without annotation sheave.dev/address-mode that name neither a pool nor an address: an address from a `pool`, or
    /// their ports at the addresses of nodes (`node`), as with klipper-lb. Those that have an address from a pool keep it.
    #[arg(long, default_value = "pool", value_parser = address_mode)]
    address_mode: AddressMode,

    /// Ranges of ClusterIPs where the API server serves no ServiceCIDRs (Kubernetes before 1.33); repeated or separated by
    /// commas.
    #[arg(long, value_delimiter = ',')]
    service_cidr: Vec<IpNet>,

    /// After how long addresses next in line are probed again.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(5..=3600))]
    probe_seconds: u16,

    /// How long a Service waits for a speaker to probe its address; then it is granted unprobed.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u16).range(200..=5000))]
    probe_wait_ms: u16,

    /// Log filter, as in RUST_LOG.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log: String,

    /// How log lines look.
    #[arg(long, env = "SHEAVE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,

    /// How long a shutdown may take: writes under way are finished and the lead is given up.
    #[arg(long, default_value_t = 5)]
    drain_seconds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// The configuration of the rest of the program.
#[derive(Clone, Debug)]
pub struct Config {
    pub namespace: String,
    pub identity: String,
    pub probe_listen: SocketAddr,
    pub metrics_listen: SocketAddr,
    pub lease: LeaseConfig,
    pub policy: Policy,
    pub service_ranges: Vec<IpNet>,
    pub probing: probes::Config,
    pub log: LogConfig,
    pub drain: Duration,
}

/// Timing of the leadership; every span follows from one figure.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    pub name: String,
    /// How long others wait after the last change of the record.
    pub duration: Duration,
    /// How long after the *start* of its last renewal the leader may still start a write.
    pub write_until: Duration,
    /// How long a request of the leader may take; `write_until` and this stay below `duration`.
    pub request: Duration,
    /// Between renewals.
    pub renew: Duration,
}

#[derive(Clone, Debug)]
pub struct LogConfig {
    pub filter: String,
    pub format: LogFormat,
}

impl Config {
    /// Reads flags and environment; prints help or the mistake and exits if there is one.
    pub fn from_env() -> Config {
        Config::from_args(Args::parse())
    }

    fn from_args(args: Args) -> Config {
        let Args { namespace, identity, probe_listen, metrics_listen, lease_name, lease_seconds, .. } = args;
        let Args { load_balancer_class, classless_services, service_cidr, log, log_format, drain_seconds, .. } = args;
        let Args { probe_seconds, probe_wait_ms, address_mode, .. } = args;
        let duration = Duration::from_secs(lease_seconds.into());
        Config {
            namespace,
            identity: identity.unwrap_or_else(|| format!("process-{}", std::process::id())),
            probe_listen,
            metrics_listen,
            lease: LeaseConfig {
                name: lease_name,
                duration,
                write_until: duration * 6 / 10,
                request: duration * 3 / 10,
                renew: duration / 4,
            },
            policy: Policy { classes: load_balancer_class, classless: classless_services, address_mode },
            service_ranges: service_cidr,
            probing: probes::Config {
                again: Duration::from_secs(probe_seconds.into()),
                wait: Duration::from_millis(probe_wait_ms.into()),
            },
            log: LogConfig { filter: log, format: log_format },
            drain: Duration::from_secs(drain_seconds),
        }
    }
}

/// As the annotation has it.
fn address_mode(text: &str) -> Result<AddressMode, String> {
    sheave_api::address_mode::of(Some(text)).map_err(|_| format!("'{text}' is no mode; allowed are 'pool' and 'node'"))
}

/// As the API server admits it: a name, perhaps below a domain.
fn class(text: &str) -> Result<String, String> {
    let part = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let parts: Vec<&str> = text.split('/').collect();
    match parts.len() {
        1 | 2 if parts.iter().all(|text| part(text)) => Ok(text.to_string()),
        _ => Err(format!("'{text}' is no class; allowed is a name, perhaps below a domain: example.com/name")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn classes_and_ranges_are_lists() {
        let parse =
            |flags: &[&str]| Args::try_parse_from([&["sheave-controller"], flags].concat()).map(Config::from_args);
        assert_eq!(parse(&[]).unwrap().policy, Policy::default());
        let config = parse(&[
            "--load-balancer-class=sheave.dev/sheave,metallb.io/metallb",
            "--load-balancer-class",
            "plain",
            "--classless-services=never",
            "--address-mode=node",
            "--service-cidr=10.96.0.0/16",
        ]);
        let config = config.unwrap();
        assert_eq!(config.policy.classes, ["sheave.dev/sheave", "metallb.io/metallb", "plain"]);
        assert_eq!((config.policy.classless, config.service_ranges.len()), (Classless::Never, 1));
        assert_eq!(config.policy.address_mode, AddressMode::Node);
        for (flag, said) in [
            ("--load-balancer-class=a/b/c", "'a/b/c' is no class"),
            ("--load-balancer-class=a,", "'' is no class"),
            ("--service-cidr=10.96.0.0", "10.96.0.0"),
            ("--address-mode=nodes", "'nodes' is no mode; allowed are 'pool' and 'node'"),
            ("--classless-services=maybe", "[possible values: auto, always, never]"),
        ] {
            let error = parse(&[flag]).expect_err(flag).to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_leader_stops_before_another_may_start() {
        for seconds in ["2", "5", "300"] {
            let args = Args::parse_from(["sheave-controller", "--lease-seconds", seconds]);
            let lease = Config::from_args(args).lease;
            assert!(lease.write_until + lease.request < lease.duration, "{seconds}");
            assert!(lease.renew + lease.request < lease.write_until, "{seconds}: a renewal that succeeds is in time");
        }
    }
}
