//! Times in which an EndpointSlice named a pod as ready that had been told to end and, by then, had closed its port. For [`super::causes`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::causes::{LATE_SLICE, Period};
use crate::scenario::api::{Api, text};
use crate::scenario::deploy::NAMESPACE;
use crate::scenario::pods;
use crate::traffic::clock::now_ns;

pub fn watch(api: &Api, stop: &AtomicBool) -> Vec<Period> {
    let (mut late, mut terminating, mut open) = (Vec::new(), BTreeMap::<String, u64>::new(), BTreeMap::new());
    while !stop.load(Ordering::Acquire) {
        // An API server that does not answer says nothing of slices.
        if let (Ok(pods), Ok(ready)) = (pods::with_terminating(api, NAMESPACE), ready(api)) {
            let now = now_ns();
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
    late
}

/// Pods that are ready by the Service's slices, with their nodes.
fn ready(api: &Api) -> Result<BTreeMap<String, String>> {
    let slices = api.list(&format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"))?;
    let endpoints = slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
    let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true);
    Ok(ready.map(|one| (text(one, "/targetRef/name").to_owned(), text(one, "/nodeName").to_owned())).collect())
}

/// What pods of the bench do after SIGTERM (`serve --drain-seconds`), less the time between two questions.
const SERVES_ON: u64 = 2_750_000_000;
const BETWEEN_QUERIES: Duration = Duration::from_millis(250);
