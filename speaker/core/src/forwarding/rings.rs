//! Rings that were filled: each is filled once for the same members, and once split.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use super::Ring;
use super::maglev::{self, Members};

/// Rings by their members, as they are filled and split.
pub(super) type Cached = BTreeMap<(Arc<Members>, bool), Arc<Ring>>;

/// Rings of the last table, and those of the next.
pub(super) struct Rings<'a> {
    pub(super) hash_key: [u64; 2],
    pub(super) known: &'a Cached,
    pub(super) used: Cached,
}

impl Rings<'_> {
    pub(super) fn get(&mut self, members: &Arc<Members>) -> Arc<Ring> {
        let hash_key = self.hash_key;
        self.cached(members, false, || Arc::new(maglev::fill(members, &hash_key)))
    }

    pub(super) fn split(&mut self, ring: &Arc<Ring>) -> Arc<Ring> {
        self.cached(&ring.members, true, || ring.split().map_or(ring.clone(), Arc::new))
    }

    fn cached(&mut self, members: &Arc<Members>, split: bool, make: impl FnOnce() -> Arc<Ring>) -> Arc<Ring> {
        let key = (members.clone(), split);
        if let Some(ring) = self.used.get(&key) {
            return ring.clone();
        }
        let ring = self.known.get(&key).cloned().unwrap_or_else(make);
        self.used.insert((ring.members.clone(), split), ring.clone());
        ring
    }
}
