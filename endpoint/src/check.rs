//! What no field says alone: addresses that stand twice, ports that are taken, settings that contradict each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::refusal::{Refusal, Refusals};
use crate::{Check, Credential, Endpoint};

pub fn check(endpoint: &Endpoint) -> Result<(), Refusals> {
    let mut refusals = Refusals::default();
    addresses(endpoint, &mut refusals);
    ports(endpoint, &mut refusals);
    members(endpoint, &mut refusals);
    health(endpoint, &mut refusals);
    group(endpoint, &mut refusals);
    if endpoint.keys.previous == Some(endpoint.keys.current) {
        refusals.add(Refusal::new("previousKey", "the same key as key", "the key before it, or leave it out"));
    }
    refusals.or(())
}

fn addresses(endpoint: &Endpoint, refusals: &mut Refusals) {
    let mut known = BTreeSet::new();
    for address in &endpoint.addresses {
        let shown = address.to_string();
        if !is_unicast(*address) {
            refusals.add(Refusal::new("addresses", &shown, "an address of the segment, for one host"));
        } else if !known.insert(*address) {
            refusals.add(Refusal::new("addresses", &shown, "each address once"));
        } else if let Some(member) = endpoint.members.iter().find(|member| member.address == *address) {
            let allowed = format!("it is the address of member {}; an address that no machine has", member.name);
            refusals.add(Refusal::new("addresses", &shown, allowed));
        }
    }
}

fn ports(endpoint: &Endpoint, refusals: &mut Refusals) {
    let mut listening = BTreeSet::new();
    let mut checks: BTreeMap<u16, Check> = BTreeMap::new();
    for port in &endpoint.ports {
        if !listening.insert(port.listen) {
            refusals.add(Refusal::new(
                "ports",
                format!("listen {} twice", port.listen),
                "each port of the address once",
            ));
        }
        let check = *checks.entry(port.target).or_insert(port.check);
        if check != port.check {
            let value = format!("target {} with two kinds of check", port.target);
            refusals.add(Refusal::new("ports", value, "one check for all ports with the same target"));
        }
    }
}

fn members(endpoint: &Endpoint, refusals: &mut Refusals) {
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeMap::new());
    for member in &endpoint.members {
        if !names.insert(&member.name) {
            refusals.add(Refusal::new("members", format!("{:?} twice", member.name), "each member once"));
        }
        if !is_unicast(member.address) {
            let value = format!("{} of {:?}", member.address, member.name);
            refusals.add(Refusal::new("members", value, "an address of one machine"));
        }
        if let Some(other) = addresses.insert(member.address, &member.name).filter(|other| **other != member.name) {
            let value = format!("{} of {other:?} and {:?}", member.address, member.name);
            refusals.add(Refusal::new("members", value, "an address for each member"));
        }
    }
    if !endpoint.members.iter().any(|member| member.speaker) {
        refusals.add(Refusal::new(
            "members",
            "no member with a speaker",
            "at least one: only speakers can own the address",
        ));
    }
}

fn health(endpoint: &Endpoint, refusals: &mut Refusals) {
    let health = &endpoint.health;
    match (&health.ca_file, health.insecure_skip_verify) {
        (Some(path), true) => {
            let allowed = "it contradicts health.insecureSkipVerify; one of both";
            refusals.add(Refusal::new("health.caFile", format!("{path:?}"), allowed));
        }
        (None, false) => {
            let allowed = "the CA that signed the API servers' certificates, or health.insecureSkipVerify: true";
            refusals.add(Refusal::missing("health.caFile", allowed));
        }
        (Some(_), false) => {}
        // A server that nobody verified would get the token.
        (None, true) if matches!(health.credential, Some(Credential::Token(_))) => {
            let allowed = "tokenFile needs health.caFile: a token is sent to verified servers only";
            refusals.add(Refusal::new("health.insecureSkipVerify", "true", allowed));
        }
        (None, true) => {}
    }
}

fn group(endpoint: &Endpoint, refusals: &mut Refusals) {
    let group = &endpoint.group;
    if !group.address.is_multicast() {
        refusals.add(Refusal::new(
            "group.address",
            group.address.to_string(),
            "a multicast address such as 224.0.0.254",
        ));
    }
    for (field, port) in [("group.heartbeatPort", group.heartbeat_port), ("group.reportPort", group.report_port)] {
        if let Some((_, of)) = TAKEN.iter().find(|(taken, _)| *taken == port) {
            refusals.add(Refusal::new(field, port.to_string(), format!("a port of its own; this one is for {of}")));
        }
    }
    if group.heartbeat_port == group.report_port {
        let allowed = "another port than group.heartbeatPort";
        refusals.add(Refusal::new("group.reportPort", group.report_port.to_string(), allowed));
    }
}

fn is_unicast(address: Ipv4Addr) -> bool {
    let refused = address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_broadcast();
    !(refused || address.is_link_local() || address.octets()[0] == 0 || address.octets()[0] >= 240)
}

/// Ports that other parts of Sheave use on the same nodes.
const TAKEN: [(u16, &str); 6] = [
    (7474, "the controller's probes"),
    (7475, "the controller's metrics"),
    (7480, "heartbeats of the DaemonSet"),
    (7481, "reports of the DaemonSet"),
    (7482, "tunnels between nodes"),
    (7483, "metrics of the DaemonSet"),
];
