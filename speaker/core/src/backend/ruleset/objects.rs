//! The parts of the table that name one another: chains, sets, and maps of service ports.
//!
//! nft takes a transaction line by line, so [`Objects::update`] keeps an order: what a rule or an element names is there before it, and
//! goes after it.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use ebpf_common::ServiceKey;

use super::{TABLE, elements, line, tuple};

/// What the table has for some service ports.
#[derive(Debug, Default)]
pub struct Objects {
    /// The rules of each chain.
    pub chains: BTreeMap<String, Vec<String>>,
    /// What each map has for a service port: a verdict, or a number.
    pub maps: BTreeMap<String, BTreeMap<ServiceKey, String>>,
    /// Sets and maps that come and go with these ports: which of both, and its type.
    pub own: BTreeMap<String, (Kind, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Set,
    Map,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Map => "map",
        }
    }
}

impl Objects {
    /// A map's element.
    pub fn lead(&mut self, map: &str, key: ServiceKey, to: String) {
        match self.maps.get_mut(map) {
            Some(ports) => drop(ports.insert(key, to)),
            None => drop(self.maps.insert(map.into(), [(key, to)].into())),
        }
    }

    /// Of the definition of a map.
    pub fn elements(&self, map: &str) -> String {
        let ports = self.maps.get(map).into_iter().flatten();
        elements(&ports.map(element).collect::<Vec<_>>())
    }

    /// Chains and own maps, as the table's definition has them.
    pub fn define(&self, text: &mut String) {
        for (map, (_, of_type)) in self.own.iter().filter(|(_, (kind, _))| *kind == Kind::Map) {
            line(text, format_args!("\tmap {map} {{ {of_type} {}}}", self.elements(map)));
        }
        for (chain, rules) in &self.chains {
            line(text, format_args!("\tchain {chain} {{ {}; }}", rules.join("; ")));
        }
    }

    /// Leads from these to those of another plan, for the same service ports.
    pub fn update(&self, text: &mut String, to: &Self) {
        let differs = |name: &String, rules: &Vec<String>, other: &Self| other.chains.get(name) != Some(rules);
        for (name, (kind, of_type)) in to.own.iter().filter(|(name, _)| !self.own.contains_key(*name)) {
            line(text, format_args!("add {} ip {TABLE} {name} {{ {of_type} }}", kind.word()));
        }
        // A map of their own goes as a whole.
        let stays = |map: &String| !self.own.contains_key(map) || to.own.contains_key(map);
        for (map, ports) in self.maps.iter().filter(|(map, _)| stays(map)) {
            change(text, "delete", map, differing(ports, to.maps.get(map)).map(|(key, _)| tuple(key)).collect());
        }
        for (chain, _) in self.chains.iter().filter(|(name, rules)| differs(name, rules, to)) {
            line(text, format_args!("flush chain ip {TABLE} {chain}"));
        }
        for chain in self.chains.keys().filter(|chain| !to.chains.contains_key(*chain)) {
            line(text, format_args!("delete chain ip {TABLE} {chain}"));
        }
        for (name, (kind, _)) in self.own.iter().filter(|(name, _)| !to.own.contains_key(*name)) {
            line(text, format_args!("delete {} ip {TABLE} {name}", kind.word()));
        }
        for chain in to.chains.keys().filter(|chain| !self.chains.contains_key(*chain)) {
            line(text, format_args!("add chain ip {TABLE} {chain}"));
        }
        for (chain, rules) in to.chains.iter().filter(|(name, rules)| differs(name, rules, self)) {
            rules.iter().for_each(|rule| line(text, format_args!("add rule ip {TABLE} {chain} {rule}")));
        }
        for (map, ports) in &to.maps {
            change(text, "add", map, differing(ports, self.maps.get(map)).map(element).collect());
        }
    }
}

/// The elements that a map does not have, or has with something else.
fn differing<'a>(
    ports: &'a BTreeMap<ServiceKey, String>,
    others: Option<&'a BTreeMap<ServiceKey, String>>,
) -> impl Iterator<Item = (&'a ServiceKey, &'a String)> {
    ports.iter().filter(move |(key, to)| others.and_then(|others| others.get(key)) != Some(to))
}

fn change(text: &mut String, verb: &str, map: &str, elements: Vec<String>) {
    if !elements.is_empty() {
        line(text, format_args!("{verb} element ip {TABLE} {map} {{ {} }}", elements.join(", ")));
    }
}

fn element((key, to): (&ServiceKey, &String)) -> String {
    format!("{} : {to}", tuple(key))
}
