//! The previous rings of each service port: a recent primary of a row may have flows of it.
//!
//! Kept on disk, so that they survive a restart of the speaker: what is saved are members (a few names), not rows. Times are on the
//! boot clock. They mean something to the next run on the same boot only; a file of an earlier boot counts its entries as old as
//! they were when it was written. The wall clock, which steps, has no part in it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ebpf_common::{MAX_SERVICES, ServiceKey};

use super::maglev::Members;
pub use super::saved::{BadSavedRings, SavedRings};
use crate::time::{Duration, Instant};

/// The previous members of each service port.
#[derive(Clone, Debug)]
pub struct PreviousRings {
    pub(super) window: Duration,
    pub(super) services: BTreeMap<ServiceKey, PortRings>,
    generation: u64,
}

/// Of one service port.
#[derive(Clone, Debug, Default)]
pub(super) struct PortRings {
    pub current: Option<Arc<Members>>,
    /// Newest first; no two have the same members.
    pub previous: Vec<PreviousRing>,
}

/// A ring that is over.
#[derive(Clone, Debug)]
pub(super) struct PreviousRing {
    pub members: Arc<Members>,
    pub ended: Instant,
    /// Nodes that have reported completely since then (not kept on disk: nor are reports).
    pub retired_by: BTreeSet<String>,
}

impl PreviousRings {
    /// Rings are dropped when they ended longer ago than the window (`--drain-window-s`).
    pub fn new(window: Duration) -> Self {
        Self { window, services: BTreeMap::new(), generation: 0 }
    }

    /// Counts changes that are worth saving.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// For the disk. `boot`: whatever names this boot of the machine (`/proc/sys/kernel/random/boot_id`).
    pub fn save(&self, boot: &str, now: Instant) -> SavedRings {
        SavedRings::new(self, boot, now)
    }

    /// What an earlier run of the speaker saved, all of it or nothing.
    pub fn restore(saved: &SavedRings, window: Duration, boot: &str, now: Instant) -> Result<Self, BadSavedRings> {
        saved.restore(window, boot, now)
    }

    /// Every service port has these members now.
    pub(super) fn record(&mut self, now: Instant, current: &BTreeMap<ServiceKey, Arc<Members>>) {
        let window = self.window;
        let mut changed = false;
        for (key, members) in current {
            changed |= self.services.entry(*key).or_default().become_current(members, now);
        }
        for (_, port_rings) in self.services.iter_mut().filter(|(key, _)| !current.contains_key(key)) {
            changed |= port_rings.end(now);
        }
        self.generation += u64::from(changed);
        self.services.retain(|key, port_rings| {
            port_rings.previous.retain(|previous_ring| now.since(previous_ring.ended) <= window);
            current.contains_key(key) || !port_rings.previous.is_empty()
        });
        self.forget_beyond_limit(current);
    }

    /// This node was away (it starts, or was cut off): others may have served its rows meanwhile.
    pub(super) fn was_away(&mut self, own: &str, now: Instant) {
        for port_rings in self.services.values_mut() {
            if let Some(without) = port_rings.current.as_ref().and_then(|members| members.without(own)) {
                port_rings.add(Arc::new(without), now);
            }
        }
        self.generation += 1;
    }

    /// The members that a service port has now.
    pub(super) fn current(&self, key: &ServiceKey) -> Option<&Arc<Members>> {
        self.services.get(key)?.current.as_ref()
    }

    /// When the ring before the present one ended, if it had these members.
    pub(super) fn ended(&self, key: &ServiceKey, members: &Members) -> Option<Instant> {
        let newest = self.services.get(key)?.previous.first()?;
        (*newest.members == *members).then_some(newest.ended)
    }

    /// The last members that a service port had.
    pub(super) fn last(&self, key: &ServiceKey) -> Option<&Arc<Members>> {
        let port_rings = self.services.get(key)?;
        let current = port_rings.current.as_ref().filter(|members| members.pods() > 0);
        current.or_else(|| port_rings.previous.first().map(|previous_ring| &previous_ring.members))
    }

    /// Previous rings of a service port, newest first.
    pub(super) fn previous_mut(&mut self, key: &ServiceKey) -> &mut [PreviousRing] {
        self.services.get_mut(key).map_or(&mut [], |port_rings| &mut port_rings.previous)
    }

    /// Services that are gone make room for the present ones.
    fn forget_beyond_limit(&mut self, current: &BTreeMap<ServiceKey, Arc<Members>>) {
        let mut excess = self.services.len().saturating_sub(MAX_SERVICES as usize);
        self.services.retain(|key, _| {
            let forget = excess > 0 && !current.contains_key(key);
            excess -= usize::from(forget);
            !forget
        });
    }
}

impl PortRings {
    /// Whether this was a change.
    fn become_current(&mut self, members: &Arc<Members>, now: Instant) -> bool {
        if self.current.as_ref() == Some(members) {
            return false;
        }
        self.end(now);
        self.previous.retain(|previous_ring| previous_ring.members != *members);
        self.current = Some(members.clone());
        true
    }

    fn end(&mut self, now: Instant) -> bool {
        let current = self.current.take();
        let ended = current.is_some();
        if let Some(members) = current {
            self.add(members, now);
        }
        ended
    }

    /// One entry for the same members: its rows are the same, and so is their last primary.
    fn add(&mut self, members: Arc<Members>, now: Instant) {
        if members.pods() == 0 {
            return;
        }
        self.previous.retain(|previous_ring| previous_ring.members != members);
        self.previous.insert(0, PreviousRing { members, ended: now, retired_by: BTreeSet::new() });
        self.previous.truncate(MAX_PREVIOUS);
    }
}

/// Previous rings of one service port.
pub const MAX_PREVIOUS: usize = 16;

#[cfg(test)]
mod tests;
