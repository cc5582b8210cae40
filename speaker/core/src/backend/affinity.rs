//! Which clients stay with which pod: sessionAffinity ClientIP on one node.
//!
//! The record is the kernel's: for each Service and pod of this node a set of client addresses, in which the rule that chooses a pod
//! enters the client of every new flow. Here are the names of the sets, and what must outlive a table that is built anew.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use ebpf_common::{ServiceKey, siphash13};

use super::{LocalPods, Plan};
use crate::attributes::AffinityTimeout;
use crate::time::Duration;
use crate::view::ObjectName;

/// The clients of one pod of one Service, through whichever port and VIP they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientSet {
    /// [`service_hash`]: no name from the API reaches the rules.
    pub service: u64,
    pub pod: Ipv4Addr,
}

/// Clients, and how long each record lasts without a new flow.
pub type Clients = BTreeMap<Ipv4Addr, Duration>;

/// What the sets had when they were read.
pub type Records = BTreeMap<ClientSet, Clients>;

/// What a plan says of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    pub timeout: AffinityTimeout,
    /// Service ports that take these clients when another node asks for them.
    pub ports: Vec<ServiceKey>,
}

/// Clients of one pod of a Service, on a node that has few such sets. New clients beyond it are not recorded: the hash of their address
/// chooses each time.
pub const MAX_CLIENTS: usize = 16_384;

/// The same on a node that has many.
pub const LEAST_CLIENTS: usize = 1_536;

/// Clients of all sets of a node, unless each is at its least.
const ALL_CLIENTS: usize = 128 * MAX_CLIENTS;

/// Clients of each set of a node that has so many. The kernel makes a set's hash table for its size at once, empty as it is: a power of two
/// of buckets that is 4/3 of the size, in memory of twice that. So a set of 16,384 takes 512 KiB, and one of 1,536 32 KiB.
pub const fn room(sets: usize) -> usize {
    if sets * MAX_CLIENTS <= ALL_CLIENTS {
        return MAX_CLIENTS;
    }
    let mut room = MAX_CLIENTS / 4 * 3;
    while room > LEAST_CLIENTS && sets * room > ALL_CLIENTS {
        room /= 2;
    }
    room
}

impl ClientSet {
    /// What all names of such sets begin with, and no other's.
    pub const PREFIX: &str = "affinity-";

    pub fn of(local: &LocalPods, pod: Ipv4Addr) -> Self {
        Self { service: local.service, pod }
    }

    /// In nftables.
    pub fn name(&self) -> String {
        format!("{}{:016x}-{}", Self::PREFIX, self.service, self.pod)
    }
}

/// The same in every speaker, so that the next one knows the sets of this one. Of Services that collide only those share clients that
/// share the pod as well.
pub fn service_hash(name: &ObjectName) -> u64 {
    let full = format!("{}/{}", name.namespace, name.name);
    full.as_bytes().chunks(16).fold(0, |hash, chunk| {
        let mut bytes = [0; 16];
        bytes[..chunk.len()].copy_from_slice(chunk);
        let bytes = u128::from_le_bytes(bytes);
        siphash13(&[hash, 0], bytes as u64, (bytes >> 64) as u64)
    })
}

impl Plan {
    /// The sets of this plan. A pod that serves only because none is ready is no place to come back to: another node may have a ready
    /// one.
    pub fn client_sets(&self) -> BTreeMap<ClientSet, Kept> {
        let mut sets: BTreeMap<ClientSet, Kept> = BTreeMap::new();
        for (key, local) in self.services.iter().filter(|(_, local)| local.attributes.keeps_clients()) {
            for (pod, _) in &local.pods {
                let kept = sets.entry(ClientSet::of(local, *pod)).or_default();
                kept.timeout = local.attributes.affinity_timeout;
                if !local.last_resort && kept.ports.last() != Some(key) {
                    kept.ports.push(*key);
                }
            }
        }
        sets
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{plan, ready};
    use super::*;
    use crate::view::Affinity;
    use crate::view::example::{TERMINATING, pod};

    fn affine(mut plan: Plan) -> Plan {
        plan.services.values_mut().for_each(|local| local.attributes.affinity = Affinity::ClientIp);
        plan
    }

    #[test]
    fn all_ports_of_a_service_share_a_set_for_each_pod() {
        assert!(plan([ready("a", 1)]).client_sets().is_empty(), "no affinity");
        let sets = affine(plan([ready("a", 1), ready("a", 2), ready("b", 3)])).client_sets();
        assert_eq!(sets.len(), 2);
        assert!(sets.values().all(|kept| kept.ports.len() == 2), "{sets:?}");
        // It keeps its clients and takes none back.
        let sets = affine(plan([pod("a", 1, TERMINATING), ready("b", 1)])).client_sets();
        assert_eq!(sets.into_values().map(|kept| kept.ports).collect::<Vec<_>>(), [[]]);
    }

    #[test]
    fn the_more_sets_the_less_room_in_each_and_little_memory_in_all() {
        assert_eq!(
            [0, 1, 128, 129, 171, 1365, 1366, 100_000].map(room),
            [16_384, 16_384, 16_384, 12_288, 6_144, 1_536, 1_536, 1_536]
        );
        // As the kernel's rhashtable_init and kvmalloc have it.
        let bytes = |sets: usize| sets * ((room(sets) * 4 / 3).next_power_of_two() * 8 + 64).next_power_of_two();
        assert!((0..=2048).all(|sets| bytes(sets) <= 64 << 20));
        assert!((1..5000).all(|sets| room(sets + 1) <= room(sets)));
    }

    #[test]
    fn names_of_services_are_told_apart_and_do_not_reach_the_kernel() {
        let hash = |namespace: &str, name: &str| service_hash(&ObjectName::new(namespace, name));
        let long = "a-namespace-whose-name-is-longer-than-a-block";
        assert!(hash(long, "web") != hash(long, "wed") && hash("a", "b") != hash("b", "a"));
        let set = ClientSet { service: service_hash(&ObjectName::new("a;b", "{c}")), pod: [10, 0, 0, 1].into() };
        let name = set.name();
        assert!(
            name.starts_with(ClientSet::PREFIX) && name.ends_with("-10.0.0.1") && !name.contains([';', '{']),
            "{name}"
        );
    }

    /// A speaker that computes another one would not find the records of the one before it.
    #[test]
    fn the_hash_of_a_name_is_fixed() {
        assert_eq!(service_hash(&ObjectName::new("default", "web")), 15_287_196_564_403_202_222);
    }
}
