//! Times in which an EndpointSlice named a pod as ready that had been told to end and, by then, had closed its port, and those in which the
//! slices had no endpoint that is to serve. For [`super::causes`].

use std::collections::BTreeMap;
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
    /// From an answer without any endpoint that is to serve to the last one in a row.
    pub none_serves: Vec<(u64, u64)>,
}

pub fn watch(api: &Api, stop: &AtomicBool) -> Slices {
    let (mut late, mut terminating, mut open) = (Vec::new(), BTreeMap::<String, u64>::new(), BTreeMap::new());
    let (mut none_serves, mut none_since) = (Vec::new(), None::<(u64, u64)>);
    while !stop.load(Ordering::Acquire) {
        // An API server that does not answer says nothing of slices.
        let asked = now_ns();
        if let (Ok(pods), Ok(Named { ready, serves })) = (pods::with_terminating(api, NAMESPACE), named(api)) {
            let now = now_ns();
            match serves {
                true => none_serves.extend(none_since.take()),
                false => none_since = Some((none_since.map_or(now, |(from, _)| from), asked)),
            }
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
    none_serves.extend(none_since);
    Slices { late, none_serves }
}

/// By the Service's slices.
struct Named {
    /// Pods that are ready, with their nodes.
    ready: BTreeMap<String, String>,
    /// Whether a pod is ready, or serves while it ends.
    serves: bool,
}

fn named(api: &Api) -> Result<Named> {
    let slices = api.list(&format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"))?;
    let endpoints = || slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
    let is = |endpoint: &&Value, condition: &str| endpoint["conditions"][condition] == true;
    let ready = endpoints().filter(|endpoint| is(endpoint, "ready"));
    Ok(Named {
        ready: ready.map(|one| (text(one, "/targetRef/name").to_owned(), text(one, "/nodeName").to_owned())).collect(),
        serves: endpoints().any(|endpoint| is(&endpoint, "ready") || is(&endpoint, "serving")),
    })
}

/// What pods of the bench do after SIGTERM (`serve --drain-seconds`), less the time between two questions.
const SERVES_ON: u64 = 2_750_000_000;
const BETWEEN_QUERIES: Duration = Duration::from_millis(250);
