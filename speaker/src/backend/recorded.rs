//! What this speaker remembers of the clients of sessionAffinity: what the kernel had in its sets a moment ago.
//!
//! The sets are part of our table, so they go when it is built anew, or when a third party deletes it. The first is a matter of reading
//! before writing; for the second there is this memory.

use std::time::Duration;

use speaker_core::backend::Plan;
use speaker_core::backend::affinity::{ClientSet, Clients, Records};
use tokio::time::Instant;

use super::clients;

#[derive(Debug)]
pub struct Recorded {
    table: &'static str,
    records: Records,
    at: Option<Instant>,
    /// When it was last said that they cannot be read.
    failing: bool,
}

impl Recorded {
    /// Between two readings; what came later is lost with a table that a third party deletes.
    pub const PACE: Duration = Duration::from_secs(30);

    /// Of this table.
    pub fn new(table: &'static str) -> Self {
        Self { table, records: Records::new(), at: None, failing: false }
    }

    /// Reads the sets of the plan in force, when it is time to.
    pub fn read(&mut self, plan: &Plan, now: Instant) {
        if self.at.is_some_and(|at| now - at < Self::PACE) {
            return;
        }
        let sets = plan.client_sets();
        for set in sets.keys() {
            // A set that is not there was deleted by a third party a moment ago: what is known of it stays.
            if let Some(clients) = self.clients(set) {
                self.records.insert(*set, clients);
            }
        }
        self.at = Some(now);
    }

    /// What the sets of a plan are to have: what the kernel has, or what it had before a third party deleted them. `known`: the plan in
    /// force. A set that it lacks is new: its pod left and came back, and its former clients have other pods.
    pub fn for_replacement(&mut self, plan: &Plan, known: Option<&Plan>, now: Instant) -> Records {
        let before = known.map(Plan::client_sets);
        let age = self.at.map_or(Duration::ZERO, |at| now - at);
        let stays = |set: &ClientSet| before.as_ref().is_none_or(|sets| sets.contains_key(set));
        let sets: Vec<ClientSet> = plan.client_sets().into_keys().filter(stays).collect();
        let clients = |set: ClientSet| {
            let clients = self.clients(&set).or_else(|| self.records.get(&set).map(|known| aged(known, age)))?;
            Some((set, clients))
        };
        sets.into_iter().filter_map(clients).collect()
    }

    /// A plan is in force: who left with a pod has no record.
    pub fn retain(&mut self, plan: &Plan) {
        if self.records.is_empty() {
            return;
        }
        let sets = plan.client_sets();
        self.records.retain(|set, _| sets.contains_key(set));
    }

    /// Of the kernel; `None`: it has no such set, or cannot tell.
    fn clients(&mut self, set: &ClientSet) -> Option<Clients> {
        match clients::read(self.table, set) {
            Ok(clients) => {
                self.failing = false;
                clients
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, set = set.name(), "clients of the set not read; those that were read before count");
                }
                None
            }
        }
    }
}

fn aged(clients: &Clients, by: Duration) -> Clients {
    clients.iter().filter_map(|(client, left)| Some((*client, left.checked_sub(by)?))).collect()
}
