//! The status as text for a terminal.

use std::fmt::Write;

use super::events::{Change, Event};
use super::{File, Port, RefusedFile, Server, Status, age, percent};

/// Addresses, then a table for each port, then peers.
pub fn table(status: &Status) -> String {
    let mut out = String::new();
    let mut rows = vec![row(["ADDRESS", "OWNER", "TERM", "SINCE", "REASON"])];
    rows.extend(status.addresses.iter().map(|address| {
        row([
            &address.address.to_string(),
            address.owner.as_deref().unwrap_or("-"),
            &address.term.map_or("-".into(), |term| term.to_string()),
            &address.since.map_or("-".into(), |since| age(status.at, since)),
            address.reason.as_deref().unwrap_or("-"),
        ])
    }));
    aligned(&mut out, &rows);
    for port in &status.ports {
        out.push('\n');
        of_port(&mut out, status, port);
    }
    if !status.peers.is_empty() {
        out.push('\n');
        let mut rows = vec![row(["PEER", "ALIVE", "LOST"])];
        rows.extend(status.peers.iter().map(|peer| {
            let lost = if peer.of > 0 { format!("{} of {}", peer.lost, peer.of) } else { "-".into() };
            row([&peer.node, if peer.alive { "yes" } else { "no" }, &lost])
        }));
        aligned(&mut out, &rows);
    }
    for cause in &status.not_ready {
        let _ = writeln!(out, "\n{} may own no address: {cause}", status.node);
    }
    if let Some(File { taken, refused: Some(RefusedFile { at, because }) }) = &status.file {
        let (at, taken) = (age(status.at, *at), age(status.at, *taken));
        let _ = writeln!(out, "\nthe file is refused for {at}; served is what it was {taken} ago:");
        because.iter().for_each(|refusal| _ = writeln!(out, "  {refusal}"));
    }
    for note in &status.notes {
        let _ = writeln!(out, "\nnote: {note}");
    }
    out
}

fn of_port(out: &mut String, status: &Status, port: &Port) {
    let target = if port.target == port.listen { String::new() } else { format!(" to {}", port.target) };
    let _ = writeln!(out, "port {}{target}, check {}", port.listen, port.check);
    let header =
        ["MEMBER", "STATE", "REASON", "SINCE", "CHECK", "OPEN", "TOTAL", "BYTES", "RESETS", "WEIGHT", "DRAINED", "VIA"];
    let mut rows = vec![row(header)];
    rows.extend(port.members.iter().map(|server| {
        let drained = status.member(&server.member).and_then(|member| member.drained);
        let drained = drained.map(|drained| {
            format!("{}{}", age(status.at, drained.since), if drained.by_force { ", by force" } else { "" })
        });
        row([
            &server.member,
            server.state.label(),
            &reason(server),
            &age(status.at, server.since),
            &server.check_millis.map_or("-".into(), |millis| format!("{millis} ms")),
            &server.connections.map_or("-".into(), |count| count.to_string()),
            &server.total.map_or("-".into(), |total| total.connections.to_string()),
            &server.total.map_or("-".into(), |total| total.bytes.to_string()),
            &server.total.map_or("-".into(), |total| total.resets.to_string()),
            &server.weight.map_or("-".into(), percent),
            drained.as_deref().unwrap_or("-"),
            &if server.via.is_empty() { "-".into() } else { format!("{}, client address lost", server.via.join(", ")) },
        ])
    }));
    aligned(out, &rows);
    if let Some(counting) = status.counting() {
        let _ = writeln!(out, "total, bytes, resets: of {counting}");
    }
    if let Some(traffic) = port.traffic {
        let _ = writeln!(
            out,
            "came in at {}: {} connections, {} bytes; {} resets",
            status.node, traffic.connections, traffic.bytes, traffic.resets
        );
    }
}

/// "NotReady 500"
pub(super) fn reason(server: &Server) -> String {
    server.http_status.map_or_else(|| server.reason.clone(), |status| format!("{} {status}", server.reason))
}

/// An event in one line, without its time.
pub fn event_line(event: &Event) -> String {
    let or_none = |name: &Option<String>| name.clone().unwrap_or_else(|| "no node".into());
    match &event.change {
        Change::OwnerChanged { address, from, to, reason, .. } => {
            let reason = reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            format!("{address} is owned by {}, before by {}{reason}", or_none(to), or_none(from))
        }
        Change::MemberChanged { member, port, from, to, reason } => {
            format!("{member} port {port} is {}, before {} ({reason})", to.label(), from.label())
        }
        Change::DrainBegan { member, by_force } => {
            format!("{member} is drained{}", if *by_force { " by force" } else { "" })
        }
        Change::DrainEnded { member } => format!("{member} is no longer drained"),
        Change::PeerChanged { node, alive } => {
            format!("heartbeats of {node} {}", if *alive { "arrive" } else { "do not arrive" })
        }
    }
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn aligned(out: &mut String, rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(out, "{}", line.trim_end());
    }
}
