//! Services with source ranges: which slot each has in the maps, and which ranges stand there.
//!
//! A Service keeps its slot, so that its counter of denied packets goes on; its ranges are replaced in place, new ones first. What does
//! not fit is left out: then fewer clients are admitted than the Service says, never more. Slots follow from what the maps hold, so a
//! restarted speaker goes on with them.

use alloc::collections::{BTreeMap, BTreeSet};
use core::net::Ipv4Addr;

use ebpf_common::{MAX_RESTRICTED, MAX_SOURCE_RANGES, ServiceKey, ServiceValue};

use super::diff::MapState;
use super::ids::Exhausted;
use crate::attributes::SourceRanges;
use crate::view::ObjectName;
use crate::view::endpoints::Frontend;

/// A Service with source ranges, as the table has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restricted {
    pub ranges: SourceRanges,
    /// Its service ports.
    pub ports: BTreeSet<ServiceKey>,
}

/// An entry of map `SOURCE_RANGES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    pub slot: u16,
    pub network: [u8; 4],
    pub length: u8,
}

/// The slots that Services have.
#[derive(Clone, Debug)]
pub(super) struct RangeSlots {
    slots: BTreeMap<ObjectName, u16>,
    /// Services for which there is none: they admit no client.
    beyond: BTreeSet<ObjectName>,
    /// Nothing was assigned yet: the maps may be those of an earlier speaker.
    is_new: bool,
    services: u32,
    ranges: usize,
}

/// What the maps are to hold of them.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// For `ServiceValue::flags`.
    pub flags: BTreeMap<ServiceKey, u32>,
    pub ranges: BTreeSet<Range>,
}

impl Restricted {
    /// All of them, by the name of the Service.
    pub(super) fn of(frontends: &BTreeMap<ServiceKey, Frontend<'_>>) -> BTreeMap<ObjectName, Self> {
        let mut all: BTreeMap<ObjectName, Self> = BTreeMap::new();
        for (key, frontend) in frontends {
            let Some(ranges) = &frontend.attributes.source_ranges else { continue };
            let restricted = all.entry(frontend.service.clone()).or_default();
            restricted.ranges = ranges.clone();
            restricted.ports.insert(*key);
        }
        all
    }

    /// Without the ports of this VIP. Whether there are others.
    pub(super) fn bar(&mut self, vip: Ipv4Addr) -> bool {
        self.ports.retain(|key| key.addr != vip.octets());
        !self.ports.is_empty()
    }
}

impl Default for RangeSlots {
    fn default() -> Self {
        Self::limited(MAX_RESTRICTED, MAX_SOURCE_RANGES as usize)
    }
}

impl RangeSlots {
    pub fn limited(services: u32, ranges: usize) -> Self {
        Self { slots: BTreeMap::new(), beyond: BTreeSet::new(), is_new: true, services, ranges }
    }

    /// Services by slot. Those beyond the limit have one together, in which their packets are counted as denied.
    pub fn names(&self) -> BTreeMap<u16, ObjectName> {
        let others = (!self.beyond.is_empty()).then(|| (NO_CLIENT, ObjectName::new("", OTHERS)));
        self.slots.iter().map(|(name, slot)| (*slot, name.clone())).chain(others).collect()
    }

    /// Services beyond the limit.
    pub fn beyond(&self) -> &BTreeSet<ObjectName> {
        &self.beyond
    }

    pub fn want(
        &mut self,
        restricted: &BTreeMap<ObjectName, Restricted>,
        have: &MapState,
        exhausted: &mut alloc::vec::Vec<Exhausted>,
    ) -> Wanted {
        self.slots.retain(|name, _| restricted.contains_key(name));
        self.assign(restricted, have, exhausted);
        let mut room = self.ranges.saturating_sub(have.ranges.len());
        let (mut wanted, mut left_out) = (Wanted::default(), false);
        for (name, Restricted { ranges, ports }) in restricted {
            let slot = self.slots.get(name).copied().unwrap_or(NO_CLIENT);
            wanted.flags.extend(ports.iter().map(|key| (*key, ServiceValue::restricted_to(slot))));
            if slot == NO_CLIENT {
                continue;
            }
            let entries =
                ranges.iter().map(|range| Range { slot, network: range.network.octets(), length: range.length });
            let (present, new): (BTreeSet<Range>, BTreeSet<Range>) =
                entries.partition(|range| have.ranges.contains(range));
            wanted.ranges.extend(present);
            match room.checked_sub(new.len()) {
                Some(rest) => {
                    room = rest;
                    wanted.ranges.extend(new);
                }
                // All or nothing: half a list helps nobody.
                None => left_out = true,
            }
        }
        if left_out {
            exhausted.push(Exhausted { what: "source_range", limit: self.ranges as u32 });
        }
        wanted
    }

    /// A slot for each Service, as far as there are any. One that the maps still name is not given to another Service.
    fn assign(
        &mut self,
        restricted: &BTreeMap<ObjectName, Restricted>,
        have: &MapState,
        exhausted: &mut alloc::vec::Vec<Exhausted>,
    ) {
        let in_maps = |value: &ServiceValue| {
            (value.flags & ServiceValue::SOURCE_RANGES != 0)
                .then(|| value.ranges_slot())
                .filter(|slot| *slot != NO_CLIENT)
        };
        let mut taken: BTreeSet<u16> = self.slots.values().copied().collect();
        if core::mem::take(&mut self.is_new) {
            for (name, Restricted { ports, .. }) in restricted {
                let left = ports.iter().filter_map(|key| have.services.get(key)).find_map(in_maps);
                if let Some(slot) = left.filter(|slot| taken.insert(*slot)) {
                    self.slots.insert(name.clone(), slot);
                }
            }
        }
        taken.extend(have.services.values().filter_map(in_maps));
        taken.extend(have.ranges.iter().map(|range| range.slot));
        let mut free = (NO_CLIENT + 1..self.services as u16).filter(|slot| !taken.contains(slot));
        self.beyond.clear();
        for name in restricted.keys() {
            if self.slots.contains_key(name) {
                continue;
            }
            match free.next() {
                Some(slot) => drop(self.slots.insert(name.clone(), slot)),
                None => drop(self.beyond.insert(name.clone())),
            }
        }
        if !self.beyond.is_empty() {
            exhausted.push(Exhausted { what: "restricted_service", limit: self.services - 1 });
        }
    }
}

/// The slot that never has a range.
const NO_CLIENT: u16 = 0;
/// Stands for the Services of that slot. No namespace has an empty name.
const OTHERS: &str = "others";

#[cfg(test)]
mod tests;
