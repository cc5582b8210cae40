use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;

use super::host::Interface;
use super::{Check, Credential, Endpoint, Group, Refusals, limits};

/// What `make fuzz-endpoint-file` holds against the parser as well.
#[path = "../fuzz/promises.rs"]
mod promises;

/// Base64 of 32 bytes, and of 31.
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const OTHER: &str = "AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const SHORT: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg==";

fn good() -> String {
    format!(
        "addresses: [192.0.2.100]
ports:
- listen: 6443
- {{listen: 8443, target: 6443, sources: [198.51.100.0/24]}}
- {{listen: 9345, check: tls}}
members:
- {{name: a, address: 192.0.2.11}}
- {{name: b, address: 192.0.2.12}}
- {{name: c, address: 192.0.2.13, speaker: false}}
key: {KEY}
health:
  caFile: /etc/kubernetes/pki/ca.crt
"
    )
}

fn message(text: &str) -> String {
    match Endpoint::parse(text) {
        Ok(endpoint) => panic!("it was accepted: {endpoint:?}"),
        Err(refusals) => refusals.to_string(),
    }
}

#[test]
fn a_good_file() {
    let endpoint = Endpoint::parse(&good()).unwrap();
    assert_eq!(endpoint.addresses, [Ipv4Addr::new(192, 0, 2, 100)]);
    let ports: Vec<_> = endpoint.ports.iter().map(|port| (port.listen, port.target, port.check)).collect();
    assert_eq!(ports, [(6443, 6443, Check::Https), (8443, 6443, Check::Https), (9345, 9345, Check::Tls)]);
    assert_eq!(endpoint.ports[1].sources, ["198.51.100.0/24".parse().unwrap()]);
    assert_eq!(endpoint.members.iter().map(|member| member.speaker).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!((endpoint.keys.current[1], endpoint.keys.previous), (1, None));
    assert_eq!((endpoint.timing.interval, endpoint.timing.dead_intervals()), (Duration::from_millis(50), 3));
    assert_eq!(endpoint.group, Group::default());
    assert!(!format!("{endpoint:?}").contains("[0, 1, 2"), "the key is not printed");
}

/// It names every field.
#[test]
fn the_example() {
    let text = include_str!("../example.yaml");
    let endpoint = Endpoint::parse(text).unwrap();
    assert_eq!((endpoint.ports.len(), endpoint.members.len(), endpoint.group), (3, 3, Group::default()));
    for field in
        ["interface", "sources", "previousKey", "profile", "caFile", "tokenFile", "insecureSkipVerify", "reportPort"]
    {
        assert!(text.contains(&format!("{field}:")), "{field}");
    }
}

#[test]
fn what_may_be_left_out_may_be_set() {
    let text = good().replace(
        "  caFile: /etc/kubernetes/pki/ca.crt\n",
        "  insecureSkipVerify: true\n  clientCert: /c\n  clientKey: /k\n",
    ) + &format!(
        "interface: eth0\npreviousKey: {OTHER}\ntiming: {{profile: steady, interval: 250ms, dead: 1s}}\ngroup: {{heartbeatPort: 7500}}\n"
    );
    let endpoint = Endpoint::parse(&text).unwrap();
    assert_eq!(endpoint.interface.as_deref(), Some("eth0"));
    assert!(endpoint.keys.previous.is_some_and(|key| key[0] == 1) && endpoint.health.insecure_skip_verify);
    let credential = Credential::Certificate { certificate: "/c".into(), key: "/k".into() };
    assert_eq!((endpoint.health.credential, endpoint.timing.dead_intervals()), (Some(credential), 4));
    assert_eq!((endpoint.group.heartbeat_port, endpoint.group.report_port), (7500, 7485));
}

/// The file with one thing changed, and the message that a person gets. Each message is whole.
const BAD: &[(&str, &str, &str)] = &[
    (
        "addresses: [192.0.2.100]",
        "addresses: [192.0.2.11]",
        "addresses: 192.0.2.11 is refused: it is the address of member a; an address that no machine has",
    ),
    (
        "addresses: [192.0.2.100]",
        "addresses: [192.0.2.100, 192.0.2.100]",
        "addresses: 192.0.2.100 is refused: each address once",
    ),
    (
        "addresses: [192.0.2.100]",
        "addresses: ['2001:db8::1']",
        "addresses[0]: \"2001:db8::1\" is refused: IPv6 is not served yet; an IPv4 address",
    ),
    (
        "addresses: [192.0.2.100]",
        "addresses: [192.0.2.300]",
        "addresses[0]: \"192.0.2.300\" is refused: an IPv4 address such as 192.0.2.10",
    ),
    (
        "addresses: [192.0.2.100]",
        "addresses: [127.0.0.1]",
        "addresses: 127.0.0.1 is refused: an address of the segment, for one host",
    ),
    ("addresses: [192.0.2.100]", "addresses: []", "addresses: a list of 0 is refused: 1 to 8 IPv4 addresses"),
    (
        "addresses: [192.0.2.100]",
        "addresses: 192.0.2.100",
        "addresses: \"192.0.2.100\" is refused: a list of IPv4 addresses",
    ),
    ("addresses: [192.0.2.100]\n", "", "addresses is missing: 1 to 8 IPv4 addresses"),
    ("- listen: 6443", "- listen: 0", "ports[0].listen: 0 is refused: a port is 1 to 65535"),
    ("- listen: 6443", "- listen: 65536", "ports[0].listen: 65536 is refused: a port is 1 to 65535"),
    ("- listen: 6443", "- listen: '6443'", "ports[0].listen: \"6443\" is refused: a port is 1 to 65535"),
    ("- listen: 6443", "- target: 6443", "ports[0].listen is missing: a port is 1 to 65535"),
    ("listen: 8443", "listen: 6443", "ports: listen 6443 twice is refused: each port of the address once"),
    (
        "listen: 8443, target: 6443",
        "listen: 8443, target: 6443, check: tls",
        "ports: target 6443 with two kinds of check is refused: one check for all ports with the same target",
    ),
    ("check: tls", "check: tcp", "ports[2].check: \"tcp\" is refused: https or tls"),
    (
        "check: tls",
        "chek: tls",
        "ports[2].chek: an unknown field is refused: did you mean check? The fields are listen, target, check, sources",
    ),
    (
        "check: tls",
        "quorum: 2",
        "ports[2].quorum: an unknown field is refused: The fields are listen, target, check, sources",
    ),
    (
        "198.51.100.0/24",
        "198.51.100.7/24",
        "ports[1].sources[0]: \"198.51.100.7/24\" is refused: bits beyond the prefix are set; 198.51.100.0/24 has none",
    ),
    (
        "198.51.100.0/24",
        "198.51.100.0",
        "ports[1].sources[0]: \"198.51.100.0\" is refused: an IPv4 range such as 192.0.2.0/24",
    ),
    (
        "members:",
        "memebers:",
        "memebers: an unknown field is refused: did you mean members? The fields are addresses, interface, ports, members, key, previousKey, timing, health, group\nmembers is missing: 1 to 32 members",
    ),
    ("name: b,", "name: a,", "members: \"a\" twice is refused: each member once"),
    ("192.0.2.12", "192.0.2.11", "members: 192.0.2.11 of \"a\" and \"b\" is refused: an address for each member"),
    (
        "name: b,",
        "name: 'node b',",
        "members[1].name: \"node b\" is refused: the member's name: 1 to 253 of a-z 0-9 - .",
    ),
    ("name: b,", "", "members[1].name is missing: the member's name: 1 to 253 of a-z 0-9 - ."),
    ("192.0.2.12", "224.0.0.1", "members: 224.0.0.1 of \"b\" is refused: an address of one machine"),
    ("speaker: false", "speaker: maybe", "members[2].speaker: \"maybe\" is refused: true or false"),
    (
        KEY,
        SHORT,
        "key: a key of 31 bytes is refused: base64 of 32 bytes, as `head -c 32 /dev/urandom | base64` prints it",
    ),
    (
        KEY,
        "secret",
        "key: a text that is not base64 is refused: base64 of 32 bytes, as `head -c 32 /dev/urandom | base64` prints it",
    ),
    (KEY, "", "key is missing: base64 of 32 bytes, as `head -c 32 /dev/urandom | base64` prints it"),
    (
        "health:",
        "timing: {interval: 10ms}\nhealth:",
        "timing.interval: 10ms is refused: 20ms to 1000ms with the profile fast",
    ),
    (
        "health:",
        "timing: {profile: steady, interval: 50ms}\nhealth:",
        "timing.interval: 50ms is refused: 100ms to 1000ms with the profile steady",
    ),
    (
        "health:",
        "timing: {dead: 100ms}\nhealth:",
        "timing.dead: 100ms is refused: 150ms to 500ms with the profile fast: 3 to 10 intervals, and not below the profile's floor",
    ),
    ("health:", "timing: {interval: 50}\nhealth:", "timing.interval: 50 is refused: a time such as 50ms or 1s"),
    ("health:", "timing: {profile: slow}\nhealth:", "timing.profile: \"slow\" is refused: fast or steady"),
    (
        "  caFile: /etc/kubernetes/pki/ca.crt\n",
        "  tokenFile: /t\n",
        "health.caFile is missing: the CA that signed the API servers' certificates, or health.insecureSkipVerify: true",
    ),
    (
        "  caFile: /etc",
        "  insecureSkipVerify: true\n  caFile: /etc",
        "health.caFile: \"/etc/kubernetes/pki/ca.crt\" is refused: it contradicts health.insecureSkipVerify; one of both",
    ),
    (
        "  caFile: /etc/kubernetes/pki/ca.crt",
        "  insecureSkipVerify: true\n  tokenFile: /t",
        "health.insecureSkipVerify: true is refused: tokenFile needs health.caFile: a token is sent to verified servers only",
    ),
    ("  caFile: /etc", "  caFile: etc", "health.caFile: \"etc/kubernetes/pki/ca.crt\" is refused: an absolute path"),
    (
        "health:\n",
        "health:\n  clientCert: /c\n",
        "health.clientKey is missing: clientCert needs the key that belongs to it",
    ),
    (
        "health:\n",
        "health:\n  clientKey: /k\n",
        "health.clientCert is missing: clientKey needs the certificate that belongs to it",
    ),
    (
        "health:\n",
        "health:\n  clientCert: /c\n  clientKey: /k\n  tokenFile: /t\n",
        "health.tokenFile: \"/t\" is refused: clientCert and tokenFile exclude each other: the checks are one client",
    ),
    (
        "health:",
        "interface: 'eth 0'\nhealth:",
        "interface: \"eth 0\" is refused: the name of an interface: 1 to 15 of A-Z a-z 0-9 . _ - @ : +",
    ),
    (
        "health:",
        "group: {heartbeatPort: 7480}\nhealth:",
        "group.heartbeatPort: 7480 is refused: a port of its own; this one is for heartbeats of the DaemonSet",
    ),
    (
        "health:",
        "group: {heartbeatPort: 7485}\nhealth:",
        "group.reportPort: 7485 is refused: another port than group.heartbeatPort",
    ),
    (
        "health:",
        "group: {address: 192.0.2.1}\nhealth:",
        "group.address: 192.0.2.1 is refused: a multicast address such as 224.0.0.254",
    ),
];

#[test]
fn a_bad_file_gets_field_value_and_what_is_allowed() {
    let good = good();
    assert!(BAD.len() >= 25);
    for (from, to, expected) in BAD {
        assert!(good.contains(from), "{from:?}");
        assert_eq!(message(&good.replacen(from, to, 1)), *expected, "{from:?} -> {to:?}");
    }
}

#[test]
fn a_file_that_is_no_document() {
    for (text, start) in [
        ("", "the file: nothing is refused: a mapping with the fields addresses, "),
        ("[]", "the file: a list is refused: a mapping with the fields addresses, "),
        ("key: 1\nkey: 2", "the file: its text (duplicate entry with key \"key\""),
        ("a: [", "the file: its text ("),
        ("1: 2", "the file: 1 is refused: the name of a field is a text"),
    ] {
        assert!(message(text).starts_with(start), "{text:?}: {}", message(text));
    }
    let long = format!("#{}", "x".repeat(64 << 10));
    assert_eq!(message(&long), "the file: 65537 bytes is refused: at most 65536 bytes");
}

/// Ten thousand aliases of a list with ten thousand elements: gigabytes, by calculation.
#[test]
fn aliases_make_no_file_larger() {
    let [list, aliases] = ["x,", "*a,"].map(|one| one.repeat(10_000));
    let text = format!("a: &a [{list}]\nb: [{aliases}]\n");
    assert!(text.len() < limits::FILE);
    let message = message(&text);
    let expected = "more than 4096 values or 65536 bytes, aliases included";
    assert!(message.starts_with("the file: its text (") && message.contains(expected), "{message}");
    let texts = format!("a: &a {}\nb: [{}]\n", "x".repeat(30_000), "*a,".repeat(3));
    assert!(self::message(&texts).contains(expected), "{texts}");
}

/// A file at every limit is not refused for its size.
#[test]
fn the_largest_file() {
    let each = |count: usize, of: fn(usize) -> String| (0..count).map(of).collect::<Vec<_>>().join("\n");
    let sources = |_| (0..limits::SOURCES).map(|one| format!("10.0.{one}.0/24")).collect::<Vec<_>>().join(",");
    let ports: Vec<String> =
        (0..limits::PORTS).map(|one| format!("- {{listen: {}, sources: [{}]}}", 9000 + one, sources(one))).collect();
    let text = format!(
        "addresses: [{}]\nports:\n{}\nmembers:\n{}\nkey: {KEY}\nhealth: {{insecureSkipVerify: true}}\n",
        (0..limits::ADDRESSES).map(|one| format!("192.0.2.{}", 100 + one)).collect::<Vec<_>>().join(","),
        ports.join("\n"),
        each(limits::MEMBERS, |one| format!("- {{name: {one:a>253}, address: 192.0.2.{one}}}")
            .replace("2.0}", "2.99}")),
    );
    let endpoint = Endpoint::parse(&text).unwrap();
    assert_eq!((endpoint.ports.len(), endpoint.members.len()), (limits::PORTS, limits::MEMBERS));
    promises::judge(&text);
}

/// Names of fields are anybody's text.
#[test]
fn an_unknown_field_is_one_short_line() {
    let text = good() + &format!("\"x\\n{}\": 1\n", "y".repeat(200));
    let message = message(&text);
    assert!(self::message(&(good() + "? \"\"\n")).starts_with("\"\": an unknown field is refused: "));
    assert!(message.starts_with("x\\nyyy") && message.lines().count() == 1 && message.len() < 300, "{message}");
}

/// Every fault is named, not the first alone.
#[test]
fn all_faults_at_once() {
    let text = good().replace("listen: 6443", "listen: 0").replace("192.0.2.12", "b").replace(KEY, SHORT);
    assert_eq!(message(&text).lines().count(), 3, "{}", message(&text));
}

#[test]
fn no_one_else_may_read_the_key() {
    for mode in [0o600, 0o400, 0o100_600] {
        assert_eq!(Endpoint::check_mode(mode), Ok(()));
    }
    let refusal = Endpoint::check_mode(0o100_644).unwrap_err().to_string();
    assert_eq!(refusal, "the file's mode: 0644 is refused: 0600 is needed, because the key is in the file");
    assert!(Endpoint::check_mode(0o640).is_err() && Endpoint::check_mode(0o4600).is_err());
}

fn host(addresses: &[(&str, &str)]) -> Vec<Interface> {
    let interface =
        |(name, net): &(&str, &str)| Interface { name: (*name).into(), addresses: vec![net.parse().unwrap()] };
    addresses.iter().map(interface).collect()
}

fn refused(endpoint: &Endpoint, addresses: &[(&str, &str)]) -> String {
    let refused: Result<_, Refusals> = endpoint.seat(&host(addresses));
    refused.expect_err("it is refused").to_string()
}

#[test]
fn this_node_is_the_member_whose_address_it_has() {
    let endpoint = Endpoint::parse(&good()).unwrap();
    let seat = endpoint.seat(&host(&[("lo", "127.0.0.1/8"), ("eth0", "192.0.2.12/24")])).unwrap();
    assert_eq!((seat.member.name.as_str(), seat.interface.as_str()), ("b", "eth0"));
    for (addresses, expected) in [
        (
            &[("eth0", "192.0.2.9/24")][..],
            "members: 192.0.2.11, 192.0.2.12, 192.0.2.13 is refused: one of them is an address of this host, which has 192.0.2.9",
        ),
        (
            &[("eth0", "192.0.2.13/24")],
            "members: speaker: false of \"c\", which is this host is refused: a member that runs a speaker",
        ),
        (
            &[("eth0", "192.0.2.12/28")],
            "addresses: 192.0.2.100 is refused: an address in a subnet of eth0: 192.0.2.0/28",
        ),
        (
            &[("eth0", "192.0.2.12/24"), ("lo", "192.0.2.100/32")],
            "addresses: 192.0.2.100 is refused: lo of this host has it; an address that is on no interface",
        ),
    ] {
        assert_eq!(refused(&endpoint, addresses), expected);
    }
    let named = Endpoint { interface: Some("eth1".into()), ..endpoint.clone() };
    let expected = "interface: \"eth1\" is refused: eth0 has the member's address 192.0.2.11";
    assert_eq!(refused(&named, &[("eth0", "192.0.2.11/24")]), expected);
    let ends = Endpoint { addresses: vec![Ipv4Addr::new(192, 0, 2, 255)], ..endpoint };
    let expected = "addresses: 192.0.2.255 is refused: it is the network's own or broadcast address of 192.0.2.0/24";
    assert_eq!(refused(&ends, &[("eth0", "192.0.2.11/24")]), expected);
}

/// Pieces of which files are made, good and bad.
const PIECES: &[&str] = &[
    "addresses:",
    "ports:",
    "members:",
    "key:",
    "timing:",
    "health:",
    "group:",
    "listen:",
    "target:",
    "check:",
    "name:",
    "address:",
    "interval:",
    "dead:",
    " ",
    "\n",
    "- ",
    "  ",
    "[",
    "]",
    "{",
    "}",
    ",",
    ": ",
    "&a ",
    "*a",
    "!!int ",
    "<<: ",
    "'",
    "\"",
    "|\n",
    "~",
    "6443",
    "-1",
    "1e9",
    "0x10",
    "192.0.2.100",
    "::1",
    "50ms",
    "99999999999999999999s",
    "tls",
    "true",
    KEY,
    "\u{0}",
    "é",
    "\t",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    /// Whatever the bytes are, there is an endpoint or a message, and no secret in it.
    #[test]
    fn no_text_breaks_the_parser(pieces in proptest::collection::vec(prop::sample::select(PIECES.to_vec()), 0..60)) {
        promises::judge(&pieces.concat());
    }

    #[test]
    fn no_bytes_break_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        promises::judge(&String::from_utf8_lossy(&bytes));
    }

    /// A good file with a piece in place of some of its bytes: most of what people get wrong.
    #[test]
    fn no_damage_breaks_the_parser(at in 0usize..420, length in 0usize..30, piece in prop::sample::select(PIECES.to_vec())) {
        let mut text = good();
        let start = at.min(text.len());
        let end = (start + length).min(text.len());
        text.replace_range(start..end, piece);
        promises::judge(&text);
    }
}
