//! Values into the types of the endpoint, field by field.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::read::{At, Fields, KEY, document};
use crate::refusal::{Refusal, Refusals};
use crate::{Check, Credential, Endpoint, Group, Health, Keys, Member, Port, Profile, Timing, limits};

pub fn endpoint(text: &str) -> Result<Endpoint, Refusals> {
    let document = document(text)?;
    let mut refusals = Refusals::default();
    let parsed = fields(&At { path: String::new(), value: &document }, &mut refusals);
    match parsed {
        Some(endpoint) => refusals.or(endpoint),
        // Whatever is missing was refused.
        None => Err(refusals),
    }
}

fn fields(file: &At<'_>, refusals: &mut Refusals) -> Option<Endpoint> {
    let known = ["addresses", "interface", "ports", "members", "key", "previousKey", "timing", "health", "group"];
    let fields = file.fields(&known, refusals)?;
    let addresses = list(&fields, "addresses", limits::ADDRESSES, "IPv4 addresses", At::address, refusals);
    let ports = list(&fields, "ports", limits::PORTS, "ports", port, refusals);
    let members = list(&fields, "members", limits::MEMBERS, "members", member, refusals);
    let interface = optional(&fields, "interface", interface, refusals);
    let current = fields.require("key", KEY, refusals).and_then(|at| at.key(refusals));
    let previous = optional(&fields, "previousKey", At::key, refusals);
    let timing = match fields.get("timing") {
        Some(at) => timing(&at, refusals),
        None => Some(Profile::Fast.default_timing()),
    };
    let health = match fields.get("health") {
        Some(at) => health(&at, refusals),
        None => Some(Health::default()),
    };
    let group = match fields.get("group") {
        Some(at) => group(&at, refusals),
        None => Some(Group::default()),
    };
    Some(Endpoint {
        addresses: sorted(addresses?, |address| *address),
        interface: interface?,
        ports: sorted(ports?, |port| port.listen),
        members: sorted(members?, |member| member.name.clone()),
        keys: Keys { current: current?, previous: previous? },
        timing: timing?,
        health: health?,
        group: group?,
    })
}

fn port(at: &At<'_>, refusals: &mut Refusals) -> Option<Port> {
    let fields = at.fields(&["listen", "target", "check", "sources"], refusals)?;
    let listen = fields.require("listen", "a port is 1 to 65535", refusals).and_then(|at| at.port(refusals));
    // The port of the members is most often the same.
    let target = match fields.get("target") {
        Some(at) => at.port(refusals),
        None => listen,
    };
    let check = match fields.get("check") {
        Some(at) => one_of(&at, &[("https", Check::Https), ("tls", Check::Tls)], refusals),
        None => Some(Check::Https),
    };
    let sources = match fields.get("sources") {
        Some(_) => list(&fields, "sources", limits::SOURCES, "IPv4 ranges", At::range, refusals),
        None => Some(Vec::new()),
    };
    Some(Port { listen: listen?, target: target?, check: check?, sources: sources? })
}

fn member(at: &At<'_>, refusals: &mut Refusals) -> Option<Member> {
    let fields = at.fields(&["name", "address", "speaker"], refusals)?;
    let name = fields.require("name", NAME, refusals).and_then(|at| name(&at, refusals));
    let address = fields.require("address", "an IPv4 address of the member", refusals);
    let address = address.and_then(|at| at.address(refusals));
    let speaker = match fields.get("speaker") {
        Some(at) => at.flag(refusals),
        None => Some(true),
    };
    Some(Member { name: name?, address: address?, speaker: speaker? })
}

fn name(at: &At<'_>, refusals: &mut Refusals) -> Option<String> {
    let text = at.text(NAME, refusals)?;
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    if text.len() <= 253 && text.bytes().all(allowed) {
        return Some(text.into());
    }
    refusals.add(Refusal::new(at.path.clone(), format!("{text:?}"), NAME));
    None
}

/// The kernel's rule (`dev_valid_name`, net/core/dev.c), narrowed to what may stand in a ruleset.
fn interface(at: &At<'_>, refusals: &mut Refusals) -> Option<String> {
    let text = at.text(INTERFACE, refusals)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@:+".contains(&byte);
    if text.len() <= 15 && text.bytes().all(allowed) && text != "." && text != ".." {
        return Some(text.into());
    }
    refusals.add(Refusal::new(at.path.clone(), format!("{text:?}"), INTERFACE));
    None
}

fn timing(at: &At<'_>, refusals: &mut Refusals) -> Option<Timing> {
    let fields = at.fields(&["profile", "interval", "dead"], refusals)?;
    let profile = match fields.get("profile") {
        Some(at) => one_of(&at, &[("fast", Profile::Fast), ("steady", Profile::Steady)], refusals)?,
        None => Profile::Fast,
    };
    let default = profile.default_timing();
    let mut time = |name, default| match fields.get(name) {
        Some(at) => at.duration(refusals),
        None => Some(default),
    };
    let (interval, dead) = (time("interval", default.interval)?, time("dead", default.dead)?);
    let floor = profile.floor();
    let profile = profile.name();
    let within = |value: Duration, lowest: Duration, highest: Duration| (lowest..=highest).contains(&value);
    let millis = |value: Duration| format!("{}ms", value.as_millis());
    if !within(interval, floor.interval, MAX_INTERVAL) {
        let allowed = format!("{} to {} with the profile {profile}", millis(floor.interval), millis(MAX_INTERVAL));
        refusals.add(Refusal::new(fields.field("interval"), millis(interval), allowed));
        return None;
    }
    let (lowest, highest) = (floor.dead.max(3 * interval), 10 * interval);
    if !within(dead, lowest, highest) {
        let why = "3 to 10 intervals, and not below the profile's floor";
        let allowed = format!("{} to {} with the profile {profile}: {why}", millis(lowest), millis(highest));
        refusals.add(Refusal::new(fields.field("dead"), millis(dead), allowed));
        return None;
    }
    Some(Timing { interval, dead })
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Steady => "steady",
        }
    }

    fn default_timing(self) -> Timing {
        let [interval, dead] = match self {
            Self::Fast => [50, 150],
            Self::Steady => [200, 1000],
        };
        Timing { interval: Duration::from_millis(interval), dead: Duration::from_millis(dead) }
    }

    /// Below these a scheduler's pause looks like a death.
    fn floor(self) -> Timing {
        let [interval, dead] = match self {
            Self::Fast => [20, 100],
            Self::Steady => [100, 500],
        };
        Timing { interval: Duration::from_millis(interval), dead: Duration::from_millis(dead) }
    }
}

