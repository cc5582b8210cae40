//! Flow reports: each node reports in which rows it has flows that are not its own.
//!
//! Conntrack is the only truth about flows. From it each node computes its [`Report`] ([`reporter`]) and sends it to the others
//! ([`exchange`]), with the digest of the view that it has applied (`staleness`). The reports of all nodes are the [`Reports`],
//! from which the alternates of rows follow (`forwarding::alternates`). Read first: docs/decisions/0008. Files: mod.rs -> rows.rs
//! -> reporter.rs -> exchange.rs (and `wire::report`, the format).

pub mod exchange;
pub mod reporter;
mod rows;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ebpf_common::ServiceKey;

pub use rows::{Rows, overlapping};

use crate::time::Instant;

/// In which rows a node has flows without being their primary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Of the table by which it is not the primary (`Table::digest`).
    pub digest: u64,
    /// Some rows are left out: more than fit.
    pub partial: bool,
    /// Without those of which it holds nothing.
    pub services: BTreeMap<ServiceKey, Arc<Rows>>,
}

/// The last report of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    pub report: Arc<Report>,
    /// When the node last confirmed it.
    pub confirmed: Instant,
    /// Its earlier reports by other tables, since it last had the same table as this node. A report leaves out rows whose primary
    /// the node is by its own table; by ours it may not be, and an earlier report names them.
    pub superseded: Arc<Superseded>,
}

/// A few of the last, newest first.
pub type Superseded = BTreeMap<ServiceKey, Vec<Arc<Rows>>>;

/// The last report of each node, by name.
pub type Reports = BTreeMap<String, Reported>;

/// Of one service port.
const MAX_SUPERSEDED: usize = 4;

impl Reported {
    /// Rows that it named earlier and in which it may have flows, for a node that goes by the table with this digest.
    pub fn superseded_rows(&self, key: &ServiceKey, digest: u64) -> impl Iterator<Item = &Arc<Rows>> {
        let superseded = if self.report.digest == digest { None } else { self.superseded.get(key) };
        superseded.into_iter().flatten()
    }

    /// Replaces the report and keeps the superseded one.
    fn supersede(&mut self, report: Arc<Report>) {
        if self.report.digest != report.digest {
            let superseded = Arc::make_mut(&mut self.superseded);
            for (key, rows) in &self.report.services {
                let list = superseded.entry(*key).or_default();
                list.retain(|known| known != rows);
                list.insert(0, rows.clone());
                list.truncate(MAX_SUPERSEDED);
            }
        }
        self.report = report;
    }

    /// Under the table with this digest these are all its rows, or were at this time or later.
    pub fn is_complete(&self, digest: u64, at: Instant) -> bool {
        self.report.digest == digest && !self.report.partial && self.confirmed >= at
    }
}
