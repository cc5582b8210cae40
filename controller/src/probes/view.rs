//! Pure: an AddressProbe as decisions see it, and what is written into one.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use kube::ResourceExt;
use sheave_api::AddressProbe;

use crate::view::version;

/// The newest request to a node, and its newest answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeView {
    pub node: String,
    pub uid: String,
    pub version: u64,
    pub round: i64,
    pub observed: i64,
    /// Addresses of that answer with the hosts that use them, by their Ethernet addresses.
    pub results: Vec<(Ipv4Addr, BTreeSet<String>)>,
    pub gateways: BTreeSet<String>,
    pub proxies: BTreeSet<String>,
}

impl From<&AddressProbe> for ProbeView {
    fn from(probe: &AddressProbe) -> Self {
        let status = probe.status.clone().unwrap_or_default();
        let results =
            status.results.iter().filter_map(|result| Some((result.address.parse().ok()?, macs(&result.macs))));
        ProbeView {
            node: probe.name_any(),
            uid: probe.uid().unwrap_or_default(),
            version: version(probe.resource_version()),
            round: probe.spec.round,
            observed: status.observed_round,
            results: results.collect(),
            gateways: macs(&status.gateways),
            proxies: macs(&status.proxies),
        }
    }
}

/// In one notation.
pub fn macs(texts: &[String]) -> BTreeSet<String> {
    texts.iter().map(|text| text.to_ascii_lowercase()).collect()
}

/// A request to a node's speaker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeWrite {
    pub node: String,
    /// The uid of the node's SpeakerState, which the object goes with.
    pub owner: String,
    /// The object as it was seen, by uid and version: one that has changed since is left alone. `None`: there is none, it is made.
    pub seen: Option<(String, u64)>,
    pub round: i64,
    pub addresses: Vec<Ipv4Addr>,
}
