//! Pure: addresses that no Service is ever given, whoever asks: nodes, gateways, API servers, pods, ClusterIPs, and what a subnet keeps
//! for itself. A pool of the nodes' own subnet cannot take a machine off the network.
//!
//! Read: [`facts`] (what is read of the cluster's objects) → here (which of it guards what) → [`set`] (addresses with their reason).

pub mod facts;
pub mod set;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use sheave_api::Refusal;

use crate::cache::Cache;
use crate::family::number;
use crate::node_mode::{Host, Hosts};
use crate::probes::reach::Segments;
use crate::view::ServiceKey;
use crate::whose::Evidence;
use facts::Facts;
pub use set::GuardSet;

/// Where facts come from, each a watch of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Nodes,
    SpeakerStates,
    /// ServiceCIDRs; complete and empty where the API server does not serve them (before 1.33).
    ServiceRanges,
    /// The EndpointSlice of the API servers.
    ApiServers,
}

impl Source {
    pub const ALL: [Source; 4] = [Source::Nodes, Source::SpeakerStates, Source::ServiceRanges, Source::ApiServers];

    /// The objects, as the log and `/readyz` name them.
    pub const fn as_str(self) -> &'static str {
        match self {
            Source::Nodes => "Nodes",
            Source::SpeakerStates => "SpeakerStates",
            Source::ServiceRanges => "ServiceCIDRs",
            Source::ApiServers => "EndpointSlice kubernetes",
        }
    }
}

/// Something that a source has shown.
#[derive(Clone, Debug)]
pub enum Fact {
    Here { source: Source, name: String, uid: String, version: u64, facts: Facts },
    Gone { source: Source, name: String, version: u64 },
    Begin(Source),
    Complete(Source),
}

/// What is known without a watch, from flags and the configuration of the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    pub service_ranges: BTreeSet<IpNet>,
    pub api_servers: BTreeSet<IpAddr>,
}

/// All facts, by source and name.
#[derive(Debug, Default)]
pub struct Guards {
    fixed: Fixed,
    nodes: Cache<String, Facts>,
    speakers: Cache<String, Facts>,
    service_ranges: Cache<String, Facts>,
    api_servers: Cache<String, Facts>,
    cluster_ips: BTreeMap<IpAddr, ServiceKey>,
}

impl Guards {
    pub fn new(fixed: Fixed) -> Self {
        Guards { fixed, ..Guards::default() }
    }

    /// True if something is otherwise than it was known: a heartbeat is not.
    pub fn observe(&mut self, fact: Fact) -> bool {
        match fact {
            Fact::Here { source, name, uid, version, facts } => {
                let cache = self.cache(source);
                let same = cache.get(&name) == Some(&facts);
                cache.apply(name, &uid, version, facts) && !same
            }
            Fact::Gone { source, name, version } => self.cache(source).delete(&name, version),
            Fact::Begin(source) => {
                self.cache(source).begin();
                false
            }
            Fact::Complete(source) => {
                let first = !self.cache(source).is_synced();
                !self.cache(source).complete(0).is_empty() || first
            }
        }
    }

    /// The Service has these ClusterIPs. True if one of them is new, or gone, that no known range contains.
    pub fn set_cluster_ips(&mut self, service: &ServiceKey, before: &[IpAddr], now: &[IpAddr]) -> bool {
        if before == now {
            return false;
        }
        for address in before {
            if self.cluster_ips.get(address) == Some(service) {
                self.cluster_ips.remove(address);
            }
        }
        self.cluster_ips.extend(now.iter().map(|address| (*address, service.clone())));
        let ranges: Vec<IpNet> = self.service_networks().map(|(network, _)| network).collect();
        before.iter().chain(now).any(|address| !ranges.iter().any(|range| range.contains(address)))
    }

    /// Sources that have not been read in full.
    pub fn unread(&self) -> impl Iterator<Item = Source> {
        Source::ALL.into_iter().filter(move |source| !match source {
            Source::Nodes => self.nodes.is_synced(),
            Source::SpeakerStates => self.speakers.is_synced(),
            Source::ServiceRanges => self.service_ranges.is_synced(),
            Source::ApiServers => self.api_servers.is_synced(),
        })
    }

