//! What Sheave promises, each with a name, and whether it held.

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use sheave_tests::scenario::address::ClientAddress;
use sheave_tests::scenario::measure::{Connections, Observed};
use sheave_tests::scenario::{InTime, NodeLoss, SpeakerFault};

/// A promise and what was seen of it.
#[derive(Clone, Debug, Serialize)]
pub struct Promise {
    pub name: &'static str,
    pub outcome: InTime,
    pub seen: String,
}

impl Promise {
    /// Of a count, which is complete on a busy machine too.
    fn counted(name: &'static str, held: bool, seen: impl Into<String>) -> Self {
        let outcome = if held { InTime::Kept } else { InTime::Broken };
        Self { name, outcome, seen: seen.into() }
    }

    /// Of a time from the fault on.
    fn timed(name: &'static str, figure_ms: f64, limit_ms: f64, observed: &Observed, seen: String) -> Self {
        let outcome = observed.in_time(figure_ms, limit_ms);
        let waited = observed.waits.until(figure_ms);
        let seen = match outcome {
            InTime::Kept => seen,
            InTime::Broken => format!("{seen}; everything ran (no wait for a processor above {waited:.0} ms)"),
            InTime::TooBusy => {
                format!("{seen}; not judged: one program waited {waited:.0} ms of it for a processor")
            }
        };
        Self { name, outcome, seen }
    }
}

/// The outcome of all promises together.
pub fn overall(outcomes: impl IntoIterator<Item = InTime>) -> InTime {
    outcomes.into_iter().fold(InTime::Kept, |worst, one| match (worst, one) {
        (InTime::Broken, _) | (_, InTime::Broken) => InTime::Broken,
        (InTime::TooBusy, _) | (_, InTime::TooBusy) => InTime::TooBusy,
        (InTime::Kept, InTime::Kept) => InTime::Kept,
    })
}

