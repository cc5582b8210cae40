//! The members of the API server endpoint: their checks run, rings and rules follow, the other nodes are told. `speaker_core::health` decides.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use ebpf_common::ServiceKey;
use speaker_core::health::checks::Check;
use speaker_core::health::{Health, Outcome, Report, Target};
use speaker_core::name::NodeName;
use speaker_core::reports::exchange;
use speaker_core::time::Instant;
use speaker_core::view::endpoints::Frontend;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::{info, warn};

use super::State;
use crate::endpoint::checker::Checker;
use crate::io::clock;

pub struct Members {
    health: Health,
    checker: Checker,
    sender: UnboundedSender<(Check, Outcome)>,
    ended: UnboundedReceiver<(Check, Outcome)>,
    /// As the other nodes have it.
    reported: Option<Report>,
    given_up: BTreeSet<String>,
    /// The last outcome that was logged of each target.
    logged: BTreeMap<Target, Outcome>,
}

impl Members {
    pub fn new(health: Health, checker: Checker) -> Self {
        let (sender, ended) = unbounded_channel();
        let (given_up, logged) = (BTreeSet::new(), BTreeMap::new());
        Self { health, checker, sender, ended, reported: None, given_up, logged }
    }

    pub fn follow(&mut self, frontends: &mut BTreeMap<ServiceKey, Frontend<'_>>, now: Instant) {
        self.health.follow(frontends, now);
    }

    /// Nodes that have given up ownership.
    pub fn given_up(&self) -> &BTreeSet<String> {
        &self.given_up
    }

    /// Each check is a task. The machine bounds how many run.
    fn start(&self, check: Check) {
        let (checker, sender) = (self.checker.clone(), self.sender.clone());
        tokio::spawn(async move {
            let outcome = checker.check(check.target).await;
            // The loop has ended: then nothing waits for it.
            sender.send((check, outcome)).ok();
        });
    }

    /// The reason of a member's state, when it is another one.
    fn log(&mut self) {
        for (target, state) in self.health.targets() {
            let Some(outcome) = state.outcome else { continue };
            if self.logged.insert(target, outcome) == Some(outcome) {
                continue;
            }
            let Target { address, port } = target;
            let status = if let Outcome::NotReady(status) = outcome { Some(status) } else { None };
            match outcome.answers() {
                true => info!(member = %address, port, reason = outcome.label(), "API server answers"),
                false => {
                    warn!(member = %address, port, reason = outcome.label(), status, "API server does not answer; checking again");
                }
            }
        }
    }
}

/// The end of a check, or the time of the next turn. May be dropped while it waits.
pub(super) async fn next(members: &mut Option<Members>) -> Option<(Check, Outcome)> {
    let Some(members) = members else { return std::future::pending().await };
    let due = members.health.next_deadline();
    let time = async {
        match due {
            Some(due) => tokio::time::sleep(due.since(clock::now())).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = members.ended.recv() => ended,
        () = time => None,
    }
}

impl State {
    pub(super) fn on_checked(&mut self, ended: Option<(Check, Outcome)>) {
        if let (Some(members), Some((check, outcome))) = (&mut self.sync.members, ended) {
            members.health.ended(check, outcome, clock::now());
            members.log();
        }
    }

    pub(super) fn on_member_report(&mut self, node: &NodeName, report: Report) {
        if let Some(members) = &mut self.sync.members {
            members.health.reported(node.as_str(), report, clock::now());
        }
    }

    pub(super) fn turn_members(&mut self) -> Result<()> {
        let Some(members) = &mut self.sync.members else { return Ok(()) };
        let (checks, changed) = members.health.turn(clock::now());
        checks.into_iter().for_each(|check| members.start(check));
        self.dirty |= changed;
        let given_up = members.health.given_up();
        let report = members.health.report();
        let is_news = members.reported.as_ref() != Some(&report);
        members.reported = Some(report.clone());
        if given_up != members.given_up {
            warn!(nodes = ?given_up, "nodes that reach no API server while others do; others own the addresses");
            members.given_up = given_up;
            self.notify_election();
        }
        if is_news { self.exchange(Some(exchange::Event::Health(report))) } else { Ok(()) }
    }
}
