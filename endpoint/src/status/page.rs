//! The status as one HTML file: no script, nothing from elsewhere. On a narrow screen each row of a table is a card.

use std::fmt::{Display, Write};

use super::table::reason;
use super::{Address, File, Port, RefusedFile, Server, State, Status, age, percent};

/// It asks for itself again every 5 s.
pub fn page(status: &Status) -> String {
    let mut out = String::with_capacity(16 << 10);
    let title = format!("{}: API server endpoint", status.node);
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta http-equiv=\"refresh\" content=\"5\"/>\n<title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n",
        escaped(&title)
    );
    header(&mut out, status);
    for address in &status.addresses {
        owner(&mut out, status, address);
    }
    for port in &status.ports {
        of_port(&mut out, status, port);
    }
    peers(&mut out, status);
    for address in &status.addresses {
        history(&mut out, status, address);
    }
    let _ = write!(
        out,
        "<footer>As {} knows it. Weight: its part of new connections, by this node's table. Open: connections that the nodes' kernels \
         lead to the member, counted every few seconds. {} Came in: at this node alone, since its speaker started. \
         <a href=\"status.json\">JSON</a></footer>\n</body>\n</html>\n",
        escaped(&status.node),
        totals(status)
    );
    out
}

fn totals(status: &Status) -> String {
    match status.counting() {
        Some(counting) => format!(
            "Total, bytes in and resets: of {}, each since its speaker started; bytes of clients, resets by the member.",
            escaped(&counting)
        ),
        None => "Total, bytes in and resets: no node has counted yet.".to_owned(),
    }
}

fn header(out: &mut String, status: &Status) {
    let (class, word) = if status.is_whole() { ("good", "serving") } else { ("bad", "degraded") };
    let _ = write!(
        out,
        "<header><h1>API server endpoint <span class=\"{class}\">{word}</span></h1>\n<p>{}, {}, sheave {}</p>\n",
        escaped(&status.node),
        time(status.at),
        escaped(&status.version)
    );
    for cause in &status.not_ready {
        let _ = writeln!(out, "<p class=\"bad\">This node may own no address: {}</p>", escaped(cause));
    }
    if let Some(File { taken, refused: Some(RefusedFile { at, because }) }) = &status.file {
        let (at, since) = (time(*at), time(*taken));
        let _ = writeln!(out, "<p class=\"bad\">The file is refused since {at}; served is what it was at {since}</p>");
        for refusal in because {
            let _ = writeln!(out, "<p class=\"bad\">{}</p>", escaped(refusal));
        }
    }
    for note in &status.notes {
        let _ = writeln!(out, "<p class=\"note\">{}</p>", escaped(note));
    }
    out.push_str("</header>\n");
}

fn owner(out: &mut String, status: &Status, address: &Address) {
    let _ = write!(out, "<p class=\"owner\"><b>{}</b> ", address.address);
    match &address.owner {
        Some(owner) => _ = write!(out, "is owned by <b>{}</b>", escaped(owner)),
        None => {
            let reason = address.reason.as_deref().unwrap_or("not known");
            let _ = write!(out, "<span class=\"bad\">has no owner: {}</span>", escaped(reason));
        }
    }
    if let Some(since) = address.since {
        let _ = write!(out, " for {}", age(status.at, since));
    }
    out.push_str("</p>\n");
}