    /// What nodes say about who else serves Services.
    pub fn other_owners(&self) -> BTreeSet<Evidence> {
        self.nodes().flat_map(|(_, node)| node.owners.iter().copied()).collect()
    }

    /// All guarded addresses. `entries`: the spans of addresses of all pools.
    pub fn set(&self, entries: &[(u128, u128)]) -> GuardSet {
        let mut set = GuardSet::default();
        unusable(&mut set);
        for (name, node) in self.nodes() {
            node.addresses
                .iter()
                .for_each(|a| set.add_address(*a, Refusal::AddressOfNode, format!("an address of node {name}")));
        }
        for (name, speaker) in self.speakers() {
            let what = format!("an address of node {name} (SpeakerState)");
            speaker.addresses.iter().for_each(|a| set.add_address(*a, Refusal::AddressOfNode, what.as_str()));
        }
        for (name, speaker) in self.speakers() {
            let what = format!("a gateway of node {name}");
            speaker.gateways.iter().for_each(|a| set.add_address(*a, Refusal::AddressOfGateway, what.as_str()));
        }
        for address in self.api_server_addresses() {
            set.add_address(address, Refusal::AddressOfAPIServer, "an address of an API server");
        }
        for (name, node) in self.nodes() {
            let what = |range: &IpNet| format!("in {range}, the pod range of node {name}");
            node.pod_ranges.iter().for_each(|r| set.add_network(*r, Refusal::AddressInPodRange, what(r)));
        }
        for (range, name) in self.service_networks() {
            set.add_network(
                range,
                Refusal::AddressInServiceRange,
                format!("in {range}, a range of ClusterIPs ({name})"),
            );
        }
        for (address, service) in &self.cluster_ips {
            set.add_address(*address, Refusal::AddressInServiceRange, format!("the ClusterIP of Service {service}"));
        }
        let subnets: BTreeSet<IpNet> = self.speakers().flat_map(|(_, s)| s.subnets.iter().copied()).collect();
        subnets.iter().for_each(|subnet| ends_of_subnet(&mut set, *subnet));
        self.not_reported(&mut set, &subnets, entries);
        set
    }

    /// What node-address mode goes by.
    pub fn hosts(&self) -> Hosts {
        let speakers: BTreeMap<&str, &facts::SpeakerFacts> = self.speakers().collect();
        let host = |(name, node): (&str, &facts::NodeFacts)| {
            let speaker = speakers.get(name);
            let host = Host {
                internal: node.internal.clone(),
                external: node.external.clone(),
                ready: node.ready,
                enabled: node.enabled,
                pool: node.pool.clone(),
                listening: speaker.and_then(|speaker| speaker.listening.clone()),
                with_pods: speaker.map(|speaker| speaker.local_services.clone()).unwrap_or_default(),
            };
            (name.to_string(), host)
        };
        self.nodes().map(host).collect()
    }

    /// Which speakers reach which addresses.
    pub fn segments(&self) -> Segments {
        let mut segments = Segments::default();
        for (name, speaker) in self.speakers() {
            let owner = self.speakers.uid(&name.to_string()).unwrap_or_default();
            // Probes are ARP.
            let subnets: Vec<Ipv4Net> = speaker.subnets.iter().filter_map(v4).collect();
            segments.add(name, owner, &subnets, &speaker.macs);
        }
        segments
    }

    /// Entries that contain a node's address, as long as no speaker has said what lies around it. Speakers report subnets of IPv4, which
    /// they serve.
    fn not_reported(&self, set: &mut GuardSet, subnets: &BTreeSet<IpNet>, entries: &[(u128, u128)]) {
        for (name, node) in self.nodes() {
            let known = |address: &IpAddr| subnets.iter().any(|subnet| subnet.contains(address));
            let unknown = node.addresses.iter().filter(|address| address.is_ipv4() && !known(address));
            for address in unknown {
                let number = number(*address);
                for (first, last) in entries.iter().filter(|(first, last)| (*first..=*last).contains(&number)) {
                    let what = format!(
                        "in an entry that contains {address}, an address of node {name} whose subnet no speaker has reported yet"
                    );
                    set.add(*first, *last, Refusal::SubnetNotReported, what);
                }
            }
        }
    }

