//! Pure: what every speaker's tables have room for in the whole cluster, and which Services have it. As in the speakers
//! (`forwarding::diff` and `forwarding::restricted` of speaker-core): what has a place keeps it, and what is new gets one while there is
//! any, service ports in the order of addresses, lists of source ranges in the order of names.
//!
//! A Service gets an address only if all of it has a place, so that the speakers leave nothing out. Services that have one may grow: what
//! has no place then is named on the one that has grown.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use sheave_api::{MAX_ALL_SOURCE_RANGES, MAX_RESTRICTED_SERVICES, MAX_SERVICE_PORTS, Refusal};

use crate::coverage::listed;
use crate::request::Refused;
use crate::view::{Port, ServiceKey};

/// A port of an address, as the speakers' map has it.
pub type Place = (Ipv4Addr, Port);

/// What a Service takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    pub places: BTreeSet<Place>,
    /// How many source ranges of IPv4 it has, if it has a list of them. One that admits no client has none.
    pub ranges: Option<usize>,
}

/// How much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub service_ports: usize,
    pub lists: usize,
    pub ranges: usize,
}

impl Default for Room {
    fn default() -> Self {
        Room { service_ports: MAX_SERVICE_PORTS, lists: MAX_RESTRICTED_SERVICES, ranges: MAX_ALL_SOURCE_RANGES }
    }
}

/// All Services that have an address, or are about to.
#[derive(Clone, Debug, Default)]
pub struct Places {
    room: Room,
    needs: BTreeMap<ServiceKey, Need>,
    /// Service ports that have a place.
    taken: usize,
    /// Those that have none.
    missing: BTreeSet<(Place, ServiceKey)>,
    /// Services whose list has a place, and how many ranges of it have one.
    lists: BTreeMap<ServiceKey, usize>,
    ranges: usize,
    /// Services whose list has none.
    unlisted: BTreeSet<ServiceKey>,
    /// Services whose list has a place, but not all of its ranges.
    cut: BTreeSet<ServiceKey>,
}

impl Places {
    pub fn new(room: Room) -> Self {
        Places { room, ..Places::default() }
    }

    /// What the Service takes from now on. What follows is to be said of these Services; `freed`: others may fit now.
    pub fn set(&mut self, service: &ServiceKey, need: Need) -> Changed {
        let before = self.needs.remove(service).unwrap_or_default();
        if before == need {
            self.keep(service, need);
            return Changed::default();
        }
        let demand = self.demand();
        for place in before.places.difference(&need.places) {
            if !self.missing.remove(&(place.clone(), service.clone())) {
                self.taken -= 1;
            }
        }
        self.missing.extend(need.places.difference(&before.places).map(|place| (place.clone(), service.clone())));
        self.set_ranges(service, need.ranges);
        self.keep(service, need);
        let mut services = self.fill();
        services.insert(service.clone());
        let freed = self.demand().iter().zip(demand).any(|(now, before)| *now < before);
        Changed { services, freed }
    }

    fn keep(&mut self, service: &ServiceKey, need: Need) {
        if need != Need::default() {
            self.needs.insert(service.clone(), need);
        }
    }

    fn set_ranges(&mut self, service: &ServiceKey, ranges: Option<usize>) {
        let Some(wanted) = ranges else {
            self.ranges -= self.lists.remove(service).unwrap_or_default();
            self.unlisted.remove(service);
            self.cut.remove(service);
            return;
        };
        let Some(has) = self.lists.get_mut(service) else {
            self.unlisted.insert(service.clone());
            return;
        };
        self.ranges -= has.saturating_sub(wanted);
        *has = wanted.min(*has);
        if *has < wanted {
            self.cut.insert(service.clone())
        } else {
            self.cut.remove(service)
        };
    }

    /// Gives places to what has none, and returns whose it is.
    fn fill(&mut self) -> BTreeSet<ServiceKey> {
        let mut services = BTreeSet::new();
        while self.taken < self.room.service_ports
            && let Some((_, service)) = self.missing.pop_first()
        {
            self.taken += 1;
            services.insert(service);
        }
        while self.lists.len() < self.room.lists
            && let Some(service) = self.unlisted.pop_first()
        {
            self.lists.insert(service.clone(), 0);
            self.cut.insert(service.clone());
            services.insert(service);
        }
        for service in std::mem::take(&mut self.cut) {
            let wanted = self.needs.get(&service).and_then(|need| need.ranges).unwrap_or_default();
            let has = self.lists.get(&service).copied().unwrap_or_default();
            // All or nothing: half a list helps nobody.
            if self.ranges + wanted - has > self.room.ranges {
                self.cut.insert(service);
                continue;
            }
            self.ranges += wanted - has;
            self.lists.insert(service.clone(), wanted);
            services.insert(service);
        }
        services
    }