fn of_port(out: &mut String, status: &Status, port: &Port) {
    let target = if port.target == port.listen { String::new() } else { format!(" to {}", port.target) };
    let _ =
        writeln!(out, "<section>\n<h2>Port {}{target} <small>check {}</small></h2>", port.listen, escaped(&port.check));
    let columns =
        ["Member", "State", "Reason", "For", "Last check", "Open", "Total", "Bytes in", "Resets", "Weight", "Drained"];
    begin_table(out, &columns);
    for server in &port.members {
        out.push_str("<tr>");
        let via = if server.via.is_empty() {
            String::new()
        } else {
            format!(" <small>via {}, client address lost</small>", escaped(&server.via.join(", ")))
        };
        cell(out, columns[0], &format!("<b>{}</b>{via}", escaped(&server.member)));
        let state = format!("<span class=\"{}\">{}</span>", class(server.state), server.state.label());
        cell(out, columns[1], &state);
        cell(out, columns[2], &escaped(&reason(server)));
        cell(out, columns[3], &age(status.at, server.since));
        cell(out, columns[4], &or_none(server.check_millis.map(|millis| format!("{millis} ms"))));
        cell(out, columns[5], &or_none(server.connections));
        cell(out, columns[6], &or_none(server.total.map(|total| total.connections)));
        cell(out, columns[7], &or_none(server.total.map(|total| total.bytes)));
        cell(out, columns[8], &or_none(server.total.map(|total| total.resets)));
        cell(out, columns[9], &or_none(server.weight.map(percent)));
        cell(out, columns[10], &drained(status, server));
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table>\n");
    if let Some(counting) = status.counting().filter(|_| !status.not_counted_by.is_empty()) {
        let _ = writeln!(out, "<p class=\"note\">Total, bytes in and resets are of {}</p>", escaped(&counting));
    }
    if let Some(traffic) = port.traffic {
        let _ = writeln!(
            out,
            "<p class=\"traffic\">Came in here: {} connections, {} packets, {} bytes; {} resets</p>",
            traffic.connections, traffic.packets, traffic.bytes, traffic.resets
        );
    }
    out.push_str("</section>\n");
}

fn drained(status: &Status, server: &Server) -> String {
    let drained = status.member(&server.member).and_then(|member| member.drained);
    or_none(drained.map(|drained| {
        format!("for {}{}", age(status.at, drained.since), if drained.by_force { ", by force" } else { "" })
    }))
}

fn peers(out: &mut String, status: &Status) {
    if status.peers.is_empty() {
        return;
    }
    out.push_str("<section>\n<h2>Peers</h2>\n");
    let columns = ["Node", "Heartbeats", "Lost"];
    begin_table(out, &columns);
    for peer in &status.peers {
        out.push_str("<tr>");
        cell(out, columns[0], &format!("<b>{}</b>", escaped(&peer.node)));
        let alive =
            if peer.alive { "<span class=\"good\">arrive</span>" } else { "<span class=\"bad\">missing</span>" };
        cell(out, columns[1], alive);
        let lost = (peer.of > 0).then(|| format!("{} of the last {}", peer.lost, peer.of));
        cell(out, columns[2], &or_none(lost));
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table>\n</section>\n");
}

fn history(out: &mut String, status: &Status, address: &Address) {
    let _ = writeln!(out, "<section>\n<h2>Owners of {}</h2>", address.address);
    let columns = ["When", "Ago", "Owner", "Reason"];
    begin_table(out, &columns);
    for change in &address.history {
        out.push_str("<tr>");
        cell(out, columns[0], &time(change.at));
        cell(out, columns[1], &age(status.at, change.at));
        cell(out, columns[2], &escaped(change.owner.as_deref().unwrap_or("none")));
        cell(out, columns[3], &escaped(change.reason.as_deref().unwrap_or("-")));
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table>\n</section>\n");
}

fn begin_table(out: &mut String, columns: &[&str]) {
    out.push_str("<table><thead><tr>");
    for column in columns {
        let _ = write!(out, "<th>{column}</th>");
    }
    out.push_str("</tr></thead><tbody>\n");
}

/// `content` is HTML.
fn cell(out: &mut String, column: &str, content: &str) {
    let _ = write!(out, "<td data-column=\"{column}\">{content}</td>");
}

fn or_none(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// To the second, in UTC.
fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

const fn class(state: State) -> &'static str {
    match state {
        State::Serving => "good",
        State::Drained | State::Unknown => "note",
        State::Failing => "bad",
    }
}

/// Whatever a name is, it is text.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

const STYLE: &str = "
:root{color-scheme:light dark;--line:#8885;--good:#1a7f37;--bad:#c62828;--note:#9a6700}
@media(prefers-color-scheme:dark){:root{--good:#4ac26b;--bad:#ff7b72;--note:#d4a72c}}
body{font:16px/1.4 system-ui,sans-serif;margin:0 auto;max-width:70rem;padding:1rem}
h1{font-size:1.4rem;margin:0}h2{font-size:1.1rem;margin:1.5rem 0 .5rem}small,footer,header p,.traffic{opacity:.8;font-size:.875rem}
.good{color:var(--good)}.bad{color:var(--bad);font-weight:600}.note{color:var(--note)}
.owner{font-size:1.1rem;margin:.75rem 0}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .5rem;border-bottom:1px solid var(--line)}
th{font-size:.8rem;opacity:.7}td{font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
@media(max-width:44rem){thead{display:none}tr{display:block;border:1px solid var(--line);border-radius:.5rem;margin:.5rem 0;padding:.25rem}
td{display:flex;justify-content:space-between;gap:1rem;border:0;padding:.2rem .5rem;text-align:right}
td::before{content:attr(data-column);opacity:.7;text-align:left}}
footer{margin-top:2rem}
";