    fn cache(&mut self, source: Source) -> &mut Cache<String, Facts> {
        match source {
            Source::Nodes => &mut self.nodes,
            Source::SpeakerStates => &mut self.speakers,
            Source::ServiceRanges => &mut self.service_ranges,
            Source::ApiServers => &mut self.api_servers,
        }
    }

    fn nodes(&self) -> impl Iterator<Item = (&str, &facts::NodeFacts)> {
        self.nodes.iter().filter_map(|(name, facts)| match facts {
            Facts::Node(node) => Some((name.as_str(), node)),
            _ => None,
        })
    }

    fn speakers(&self) -> impl Iterator<Item = (&str, &facts::SpeakerFacts)> {
        self.speakers.iter().filter_map(|(name, facts)| match facts {
            Facts::Speaker(speaker) => Some((name.as_str(), speaker)),
            _ => None,
        })
    }

    fn api_server_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let watched = self.api_servers.iter().filter_map(|(_, facts)| match facts {
            Facts::ApiServers(addresses) => Some(addresses),
            _ => None,
        });
        watched.chain([&self.fixed.api_servers]).flatten().copied()
    }

    /// With where they come from.
    fn service_networks(&self) -> impl Iterator<Item = (IpNet, &str)> {
        let watched = self.service_ranges.iter().filter_map(|(name, facts)| match facts {
            Facts::ServiceRanges(ranges) => Some(ranges.iter().map(move |range| (*range, name.as_str()))),
            _ => None,
        });
        watched.flatten().chain(self.fixed.service_ranges.iter().map(|range| (*range, "--service-cidr")))
    }
}

/// What no host can have, whatever the cluster is like.
fn unusable(set: &mut GuardSet) {
    let mut span = |network: &str, reason, what: &str| {
        let network: IpNet = network.parse().expect("a constant");
        set.add_network(network, reason, what);
    };
    span("0.0.0.0/8", Refusal::ReservedAddress, "in 0.0.0.0/8, which no host can have");
    span("127.0.0.0/8", Refusal::LoopbackAddress, "a loopback address");
    span("224.0.0.0/4", Refusal::MulticastAddress, "a multicast address");
    span("240.0.0.0/4", Refusal::ReservedAddress, "in 240.0.0.0/4, which no host can have");
    span("::1/128", Refusal::LoopbackAddress, "a loopback address");
    span("fe80::/10", Refusal::LinkLocalAddress, "a link-local address");
    span("ff00::/8", Refusal::MulticastAddress, "a multicast address");
    // What is left outside of 2000::/3 and fc00::/7, on either side of the numbers of IPv4.
    let outside = "outside of 2000::/3 and fc00::/7, so no host can have it";
    let mut reserve = |first, last| set.add(first, last, Refusal::ReservedAddress, outside);
    reserve(0, number(Ipv4Addr::UNSPECIFIED) - 1);
    reserve(number(Ipv4Addr::BROADCAST) + 1, (0x2000 << 112) - 1);
    reserve(0x4000 << 112, (0xfc00 << 112) - 1);
    reserve(0xfe00 << 112, u128::MAX);
}

/// A subnet of two addresses or one keeps none for itself (RFC 3021, RFC 6164). The first of IPv6 is every router's (RFC 4291, 2.6.1).
fn ends_of_subnet(set: &mut GuardSet, subnet: IpNet) {
    if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
        return;
    }
    let what = if subnet.network().is_ipv4() { "network address" } else { "Subnet-Router anycast address" };
    set.add_address(subnet.network(), Refusal::NetworkAddress, format!("the {what} of {subnet}"));
    if subnet.network().is_ipv4() {
        set.add_address(subnet.broadcast(), Refusal::BroadcastAddress, format!("the broadcast address of {subnet}"));
    }
}

fn v4(network: &IpNet) -> Option<Ipv4Net> {
    match network {
        IpNet::V4(network) => Some(*network),
        IpNet::V6(_) => None,
    }
}
