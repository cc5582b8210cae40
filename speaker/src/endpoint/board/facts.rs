//! What the dataplane knows of the members at one moment, and what follows from it for status.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use sheave_endpoint::status::{State, Total};
use speaker_core::health::drains::Drains;
use speaker_core::health::totals::{Sum, Totals};
use speaker_core::health::{Checked, Outcome, Standing, Target};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub places: Vec<Place>,
    pub drains: Drains,
    /// Open, by port of the addresses and member; `None`: no node has counted.
    pub connections: Option<BTreeMap<(u16, Ipv4Addr), u64>>,
    /// What was led to members.
    pub totals: Sum,
    /// By port of the addresses: the rows of each node. Without rows nothing gets new connections; `None`: there is no table yet.
    pub rows: Option<BTreeMap<u16, BTreeMap<String, u32>>>,
}

/// A member's port at the node that checks it for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub node: String,
    pub target: Target,
    pub standing: Standing,
    /// The node reports it.
    pub known: bool,
    pub checked: Option<Checked>,
}

impl Place {
    fn state(&self) -> State {
        match self.standing {
            Standing::Fails | Standing::NotReady => State::Failing,
            Standing::Drained | Standing::DrainedByForce => State::Drained,
            Standing::Serves if self.known => State::Serving,
            Standing::Serves => State::Unknown,
        }
    }

    fn reason(&self) -> &'static str {
        match (self.checked, self.known) {
            (Some(checked), _) => checked.outcome.label(),
            (None, false) => "NoReport",
            // The report had no room for more.
            (None, true) if self.standing == Standing::Fails => "NoAnswer",
            (None, true) => "Answers",
        }
    }

    pub fn http_status(&self) -> Option<u16> {
        match self.checked?.outcome {
            Outcome::NotReady(status) => Some(status),
            _ => None,
        }
    }
}

impl Snapshot {
    /// Each member's port, and why it is so: the best of its places counts.
    pub fn states(&self) -> BTreeMap<Target, (State, String)> {
        let targets = self.places.iter().filter_map(|place| Some((place.target, self.place(place.target)?)));
        targets.map(|(target, place)| (target, (place.state(), place.reason().to_owned()))).collect()
    }

    pub fn place(&self, target: Target) -> Option<&Place> {
        self.places.iter().filter(|place| place.target == target).min_by_key(|place| match place.state() {
            State::Serving => 0,
            State::Unknown => 1,
            State::Drained => 2,
            State::Failing => 3,
        })
    }

    /// Its last check failed.
    pub fn fails(&self, target: Target) -> bool {
        self.place(target).and_then(|place| place.checked).is_some_and(|checked| !checked.outcome.answers())
    }

    pub fn nodes_of(&self, target: Target) -> Vec<String> {
        self.places.iter().filter(|place| place.target == target).map(|place| place.node.clone()).collect()
    }

    pub fn connections_to(&self, listen: u16, member: Ipv4Addr) -> Option<u64> {
        Some(self.connections.as_ref()?.get(&(listen, member)).copied().unwrap_or(0))
    }

    /// From all nodes that count, and from this one; `None`: none does, or this one does not.
    pub fn totals_of(&self, listen: u16, member: Ipv4Addr) -> [Option<Total>; 2] {
        let Sum { totals, others, own } = &self.totals;
        let of = |totals: &Totals| {
            let counted = totals.get(&(listen, member)).copied().unwrap_or_default();
            Total { connections: counted.connections, bytes: counted.bytes, resets: counted.resets }
        };
        [(own.is_some() || !others.is_empty()).then(|| of(totals)), own.as_ref().map(of)]
    }

    /// Of a thousand new connections to this port, those of each member: a node shares its rows among the members that it serves.
    pub fn weights(&self, listen: u16, target: u16) -> Option<BTreeMap<Ipv4Addr, u32>> {
        let rows = self.rows.as_ref()?.get(&listen)?;
        let all: u64 = rows.values().map(|rows| u64::from(*rows)).sum();
        let of_port = || self.places.iter().filter(|place| place.target.port == target);
        let best = of_port().filter_map(|place| place.standing.choice()).min();
        let takes = |place: &&Place| best.is_some() && place.standing.choice() == best;
        let mut weights = BTreeMap::new();
        for (node, rows) in rows {
            let here: Vec<Ipv4Addr> =
                of_port().filter(|place| place.node == *node).filter(takes).map(|place| place.target.address).collect();
            for member in &here {
                let weight = 1000 * u64::from(*rows) / (all * here.len() as u64).max(1);
                *weights.entry(*member).or_insert(0) += u32::try_from(weight).unwrap_or(1000);
            }
        }
        Some(weights)
    }
}