    /// Service ports, lists and ranges of all Services, also those that have no place.
    fn demand(&self) -> [usize; 3] {
        let short = self.cut.iter().chain(&self.unlisted);
        let missing = short.map(|service| {
            let wanted = self.needs.get(service).and_then(|need| need.ranges).unwrap_or_default();
            wanted.saturating_sub(self.lists.get(service).copied().unwrap_or_default())
        });
        let ranges = self.ranges + missing.sum::<usize>();
        [self.taken + self.missing.len(), self.lists.len() + self.unlisted.len(), ranges]
    }

    /// Why the Service cannot have all of this, beside what the others have.
    pub fn refusal(&self, service: &ServiceKey, need: &Need) -> Option<Refused> {
        let known = self.needs.get(service);
        let Room { service_ports, lists, ranges } = self.room;
        let new = need.places.iter().filter(|place| known.is_none_or(|known| !known.places.contains(*place))).count();
        let [all_ports, all_lists, all_ranges] = self.demand();
        if new > 0 && all_ports + new > service_ports {
            let count = need.places.len();
            return Some(limit(format!(
                "its {count} service ports (each port of each address is one) have no room beside those of other Services: the \
                 Services of a cluster may have {service_ports}"
            )));
        }
        let wanted = need.ranges?;
        // What it has already is said of it there.
        let before = known.and_then(|known| known.ranges);
        if before.is_none() && all_lists >= lists {
            return Some(limit(format!(
                "it has source ranges, and {lists} Services of the cluster have some, which is the most"
            )));
        }
        let more = wanted.saturating_sub(before.unwrap_or_default());
        (more > 0 && all_ranges + more > ranges).then(|| {
            limit(format!(
                "its {wanted} source ranges have no room beside those of other Services: the Services of a cluster may have {ranges}"
            ))
        })
    }

    /// How many service ports these Services may have together.
    pub fn room_without(&self, services: &BTreeSet<ServiceKey>) -> usize {
        let others = self.needs.iter().filter(|(service, _)| !services.contains(service));
        self.room.service_ports.saturating_sub(others.map(|(_, need)| need.places.len()).sum())
    }

    /// What has no place of a Service that has an address. No figure of other Services is in it: the condition would follow each of them.
    pub fn remark(&self, service: &ServiceKey) -> Option<Refused> {
        let Room { service_ports, lists, ranges } = self.room;
        let mut parts = Vec::new();
        let ports = self.left_out(service);
        if !ports.is_empty() {
            parts.push(format!(
                "not served: {} (the Services of a cluster may have {service_ports} service ports, each port of each address being \
                 one)",
                listed(ports.iter())
            ));
        }
        if self.unlisted.contains(service) {
            parts.push(format!(
                "no client outside the cluster is admitted: it has source ranges, and those of {lists} Services of a cluster are kept"
            ));
        }
        if self.cut.contains(service) {
            parts.push(format!(
                "source ranges that are new admit no client: the Services of a cluster may have {ranges} together"
            ));
        }
        (!parts.is_empty()).then(|| limit(parts.join("; ")))
    }

    /// Ports of the Service that are not served, at one of its addresses or at all.
    pub fn left_out(&self, service: &ServiceKey) -> BTreeSet<Port> {
        if self.missing.is_empty() {
            return BTreeSet::new();
        }
        let of_it = self.missing.iter().filter(|(_, of)| of == service);
        of_it.map(|((_, port), _)| port.clone()).collect()
    }
}

/// What a change leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Services of which something else may have a place now.
    pub services: BTreeSet<ServiceKey>,
    /// The Services take less than before.
    pub freed: bool,
}

fn limit(message: String) -> Refused {
    Refused { reason: Refusal::LimitReached, message }
}

#[cfg(test)]
mod tests;