/// 0: held; 1: broken; 2: it could not be carried out; 3: the machine was too busy to judge.
pub fn exit_code(program: &str, outcome: Result<InTime>) -> ExitCode {
    match outcome {
        Ok(InTime::Kept) => ExitCode::SUCCESS,
        Ok(InTime::Broken) => ExitCode::FAILURE,
        Ok(InTime::TooBusy) => ExitCode::from(3),
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// A node was lost: the connections whose pod lives are alive, the others were reset, another node took over soon.
pub fn after_node_loss(loss: &NodeLoss) -> Vec<Promise> {
    let Observed { connections, claims, .. } = &loss.observed;
    let lost = &connections.pod_lost;
    let slowest = lost.slowest_reset_ms.unwrap_or_default();
    let name = "connections whose pod is gone are reset within 300 ms";
    let seen = format!("{} of {}, the last after {slowest:.0} ms", lost.reset, lost.opened);
    let mut promises = vec![
        survive("connections survive the loss of the owner node", connections),
        match lost.all_reset() {
            true => Promise::timed(name, slowest, RESET_WITHIN_MS, &loss.observed, seen),
            false => Promise::counted(name, false, seen),
        },
    ];
    if loss.lost == loss.owner_before {
        let name = "another node takes over in less than half a second";
        promises.push(match claims.takeover_ms {
            Some(ms) => {
                let seen = format!("{} after {ms:.0} ms", loss.owner_after);
                Promise::timed(name, ms, TAKEOVER_WITHIN_MS, &loss.observed, seen)
            }
            None => Promise::counted(name, false, "no node did"),
        });
    }
    promises
}

/// The owner's speaker was killed or frozen: no connection notices, and it claims no more.
pub fn after_speaker_loss(fault: &SpeakerFault) -> Vec<Promise> {
    let claims = &fault.observed.claims;
    let name = "a dead speaker's node claims the address no longer than its lease";
    let until = claims.old_owner_until_ms.unwrap_or_default();
    let seen = match claims.old_owner_until_ms {
        Some(until) => format!("last claim {until:.0} ms after SIGKILL"),
        None => "no claim after SIGKILL".to_owned(),
    };
    vec![
        survive("connections survive the death of the owner's speaker", &fault.observed.connections),
        match fault.owner_after != fault.owner_before {
            true => Promise::timed(name, until, fault.struck_ms + FENCED_WITHIN_MS, &fault.observed, seen),
            false => Promise::counted(name, false, format!("{seen}; no node took over")),
        },
    ]
}

pub fn client_seen(report: &ClientAddress) -> Promise {
    let seen: Vec<_> = report
        .clients
        .iter()
        .map(|client| format!("{} of {} from {}", client.saw_client, client.connections, client.client))
        .collect();
    let held = report.clients.iter().all(|client| client.saw_client == client.connections && client.connections > 0);
    Promise::counted("pods see the client's own address", held, seen.join(", "))
}

fn survive(name: &'static str, connections: &Connections) -> Promise {
    let Connections { alive, eligible, longest_pause_ms, .. } = connections;
    Promise::counted(
        name,
        connections.all_alive(),
        format!("{alive} of {eligible}, longest pause {longest_pause_ms:.0} ms"),
    )
}

const RESET_WITHIN_MS: f64 = 300.0;
const TAKEOVER_WITHIN_MS: f64 = 500.0;
/// The lease and one answer on its way, from the last renewal, which cannot come after SIGKILL.
const FENCED_WITHIN_MS: f64 = 150.0;

#[cfg(test)]
mod tests {
    use sheave_tests::scenario::measure::{Claims, PodLost, Probes};
    use sheave_tests::scenario::waits::Waits;

    use super::*;

    /// The owner's node was lost; nothing else is wrong than how long it took.
    fn loss(slowest_reset_ms: f64, takeover_ms: f64, waited_ms: f64) -> NodeLoss {
        let pod_lost = PodLost { opened: 67, reset: 67, silent: 0, slowest_reset_ms: Some(slowest_reset_ms) };
        let connections = Connections {
            opened: 200,
            eligible: 133,
            alive: 133,
            saw_client: 200,
            longest_pause_ms: slowest_reset_ms,
            pod_lost,
            not_alive: Vec::new(),
        };
        let claims = Claims {
            before: Some("node1".into()),
            after: Some("node2".into()),
            takeover_ms: Some(takeover_ms),
            old_owner_until_ms: None,
        };
        let speakers = [("node2".to_owned(), vec![(100.0, waited_ms)])].into();
        let observed = Observed {
            connections,
            probes: Probes { sent: 1, lost: 0, longest_outage_ms: 0.0 },
            claims,
            new_connections: None,
            waits: Waits { client_ms: 11.0, speakers },
        };
        NodeLoss { lost: "node1".into(), owner_before: "node1".into(), owner_after: "node2".into(), observed }
    }

    fn outcome(loss: &NodeLoss) -> InTime {
        overall(after_node_loss(loss).iter().map(|promise| promise.outcome))
    }

    #[test]
    fn late_is_broken_unless_the_machine_was_busy() {
        assert_eq!(outcome(&loss(180.0, 190.0, 400.0)), InTime::Kept);
        assert_eq!(outcome(&loss(619.0, 190.0, 9.0)), InTime::Broken, "the client and the speakers ran all the time");
        assert_eq!(outcome(&loss(180.0, 900.0, 9.0)), InTime::Broken);
        assert_eq!(outcome(&loss(619.0, 190.0, 300.0)), InTime::TooBusy);
    }

    #[test]
    fn a_lost_connection_is_broken_however_busy_the_machine_was() {
        let mut one_lost = loss(619.0, 190.0, 5000.0);
        one_lost.observed.connections.alive -= 1;
        assert_eq!(outcome(&one_lost), InTime::Broken);
        let mut in_silence = loss(180.0, 190.0, 5000.0);
        in_silence.observed.connections.pod_lost.reset -= 1;
        assert_eq!(outcome(&in_silence), InTime::Broken);
        let mut no_takeover = loss(180.0, 190.0, 5000.0);
        no_takeover.observed.claims.takeover_ms = None;
        assert_eq!(outcome(&no_takeover), InTime::Broken);
    }
}
