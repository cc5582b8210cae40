//! The members of the API server endpoint: their checks run, rings and rules follow, the other nodes are told, drains are made, and status
//! gets to know. `speaker_core::health` decides.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use ebpf_common::ServiceKey;
use speaker_core::forwarding::Table;
use speaker_core::health::checks::Check;
use speaker_core::health::totals::{Known, Totals};
use speaker_core::health::{Connections, Health, Outcome, Report, Target};
use speaker_core::name::NodeName;
use speaker_core::reports::exchange;
use speaker_core::time::Instant;
use speaker_core::view::endpoints::Frontend;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tracing::{info, warn};

use super::State;
use crate::endpoint::board::{Place, Snapshot};
use crate::endpoint::checker::Checker;
use crate::endpoint::desk::{Desk, Request};
use crate::endpoint::serve;
use crate::io::clock;

pub struct Members {
    health: Health,
    checker: Checker,
    desk: Desk,
    sender: Sender<(Check, Outcome)>,
    ended: Receiver<(Check, Outcome)>,
    /// As the other nodes have it.
    reported: Option<Report>,
    given_up: BTreeSet<String>,
    /// The last outcome that was logged of each target.
    logged: BTreeMap<Target, Outcome>,
    /// By port of the addresses: the rows of each node.
    rows: Option<BTreeMap<u16, BTreeMap<String, u32>>>,
    /// What all nodes have counted.
    totals: Known,
    /// Status does not have everything.
    is_news: bool,
}

/// What wakes the loop.
pub enum Woken {
    Checked(Check, Outcome),
    Requested(Request),
    /// It is time for a turn.
    Due,
}

impl Members {
    pub fn new(mut health: Health, checker: Checker, desk: Desk) -> Self {
        // Those of the disk: a drained member is so from the first table on.
        health.drained(&desk.drains.borrow(), clock::now());
        let (sender, ended) = channel(MAX_ENDED);
        let (given_up, logged) = (BTreeSet::new(), BTreeMap::new());
        let (reported, rows, totals, is_news) = (None, None, Known::default(), true);
        Self { health, checker, desk, sender, ended, reported, given_up, logged, rows, totals, is_news }
    }

    pub fn follow(&mut self, frontends: &mut BTreeMap<ServiceKey, Frontend<'_>>, now: Instant) {
        self.health.follow(frontends, now);
        self.is_news = true;
    }

    /// Nodes that have given up ownership.
    pub fn given_up(&self) -> &BTreeSet<String> {
        &self.given_up
    }

    /// Connections that this node's kernel leads to members.
    pub fn count(&mut self, connections: Connections) {
        self.health.set_connections(connections);
        self.is_news = true;
    }

    /// What the maps hold now.
    pub fn follow_table(&mut self, table: &Table) {
        let mut rows: BTreeMap<u16, BTreeMap<String, u32>> = BTreeMap::new();
        for (key, service) in &table.services {
            let of_port = rows.entry(u16::from_be_bytes(key.port)).or_default();
            // The ring of all addresses is the same.
            if service.no_new_flows || !of_port.is_empty() {
                continue;
            }
            let mut counts = vec![0_u32; service.ring.nodes.len()];
            for row in service.ring.rows.iter() {
                if let Some(count) = counts.get_mut(usize::from(row)) {
                    *count += 1;
                }
            }
            of_port.extend(service.ring.nodes.iter().cloned().zip(counts));
        }
        self.is_news |= self.rows.as_ref() != Some(&rows);
        self.rows = Some(rows);
    }

    /// Status and disk get what is new.
    fn show(&mut self) {
        let drains = self.health.drains();
        self.desk.drains.send_if_modified(|known| {
            let changed = known != drains;
            if changed {
                known.clone_from(drains);
            }
            changed
        });
        if std::mem::take(&mut self.is_news) {
            self.totals.expire(clock::now());
            self.desk.board.members(self.snapshot(), serve::now());
        }
    }

    fn snapshot(&self) -> Snapshot {
        let health = &self.health;
        let places = health.places().map(|(node, target, standing)| Place {
            node: node.to_owned(),
            target,
            standing,
            known: health.is_known(node, target),
            checked: health.last_check(node, target),
        });
        let counted = health.connections();
        let mut connections = BTreeMap::new();
        for (place, count) in counted.values().copied().flatten() {
            *connections.entry(*place).or_insert(0) += u64::from(*count);
        }
        Snapshot {
            places: places.collect(),
            drains: health.drains().clone(),
            connections: (!counted.is_empty()).then_some(connections),
            totals: self.totals.sum(),
            rows: self.rows.clone(),
        }
    }

    /// Each check is a task. The machine bounds how many run; one whose outcome finds no room waits.
    fn start(&self, check: Check) {
        let (checker, sender) = (self.checker.clone(), self.sender.clone());
        tokio::spawn(async move {
            let outcome = checker.check(check.target).await;
            // The loop has ended: then nothing waits for it.
            sender.send((check, outcome)).await.ok();
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
            let (member, reason) = (address, outcome.label());
            if outcome.answers() {
                info!(%member, port, reason, "API server answers");
            } else if outcome.serves_in_doubt() {
                warn!(%member, port, reason, status, "API server answers in doubt; it gets connections while no other is ready");
            } else {
                warn!(%member, port, reason, "API server does not answer; checking again");
            }
        }
    }
}

/// The end of a check, a request, or the time of the next turn. May be dropped while it waits.
pub(super) async fn next(members: &mut Option<Members>) -> Woken {
    let Some(members) = members else { return std::future::pending().await };
    let due = members.health.next_deadline();
    let time = async {
        match due {
            Some(due) => tokio::time::sleep(due.since(clock::now())).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        Some((check, outcome)) = members.ended.recv() => Woken::Checked(check, outcome),
        // It ends with the process.
        Some(request) = members.desk.requests.recv() => Woken::Requested(request),
        () = time => Woken::Due,
    }
}

/// Checks that have ended and that the loop has not taken yet.
const MAX_ENDED: usize = 64;

impl State {
    pub(super) fn on_member(&mut self, woken: Woken) {
        let Some(members) = &mut self.sync.members else { return };
        match woken {
            Woken::Checked(check, outcome) => {
                members.health.ended(check, outcome, clock::now());
                members.log();
                members.is_news = true;
            }
            Woken::Requested(request) => {
                request.carry_out(&mut members.health, &mut members.checker);
                members.is_news = true;
            }
            Woken::Due => {}
        }
    }

    pub(super) fn on_member_report(&mut self, node: &NodeName, report: Report) {
        if let Some(members) = &mut self.sync.members {
            members.health.reported(node.as_str(), report, clock::now());
            members.is_news = true;
        }
    }

    pub(super) fn on_member_totals(&mut self, node: &NodeName, totals: Totals) {
        if let Some(members) = &mut self.sync.members {
            members.totals.reported(node.as_str(), totals, clock::now());
            members.is_news = true;
        }
    }

    pub(super) fn turn_members(&mut self) -> Result<()> {
        if let Some(totals) = self.rules.new_totals() {
            if let Some(members) = &mut self.sync.members {
                members.is_news |= members.totals.set_own(totals.clone());
            }
            self.exchange(Some(exchange::Event::Totals(totals)))?;
        }
        let Some(members) = &mut self.sync.members else { return Ok(()) };
        let (checks, changed) = members.health.turn(clock::now());
        checks.into_iter().for_each(|check| members.start(check));
        self.dirty |= changed;
        members.is_news |= changed;
        members.show();
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
