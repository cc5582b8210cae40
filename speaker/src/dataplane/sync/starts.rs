//! New pods: probes, what this node reports of them, and those that go on refusing.

use std::collections::BTreeSet;

use anyhow::Result;
use speaker_core::reports::exchange;
use speaker_core::startup::{Answer, Probe, Starts, Startup, Target};
use tracing::{info, warn};

use super::State;
use crate::dataplane::pod_probes::PodProbes;
use crate::io::clock;

pub(super) struct NewPods {
    pub startup: Startup,
    pub probes: PodProbes,
    /// As the other nodes have it.
    reported: Starts,
    left_out: usize,
    refusing: BTreeSet<Target>,
}

impl NewPods {
    pub fn new(own: &str) -> Self {
        Self {
            startup: Startup::new(own),
            probes: PodProbes::new(),
            reported: Starts::new(),
            left_out: 0,
            refusing: BTreeSet::new(),
        }
    }

    /// An answer, or the time of the next probe. May be dropped while it waits.
    pub async fn next(&mut self) -> Option<(Probe, Answer)> {
        let due = self.startup.next_deadline();
        let time = async {
            match due {
                Some(due) => tokio::time::sleep(due.since(clock::now())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            answer = self.probes.next() => Some(answer),
            () = time => None,
        }
    }
}

impl State {
    pub(super) fn on_probed(&mut self, answered: Option<(Probe, Answer)>) {
        if let Some((probe, answer)) = answered {
            self.new_pods.startup.answered(probe, answer, clock::now());
        }
    }

    /// Probes what is due. Rings and rules follow, and the other nodes are told.
    pub(super) fn turn_new_pods(&mut self) -> Result<()> {
        let new_pods = &mut self.new_pods;
        new_pods.startup.in_rules(&self.in_force.starting, clock::now());
        for probe in new_pods.startup.turn(clock::now()) {
            new_pods.probes.start(probe);
        }
        self.dirty |= new_pods.startup.is_due();
        let (starts, left_out) = new_pods.startup.starts();
        self.sync.metrics.reached.stand("new_pods", (left_out > 0).then_some("new_pods"));
        if left_out > std::mem::replace(&mut new_pods.left_out, left_out) {
            warn!(left_out, "limit of reported new pods reached; to other nodes the rest has started");
            self.sync.metrics.limits_reached.with_label_values(&["new_pods"]).inc();
        }
        if starts == new_pods.reported {
            return Ok(());
        }
        new_pods.reported = starts.clone();
        self.exchange(Some(exchange::Event::Starts(starts)))
    }

    /// Pods that have refused for long: one log line when there are more.
    pub(super) fn name_refusing(&mut self) {
        let refusing = self.new_pods.startup.refusing(clock::now());
        self.sync.metrics.startup_refused.set(refusing.len() as i64);
        let before = std::mem::replace(&mut self.new_pods.refusing, refusing);
        let more: Vec<Target> = self.new_pods.refusing.difference(&before).copied().collect();
        if !more.is_empty() {
            let pods: Vec<String> =
                more.iter().take(NAMED).map(|Target { address, port }| format!("{address}:{port}")).collect();
            warn!(
                reason = "startup_refused",
                count = more.len(),
                ?pods,
                "ready pods refuse connections; no new flows for them while others accept"
            );
        } else if self.new_pods.refusing.is_empty() && !before.is_empty() {
            info!(reason = "startup_refused", "no ready pod of this node refuses connections any more");
        }
    }
}

/// Pods that a log line names.
const NAMED: usize = 5;
