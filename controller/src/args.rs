//! Flags and environment, read once into typed configuration. Nothing else reads either.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Parser, ValueEnum};

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

    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "SHEAVE_ADMIN_ADDRESS", default_value = "0.0.0.0:7474")]
    admin_address: SocketAddr,

    /// Name of the Lease that the replicas compete for.
    #[arg(long, default_value = "sheave-controller")]
    lease_name: String,

    /// How long after the leader's last sign of life another replica takes over.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=300))]
    lease_seconds: u16,

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
    pub admin_address: SocketAddr,
    pub lease: LeaseConfig,
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
        let Args { namespace, identity, admin_address, lease_name, lease_seconds, log, log_format, drain_seconds } =
            args;
        let duration = Duration::from_secs(lease_seconds.into());
        Config {
            namespace,
            identity: identity.unwrap_or_else(|| format!("process-{}", std::process::id())),
            admin_address,
            lease: LeaseConfig {
                name: lease_name,
                duration,
                write_until: duration * 6 / 10,
                request: duration * 3 / 10,
                renew: duration / 4,
            },
            log: LogConfig { filter: log, format: log_format },
            drain: Duration::from_secs(drain_seconds),
        }
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
    fn a_leader_stops_before_another_may_start() {
        for seconds in ["2", "5", "300"] {
            let args = Args::parse_from(["sheave-controller", "--lease-seconds", seconds]);
            let lease = Config::from_args(args).lease;
            assert!(lease.write_until + lease.request < lease.duration, "{seconds}");
            assert!(lease.renew + lease.request < lease.write_until, "{seconds}: a renewal that succeeds is in time");
        }
    }
}
