//! Which slot of `RINGS` each ring has: equal rings share one.
//!
//! Slots follow from what the maps hold, so that a restarted speaker goes on with the slots of the one before it. A ring that a slot
//! holds stays there. A new ring replaces another in place where all service ports of that slot get it, which changes them all at
//! once; else it gets a slot that no service port names.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::fmt;

use ebpf_common::{ALTERNATES, Row, ServiceKey};

use super::Ring;
use super::alternates::{Alternates, ByAddress};
use super::diff::MapState;

/// What a slot holds: from which its rows follow, not the rows themselves.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contents(Option<Known>);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Known {
    source: Source,
    nodes: Arc<Slots>,
}

/// In `NODES`.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Slots {
    /// Of the ring's nodes.
    primaries: Vec<u16>,
    alternates: Vec<Alternate>,
}

/// 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Alternate {
    pub slot: u16,
    /// The rules in force do not lead there yet: what has no other alternate is dropped, and sent again.
    pub pending: bool,
}

pub(super) type Source = (ByDigest, Option<ByAddress<Alternates>>);

/// Two rings with the same digest have the same members. As many rows: none of them is the other one split.
#[derive(Clone, Debug)]
pub(super) struct ByDigest(pub Arc<Ring>);

impl ByDigest {
    fn key(&self) -> (u64, usize) {
        (self.0.digest, self.0.rows.len())
    }
}

impl Ord for ByDigest {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for ByDigest {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByDigest {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for ByDigest {}

impl Contents {
    /// Of a ring that an earlier speaker made. Equal to no ring that is to be.
    pub const UNKNOWN: Self = Self(None);

    /// `slot_of`: of a node, 0 if it has none. Its frames are dropped as `bad_ring` and counted; as an alternate it is left out.
    pub(super) fn new(source: Source, slot_of: impl Fn(&str) -> u16, alternate: impl Fn(&str) -> Alternate) -> Self {
        let (ring, others) = &source;
        let primaries = ring.0.nodes.iter().map(|node| slot_of(node)).collect();
        let alternates = others.iter().flat_map(|others| others.0.nodes.iter()).map(|node| alternate(node)).collect();
        Self(Some(Known { source, nodes: Arc::new(Slots { primaries, alternates }) }))
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |known| known.source.0.0.rows.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As the kernel is to have them.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        let known = self.0.iter();
        known.flat_map(|Known { source: (ring, others), nodes }| {
            let Slots { primaries, alternates } = &**nodes;
            let alternate = |number: u16| match usize::from(number).checked_sub(1) {
                Some(node) => alternates[node],
                None => Alternate::default(),
            };
            ring.0.rows.iter().enumerate().map(move |(row, node)| {
                let none = [Alternate::default(); ALTERNATES];
                let mut alternates = others.as_ref().map_or(none, |others| others.0.row(row).map(alternate));
                // The search goes on from the first one, which may know the flow or lead to the others already.
                alternates.sort_by_key(|alternate| (alternate.slot == 0, alternate.pending));
                Row::new(primaries[usize::from(node)], alternates.map(|alternate| alternate.slot))
            })
        })
    }
}

/// A ring is named by its length: 65488 rows help no reader of a log.
impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(_) => write!(f, "{} rows", self.len()),
            None => write!(f, "unknown rows"),
        }
    }
}

/// Different rings, by number, and their users: the number of the ring of each service port, in order.
pub(super) struct Wanted {
    pub rings: Vec<Contents>,
    pub users: Vec<(ServiceKey, usize)>,
}

impl Wanted {
    /// A slot below `limit` for each ring, as far as there are slots.
    pub fn slots(&self, have: &MapState, limit: u32) -> Vec<Option<u32>> {
        let mut slots = self.held(have);
        let mut taken = vec![false; limit as usize];
        for slot in slots.iter().flatten() {
            taken[*slot as usize] = true;
        }
        let present = self.present(have, limit);
        self.replace_in_place(&present, &mut taken, &mut slots);
        for value in have.services.values().filter(|value| value.ring < limit) {
            taken[value.ring as usize] = true;
        }
        let mut free = (0..limit).filter(|slot| !taken[*slot as usize]);
        for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
            *slot = free.next();
        }
        slots
    }

    /// The slot that holds it already, the lowest of several.
    fn held(&self, have: &MapState) -> Vec<Option<u32>> {
        let mut held = BTreeMap::new();
        for (slot, contents) in &have.rings {
            held.entry(contents).or_insert(*slot);
        }
        self.rings.iter().map(|ring| held.get(ring).copied().filter(|_| *ring != Contents::UNKNOWN)).collect()
    }

    /// The slot that each service port has, in order.
    fn present(&self, have: &MapState, limit: u32) -> Vec<Option<u32>> {
        let mut values = have.services.iter().peekable();
        let slot = |(key, _): &(ServiceKey, usize)| {
            while values.next_if(|(known, _)| *known < key).is_some() {}
            let (_, value) = values.next_if(|(known, _)| *known == key)?;
            Some(value.ring).filter(|slot| *slot < limit)
        };
        self.users.iter().map(slot).collect()
    }

    /// A ring that has no slot yet takes the lowest of those whose service ports all want it.
    fn replace_in_place(&self, present: &[Option<u32>], taken: &mut [bool], slots: &mut [Option<u32>]) {
        let users = || self.users.iter().zip(present).filter_map(|((_, ring), slot)| Some((*ring, (*slot)? as usize)));
        let mut wanted: Vec<Option<usize>> = vec![None; taken.len()];
        let mut mixed = taken.to_vec();
        for (ring, slot) in users() {
            mixed[slot] |= wanted[slot].replace(ring).is_some_and(|other| other != ring);
        }
        let mut candidates = vec![None; slots.len()];
        for (ring, slot) in users().filter(|(ring, slot)| slots[*ring].is_none() && !mixed[*slot]) {
            let lowest: &mut Option<usize> = &mut candidates[ring];
            *lowest = Some(lowest.map_or(slot, |other| other.min(slot)));
        }
        for (slot, candidate) in slots.iter_mut().zip(candidates) {
            if let Some(candidate) = candidate {
                *slot = Some(candidate as u32);
                taken[candidate] = true;
            }
        }
    }
}

#[cfg(test)]
mod tests;
