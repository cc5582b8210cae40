//! What is read of the host for the SpeakerState: kernel, uplink, service proxy, CNI. What cannot be read is left out and logged.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use sheave_api::speakerstate::most;
use sheave_api::{Listening, UplinkState};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::backend::accept_mark;
use crate::backend::service_proxy::{self, Mode};
use crate::backend::{Chain, ForeignChains};
use crate::health::Cause;
use crate::io::listening;
use crate::io::netlink::{Reader, UplinkDevice};

/// What was found; `None`: it could not be read, or there is nothing to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    pub kernel: Option<String>,
    pub uplink: Option<UplinkState>,
    pub service_proxy: Option<String>,
    /// By which kube-proxy in iptables mode accepts forwarded packets.
    pub accept_mark: Option<u32>,
    pub cni: Option<&'static str>,
    /// Chains of others that drop packets to pods unless a rule of theirs accepts them, and that we cannot overrule.
    pub dropping: Vec<String>,
    /// Ports on which something listens.
    pub listening: Option<Listening>,
}

/// Looks at the host.
pub struct Survey {
    /// Of the uplink; known from the first look on: the node's address may leave it.
    interface: Option<String>,
    node_ip: Ipv4Addr,
    reader: Option<Reader>,
    chains: ForeignChains,
    /// The chains that were logged.
    dropping: Vec<String>,
    /// UDP ports of the last look.
    udp: BTreeSet<u16>,
    /// What could not be read at the last look.
    failing: BTreeMap<&'static str, String>,
}

impl Survey {
    /// `interface`: the uplink, if it was named.
    pub fn new(interface: Option<String>, node_ip: Ipv4Addr) -> Self {
        Self {
            interface,
            node_ip,
            reader: None,
            chains: ForeignChains::default(),
            dropping: Vec::new(),
            udp: BTreeSet::new(),
            failing: BTreeMap::new(),
        }
    }

    pub async fn read(&mut self) -> HostFacts {
        let mut facts = HostFacts { kernel: kernel(), ..HostFacts::default() };
        let found = tokio::task::spawn_blocking(|| listening::read(Path::new(SOCKETS))).await;
        let found = found.context("the task ended").and_then(|found| found.context("read sockets"));
        facts.listening = self.note("sockets", found).and_then(|found| self.steady(found));
        let devices = timeout(PATIENCE, self.devices()).await.context("no answer in time").flatten();
        let Some((names, uplink)) = self.note("devices", devices) else { return facts };
        facts.cni = cni(&names);
        facts.uplink = uplink.map(uplink_state);
        let rules = self.rules(names).await;
        if let Some((modes, mark, dropping)) = self.note("rules", rules) {
            facts.accept_mark = mark;
            facts.service_proxy = Some(proxy(&modes));
            facts.dropping = dropping;
            self.note_dropping(&facts.dropping);
        }
        facts
    }

    /// kube-proxy's mode and mark, and the chains that drop. Netfilter's answers are waited for elsewhere than in the runtime.
    async fn rules(&mut self, devices: BTreeSet<String>) -> Result<(BTreeSet<Mode>, Option<u32>, Vec<String>)> {
        let mut chains = std::mem::take(&mut self.chains);
        let read = move || {
            let modes = service_proxy::modes(&devices, Path::new("/proc")).context("ask for kube-proxy's rules")?;
            let mark = accept_mark::read(Path::new("/proc")).context("ask for kube-proxy's mark")?;
            let dropping = chains.read().context("list chains")?;
            anyhow::Ok((chains, modes, mark, dropping))
        };
        let (chains, modes, mark, dropping) = tokio::task::spawn_blocking(read).await.context("the task ended")??;
        self.chains = chains;
        let dropping = dropping.iter().filter(|chain| !is_passed(chain, &modes, mark)).map(Chain::to_string).collect();
        Ok((modes, mark, dropping))
    }

    /// Clients bind UDP ports for a moment: of ephemeral ones those count that two looks have found.
    fn steady(&mut self, found: listening::Listening) -> Option<Listening> {
        let counts = |port: &u16| *port < EPHEMERAL || self.udp.contains(port);
        let udp: Vec<i32> = found.udp.iter().filter(|port| counts(port)).map(|port| i32::from(*port)).collect();
        let tcp: Vec<i32> = found.tcp.iter().map(|port| i32::from(*port)).collect();
        self.udp = found.udp;
        (tcp.len() <= most::PORTS && udp.len() <= most::PORTS).then_some(Listening { tcp, udp })
    }

    fn note_dropping(&mut self, dropping: &[String]) {
        if self.dropping == dropping {
            return;
        }
        self.dropping = dropping.to_vec();
        let name = Cause::ForwardPolicyDrop.label();
        match dropping {
            [] => info!("{name}: no chain of others drops packets to pods any more"),
            _ => warn!(chains = dropping.join("; "), "{name}: {}", Cause::ForwardPolicyDrop.meaning()),
        }
    }

    async fn devices(&mut self) -> Result<(BTreeSet<String>, Option<UplinkDevice>)> {
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => Reader::open()?,
        };
        let found = reader.devices(self.interface.as_deref(), self.node_ip).await?;
        // After a failure another connection is opened.
        self.reader = Some(reader);
        if let Some(uplink) = &found.uplink {
            self.interface = Some(uplink.name.clone());
        }
        Ok((found.names, found.uplink))
    }

    /// One log line when something cannot be read, and one when it can again.
    fn note<T>(&mut self, what: &'static str, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => {
                if self.failing.remove(what).is_some() {
                    info!(what, "host facts for the SpeakerState read again");
                }
                Some(value)
            }
            Err(error) => {
                let error = format!("{error:#}");
                if self.failing.get(what) != Some(&error) {
                    warn!(what, error, "host facts not read; left out of the SpeakerState, retrying");
                    self.failing.insert(what, error);
                }
                None
            }
        }
    }
}

