//! Why new connections failed: each by the node that its pod would have been on, and by what happened there.
//!
//! The node is the one that the switch saw the SYN go to last, before the client gave up: the node that the ring names,
//! or the owner if the SYN went no further. If the switch sent no node the SYN (no node answered for the address), the node is not known.
//!
//! A connection that is refused is refused by a pod or by a node: what a pod sends, its node has forwarded, with a time to live less by one.
//! A pod refuses when it has closed its port. An EndpointSlice that goes on naming such a pod on that node is a cause of its own; the
//! speaker of that node ran, so it counts as outside all the same. Where the EndpointSlices have no endpoint that could serve (every pod is on
//! a node that has no power, whether the control plane knows it or not, say), a refusal is the right answer, and there is no pod's node.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::judge::seconds;
use crate::traffic::report::Failure;

/// What passes the switch; the port is the client's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Sent to the node.
    Syn { at_ns: u64, port: u16, node: String },
    /// Sent by the node; `forwarded`: by a pod on it.
    Reset { at_ns: u64, port: u16, node: String, forwarded: bool },
}

impl Frame {
    fn at_ns(&self) -> u64 {
        let (Self::Syn { at_ns, .. } | Self::Reset { at_ns, .. }) = self;
        *at_ns
    }

    fn port(&self) -> u16 {
        let (Self::Syn { port, .. } | Self::Reset { port, .. }) = self;
        *port
    }
}

/// For how long a condition lasted on a node.
#[derive(Clone, Debug)]
pub struct Period {
    pub node: String,
    pub what: &'static str,
    pub from_ns: u64,
    pub until_ns: u64,
}

/// All records of a run.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// In the order of their times.
    pub frames: Vec<Frame>,
    /// The speaker did not answer, or was not ready yet after that.
    pub down: Vec<Period>,
    /// An EndpointSlice named a pod as ready that had closed.
    pub late: Vec<Period>,
    /// From and until: the EndpointSlices had no endpoint that could serve.
    pub none_serves: Vec<(u64, u64)>,
    pub ordered: Vec<Period>,
}

/// New connections that failed, later than 300 ms after a fault and other than by a late program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Causes {
    /// The speaker of the pod's node ran. If the node is not known: all speakers did.
    pub outside: usize,
    /// All, by cause.
    pub by: BTreeMap<String, usize>,
    /// Those outside, in the order in which they began.
    pub examples: Vec<String>,
}

pub fn explain<'a>(failures: impl Iterator<Item = &'a Failure>, seen: &Seen, mark_ns: u64) -> Causes {
    let mut causes = Causes::default();
    for failure in failures {
        let Target { node, way, refused_by } = target(failure, &seen.frames);
        let (outside, cause) = cause(failure, node, seen);
        if outside {
            causes.outside += 1;
            let node = node.unwrap_or("a node not known");
            let (begun, ms, error) = (seconds(mark_ns, failure.begun_ns), failure.ms, &failure.error);
            let refused_by = refused_by.map(|by| format!(", refused by {by}")).unwrap_or_default();
            let way = way.join(", ");
            causes.examples.push(format!(
                "a new one for {node} while its speaker ran ({cause}), begun at {begun:.1} s, SYN to {way}, failed after {ms:.0} ms{refused_by}: {error}"
            ));
        }
        *causes.by.entry(cause).or_default() += 1;
    }
    causes
}

