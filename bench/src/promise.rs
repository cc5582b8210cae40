//! What Sheave promises, each with a name, and whether it held.

use serde::Serialize;
use sheave_tests::scenario::address::ClientAddress;
use sheave_tests::scenario::measure::{Connections, Observed};
use sheave_tests::scenario::{NodeLoss, SpeakerFault};

/// A promise and what was seen of it.
#[derive(Clone, Debug, Serialize)]
pub struct Promise {
    pub name: &'static str,
    pub held: bool,
    pub seen: String,
}

impl Promise {
    pub fn new(name: &'static str, held: bool, seen: impl Into<String>) -> Self {
        Self { name, held, seen: seen.into() }
    }
}

/// A node was lost: the connections whose pod lives are alive, the others were reset, another node took over soon.
pub fn after_node_loss(loss: &NodeLoss) -> Vec<Promise> {
    let Observed { connections, claims, .. } = &loss.observed;
    let lost = &connections.pod_lost;
    let slowest = lost.slowest_reset_ms.unwrap_or_default();
    let mut promises = vec![
        survive("connections survive the loss of the owner node", connections),
        Promise::new(
            "connections whose pod is gone are reset within 300 ms",
            lost.all_reset() && slowest <= RESET_WITHIN_MS,
            format!("{} of {}, the last after {slowest:.0} ms", lost.reset, lost.opened),
        ),
    ];
    if loss.lost == loss.owner_before {
        let took = claims.takeover_ms;
        promises.push(Promise::new(
            "another node takes over in less than half a second",
            took.is_some_and(|ms| ms < TAKEOVER_WITHIN_MS),
            took.map_or("no node did".to_owned(), |ms| format!("{} after {ms:.0} ms", loss.owner_after)),
        ));
    }
    promises
}

/// The owner's speaker was killed or frozen: no connection notices, and it claims no more.
pub fn after_speaker_loss(fault: &SpeakerFault) -> Vec<Promise> {
    let until = fault.observed.claims.old_owner_until_ms.unwrap_or_default();
    vec![
        survive("connections survive the death of the owner's speaker", &fault.observed.connections),
        Promise::new(
            "a dead speaker's node claims the address no longer than its lease",
            until - fault.struck_ms <= FENCED_WITHIN_MS && fault.owner_after != fault.owner_before,
            match fault.observed.claims.old_owner_until_ms {
                Some(until) => format!("last claim {until:.0} ms after SIGKILL"),
                None => "no claim after SIGKILL".to_owned(),
            },
        ),
    ]
}

pub fn client_seen(report: &ClientAddress) -> Promise {
    let seen: Vec<_> = report
        .clients
        .iter()
        .map(|client| format!("{} of {} from {}", client.saw_client, client.connections, client.client))
        .collect();
    let held = report.clients.iter().all(|client| client.saw_client == client.connections && client.connections > 0);
    Promise::new("pods see the client's own address", held, seen.join(", "))
}

fn survive(name: &'static str, connections: &Connections) -> Promise {
    let Connections { alive, eligible, longest_pause_ms, .. } = connections;
    Promise::new(
        name,
        connections.all_alive(),
        format!("{alive} of {eligible}, longest pause {longest_pause_ms:.0} ms"),
    )
}

const RESET_WITHIN_MS: f64 = 300.0;
const TAKEOVER_WITHIN_MS: f64 = 500.0;
/// The lease and one answer on its way, from the last renewal, which cannot come after SIGKILL.
const FENCED_WITHIN_MS: f64 = 150.0;
