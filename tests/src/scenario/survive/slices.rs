//! Times in which an EndpointSlice named a pod as ready that had been told to end and, by then, had closed its port, and those in which the
//! slices had no endpoint that could serve. For [`super::causes`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::causes::{LATE_SLICE, Period};
use crate::scenario::api::{Api, text};
use crate::scenario::deploy::NAMESPACE;
use crate::scenario::pods;
use crate::traffic::clock::now_ns;

/// What the slices said, and when.
#[derive(Debug, Default)]
pub struct Slices {
    pub late: Vec<Period>,
    pub answers: Vec<Answer>,
}

/// What they said once.
#[derive(Debug)]
pub struct Answer {
    asked_ns: u64,
    answered_ns: u64,
    /// With an endpoint that is ready, or serves while it ends.
    nodes: BTreeSet<String>,
}

/// From an answer without any endpoint that could serve to the last one in a row: on a node whose speaker did not run none could, be it that
/// the node had no power or had just got it back.
pub fn none_serves(answers: &[Answer], down: &[Period]) -> Vec<(u64, u64)> {
    let could = |answer: &Answer| {
        let is_down = |node: &String| {
            down.iter()
                .any(|one| one.node == *node && one.from_ns <= answer.answered_ns && answer.asked_ns <= one.until_ns)
        };
        !answer.nodes.iter().all(is_down)
    };
    let runs = answers.chunk_by(|one, next| could(one) == could(next));
    let none = runs.filter(|run| run.first().is_some_and(|one| !could(one)));
    none.filter_map(|run| Some((run.first()?.answered_ns, run.last()?.asked_ns))).collect()
}

pub fn watch(api: &Api, stop: &AtomicBool) -> Slices {
    let (mut late, mut terminating, mut open) = (Vec::new(), BTreeMap::<String, u64>::new(), BTreeMap::new());
    let mut answers = Vec::new();
    while !stop.load(Ordering::Acquire) {
        // An API server that does not answer says nothing of slices.
        let asked_ns = now_ns();
        if let (Ok(pods), Ok(Named { ready, nodes })) = (pods::with_terminating(api, NAMESPACE), named(api)) {
            let now = now_ns();
            answers.push(Answer { asked_ns, answered_ns: now, nodes });
            for pod in pods.iter().filter(|pod| pod.terminating) {
                terminating.entry(pod.name.clone()).or_insert(now);
            }
            // Pods that are gone from the list too.
            for (pod, node) in &ready {
                if terminating.get(pod).is_some_and(|since| now >= since + SERVES_ON) {
                    open.entry((pod.clone(), node.clone())).or_insert(now);
                }
            }
            open.retain(|(pod, node), from_ns| {
                let listed = ready.contains_key(pod);
                if !listed {
                    late.push(Period { node: node.clone(), what: LATE_SLICE, from_ns: *from_ns, until_ns: now });
                }
                listed
            });
        }
        sleep(BETWEEN_QUERIES);
    }
    late.extend(open.into_iter().map(|((_, node), from_ns)| Period {
        node,
        what: LATE_SLICE,
        from_ns,
        until_ns: now_ns(),
    }));
    Slices { late, answers }
}

/// By the Service's slices.
struct Named {
    /// Pods that are ready, with their nodes.
    ready: BTreeMap<String, String>,
    /// Where a pod is ready, or serves while it ends.
    nodes: BTreeSet<String>,
}

fn named(api: &Api) -> Result<Named> {
    let slices = api.list(&format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"))?;
    let endpoints = || slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
    let is = |endpoint: &&Value, condition: &str| endpoint["conditions"][condition] == true;
    let ready = endpoints().filter(|endpoint| is(endpoint, "ready"));
    let serving = endpoints().filter(|endpoint| is(endpoint, "ready") || is(endpoint, "serving"));
    let node = |endpoint: &Value| text(endpoint, "/nodeName").to_owned();
    Ok(Named {
        ready: ready.map(|one| (text(one, "/targetRef/name").to_owned(), node(one))).collect(),
        nodes: serving.map(node).collect(),
    })
}

/// What pods of the bench do after SIGTERM (`serve --drain-seconds`), less the time between two questions.
const SERVES_ON: u64 = 2_750_000_000;
const BETWEEN_QUERIES: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_serves_where_all_that_is_named_is_on_nodes_that_are_down() {
        let answer = |at: u64, nodes: &[&str]| Answer {
            asked_ns: at,
            answered_ns: at + 2,
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
        };
        let down = [Period { node: "node1".into(), what: "did not run", from_ns: 25, until_ns: 45 }];
        let named = [
            (10, vec!["node1"]),
            (20, vec![]),
            (30, vec!["node1"]),
            (40, vec!["node1"]),
            (50, vec!["node1"]),
            (60, vec![]),
        ];
        let answers: Vec<Answer> = named.iter().map(|(at, nodes)| answer(*at, nodes)).collect();
        assert_eq!(none_serves(&answers, &down), [(22, 40), (62, 60)]);
        let two: Vec<Answer> = [30, 40].map(|at| answer(at, &["node1", "node2"])).into();
        assert_eq!(none_serves(&two, &down), []);
    }
}
