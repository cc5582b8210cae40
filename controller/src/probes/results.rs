//! Pure: what speakers have found, and what it means. An answer counts unless it is a node's (of a predecessor, or an old speaker) or proxy
//! ARP (the gateway's, or of a host that answers for every address).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use sheave_api::ProbeVerdict;

use super::reach::Segments;
use super::view::ProbeView;

/// What was found of each address, and when.
#[derive(Clone, Debug, Default)]
pub struct Results {
    found: BTreeMap<Ipv4Addr, Found>,
    /// By the node that reports them.
    proxies: BTreeMap<String, Proxies>,
    /// Some have no time yet.
    is_new: bool,
}

#[derive(Clone, Debug)]
struct Found {
    /// None until the next `tick`.
    at: Option<Instant>,
    macs: BTreeSet<String>,
    /// Whose speaker.
    node: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Proxies {
    gateways: BTreeSet<String>,
    everywhere: BTreeSet<String>,
}

/// A host's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    pub verdict: ProbeVerdict,
    pub mac: &'a str,
    /// Whose speaker was answered.
    pub node: &'a str,
}

impl Results {
    /// Takes an answer of a speaker. `asked`: when, if it was us.
    pub fn add(&mut self, view: &ProbeView, asked: Option<Instant>) {
        for (address, macs) in &view.results {
            let found = Found { at: asked, macs: macs.clone(), node: view.node.clone() };
            if self.found.len() < MAX_RESULTS || self.found.contains_key(address) {
                self.found.insert(*address, found);
            }
        }
        let proxies = Proxies { gateways: view.gateways.clone(), everywhere: view.proxies.clone() };
        self.proxies.insert(view.node.clone(), proxies);
        self.is_new = true;
    }

    /// Begins the time of what was added.
    pub fn tick(&mut self, now: Instant) -> bool {
        if !std::mem::take(&mut self.is_new) {
            return false;
        }
        self.found.values_mut().for_each(|found| _ = found.at.get_or_insert(now));
        true
    }

    /// Drops what is too old to mean anything: `holds` says how long it does. True if an answer was dropped.
    pub fn drop_old(&mut self, now: Instant, holds: impl Fn(Ipv4Addr) -> Duration) -> bool {
        let mut dropped = false;
        self.found.retain(|address, found| {
            let stays = found.at.is_none_or(|at| at + holds(*address) > now);
            dropped |= !stays && !found.macs.is_empty();
            stays
        });
        dropped
    }

    /// When the address was probed last.
    pub fn probed(&self, address: Ipv4Addr) -> Option<Instant> {
        self.found.get(&address)?.at
    }

    /// All answers for addresses that a speaker reaches still.
    pub fn answers(&self, segments: &Segments) -> impl Iterator<Item = (Ipv4Addr, Answer<'_>)> {
        let reached = self.found.iter().filter(|(address, _)| segments.subnet(**address).is_some());
        reached.filter_map(|(address, found)| Some((*address, self.judge(found, segments)?)))
    }

    /// Who answers for every address, by the speaker of this node.
    pub fn everywhere(&self, node: &str) -> impl Iterator<Item = &String> {
        self.proxies.get(node).into_iter().flat_map(|proxies| &proxies.everywhere)
    }

    fn judge<'a>(&'a self, found: &'a Found, segments: &Segments) -> Option<Answer<'a>> {
        let proxies = self.proxies.get(&found.node);
        let is_proxy = |mac: &String| proxies.is_some_and(|p| p.gateways.contains(mac) || p.everywhere.contains(mac));
        let verdict = |mac: &String| match segments.node_with(mac) {
            Some(_) => ProbeVerdict::AnsweredByNode,
            None if is_proxy(mac) => ProbeVerdict::ProxyArp,
            None => ProbeVerdict::AnsweredByHost,
        };
        let (verdict, mac) = found.macs.iter().map(|mac| (verdict(mac), mac)).min()?;
        Some(Answer { verdict, mac, node: &found.node })
    }
}

/// Far more than are in line; what is beyond counts as not probed.
const MAX_RESULTS: usize = 16_384;
