//! How much the view holds, and how often that was not enough.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;

use super::{Key, Kind, ObjectName};

macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident, $label:literal, $value:expr;)*) => {
        /// What the view holds at most. The label is the metric label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Limit { $($(#[$doc])* $name,)* }

        impl Limit {
            pub const ALL: &'static [Limit] = &[$(Limit::$name),*];
            pub const fn label(self) -> &'static str { match self { $(Limit::$name => $label),* } }
            pub const fn value(self) -> usize { match self { $(Limit::$name => $value),* } }
        }
    };
}

limits! {
    /// Slot 0 of `NODES` is reserved.
    Nodes, "nodes", ebpf_common::MAX_NODES as usize - 1;
    /// That take part in the election, of all [`Limit::Nodes`]: as many as a heartbeat can name.
    Speakers, "nodes", crate::wire::advert::MAX_ECHOES;
    Services, "services", ebpf_common::MAX_SERVICES as usize;
    EndpointSlices, "endpoint_slices", 4 * ebpf_common::MAX_SERVICES as usize;
    VirtualIps, "virtual_ips", ebpf_common::MAX_VIPS as usize;
    /// discovery/v1 allows 1000.
    EndpointsPerSlice, "endpoints_per_slice", 1000;
    /// Of a Service or a slice, in their order: the first ones are served. discovery/v1 allows 20000 in a slice.
    PortsPerObject, "ports_per_object", 1000;
    ServicesPerVip, "services_per_vip", 64;
    L2Advertisements, "l2_advertisements", 256;
    /// One or two of each VIP, and one of each node.
    Placements, "placements", 2 * ebpf_common::MAX_VIPS as usize + ebpf_common::MAX_NODES as usize;
    /// In order of their names.
    LabelsPerNode, "labels_per_node", 256;
    /// A Service with more admits no client.
    RangesPerService, "source_ranges_per_service", 1024;
}

/// Objects that are not in the view as the API server has them, by the limit that they exceed. As many as [`LeftOut::MOST`] are known.
#[derive(Clone, Debug, Default)]
pub(super) struct LeftOut(BTreeMap<Key, (Limit, Option<String>)>);

impl LeftOut {
    const MOST: usize = 4096;

    /// `service`: of a slice of which nothing is in the view.
    pub fn insert(&mut self, key: Key, limit: Limit, service: Option<String>) {
        if self.0.len() < Self::MOST || self.0.contains_key(&key) {
            self.0.insert(key, (limit, service));
        }
    }

    /// Whether it was said of a Service.
    pub fn remove(&mut self, key: &Key) -> bool {
        self.0.remove(key).is_some_and(|(_, service)| service.is_some())
    }

    /// Of these objects of a kind alone. Whether another one was said of a Service.
    pub fn retain(&mut self, kind: Kind, listed: &BTreeSet<Key>) -> bool {
        let gone = |key: &Key| key.kind() == kind && !listed.contains(key);
        let said = self.0.iter().any(|(key, (_, service))| service.is_some() && gone(key));
        self.0.retain(|key, _| !gone(key));
        said
    }

    pub fn limits(&self) -> impl Iterator<Item = Limit> {
        self.0.values().map(|(limit, _)| *limit).collect::<BTreeSet<_>>().into_iter()
    }

    pub fn has_slice_of(&self, service: &ObjectName) -> bool {
        self.0.iter().any(|(key, (_, of))| {
            matches!(key, Key::EndpointSlice(slice) if slice.namespace == service.namespace)
                && of.as_ref() == Some(&service.name)
        })
    }
}

/// How often each limit was reached.
#[derive(Clone, Debug, Default)]
pub struct Refused([u64; Limit::ALL.len()]);

impl Refused {
    pub fn get(&self, limit: Limit) -> u64 {
        self.0[limit as usize]
    }

    pub(super) fn count(&mut self, limit: Limit) {
        self.0[limit as usize] += 1;
    }
}
