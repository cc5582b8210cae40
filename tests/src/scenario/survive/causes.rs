//! Why new connections failed: each by the node that its pod would have been on, and by what happened there.
//!
//! The node is the one that the switch saw the SYN go to last, before the client gave up: the node that the ring names,
//! or the owner if the SYN went no further. If the switch sent no node the SYN (no node answered for the address), the node is not known.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::judge::seconds;
use crate::traffic::report::Failure;

/// A SYN on its way through the switch.
#[derive(Clone, Debug)]
pub struct Syn {
    pub at_ns: u64,
    /// The client's.
    pub port: u16,
    /// Where it was sent.
    pub node: String,
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
    pub syns: Vec<Syn>,
    /// The speaker did not answer, or was not ready yet after that.
    pub down: Vec<Period>,
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
    /// The first few of those outside.
    pub examples: Vec<String>,
}

pub fn explain<'a>(failures: impl Iterator<Item = &'a Failure>, seen: &Seen, mark_ns: u64) -> Causes {
    let mut causes = Causes::default();
    for failure in failures {
        let node = target(failure, &seen.syns);
        let (outside, cause) = match node {
            Some(node) => cause(failure, node, seen),
            None => match during(failure, &seen.down).next() {
                Some(_) => (false, "node not known, a speaker did not run".to_owned()),
                None => (true, "node not known, all speakers ran".to_owned()),
            },
        };
        if outside {
            causes.outside += 1;
            if causes.examples.len() < FEW {
                let node = node.unwrap_or("a node not known");
                let (begun, ms, error) = (seconds(mark_ns, failure.begun_ns), failure.ms, &failure.error);
                causes.examples.push(format!(
                    "a new one for {node} while its speaker ran ({cause}), begun at {begun:.1} s, failed after {ms:.0} ms: {error}"
                ));
            }
        }
        *causes.by.entry(cause).or_default() += 1;
    }
    causes
}

/// Whether it is outside, and its cause.
fn cause(failure: &Failure, node: &str, seen: &Seen) -> (bool, String) {
    let here = |period: &&Period| period.node == node;
    let ordered = |what: &str| during(failure, &seen.ordered).filter(here).any(|period| period.what == what);
    if during(failure, &seen.down).any(|period| period.node == node) {
        let known = [NO_POWER, FROZEN].into_iter().find(|what| ordered(what));
        return (false, format!("its node: {}", known.unwrap_or("the speaker did not run")));
    }
    let cause = match (during(failure, &seen.ordered).find(here), during(failure, &seen.down).next()) {
        (Some(period), _) => format!("its node: {}", period.what),
        (None, Some(_)) => "its speaker ran, another did not".to_owned(),
        (None, None) => "all speakers ran".to_owned(),
    };
    (true, cause)
}

fn target<'a>(failure: &Failure, syns: &'a [Syn]) -> Option<&'a str> {
    let until = until_ns(failure);
    let from = syns.partition_point(|syn| syn.at_ns < failure.begun_ns);
    let its_own = syns[from..].iter().take_while(|syn| syn.at_ns <= until).filter(|syn| syn.port == failure.local_port);
    its_own.last().map(|syn| syn.node.as_str())
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
const FEW: usize = 20;

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
        let syn = |at_ns, port, node: &str| Syn { at_ns, port, node: node.to_owned() };
        let syns = vec![
            // By the owner to the node of the ring; later the port belongs to another attempt.
            syn(10 * SECOND, 1, "node1"),
            syn(10 * SECOND + 1000, 1, "node2"),
            syn(12 * SECOND, 2, "node1"),
            syn(20 * SECOND, 1, "node3"),
        ];
        let down = vec![period("node2", "did not run", 9, 11), period("node3", "did not run", 19, 25)];
        let ordered = vec![period("node3", NO_POWER, 19, 24), period("node1", "nft is held", 12, 13)];
        let seen = Seen { syns, down, ordered };
        let failures = [failure(10, 1), failure(12, 2), failure(20, 1), failure(15, 9), failure(21, 9)];
        let causes = explain(failures.iter(), &seen, 0);
        assert_eq!(causes.outside, 2, "{causes:?}");
        assert_eq!(causes.examples.len(), 2);
        let count = |cause: &str| causes.by.get(cause).copied().unwrap_or_default();
        assert_eq!(count("its node: the speaker did not run"), 1);
        assert_eq!(count("its node: no power"), 1);
        assert_eq!(count("its node: nft is held"), 1);
        assert_eq!(count("node not known, all speakers ran"), 1);
        assert_eq!(count("node not known, a speaker did not run"), 1);
    }
}