fn kernel() -> Option<String> {
    let names = nix::sys::utsname::uname().ok()?;
    Some(names.release().to_string_lossy().chars().take(64).collect())
}

/// In iptables mode kube-proxy has the rule that accepts what we mark.
fn is_passed(chain: &Chain, modes: &BTreeSet<Mode>, mark: Option<u32>) -> bool {
    chain.is_iptables_forward() && modes.contains(&Mode::Iptables) && mark.is_some()
}

fn proxy(modes: &BTreeSet<Mode>) -> String {
    let names: Vec<&str> = modes.iter().map(|mode| mode.label()).collect();
    if names.is_empty() { NO_PROXY.to_owned() } else { names.join("+") }
}

fn uplink_state(device: UplinkDevice) -> UplinkState {
    let subnets = device.subnets.iter().map(|(network, length)| format!("{network}/{length}"));
    UplinkState {
        name: device.name,
        mac: device.mac.map(|mac| mac.to_string()),
        mtu: device.mtu.map(i64::from),
        addresses: device.addresses.iter().take(most::ENTRIES).map(Ipv4Addr::to_string).collect(),
        subnets: subnets.take(most::ENTRIES).collect(),
        gateways: device.gateways.iter().take(most::ENTRIES).map(Ipv4Addr::to_string).collect(),
    }
}

/// By the first device that only this CNI makes. Those that use another one's devices too come before it: Canal has Calico's and Flannel's.
fn cni(devices: &BTreeSet<String>) -> Option<&'static str> {
    let has = |start: &str| devices.iter().any(|name| name.starts_with(start));
    DEVICES.iter().find(|(start, _)| has(start)).map(|(_, cni)| *cni)
}

/// How the names of devices begin.
const DEVICES: [(&str, &str); 9] = [
    ("cilium_", "cilium"),
    ("vxlan.calico", "calico"),
    ("cali", "calico"),
    ("antrea-gw", "antrea"),
    ("ovn-k8s-mp", "ovn-kubernetes"),
    ("kube-bridge", "kube-router"),
    ("flannel", "flannel"),
    ("weave", "weave"),
    ("cni0", "bridge"),
];
const SOCKETS: &str = "/proc/self/net";
/// The first of the ports that kernels give to clients (net.ipv4.ip_local_port_range), as they ship.
const EPHEMERAL: u16 = 32_768;
const PATIENCE: Duration = Duration::from_secs(5);
/// [`HostFacts::service_proxy`] of a node without kube-proxy.
pub const NO_PROXY: &str = "none";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::tests::{in_namespace, ip};

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_cni_is_known_by_its_devices_or_not_at_all() {
        assert_eq!(cni(&names(&["lo", "eth0", "vethe1b2"])), None);
        assert_eq!(cni(&names(&["lo", "cni0", "flannel.1"])), Some("flannel"));
        assert_eq!(cni(&names(&["cali0123456789a", "flannel.1"])), Some("calico"));
        assert_eq!(cni(&names(&["cilium_host", "cilium_net", "lxc1"])), Some("cilium"));
    }

    #[test]
    fn modes_are_one_word() {
        assert_eq!(proxy(&BTreeSet::new()), "none");
        assert_eq!(proxy(&BTreeSet::from([Mode::Ipvs])), "ipvs");
        assert_eq!(proxy(&BTreeSet::from([Mode::Iptables, Mode::Nftables])), "nftables+iptables");
    }

    #[test]
    fn iptables_forward_is_passed_where_kube_proxy_accepts_our_mark() {
        let forward = Chain {
            family: "ip",
            table: "filter".into(),
            name: "FORWARD".into(),
            handle: Some(4),
            hook: "forward",
            priority: 0,
        };
        let mark = Some(0x20);
        assert!(is_passed(&forward, &BTreeSet::from([Mode::Iptables]), mark));
        assert!(!is_passed(&forward, &BTreeSet::from([Mode::Iptables]), None), "which mark is not known");
        assert!(!is_passed(&forward, &BTreeSet::from([Mode::Nftables]), mark));
        let legacy = Chain { handle: None, ..forward.clone() };
        assert!(
            !is_passed(&legacy, &BTreeSet::from([Mode::Iptables]), mark),
            "named only where kube-proxy is not in it"
        );
        let other = Chain { table: "somebody".into(), ..forward };
        assert!(!is_passed(&other, &BTreeSet::from([Mode::Iptables]), mark));
    }

    /// The node's address goes to another device, as with DHCP; the uplink stays.
    #[test]
    fn the_uplink_stays_when_the_address_of_the_start_leaves_it() {
        in_namespace(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut survey = Survey::new(None, Ipv4Addr::new(192, 0, 2, 1));
                let facts = survey.read().await;
                let uplink = facts.uplink.expect("it carries the node's address");
                assert_eq!((uplink.name.as_str(), uplink.subnets), ("node", vec!["192.0.2.0/24".to_owned()]));
                assert_eq!(facts.service_proxy.as_deref(), Some("none"));
                ip("addr del 192.0.2.1/24 dev node\naddr add 198.51.100.1/24 dev node\n");
                let uplink = survey.read().await.uplink.expect("still");
                assert_eq!(uplink.subnets, ["198.51.100.0/24"]);
            });
        });
    }
}
