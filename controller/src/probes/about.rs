//! Pure: what is said of probes: by pools, by `/readyz` and the log, by metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use sheave_api::ProbeVerdict;

use super::Probes;
use super::results::Answer;

/// What a pool says of probes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    pub not_probed: Option<String>,
    pub proxy: Option<String>,
}

impl Probes {
    /// What a pool with these spans of addresses says.
    pub fn about(&self, spans: &[(u32, u32)]) -> About {
        let is_in = |address: Ipv4Addr| spans.iter().any(|(first, last)| (*first..=*last).contains(&address.into()));
        let overlaps = |subnet: &Ipv4Net| {
            let (from, to) = (u32::from(subnet.network()), u32::from(subnet.broadcast()));
            spans.iter().any(|(first, last)| *first <= to && from <= *last)
        };
        let proxies = self.proxies().filter(|(address, _)| is_in(*address));
        // One that answers for every address matters more than a gateway.
        let proxy = proxies.min_by_key(|(_, answer)| !self.answers_everywhere(answer));
        About {
            not_probed: self.silent_subnets().find(overlaps).map(|subnet| silence(&subnet)),
            proxy: proxy.map(|(address, answer)| self.proxy(address, &answer)),
        }
    }

    /// What an operator is to know.
    pub fn notes(&self) -> BTreeSet<String> {
        let proxies = self.proxies().map(|(address, answer)| format!("ProxyArp: {}", self.proxy(address, &answer)));
        let silent = self.silent_subnets().map(|subnet| format!("NotProbed: {}", silence(&subnet)));
        proxies.chain(silent).collect()
    }

    /// How many addresses were answered for, by what that means.
    pub fn counts(&self) -> BTreeMap<ProbeVerdict, i64> {
        let mut counts: BTreeMap<ProbeVerdict, i64> =
            ProbeVerdict::ALL.into_iter().map(|verdict| (verdict, 0)).collect();
        for (_, answer) in self.results.answers(&self.segments) {
            *counts.entry(answer.verdict).or_default() += 1;
        }
        counts
    }

    /// Grants without a probe, and requests without an answer.
    pub fn totals(&self) -> (u64, u64) {
        (self.not_probed, self.unanswered)
    }

    fn silent_subnets(&self) -> impl Iterator<Item = Ipv4Net> {
        self.segments.subnets().filter(|subnet| self.choice.is_silent(subnet, &self.segments))
    }

    fn proxies(&self) -> impl Iterator<Item = (Ipv4Addr, Answer<'_>)> {
        let answers = self.results.answers(&self.segments);
        answers.filter(|(_, answer)| answer.verdict == ProbeVerdict::ProxyArp)
    }

    fn answers_everywhere(&self, answer: &Answer<'_>) -> bool {
        self.results.everywhere(answer.node).any(|mac| mac == answer.mac)
    }

    /// Whichever node's speaker was answered: it is one proxy, and said once.
    fn proxy(&self, address: Ipv4Addr, answer: &Answer<'_>) -> String {
        let everywhere = self.answers_everywhere(answer);
        let who = if everywhere { "answers ARP for every address" } else { "is a gateway and answers ARP for others" };
        let mac = answer.mac;
        let of = self.segments.subnet(address).map_or_else(String::new, |subnet| format!(" of {subnet}"));
        format!("{mac} {who}{of} (proxy ARP): its answers to probes do not count")
    }
}

fn silence(subnet: &Ipv4Net) -> String {
    format!("no speaker in {subnet} answers requests to probe addresses: they are granted unprobed")
}
