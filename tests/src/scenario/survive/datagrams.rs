//! What became of UDP flows: clients that keep their ports and go on sending, as QUIC does. A flow stays with its pod for as long as
//! that lives; then another pod answers it.

use serde::{Deserialize, Serialize};

use super::judge::{Living, seconds};
use crate::traffic::clock::milliseconds;
use crate::traffic::report::{Answered, ProbeFlow, ProbeReport};

/// One address, and what its clients saw.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Datagrams {
    pub flows: usize,
    /// Flows that met a pod that lives, each pod by itself: it should go on answering them.
    pub eligible: usize,
    /// The last answer is this pod's.
    pub stayed: usize,
    /// Flows without an answer at the end.
    pub silent: usize,
    /// Between two datagrams that the same pod answered, one after the other.
    pub longest_gap_ms: f64,
    /// Between the last that one pod answered, and the first that the next one did.
    pub longest_gap_to_next_ms: f64,
    /// The first few that left a pod that lives, or are silent.
    pub examples: Vec<String>,
}

impl Datagrams {
    /// No flow left a pod that lives, no client was left in silence.
    pub fn whole(&self) -> bool {
        self.stayed == self.eligible && self.silent == 0
    }
}

pub fn judge(report: &ProbeReport, living: &Living) -> Datagrams {
    let mark = report.mark_ns.unwrap_or_default();
    let mut all = Datagrams { flows: report.flows.len(), ..Datagrams::default() };
    for flow in &report.flows {
        let silent = is_silent(flow);
        let lives = |one: &&Answered| living.get(&one.pod) == Some(&one.started_ns);
        let stayed = flow.answered_by.last().is_some_and(|last| lives(&last) && !silent);
        let eligible = flow.answered_by.iter().filter(lives).count();
        all.silent += usize::from(silent);
        all.eligible += eligible;
        all.stayed += usize::from(stayed);
        let gaps = flow.answered_by.iter().map(|one| one.longest_gap_ms);
        all.longest_gap_ms = gaps.fold(all.longest_gap_ms, f64::max);
        let moves = flow.answered_by.windows(2).map(|pair| milliseconds(pair[0].to_ns, pair[1].from_ns));
        all.longest_gap_to_next_ms = moves.fold(all.longest_gap_to_next_ms, f64::max);
        if (silent || eligible > usize::from(stayed)) && all.examples.len() < FEW {
            all.examples.push(example(flow, mark));
        }
    }
    all
}

fn is_silent(flow: &ProbeFlow) -> bool {
    let answered = flow.answered_by.last().map_or(0, |last| last.to_ns);
    milliseconds(answered, flow.last_sent_ns) > SILENT_MS
}

fn example(flow: &ProbeFlow, mark_ns: u64) -> String {
    let stay = |Answered { pod, node, from_ns, to_ns, .. }: &Answered| {
        format!("{pod} on {node} {:.1} to {:.1} s", seconds(mark_ns, *from_ns), seconds(mark_ns, *to_ns))
    };
    let stays: Vec<_> = flow.answered_by.iter().map(stay).collect();
    format!("UDP {}, sent until {:.1} s: {}", flow.local, seconds(mark_ns, flow.last_sent_ns), stays.join(", "))
}

/// No answer for as long as this before the report.
const SILENT_MS: f64 = 1000.0;
const FEW: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_leaves_only_pods_that_are_gone() {
        let stay = |pod: &str, started_ns, from: u64, to: u64| Answered {
            pod: pod.to_owned(),
            node: "node1".to_owned(),
            started_ns,
            from_ns: from * 1_000_000,
            to_ns: to * 1_000_000,
            longest_gap_ms: 100.0,
            count: 1,
        };
        let flow = |answered_by| ProbeFlow {
            local: "192.0.2.5:1".to_owned(),
            last_sent_ns: 9_000_000_000,
            answered_by,
            ..ProbeFlow::default()
        };
        let living = Living::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
        let judged = |flows| judge(&ProbeReport { flows, ..ProbeReport::default() }, &living);
        let stayed = flow(vec![stay("a", 1, 0, 9000)]);
        let pod_restarted = flow(vec![stay("b", 1, 0, 4000), stay("b", 2, 4300, 9000)]);
        let good = judged(vec![stayed.clone(), pod_restarted.clone()]);
        assert!(good.whole());
        assert_eq!((good.flows, good.eligible, good.stayed, good.longest_gap_to_next_ms), (2, 2, 2, 300.0));

        let left = flow(vec![stay("a", 1, 0, 4000), stay("b", 2, 4100, 9000)]);
        let bad = judged(vec![stayed.clone(), left, pod_restarted]);
        assert_eq!((bad.eligible, bad.stayed, bad.silent, bad.examples.len()), (4, 3, 0, 1));

        let silent = judged(vec![stayed, flow(vec![stay("c", 1, 0, 4000)]), flow(Vec::new())]);
        assert_eq!((silent.eligible, silent.stayed, silent.silent), (1, 1, 2));
        assert!(!bad.whole() && !silent.whole());
    }
}
