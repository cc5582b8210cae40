//! What of a changed file a running speaker takes over, and what needs a restart: what its sockets, its election and its place in the group
//! are made of.

use crate::host::Seat;
use crate::refusal::{Refusal, Refusals};
use crate::{Endpoint, Group, Timing};

impl Endpoint {
    /// Whether a speaker that serves this at this seat can go on with the other one at the other seat; else what it cannot change.
    pub fn can_become(&self, seat: &Seat, other: &Self, other_seat: &Seat) -> Result<(), Refusals> {
        let mut refusals = Refusals::default();
        let mut must_stay = |field: &str, now: String, wanted: String, why: &str| {
            if now != wanted {
                refusals.add(Refusal::new(field, wanted, format!("{now} until the speaker is restarted: {why}")));
            }
        };
        let lowest = |endpoint: &Self| endpoint.addresses.first().map(ToString::to_string).unwrap_or_default();
        must_stay("the lowest of addresses", lowest(self), lowest(other), "it names the group of the speakers");
        must_stay("interface", seat.interface.clone(), other_seat.interface.clone(), "its sockets are on it");
        let own = |seat: &Seat| format!("{} at {}", seat.member.name, seat.member.address);
        must_stay("members: this host", own(seat), own(other_seat), "the other speakers know it by that");
        let Timing { interval, dead } = self.timing;
        must_stay("timing.interval", millis(interval), millis(other.timing.interval), "the election is made for it");
        must_stay("timing.dead", millis(dead), millis(other.timing.dead), "the election is made for it");
        let Group { address, heartbeat_port, report_port } = self.group;
        let sockets = "its sockets are bound to it";
        must_stay("group.address", address.to_string(), other.group.address.to_string(), sockets);
        let (heartbeats, reports) = (other.group.heartbeat_port, other.group.report_port);
        must_stay("group.heartbeatPort", heartbeat_port.to_string(), heartbeats.to_string(), sockets);
        must_stay("group.reportPort", report_port.to_string(), reports.to_string(), sockets);
        refusals.or(())
    }
}

fn millis(time: std::time::Duration) -> String {
    format!("{}ms", time.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Interface;

    const FILE: &str = "addresses: [192.0.2.100, 192.0.2.101]
ports: [{listen: 6443}]
members: [{name: a, address: 192.0.2.11}, {name: b, address: 192.0.2.12}]
key: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=
health: {caFile: /ca.crt}
";

    fn change(from: &str, to: &str) -> Result<(), String> {
        assert!(FILE.contains(from), "{from}");
        let host =
            |name: &str, address: &str| Interface { name: name.into(), addresses: vec![address.parse().unwrap()] };
        let now = Endpoint::parse(FILE).unwrap();
        let other = Endpoint::parse(&FILE.replace(from, to)).unwrap();
        let seat = now.seat(&[host("eth0", "192.0.2.11/24")]).unwrap();
        let moved = [host("eth1", "192.0.2.11/24"), host("eth0", "192.0.2.13/24")];
        let host = if to.contains("eth1") { &moved[..] } else { &[host("eth0", "192.0.2.11/24")] };
        now.can_become(&seat, &other, &other.seat(host).unwrap()).map_err(|refusals| refusals.to_string())
    }

    #[test]
    fn what_a_running_speaker_takes_over() {
        let key = "key: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let keys = "key: AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\npreviousKey: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        for (from, to) in [
            ("health", "health"),
            ("listen: 6443", "listen: 8443, target: 6443, check: tls, sources: [198.51.100.0/24]"),
            ("{name: b, address: 192.0.2.12}", "{name: b, address: 192.0.2.14, speaker: false}"),
            (", {name: b, address: 192.0.2.12}", ""),
            (", 192.0.2.101", ", 192.0.2.110, 192.0.2.111"),
            ("caFile: /ca.crt", "caFile: /other.crt, tokenFile: /token"),
            (key, keys),
            ("ports", "interface: eth0\nports"),
            ("ports", "timing: {profile: fast, interval: 50ms}\nports"),
        ] {
            assert_eq!(change(from, to), Ok(()), "{to}");
        }
    }

    #[test]
    fn what_needs_a_restart_is_named() {
        for (from, to, message) in [
            ("[192.0.2.100, ", "[192.0.2.99, ", "the lowest of addresses: 192.0.2.99 is refused: 192.0.2.100 until"),
            ("ports", "interface: eth1\nports", "interface: eth1 is refused: eth0 until the speaker is restarted"),
            ("{name: a,", "{name: c,", "members: this host: c at 192.0.2.11 is refused: a at 192.0.2.11 until"),
            ("ports", "timing: {interval: 60ms, dead: 180ms}\nports", "timing.interval: 60ms is refused: 50ms until"),
            ("ports", "timing: {dead: 200ms}\nports", "timing.dead: 200ms is refused: 150ms until"),
            (
                "ports",
                "group: {address: 224.0.0.253}\nports",
                "group.address: 224.0.0.253 is refused: 224.0.0.254 until",
            ),
            ("ports", "group: {heartbeatPort: 7490}\nports", "group.heartbeatPort: 7490 is refused: 7484 until"),
            ("ports", "group: {reportPort: 7491}\nports", "group.reportPort: 7491 is refused: 7485 until"),
        ] {
            let refused = change(from, to).unwrap_err();
            assert!(refused.contains(message) && refused.contains("until the speaker is restarted"), "{to}: {refused}");
        }
        // All of them, each in a line.
        let all =
            change("ports", "timing: {interval: 60ms, dead: 200ms}\ngroup: {reportPort: 7491}\nports").unwrap_err();
        assert_eq!(all.lines().count(), 3, "{all}");
    }
}
