//! The fill: one pass over the rows for each source of candidates; nothing is allocated per row.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use ebpf_common::ALTERNATES;

use super::{Alternates, ByAddress, Cause};
use crate::forwarding::Ring;
use crate::reports::{Rows, overlapping};

pub(super) fn alternates(cause: &Cause) -> Option<Alternates> {
    let Cause { ring, previous, reporters, superseded, upcoming, unreported, late, lost } = cause;
    let previous_nodes = previous.iter().flat_map(|(_, nodes)| nodes);
    let upcoming_nodes = upcoming.iter().flat_map(|upcoming| &upcoming.0.nodes);
    let any_row: BTreeSet<&String> = previous_nodes.chain(upcoming_nodes).chain(&**unreported).collect();
    let reporting = reporters.iter().chain(superseded).map(|(node, _)| node);
    let lost_nodes =
        lost.reporters.iter().map(|(node, _)| node).chain(lost.previous.iter().flat_map(|(_, nodes)| nodes));
    let names: BTreeSet<&String> = reporting.chain(any_row.iter().copied()).chain(lost_nodes).collect();
    let (last, first): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| late.contains(*name));
    let nodes: Vec<String> = first.iter().chain(&last).map(|name| String::from(*name)).collect();
    let numbers: BTreeMap<&str, u16> = nodes.iter().zip(1..).map(|(name, number)| (name.as_str(), number)).collect();
    let number = |name: &String| numbers.get(name.as_str()).copied().unwrap_or(0);
    let mut sheet = Sheet::new(&ring.0, &number);
    for (node, rows) in reporters {
        sheet.add_reporter(number(node), &rows.0);
    }
    let numbers_of = |previous_ring: &Ring, nodes: &[String]| -> Vec<u16> {
        let may_have_flows = |name: &String| if nodes.binary_search(name).is_ok() { number(name) } else { 0 };
        previous_ring.nodes.iter().map(may_have_flows).collect()
    };
    for (previous_ring, nodes) in previous {
        sheet.add_previous(&previous_ring.0, &numbers_of(&previous_ring.0, nodes));
    }
    for (node, rows) in superseded {
        sheet.add_reporter(number(node), &rows.0);
    }
    if let Some(ByAddress(upcoming)) = upcoming {
        let numbers: Vec<u16> = upcoming.nodes.iter().map(number).collect();
        sheet.place_where(upcoming, &numbers);
    }
    if !last.is_empty() {
        sheet.put_last(first.len() as u16 + 1);
    }
    for (node, rows) in &lost.reporters {
        sheet.place_reporter(number(node), &rows.0);
    }
    for (previous_ring, nodes) in &lost.previous {
        sheet.place_where(&previous_ring.0, &numbers_of(&previous_ring.0, nodes));
    }
    let any_row: Vec<u16> = any_row.into_iter().map(number).collect();
    sheet.add_where_there_is_room(&any_row);
    let unreported: Vec<u16> = unreported.iter().map(number).collect();
    sheet.count_without_room(&unreported);
    let Sheet { rows, overflow, .. } = sheet;
    let overflow = overflow.iter().filter(|&&overflow| overflow).count() as u32;
    let found = rows.iter().any(|row| row[0] != 0);
    found.then(|| Alternates::new(nodes, &rows, overflow))
}

/// The rows of a ring of this size that a report names.
fn reported(held: &Rows, size: u32) -> impl Iterator<Item = usize> {
    let rows = held.iter().flat_map(move |theirs| overlapping(theirs, held.of(), size));
    rows.map(|row| row as usize)
}

/// What is being filled. Numbers of nodes: 1 and up; 0 is no node.
struct Sheet {
    /// Which node each row of the ring names.
    ring: Vec<u16>,
    /// The number of each of the ring's nodes.
    primaries: Vec<u16>,
    rows: Vec<[u16; ALTERNATES]>,
    overflow: Vec<bool>,
}

impl Sheet {
    fn new(ring: &Ring, number: &dyn Fn(&String) -> u16) -> Self {
        let size = ring.rows.len();
        let primaries = ring.nodes.iter().map(number).collect();
        let rows = vec![[0; ALTERNATES]; size];
        Self { ring: ring.rows.iter().collect(), primaries, rows, overflow: vec![false; size] }
    }

    fn size(&self) -> u32 {
        self.ring.len() as u32
    }

    fn add_reporter(&mut self, node: u16, held: &Rows) {
        reported(held, self.size()).for_each(|row| self.add(row, node));
    }

    /// `numbers`: of the previous ring's nodes; 0 for nodes that have no flows of it.
    fn add_previous(&mut self, previous_ring: &Ring, numbers: &[u16]) {
        let rows: Vec<u16> = previous_ring.rows.iter().collect();
        let (size, theirs) = (self.size(), rows.len() as u32);
        for row in 0..size {
            for theirs in overlapping(row, size, theirs) {
                self.add(row as usize, numbers[usize::from(rows[theirs as usize])]);
            }
        }
    }

    /// Where there is room. Of the ring of the next batch only a peer that is ahead has flows, and it reports them in a moment; a lost
    /// node may be gone.
    fn place_where(&mut self, ring: &Ring, numbers: &[u16]) {
        let rows: Vec<u16> = ring.rows.iter().collect();
        let (size, theirs) = (self.size(), rows.len() as u32);
        for row in 0..size {
            for theirs in overlapping(row, size, theirs) {
                self.place(row as usize, numbers[usize::from(rows[theirs as usize])]);
            }
        }
    }

    fn place_reporter(&mut self, node: u16, held: &Rows) {
        reported(held, self.size()).for_each(|row| _ = self.place(row, node));
    }

    /// Each row begins with another one of them, so that all have their rows if there are more than fit. Of many nodes it begins where the
    /// row before has ended: they stand in as many rows, and fewer rows differ.
    fn add_where_there_is_room(&mut self, nodes: &[u16]) {
        for row in 0..self.rows.len() {
            let room = self.rows[row].iter().filter(|place| **place == 0).count();
            let step = if nodes.len() > MANY { room.max(1) } else { 1 };
            let (before, first) = nodes.split_at(row % nodes.len().div_ceil(step).max(1) * step);
            for node in first.iter().chain(before) {
                if !self.place(row, *node) {
                    break;
                }
            }
        }
    }

    /// Nodes that may hold flows of any row overflow each row that does not name them.
    fn count_without_room(&mut self, nodes: &[u16]) {
        for (row, overflow) in self.overflow.iter_mut().enumerate() {
            let primary = self.primaries[usize::from(self.ring[row])];
            *overflow |= nodes.iter().any(|node| *node != primary && !self.rows[row].contains(node));
        }
    }

    fn add(&mut self, row: usize, node: u16) {
        let has_place = self.place(row, node);
        self.overflow[row] |= !has_place;
    }

    /// Whether it has a place in the row, or needs none.
    fn place(&mut self, row: usize, node: u16) -> bool {
        if node == 0 || node == self.primaries[usize::from(self.ring[row])] {
            return true;
        }
        for place in &mut self.rows[row] {
            if *place == 0 {
                *place = node;
            }
            if *place == node {
                return true;
            }
        }
        false
    }

    /// Nodes from this number on go to the end of their row; else the order stays.
    fn put_last(&mut self, from: u16) {
        for row in &mut self.rows {
            row.sort_by_key(|&node| node == 0 || node >= from);
            row.sort_by_key(|&node| node == 0);
        }
    }
}

/// With three primaries, rows of more nodes take more than 8 bits for the number of each.
const MANY: usize = 64;