/// Whether it is outside, and its cause.
fn cause(failure: &Failure, node: Option<&str>, seen: &Seen) -> (bool, String) {
    let here = |period: &&Period| node.is_none_or(|node| period.node == node);
    let ordered = |what: &str| during(failure, &seen.ordered).filter(here).any(|period| period.what == what);
    let within = |(from, until): &(u64, u64)| *from <= failure.begun_ns && until_ns(failure) <= *until;
    if seen.none_serves.iter().any(within) {
        return (false, NONE_SERVES.to_owned());
    }
    let place = if node.is_some() { "its node" } else { "node not known, a node" };
    if during(failure, &seen.down).any(|period| here(&period)) {
        let known = [NO_POWER, FROZEN].into_iter().find(|what| ordered(what));
        return (false, format!("{place}: {}", known.unwrap_or("the speaker did not run")));
    }
    if during(failure, &seen.late).any(|period| here(&period)) {
        return (true, format!("{place}: {LATE_SLICE}"));
    }
    let cause = match (during(failure, &seen.ordered).find(here), during(failure, &seen.down).next()) {
        (Some(period), _) => format!("{place}: {}", period.what),
        (None, Some(_)) => "its speaker ran, another did not".to_owned(),
        (None, None) if node.is_some() => "all speakers ran".to_owned(),
        (None, None) => "node not known, all speakers ran".to_owned(),
    };
    (true, cause)
}

/// What the switch saw of an attempt.
struct Target<'a> {
    node: Option<&'a str>,
    /// The nodes that were sent its SYN, the first time and again.
    way: Vec<&'a str>,
    refused_by: Option<String>,
}

fn target<'a>(failure: &Failure, frames: &'a [Frame]) -> Target<'a> {
    let until = until_ns(failure) + SEEN_WITHIN;
    let from = frames.partition_point(|frame| frame.at_ns() < failure.begun_ns);
    let its_own = frames[from..].iter().take_while(|frame| frame.at_ns() <= until);
    let mut target = Target { node: None, way: Vec::new(), refused_by: None };
    for frame in its_own.filter(|frame| frame.port() == failure.local_port) {
        match frame {
            Frame::Syn { node, .. } => {
                target.node = Some(node);
                target.way.push(node);
            }
            Frame::Reset { node, forwarded, .. } => {
                target.node = Some(node);
                target.refused_by = Some(refuser(node, *forwarded));
            }
        }
    }
    target
}

/// Who sent a reset to the client's port, the last before it noticed.
pub fn reset_by(frames: &[Frame], port: u16, until_ns: u64) -> Option<String> {
    let until = frames.partition_point(|frame| frame.at_ns() <= until_ns + SEEN_WITHIN);
    let resets = frames[..until].iter().rev().take_while(|frame| frame.at_ns() + RESET_WITHIN >= until_ns);
    resets.filter(|frame| frame.port() == port).find_map(|frame| match frame {
        Frame::Reset { node, forwarded, .. } => Some(refuser(node, *forwarded)),
        Frame::Syn { .. } => None,
    })
}

fn refuser(node: &str, forwarded: bool) -> String {
    if forwarded { format!("a pod on {node}") } else { node.to_owned() }
}

fn during<'a>(failure: &Failure, periods: &'a [Period]) -> impl Iterator<Item = &'a Period> {
    let (from, until) = (failure.begun_ns, until_ns(failure));
    periods.iter().filter(move |period| period.from_ns <= until && from <= period.until_ns)
}

fn until_ns(failure: &Failure) -> u64 {
    failure.begun_ns + (failure.ms * 1e6) as u64
}

