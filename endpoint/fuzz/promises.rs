//! What holds of the reader of the endpoint's file for every text. The property tests and the fuzz target judge by it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Check, Credential, Endpoint, limits};

/// # Panics
/// If a promise is broken.
pub fn judge(text: &str) {
    match Endpoint::parse(text) {
        Ok(endpoint) => accepted(&endpoint),
        Err(refusals) => {
            assert!((1..=MOST_REFUSALS).contains(&refusals.0.len()), "{} refusals", refusals.0.len());
            for refusal in &refusals.0 {
                assert!(!refusal.field.is_empty() && !refusal.allowed.is_empty(), "not named: {refusal:?}");
                assert!(refusal.value.as_ref().is_none_or(|value| !value.is_empty()), "an empty value: {refusal:?}");
            }
            for line in refusals.to_string().split('\n') {
                assert!(line.len() <= LONGEST_LINE, "a line of {} bytes", line.len());
                assert!(!line.chars().any(char::is_control), "control characters: {line:?}");
            }
            assert!(refusals.to_string().split('\n').count() == refusals.0.len(), "a refusal has a line");
        }
    }
}

/// What other parts rely on, and that it can be written down again.
fn accepted(endpoint: &Endpoint) {
    assert!((1..=limits::ADDRESSES).contains(&endpoint.addresses.len()));
    assert!((1..=limits::PORTS).contains(&endpoint.ports.len()));
    assert!((1..=limits::MEMBERS).contains(&endpoint.members.len()));
    assert!(endpoint.addresses.is_sorted_by(|a, b| a < b), "each address once");
    assert!(endpoint.ports.is_sorted_by(|a, b| a.listen < b.listen), "each port once");
    assert!(endpoint.members.is_sorted_by(|a, b| a.name < b.name), "each member once");
    assert!(endpoint.ports.iter().all(|port| port.listen > 0 && port.target > 0));
    assert!(endpoint.ports.iter().all(|port| port.sources.len() <= limits::SOURCES));
    assert!(endpoint.members.iter().all(|member| !endpoint.addresses.contains(&member.address)));
    assert!(endpoint.members.iter().any(|member| member.speaker));
    assert!((3..=10).contains(&endpoint.timing.dead_intervals()));
    assert!(endpoint.group.address.is_multicast() && endpoint.group.heartbeat_port != endpoint.group.report_port);
    assert!(endpoint.keys.previous != Some(endpoint.keys.current));
    let written = written(endpoint);
    match Endpoint::parse(&written) {
        Ok(again) => assert!(again == *endpoint, "another meaning: {again:?} of {endpoint:?}\n{written}"),
        Err(refusals) => panic!("not read again: {refusals}\n{endpoint:?}"),
    }
}

/// The file that means this.
fn written(endpoint: &Endpoint) -> String {
    let list = |texts: Vec<String>| format!("[{}]", texts.join(", "));
    let ports = endpoint.ports.iter().map(|port| {
        let check = match port.check {
            Check::Https => "https",
            Check::Tls => "tls",
        };
        let sources = port.sources.iter().map(ToString::to_string).collect::<Vec<_>>();
        let sources = if sources.is_empty() { String::new() } else { format!(", sources: {}", list(sources)) };
        format!("{{listen: {}, target: {}, check: {check}{sources}}}", port.listen, port.target)
    });
    let members = endpoint.members.iter().map(|member| {
        let name = quoted(&member.name);
        format!("{{name: {name}, address: {}, speaker: {}}}", member.address, member.speaker)
    });
    let path = |path: &std::path::PathBuf| quoted(&path.to_string_lossy());
    let mut health = vec![format!("insecureSkipVerify: {}", endpoint.health.insecure_skip_verify)];
    health.extend(endpoint.health.ca_file.as_ref().map(|file| format!("caFile: {}", path(file))));
    match &endpoint.health.credential {
        None => {}
        Some(Credential::Token(file)) => health.push(format!("tokenFile: {}", path(file))),
        Some(Credential::Certificate { certificate, key }) => {
            health.push(format!("clientCert: {}, clientKey: {}", path(certificate), path(key)));
        }
    }
    let previous = endpoint.keys.previous.map(|key| format!("previousKey: {}\n", STANDARD.encode(key)));
    let interface = endpoint.interface.as_ref().map(|name| format!("interface: {}\n", quoted(name)));
    format!(
        "addresses: {}\nports: {}\nmembers: {}\nkey: {}\n{}{}timing: {{interval: {}ms, dead: {}ms}}\nhealth: {{{}}}\n\
         group: {{address: {}, heartbeatPort: {}, reportPort: {}}}\n",
        list(endpoint.addresses.iter().map(ToString::to_string).collect()),
        list(ports.collect()),
        list(members.collect()),
        STANDARD.encode(endpoint.keys.current),
        previous.unwrap_or_default(),
        interface.unwrap_or_default(),
        endpoint.timing.interval.as_millis(),
        endpoint.timing.dead.as_millis(),
        health.join(", "),
        endpoint.group.address,
        endpoint.group.heartbeat_port,
        endpoint.group.report_port,
    )
}

/// Double-quoted YAML, in ASCII.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            ' '..='~' => out.push(character),
            _ => out.push_str(&format!("\\U{:08x}", u32::from(character))),
        }
    }
    out + "\""
}

const MOST_REFUSALS: usize = 32;
/// The YAML reader's own message included.
const LONGEST_LINE: usize = 1000;
