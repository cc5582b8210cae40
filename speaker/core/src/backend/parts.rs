//! The parts of a plan that can be refused on their own, and the search for those that are.
//!
//! One transaction brings many changes, and the kernel takes all of them or none. Where it takes none, halves are tried, and halves of
//! the halves that are refused: so one part of n is found by about 2 log n transactions, and all others come into force.

use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv4Addr;

use ebpf_common::ServiceKey;

use super::ruleset::protocol;
use super::{ClusterPods, Endpoints, LocalPods, Plan};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A service port: for clients outside and inside.
    Port(ServiceKey),
    /// All that is of no service port: addresses, next hops, pinned flows, the ports of the speakers.
    Rest,
}

/// What a plan has for a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Port(Option<LocalPods>, Option<ClusterPods>, bool),
    Rest(Box<Plan>),
}

impl Plan {
    /// The parts in which the other plan differs.
    pub fn changes(&self, to: &Plan) -> BTreeSet<Part> {
        let keys = |plan: &Plan| -> Vec<ServiceKey> {
            plan.services.keys().chain(plan.inside.keys()).chain(&plan.inside_refused).copied().collect()
        };
        let differs = |key: &ServiceKey| {
            self.services.get(key) != to.services.get(key)
                || self.inside.get(key) != to.inside.get(key)
                || self.inside_refused.contains(key) != to.inside_refused.contains(key)
        };
        let mut parts: BTreeSet<Part> =
            keys(self).into_iter().chain(keys(to)).filter(differs).map(Part::Port).collect();
        if self.rest() != to.rest() {
            parts.insert(Part::Rest);
        }
        parts
    }

    /// This plan with these parts as in the other.
    pub fn with(&self, to: &Plan, parts: &BTreeSet<Part>) -> Plan {
        let mut plan = self.clone();
        if parts.contains(&Part::Rest) {
            plan = Plan {
                services: plan.services,
                inside: plan.inside,
                inside_refused: plan.inside_refused,
                ..to.clone()
            };
        }
        for part in parts {
            let Part::Port(key) = part else { continue };
            match to.services.get(key) {
                Some(local) => drop(plan.services.insert(*key, local.clone())),
                None => drop(plan.services.remove(key)),
            }
            match to.inside.get(key) {
                Some(pods) => drop(plan.inside.insert(*key, pods.clone())),
                None => drop(plan.inside.remove(key)),
            }
            match to.inside_refused.contains(key) {
                true => plan.inside_refused.insert(*key),
                false => plan.inside_refused.remove(key),
            };
        }
        plan.endpoints = to.endpoints.clone();
        // A new pod has started where all its service ports have it.
        let missing = to.services.iter().filter(|(key, local)| plan.services.get(key) != Some(local));
        let missing: BTreeSet<(Ipv4Addr, u16)> = missing.flat_map(|(_, local)| local.pods.iter().copied()).collect();
        plan.starting = to.starting.clone();
        plan.starting.retain(|pod| self.starting.contains(pod) || !missing.contains(&(pod.address, pod.port)));
        plan
    }

    pub fn content(&self, part: &Part) -> Content {
        match part {
            Part::Port(key) => Content::Port(
                self.services.get(key).cloned(),
                self.inside.get(key).cloned(),
                self.inside_refused.contains(key),
            ),
            Part::Rest => Content::Rest(Box::new(Plan { endpoints: Endpoints::default(), ..self.without_ports() })),
        }
    }

    /// No service port: all of them run into the guard.
    pub fn without_ports(&self) -> Plan {
        let mut plan = self.clone();
        plan.services.clear();
        plan.inside.clear();
        plan.inside_refused.clear();
        plan.starting.clear();
        plan
    }

    fn rest(&self) -> impl PartialEq + '_ {
        let Plan {
            uplink,
            address,
            vips,
            node_ports,
            services: _,
            inside: _,
            inside_refused: _,
            peers,
            second_chance,
            udp_silent,
            accept_mark,
            udp_pins,
            adverts,
            counted,
            endpoints: _,
            starting: _,
        } = self;
        (
            (uplink, address, vips, node_ports, accept_mark),
            (peers, second_chance, udp_silent, udp_pins, adverts, counted),
        )
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(key) => {
                let (address, port) = (Ipv4Addr::from(key.addr), u16::from_be_bytes(key.port));
                write!(f, "service port {address}:{port}/{}", protocol(key.proto))
            }
            Self::Rest => f.write_str("all but service ports"),
        }
    }
}

/// Which of these parts are refused.
#[derive(Debug)]
pub struct Search {
    groups: VecDeque<Vec<Part>>,
    /// Transactions that may still be tried.
    attempts: usize,
}

impl Search {
    /// `refused`: all of them together have been.
    pub fn new(parts: impl IntoIterator<Item = Part>, refused: bool, attempts: usize) -> Self {
        let parts: Vec<Part> = parts.into_iter().collect();
        let mut search = Self { groups: VecDeque::new(), attempts };
        match refused && parts.len() > 1 {
            true => search.split(parts),
            false => search.groups.extend((!parts.is_empty()).then_some(parts)),
        }
        search
    }

    /// No group has more parts than that.
    #[must_use]
    pub fn at_most(mut self, parts: usize) -> Self {
        let cut = |group: Vec<Part>| group.chunks(parts.max(1)).map(<[Part]>::to_vec).collect::<Vec<_>>();
        self.groups = self.groups.into_iter().flat_map(cut).collect();
        self
    }

    /// The next parts to try, each once.
    pub fn next_group(&mut self) -> Option<Vec<Part>> {
        if self.groups.is_empty() {
            return None;
        }
        self.attempts = self.attempts.checked_sub(1)?;
        self.groups.pop_front()
    }

    /// This group was refused. Returns the part that is to blame, once it stands alone.
    pub fn refused(&mut self, group: Vec<Part>) -> Option<Part> {
        if let [part] = group[..] {
            return Some(part);
        }
        self.split(group);
        None
    }

    /// Parts of which nothing is known, because there are no attempts left; and the attempts that are.
    pub fn end(self) -> (Vec<Part>, usize) {
        (self.groups.into_iter().flatten().collect(), self.attempts)
    }

    /// The first half comes next: whatever is refused, a part stands alone after few attempts.
    fn split(&mut self, mut group: Vec<Part>) {
        let half = group.split_off(group.len() / 2);
        self.groups.push_front(half);
        self.groups.push_front(group);
    }
}

#[cfg(test)]
mod tests;
