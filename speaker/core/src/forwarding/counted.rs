//! Which slot each Service is counted in, for each VIP that it has.
//!
//! A slot stays with its Service, also in a restarted speaker: the maps name it. Services beyond the limit are counted together.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use ebpf_common::{MAX_COUNTED, ServiceKey, ServiceValue};

use super::diff::MapState;
use super::ids::{Exhausted, Slots};
use crate::view::ObjectName;
use crate::view::endpoints::Frontend;

/// A Service at one of its VIPs.
pub type Counted = (ObjectName, Ipv4Addr);

#[derive(Clone, Debug)]
pub(super) struct CounterSlots {
    slots: Slots<Counted>,
    /// Nothing was assigned yet: the maps may be those of an earlier speaker.
    is_new: bool,
    names: BTreeMap<u16, Counted>,
}

/// The service ports of each.
pub(super) fn counted(frontends: &BTreeMap<ServiceKey, Frontend<'_>>) -> BTreeMap<Counted, BTreeSet<ServiceKey>> {
    let mut all: BTreeMap<Counted, BTreeSet<ServiceKey>> = BTreeMap::new();
    for (key, frontend) in frontends {
        all.entry((frontend.service.clone(), key.addr.into())).or_default().insert(*key);
    }
    all
}

impl Default for CounterSlots {
    fn default() -> Self {
        Self::limited(MAX_COUNTED)
    }
}

impl CounterSlots {
    pub fn limited(end: u32) -> Self {
        Self { slots: Slots::new("counted_service", TOGETHER + 1, end), is_new: true, names: BTreeMap::new() }
    }

    /// What is counted, by slot.
    pub fn names(&self) -> BTreeMap<u16, Counted> {
        self.names.clone()
    }

    /// For `ServiceValue::flags`. A slot that the maps still name is not given to another Service.
    pub fn want(
        &mut self,
        counted: &BTreeMap<Counted, BTreeSet<ServiceKey>>,
        have: &MapState,
        exhausted: &mut Vec<Exhausted>,
    ) -> BTreeMap<ServiceKey, u32> {
        if core::mem::take(&mut self.is_new) {
            for (name, ports) in counted {
                let slots = ports.iter().filter_map(|key| have.services.get(key)).map(|value| value.counter_slot());
                slots
                    .filter(|slot| u32::from(*slot) != TOGETHER)
                    .find(|slot| self.slots.restore((*slot).into(), name.clone()));
            }
        }
        let in_maps: BTreeSet<u32> = have.services.values().map(|value| value.counter_slot().into()).collect();
        self.slots.retain(|name, slot| counted.contains_key(name) || in_maps.contains(&slot));
        self.names.clear();
        let (mut flags, mut beyond) = (BTreeMap::new(), None);
        for (name, ports) in counted {
            let slot = self.slots.assign(name).unwrap_or_else(|error| {
                beyond = Some(error);
                TOGETHER
            }) as u16;
            if u32::from(slot) != TOGETHER {
                self.names.insert(slot, name.clone());
            }
            flags.extend(ports.iter().map(|key| (*key, ServiceValue::counted_in(slot))));
        }
        exhausted.extend(beyond);
        flags
    }
}

/// The slot of all Services beyond the limit.
const TOGETHER: u32 = 0;

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    fn counted(numbers: impl IntoIterator<Item = u8>) -> BTreeMap<Counted, BTreeSet<ServiceKey>> {
        let of = |number: u8| {
            let ports = [80_u16, 443].map(|port| key(number, port));
            ((ObjectName::new("ns", format!("service-{number}")), vip(number)), ports.into())
        };
        numbers.into_iter().map(of).collect()
    }

    fn vip(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, number)
    }

    fn key(number: u8, port: u16) -> ServiceKey {
        ServiceKey { addr: vip(number).octets(), port: port.to_be_bytes(), proto: 6, pad: 0 }
    }

    /// The maps after this turn, and what was exhausted.
    fn turn(slots: &mut CounterSlots, numbers: &[u8], have: &MapState) -> (MapState, Vec<Exhausted>) {
        let mut exhausted = Vec::new();
        let flags = slots.want(&counted(numbers.iter().copied()), have, &mut exhausted);
        let services = flags.into_iter().map(|(key, flags)| (key, ServiceValue { ring: 7, flags })).collect();
        (MapState { services, ..MapState::default() }, exhausted)
    }

    fn slot(have: &MapState, number: u8) -> u16 {
        let [first, second] = [80, 443].map(|port| have.services[&key(number, port)].counter_slot());
        assert_eq!(first, second, "the ports of a Service are counted together");
        first
    }

    #[test]
    fn a_slot_stays_with_its_service_and_is_free_once_the_maps_do_not_name_it() {
        let mut slots = CounterSlots::default();
        let (have, _) = turn(&mut slots, &[1, 2], &MapState::default());
        assert_eq!((slot(&have, 1), slot(&have, 2)), (1, 2));
        let (next, _) = turn(&mut slots, &[2, 3], &have);
        assert_eq!((slot(&next, 2), slot(&next, 3)), (2, 3), "the maps still name slot 1");
        assert_eq!(slots.names().keys().copied().collect::<Vec<_>>(), [2, 3]);
        let (last, _) = turn(&mut slots, &[2, 3, 4], &next);
        assert_eq!((slot(&last, 2), slot(&last, 3), slot(&last, 4)), (2, 3, 1));

        // A restarted speaker goes on with what it finds; one of an earlier version left nothing.
        let mut restarted = CounterSlots::default();
        let (again, _) = turn(&mut restarted, &[0, 2, 3, 4], &last);
        assert_eq!([0, 2, 3, 4].map(|number| slot(&again, number)), [4, 2, 3, 1]);
    }

    #[test]
    fn services_beyond_the_limit_are_counted_together_and_named() {
        let mut slots = CounterSlots::limited(3);
        let (have, exhausted) = turn(&mut slots, &[1, 2, 3, 4], &MapState::default());
        assert_eq!([1, 2, 3, 4].map(|number| slot(&have, number)), [1, 2, 0, 0]);
        assert_eq!(exhausted, [Exhausted { what: "counted_service", limit: 2 }]);
        assert_eq!(slots.names().len(), 2);
        let (have, _) = turn(&mut slots, &[2, 3, 4], &have);
        let (have, exhausted) = turn(&mut slots, &[2, 3, 4], &have);
        assert_eq!([2, 3, 4].map(|number| slot(&have, number)), [2, 1, 0]);
        assert_eq!(exhausted.len(), 1);
    }
}
