//! Stable slots: node -> slot in `NODES`.
//!
//! A slot outlives the speaker: after a restart the names are read back from the maps, so that no row changes its meaning. Nodes are known by their address, which is what the map holds. A slot is given out again when nothing in the
//! maps names it any more, not before (see `Layout::want`).

use alloc::collections::BTreeMap;
use core::net::Ipv4Addr;

use ebpf_common::MAX_NODES;
use thiserror::Error;

pub type NodeSlots = Slots<Ipv4Addr>;

/// Slots `first..end`, the lowest free one first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots<K> {
    what: &'static str,
    first: u32,
    end: u32,
    by_key: BTreeMap<K, u32>,
    by_slot: BTreeMap<u32, K>,
}

/// The environment outgrew a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("all {limit} {what} slots are taken")]
pub struct Exhausted {
    pub what: &'static str,
    pub limit: u32,
}

impl NodeSlots {
    /// Slot 0 is no node.
    pub fn nodes() -> Self {
        Self::new("node", 1, MAX_NODES)
    }
}

impl<K: Ord + Clone> Slots<K> {
    pub(super) fn new(what: &'static str, first: u32, end: u32) -> Self {
        Self { what, first, end, by_key: BTreeMap::new(), by_slot: BTreeMap::new() }
    }

    /// The content of the maps. Of two claims to one slot or by one key the first counts; false: this was not it, or the slot is
    /// out of range.
    pub fn restore(&mut self, slot: u32, key: K) -> bool {
        let free = !self.by_slot.contains_key(&slot) && !self.by_key.contains_key(&key);
        let in_range = (self.first..self.end).contains(&slot);
        if free && in_range {
            self.by_key.insert(key.clone(), slot);
            self.by_slot.insert(slot, key);
        }
        free && in_range
    }

    pub fn get(&self, key: &K) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    pub fn assign(&mut self, key: &K) -> Result<u32, Exhausted> {
        if let Some(slot) = self.get(key) {
            return Ok(slot);
        }
        let Some(slot) = self.lowest_free() else {
            return Err(Exhausted { what: self.what, limit: self.end - self.first });
        };
        self.by_key.insert(key.clone(), slot);
        self.by_slot.insert(slot, key.clone());
        Ok(slot)
    }

    /// Frees the slots of all other keys.
    pub fn retain(&mut self, keep: impl Fn(&K, u32) -> bool) {
        self.by_key.retain(|key, slot| keep(key, *slot));
        self.by_slot.retain(|slot, key| keep(key, *slot));
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    fn lowest_free(&self) -> Option<u32> {
        // The first gap in the ordered slots.
        let mut slots = self.by_slot.keys();
        (self.first..self.end).find(|&slot| slots.next() != Some(&slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_free_and_stable() {
        let mut slots = Slots::new("test", 1, 4);
        assert_eq!([slots.assign(&'a'), slots.assign(&'b'), slots.assign(&'a')], [Ok(1), Ok(2), Ok(1)]);
        slots.retain(|&key, _| key != 'a');
        assert_eq!([slots.assign(&'c'), slots.assign(&'d')], [Ok(1), Ok(3)]);
        assert_eq!(slots.assign(&'e'), Err(Exhausted { what: "test", limit: 3 }));
        assert_eq!(slots.get(&'b'), Some(2));
    }

    #[test]
    fn restored_slots_are_kept_and_contradictions_refused() {
        let mut slots = Slots::new("test", 1, 9);
        assert!(slots.restore(5, 'a'));
        assert!(!slots.restore(5, 'b') && !slots.restore(6, 'a') && !slots.restore(0, 'c') && !slots.restore(9, 'c'));
        assert_eq!([slots.assign(&'a'), slots.assign(&'b')], [Ok(5), Ok(1)]);
        assert_eq!(slots.len(), 2);
    }

    #[test]
    fn real_sizes() {
        assert_eq!(NodeSlots::nodes().assign(&Ipv4Addr::new(192, 0, 2, 1)), Ok(1));
    }
}