fn health(at: &At<'_>, refusals: &mut Refusals) -> Option<Health> {
    let known = ["caFile", "clientCert", "clientKey", "tokenFile", "insecureSkipVerify"];
    let fields = at.fields(&known, refusals)?;
    let mut path = |name| optional(&fields, name, path, refusals);
    let (ca_file, certificate, key, token) =
        (path("caFile")?, path("clientCert")?, path("clientKey")?, path("tokenFile")?);
    let insecure_skip_verify = match fields.get("insecureSkipVerify") {
        Some(at) => at.flag(refusals)?,
        None => false,
    };
    let credential = match (certificate, key, token) {
        (None, None, token) => token.map(Credential::Token),
        (Some(certificate), Some(key), None) => Some(Credential::Certificate { certificate, key }),
        (Some(_), None, _) => {
            refusals.add(Refusal::missing(fields.field("clientKey"), "clientCert needs the key that belongs to it"));
            return None;
        }
        (None, Some(_), _) => {
            let allowed = "clientKey needs the certificate that belongs to it";
            refusals.add(Refusal::missing(fields.field("clientCert"), allowed));
            return None;
        }
        (Some(_), Some(_), Some(token)) => {
            let allowed = "clientCert and tokenFile exclude each other: the checks are one client";
            refusals.add(Refusal::new(fields.field("tokenFile"), format!("{token:?}"), allowed));
            return None;
        }
    };
    Some(Health { ca_file, credential, insecure_skip_verify })
}

fn path(at: &At<'_>, refusals: &mut Refusals) -> Option<std::path::PathBuf> {
    let text = at.text(PATH, refusals)?;
    if text.starts_with('/') && !text.contains('\0') {
        return Some(text.into());
    }
    refusals.add(Refusal::new(at.path.clone(), format!("{text:?}"), PATH));
    None
}

fn group(at: &At<'_>, refusals: &mut Refusals) -> Option<Group> {
    let fields = at.fields(&["address", "heartbeatPort", "reportPort"], refusals)?;
    let default = Group::default();
    let address: Option<Ipv4Addr> = match fields.get("address") {
        Some(at) => at.address(refusals),
        None => Some(default.address),
    };
    let mut port = |name, default| match fields.get(name) {
        Some(at) => at.port(refusals),
        None => Some(default),
    };
    let heartbeat_port = port("heartbeatPort", default.heartbeat_port);
    let report_port = port("reportPort", default.report_port);
    Some(Group { address: address?, heartbeat_port: heartbeat_port?, report_port: report_port? })
}

/// Every refusal of the list's elements, not the first alone.
fn list<'a, T>(
    fields: &Fields<'a>,
    name: &str,
    most: usize,
    of: &str,
    read: impl Fn(&At<'a>, &mut Refusals) -> Option<T>,
    refusals: &mut Refusals,
) -> Option<Vec<T>> {
    let at = fields.require(name, &format!("1 to {most} {of}"), refusals)?;
    let elements = at.list(most, of, refusals)?;
    let read: Vec<Option<T>> = elements.iter().map(|at| read(at, refusals)).collect();
    read.into_iter().collect()
}

/// `None`: it was refused.
fn optional<'a, T>(
    fields: &Fields<'a>,
    name: &str,
    read: impl Fn(&At<'a>, &mut Refusals) -> Option<T>,
    refusals: &mut Refusals,
) -> Option<Option<T>> {
    match fields.get(name) {
        Some(at) => read(&at, refusals).map(Some),
        None => Some(None),
    }
}

fn one_of<T: Copy>(at: &At<'_>, choices: &[(&str, T)], refusals: &mut Refusals) -> Option<T> {
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    let allowed = names.join(" or ");
    let text = at.text(&allowed, refusals)?;
    let chosen = choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice);
    if chosen.is_none() {
        refusals.add(Refusal::new(at.path.clone(), format!("{text:?}"), allowed));
    }
    chosen
}

fn sorted<T, K: Ord>(mut list: Vec<T>, key: impl Fn(&T) -> K) -> Vec<T> {
    list.sort_by_key(key);
    list
}

const NAME: &str = "the member's name: 1 to 253 of a-z 0-9 - .";
const INTERFACE: &str = "the name of an interface: 1 to 15 of A-Z a-z 0-9 . _ - @ : +";
const PATH: &str = "an absolute path";
/// The lease must end before others take over.
const MAX_INTERVAL: Duration = Duration::from_millis(1000);
