//! As much of HTTP as the scenarios need: one request on a stream, the answer read to its end (RFC 1945: version 1.0, so
//! that no server answers in chunks).

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lab::{Lab, netns};

/// An answer: status code and body.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// `body`: its content type and text.
pub fn request(stream: impl Read + Write, method: &str, path: &str, body: Option<(&str, &str)>) -> Result<Answer> {
    let mut stream = stream;
    let mut text = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json, text/plain\r\n");
    if let Some((kind, body)) = body {
        text += &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    } else {
        text += "\r\n";
    }
    stream.write_all(text.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{method} {path}: {answer:?}"))?;
    let status =
        head.split(' ').nth(1).and_then(|code| code.parse().ok()).with_context(|| format!("status in {head:?}"))?;
    Ok(Answer { status, body: body.to_owned() })
}

/// A page of the speaker on the node with this address, fetched on the node: the pages are for its loopback.
pub fn speaker(lab: &Lab, address: Ipv4Addr, path: &str) -> Result<Answer> {
    let state = lab.state()?;
    let has_it = |node: &&String| state.node_address(node).is_ok_and(|found| found == address);
    let node = state.nodes.keys().find(has_it).with_context(|| format!("{address} is no node's address"))?;
    let port = if path == "/metrics" { METRICS_PORT } else { PROBE_PORT };
    get(&state.plan.netns(node), port, path)
}

fn get(namespace: &str, port: u16, path: &str) -> Result<Answer> {
    netns::inside(namespace, || {
        let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), WITHIN)?;
        stream.set_read_timeout(Some(WITHIN))?;
        request(stream, "GET", path, None)
    })
}

/// Metrics of a node's host speaker, as text.
pub fn host_speaker_metrics(lab: &Lab, node: &str) -> Result<String> {
    let answer = get(&lab.state()?.plan.netns(node), HOST_SPEAKER_METRICS_PORT, "/metrics")?;
    if answer.status != 200 {
        bail!("host speaker of {node}: /metrics: {} {}", answer.status, answer.body);
    }
    Ok(answer.body)
}

/// A speaker's metrics, as text.
pub fn metrics(lab: &Lab, address: Ipv4Addr) -> Result<String> {
    let answer = speaker(lab, address, "/metrics")?;
    if answer.status != 200 {
        bail!("{address}: /metrics: {} {}", answer.status, answer.body);
    }
    Ok(answer.body)
}

/// The value of one series, named as it stands in the text, labels included.
pub fn value(metrics: &str, series: &str) -> Option<f64> {
    let line = metrics.lines().find(|line| line.rsplit_once(' ').is_some_and(|(name, _)| name == series))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

const PROBE_PORT: u16 = 7482;
const METRICS_PORT: u16 = 7483;
const HOST_SPEAKER_METRICS_PORT: u16 = 7487;
const WITHIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_found_by_its_whole_name() {
        let text = "# HELP a b\na_total{reason=\"x\"} 3\na_total{reason=\"xy\"} 4\nb 1.5\n";
        assert_eq!(value(text, "a_total{reason=\"xy\"}"), Some(4.0));
        assert_eq!(value(text, "b"), Some(1.5));
        assert_eq!(value(text, "a_total"), None);
    }
}
