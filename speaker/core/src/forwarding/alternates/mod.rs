//! Which nodes may have flows of a row: its previous primaries, and the nodes that report it.
//!
//! Read first: docs/decisions/0008, docs/dataplane.md section "Second chance". Files: here what goes into the answer and when an
//! answer is still good; `rows` computes it.
//!
//! Where there are more than fit, reporting nodes come before previous primaries, and newer ones of these before older ones. Then
//! the order of the search: it should be the same on all nodes, since each node continues the search by its own row. Reporting
//! nodes come first, by name: every node has received the same reports. Previous primaries follow, of which a restarted node may
//! know fewer. Nodes with late reports come after these: the rows by which their kernels go are old.
//!
//! Superseded reports by other tables come behind all that (`Reported::superseded`), then the primary that the row gets with the
//! next batch of additions: peers apply a batch at slightly different moments.
//!
//! Nodes that were lost a moment ago come last of these, where there is room: no node may answer a packet that goes there.
//!
//! Places that are left at the end go to nodes whose flows are unknown: those of previous rings and of the next (between two
//! rings that this node saw there may be one that it did not see), and those that have not reported since this node is back.

mod rows;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Ordering;

use ebpf_common::{ALTERNATES, MAX_ROWS, Row, numbered};

use super::Ring;
use super::numbers::Numbers;
use crate::reports::Rows;

/// The alternates of each row of a ring.
#[derive(Debug, PartialEq, Eq)]
pub struct Alternates {
    /// Rows hold indices into it, plus one.
    pub nodes: Arc<Vec<String>>,
    /// Each kind of row once: few of them differ. 0: none.
    different: Vec<[u16; ALTERNATES]>,
    /// One entry for each row of the ring: which of them it is.
    numbers: Numbers,
    /// Rows without a place for some node that may have flows of them: it reported them, was their primary, or may have flows of
    /// any row. (Not counted: nodes of previous rings, and of the next, in rows whose primary they are not there. They get the
    /// places that are left.)
    pub overflow: u32,
}

impl Alternates {
    fn new(nodes: Vec<String>, rows: &[[u16; ALTERNATES]], overflow: u32) -> Self {
        let (numbers, different) = numbered(rows.iter().map(|row| Row::new(0, *row)));
        let different = different.iter().map(|row| row.alternates()).collect();
        Self { nodes: Arc::new(nodes), different, numbers: numbers.into(), overflow }
    }

    /// The entry of a row, all 0 if there is no such row.
    pub fn row(&self, row: usize) -> [u16; ALTERNATES] {
        self.numbers.get(row).map_or([0; ALTERNATES], |number| self.different[usize::from(number)])
    }

    /// Of one row, in the order of the search.
    pub fn of(&self, row: u32) -> impl Iterator<Item = &str> {
        self.row(row as usize)
            .into_iter()
            .filter(|&index| index != 0)
            .map(|index| self.nodes[usize::from(index) - 1].as_str())
    }
}

/// Everything that the alternates of a ring follow from. Two of the same give the same allocation: see [`Cache`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cause {
    pub ring: ByAddress<Ring>,
    /// Previous rings, newest first, each with the nodes that may have flows of it, in order of names.
    pub previous: Vec<(ByAddress<Ring>, Vec<String>)>,
    /// The rows that each node reports, in order of names.
    pub reporters: Vec<(String, ByAddress<Rows>)>,
    /// Rows of superseded reports.
    pub superseded: Vec<(String, ByAddress<Rows>)>,
    /// The ring of the next batch, which peers may go by already.
    pub upcoming: Option<ByAddress<Ring>>,
    /// Nodes that may hold flows of any row.
    pub unreported: Arc<BTreeSet<String>>,
    /// Those among all of them whose speaker is silent.
    pub late: Arc<BTreeSet<String>>,
    pub lost: Lost,
}

/// What nodes have, or may have, that do not answer at present and may be back in a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lost {
    pub reporters: Vec<(String, ByAddress<Rows>)>,
    pub previous: Vec<(ByAddress<Ring>, Vec<String>)>,
}

impl Lost {
    fn is_empty(&self) -> bool {
        self.reporters.is_empty() && self.previous.is_empty()
    }
}

impl Cause {
    /// Whether nodes may have flows by rows of the largest size, and the ring has fewer: several of its rows would have to share
    /// their alternates. Nodes report in the rows of their own ring, so it stays split for as long as a node has flows of rows
    /// that are not its own.
    pub fn has_larger_rings(&self) -> bool {
        let previous = self
            .previous
            .iter()
            .chain(&self.lost.previous)
            .map(|(previous_ring, _)| previous_ring)
            .chain(&self.upcoming)
            .map(|ring| ring.0.rows.len());
        let reported = self.reporters.iter().chain(&self.superseded).chain(&self.lost.reporters);
        let reported = reported.map(|(_, rows)| rows.0.of() as usize);
        self.ring.0.rows.len() < MAX_ROWS as usize && previous.chain(reported).any(|rows| rows == MAX_ROWS as usize)
    }

    /// `None`: no row has an alternate.
    pub fn alternates(&self) -> Option<Alternates> {
        rows::alternates(self)
    }
}

/// Alternates by cause, so that what has not changed is the same allocation and is not written to the kernel again, and services
/// with equal causes share it.
#[derive(Debug, Default)]
pub struct Cache {
    causes: BTreeMap<Cause, Option<Arc<Alternates>>>,
    /// Equal lists of nodes are one.
    nodes: BTreeSet<Arc<Vec<String>>>,
}

impl Cache {
    /// From the cache of the last table into the one of the next.
    pub fn get(&self, cause: Cause, next: &mut Cache) -> Option<Arc<Alternates>> {
        let nothing = cause.previous.is_empty() && cause.reporters.is_empty() && cause.superseded.is_empty();
        if nothing && cause.upcoming.is_none() && cause.unreported.is_empty() && cause.lost.is_empty() {
            return None;
        }
        let Cache { causes, nodes } = next;
        let make = |cause: &Cause| match self.causes.get(cause) {
            Some(known) => known.clone(),
            None => cause.alternates().map(|mut alternates| {
                match nodes.get(&alternates.nodes) {
                    Some(known) => alternates.nodes = known.clone(),
                    None => _ = nodes.insert(alternates.nodes.clone()),
                }
                Arc::new(alternates)
            }),
        };
        causes.entry(cause).or_insert_with_key(make).clone()
    }
}

/// Compared by where it is. It is kept, so the address is not given to another.
#[derive(Debug)]
pub struct ByAddress<T>(pub Arc<T>);

impl<T> Clone for ByAddress<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Ord for ByAddress<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        Arc::as_ptr(&self.0).cmp(&Arc::as_ptr(&other.0))
    }
}

impl<T> PartialOrd for ByAddress<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for ByAddress<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Eq for ByAddress<T> {}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
