//! The status in the Prometheus text format, to be put behind the speaker's other metrics.
//!
//! Counters are of this node alone: Prometheus adds up the nodes.

use std::fmt::Write;

use super::{Server, State, Status, Total};

pub fn metrics(status: &Status) -> String {
    let mut out = String::new();
    let servers = || status.ports.iter().flat_map(|port| port.members.iter().map(move |server| (port.listen, server)));
    let mut family = |name: &str, kind: &str, help: &str, samples: &mut dyn Iterator<Item = (String, f64)>| {
        let mut samples = samples.peekable();
        if samples.peek().is_some() {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        }
        for (labels, value) in samples {
            let _ = writeln!(out, "{name}{{{labels}}} {value}");
        }
    };
    family(
        "sheave_endpoint_member_state",
        "gauge",
        "1 for the state that a member's port has.",
        &mut servers().flat_map(|(port, server)| {
            State::ALL.into_iter().map(move |state| {
                let labels = format!("{},state=\"{}\"", of_server(port, &server.member), state.label());
                (labels, f64::from(u8::from(server.state == state)))
            })
        }),
    );
    family(
        "sheave_endpoint_check_seconds",
        "gauge",
        "How long the last check of a member's port took, and how it ended.",
        &mut servers().filter_map(|(port, server)| {
            let labels = format!("{},reason=\"{}\"", of_server(port, &server.member), escaped(&server.reason));
            Some((labels, server.check_millis? as f64 / 1000.0))
        }),
    );
    family(
        "sheave_endpoint_connections",
        "gauge",
        "Open connections to a member, from all nodes that count.",
        &mut servers().filter_map(|(port, server)| Some((of_server(port, &server.member), server.connections? as f64))),
    );
    for (name, help, of) in [
        (
            "sheave_endpoint_member_connections_total",
            "Connections that this node's kernel led to a member.",
            (|total| total.connections) as fn(Total) -> u64,
        ),
        ("sheave_endpoint_member_bytes_total", "Bytes of clients on them, IP headers included.", |total| total.bytes),
        ("sheave_endpoint_member_resets_total", "Resets by the member on them.", |total| total.resets),
    ] {
        let counted =
            |(port, server): (u16, &Server)| Some((of_server(port, &server.member), of(server.counted_here?) as f64));
        family(name, "counter", help, &mut servers().filter_map(counted));
    }
    family(
        "sheave_endpoint_weight",
        "gauge",
        "Part of the new connections that a member gets.",
        &mut servers()
            .filter_map(|(port, server)| Some((of_server(port, &server.member), f64::from(server.weight?) / 1000.0))),
    );
    family(
        "sheave_endpoint_member_drained",
        "gauge",
        "1 while an administrator wants a member to get no new connections.",
        &mut status.members.iter().map(|member| {
            (format!("member=\"{}\"", escaped(&member.name)), f64::from(u8::from(member.drained.is_some())))
        }),
    );
    let file = || status.file.iter().map(|file| (format!("node=\"{}\"", escaped(&status.node)), file));
    family(
        "sheave_endpoint_file_refused",
        "gauge",
        "1 while the file is refused as it is now: what it was before is served.",
        &mut file().map(|(labels, file)| (labels, f64::from(u8::from(file.refused.is_some())))),
    );
    family(
        "sheave_endpoint_file_taken_timestamp_seconds",
        "gauge",
        "When the file that is served was read.",
        &mut file().map(|(labels, file)| (labels, file.taken.as_millisecond() as f64 / 1000.0)),
    );
    family(
        "sheave_endpoint_owner",
        "gauge",
        "1 for the node that owns an address, as this node knows it.",
        &mut status.addresses.iter().filter_map(|address| {
            Some((format!("address=\"{}\",node=\"{}\"", address.address, escaped(address.owner.as_ref()?)), 1.0))
        }),
    );
    family(
        "sheave_endpoint_peer_lost_adverts",
        "gauge",
        "Of the last 64 adverts of another node, those that did not arrive.",
        &mut status
            .peers
            .iter()
            .filter(|peer| peer.of > 0)
            .map(|peer| (format!("node=\"{}\"", escaped(&peer.node)), f64::from(peer.lost))),
    );
    out
}

fn of_server(port: u16, member: &str) -> String {
    format!("port=\"{port}\",member=\"{}\"", escaped(member))
}

/// As the format wants it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