pub const NO_POWER: &str = "no power";
pub const FROZEN: &str = "the speaker was frozen";
pub const NONE_SERVES: &str = "no pod: the EndpointSlices had none that could serve";
pub const LATE_SLICE: &str = "an EndpointSlice named a pod that had closed";
/// A frame has its time when the thread that reads frames runs, which may be after the client has failed. No port is used again so soon.
const SEEN_WITHIN: u64 = 100_000_000;
/// A client notices a reset when it runs.
const RESET_WITHIN: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn failure(begun: u64, local_port: u16) -> Failure {
        Failure {
            begun_ns: begun * SECOND,
            ms: 500.0,
            error: "refused".to_owned(),
            later: true,
            server_late: false,
            local_port,
        }
    }

    fn period(node: &str, what: &'static str, from: u64, until: u64) -> Period {
        Period { node: node.to_owned(), what, from_ns: from * SECOND, until_ns: until * SECOND }
    }

    #[test]
    fn a_failure_is_outside_unless_the_speaker_of_its_node_did_not_run() {
        let syn = |at_ns, port, node: &str| Frame::Syn { at_ns, port, node: node.to_owned() };
        let frames = vec![
            // By the owner to the node of the ring; later the port belongs to another attempt.
            syn(10 * SECOND, 1, "node1"),
            syn(10 * SECOND + 1000, 1, "node2"),
            syn(12 * SECOND, 2, "node1"),
            syn(20 * SECOND, 1, "node3"),
        ];
        let down = vec![period("node2", "did not run", 9, 11), period("node3", "did not run", 19, 25)];
        let ordered = vec![period("node3", NO_POWER, 19, 24), period("node1", "nft is held", 12, 13)];
        let seen = Seen { frames, down, ordered, ..Seen::default() };
        let failures = [failure(10, 1), failure(12, 2), failure(20, 1), failure(15, 9), failure(21, 9)];
        let causes = explain(failures.iter(), &seen, 0);
        assert_eq!(causes.outside, 2, "{causes:?}");
        assert_eq!(causes.examples.len(), 2);
        let count = |cause: &str| causes.by.get(cause).copied().unwrap_or_default();
        assert_eq!(count("its node: the speaker did not run"), 1);
        assert_eq!(count("its node: no power"), 1);
        assert_eq!(count("its node: nft is held"), 1);
        assert_eq!(count("node not known, all speakers ran"), 1);
        assert_eq!(count("node not known, a node: no power"), 1);
    }

    #[test]
    fn a_reset_is_the_last_before_its_end() {
        let reset = |at_ns, node: &str, forwarded| Frame::Reset { at_ns, port: 7, node: node.to_owned(), forwarded };
        let syn = Frame::Syn { at_ns: 12 * SECOND - 2, port: 7, node: "node3".to_owned() };
        let frames = vec![reset(10 * SECOND, "node1", true), reset(12 * SECOND - 3, "node2", true), syn];
        assert_eq!(reset_by(&frames, 7, 12 * SECOND).as_deref(), Some("a pod on node2"));
        assert_eq!(reset_by(&frames, 7, 10 * SECOND).as_deref(), Some("a pod on node1"));
        assert_eq!((reset_by(&frames, 7, 20 * SECOND), reset_by(&frames, 8, 12 * SECOND)), (None, None));
    }

    #[test]
    fn without_an_endpoint_a_refusal_is_right() {
        let seen = Seen { none_serves: vec![(10 * SECOND, 13 * SECOND)], ..Seen::default() };
        let failures = [failure(9, 1), failure(10, 2), failure(12, 3), failure(13, 4)];
        let causes = explain(failures.iter(), &seen, 0);
        assert_eq!((causes.outside, causes.by[NONE_SERVES]), (2, 2), "{causes:?}");
    }

    #[test]
    fn a_pod_that_a_slice_names_after_it_closed_is_a_cause_of_its_own() {
        let refused =
            |at_ns, port, node: &str, forwarded| Frame::Reset { at_ns, port, node: node.to_owned(), forwarded };
        let seen = Seen {
            frames: vec![
                refused(10 * SECOND, 1, "node1", true),
                refused(11 * SECOND, 2, "node1", true),
                refused(11 * SECOND + 1, 3, "node2", false),
            ],
            late: vec![period("node1", LATE_SLICE, 9, 10)],
            ..Seen::default()
        };
        let failures = [failure(10, 1), failure(11, 2), failure(11, 3)];
        let causes = explain(failures.iter(), &seen, 0);
        assert_eq!((causes.outside, causes.by[&format!("its node: {LATE_SLICE}")]), (3, 1), "{causes:?}");
        assert!(causes.examples[0].contains(LATE_SLICE), "{causes:?}");
        assert!(causes.examples[1].contains("refused by a pod on node1"), "{causes:?}");
        assert!(causes.examples[2].contains("refused by node2"), "{causes:?}");
    }
}
