//! Every name a refusal or a state can have. One enum variant = Event reason = condition reason = metric label = log
//! field, so that what a user reads in `kubectl describe` can be searched for in metrics and logs.

use std::collections::BTreeSet;

/// Condition on a Service: does it have an address from one of our pools?
pub const CONDITION_ALLOCATED: &str = "sheave.dev/Allocated";
/// Condition on an AddressPool: are new addresses granted from it? On an L2Advertisement: is it followed as it is written?
pub const CONDITION_READY: &str = "Ready";
/// Condition on an AddressPool: does it share addresses with another one?
pub const CONDITION_CONFLICT: &str = "Conflict";
/// Condition on an AddressPool: is there an entry that cannot be read?
pub const CONDITION_MALFORMED: &str = "Malformed";
/// Condition on an AddressPool: are addresses granted without a probe, because no speaker of their subnet answers?
pub const CONDITION_NOT_PROBED: &str = "NotProbed";
/// Condition on an AddressPool: are there answers to probes that do not count, because they are proxy ARP?
pub const CONDITION_PROXY_ARP: &str = "ProxyArp";

/// Reason of the [`CONDITION_ALLOCATED`] condition when it is True, and of its Event.
pub const REASON_ALLOCATED: &str = "AddressAllocated";
/// Reason of the [`CONDITION_ALLOCATED`] condition when it is False because the address is being granted: from here on the
/// finalizer is ours.
pub const REASON_GRANTING: &str = "Granting";
/// Reason of the [`CONDITION_ALLOCATED`] condition when it is False because the address is being taken back: the finalizer is
/// ours still.
pub const REASON_RELEASING: &str = "Releasing";
/// Reason of the Event when an address was taken back.
pub const REASON_RELEASED: &str = "AddressReleased";
/// Reason of the Event when a third-party change of a status was repaired.
pub const REASON_CORRECTED: &str = "StatusCorrected";

/// Reason of the Event that names our annotation for one of another name.
pub const REASON_RENAMED: &str = "AnnotationRenamed";

/// Why a Service has no address, or has one with a remark: it is elsewhere than the Service wants it, or serves a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// No pool exists, or none assigns automatically.
    NoPool,
    /// The annotation names a pool that does not exist.
    UnknownPool,
    /// Every pool that could serve this Service is malformed or overlaps another one.
    PoolMalformed,
    /// Every pool that could serve this Service is disabled, and some are neither malformed nor overlap.
    PoolDisabled,
    /// No pool that could serve this Service selects it: by its namespace, or by its labels.
    ServiceNotSelected,
    /// Every pool that could serve this Service has no address left.
    PoolExhausted,
    /// The cluster has [`MAX_VIRTUAL_IPS`](crate::MAX_VIRTUAL_IPS) addresses in use, and the Service needs another one; or the Service, or
    /// a part of it, has no room beside the [`MAX_SERVICE_PORTS`](crate::MAX_SERVICE_PORTS),
    /// [`MAX_RESTRICTED_SERVICES`](crate::MAX_RESTRICTED_SERVICES) or [`MAX_ALL_SOURCE_RANGES`](crate::MAX_ALL_SOURCE_RANGES) of others.
    LimitReached,
    /// The wanted address is in no pool (or not in the pool that the annotation names), or the pool has shrunk since.
    AddressNotInPool,
    /// The wanted address was granted to another Service that it cannot be shared with.
    AddressInUse,
    /// The Service shares its address with another one that has one of its ports, or not its key (any more).
    SharingConflict,
    /// A wanted address is not one, or there are too many of a family.
    AddressMalformed,
    /// The address is one of a node, by its Node object or by its speaker.
    AddressOfNode,
    /// The address is the gateway of a node's default route.
    AddressOfGateway,
    /// The address is one of an API server.
    AddressOfAPIServer,
    /// The address lies in a node's pod range.
    AddressInPodRange,
    /// The address lies in a range of ClusterIPs, or is one.
    AddressInServiceRange,
    /// The address is the network address of an interface's subnet; of IPv6 the Subnet-Router anycast address.
    NetworkAddress,
    /// The address is the broadcast address of an interface's subnet.
    BroadcastAddress,
    /// The address is a loopback address.
    LoopbackAddress,
    /// The address is a multicast address.
    MulticastAddress,
    /// The address is a link-local address of IPv6 (fe80::/10).
    LinkLocalAddress,
    /// The address is one that no host can have (0.0.0.0/8, 240.0.0.0/4; of IPv6 all outside of 2000::/3 and fc00::/7).
    ReservedAddress,
    /// The pool's entry contains a node's address, and no speaker has reported the subnet that lies around it: gateway, network and
    /// broadcast address are not known yet.
    SubnetNotReported,
    /// A host of the segment has answered for the address, which is no node and no proxy.
    AnsweredByHost,
    /// Two sources of the Service (annotations, `spec.loadBalancerIP`) name different addresses or pools.
    AddressAmbiguous,
    /// The annotation [`address_mode`](crate::address_mode) has a value that is unknown.
    AddressModeUnknown,
    /// The Service's ports are to be at nodes' addresses, and a process of a node listens on one of them, or it is a NodePort.
    PortInUseOnNode,
    /// The same, and another Service has one of them there.
    PortTakenOnNode,
    /// The same, and there is no node where they could be.
    NoNodeForService,
    /// The Service asks for an address by DHCP (kube-vip's `0.0.0.0`).
    DhcpNotSupported,
    /// An entry of the source ranges is no range: no client is admitted.
    SourceRangesMalformed,
    /// More source ranges than [`MAX_SOURCE_RANGES`](crate::MAX_SOURCE_RANGES): no client is admitted.
    SourceRangesTooMany,
    /// The source ranges have no range of IPv4: no IPv4 client outside the cluster is admitted.
    SourceRangesWithoutIPv4,
    /// The source ranges are those of the annotation, which kube-proxy does not know: it admits every client inside the cluster.
    SourceRangesOutsideOnly,
    /// The annotation [`startup_probe`](crate::startup_probe) has a value that is unknown: it counts as `on`.
    StartupProbeUnknown,
    /// The Service wants IPv6, alone or beside IPv4. Beside IPv4 an address is reserved for it, and in no status.
    IPv6NotServed,
    /// Ports of a protocol that the packet path does not carry (SCTP).
    ProtocolNotServed,
    /// Ports beyond the first [`MAX_PORTS`](crate::MAX_PORTS).
    TooManyPorts,
    /// EndpointSlices hold names, not addresses. Speakers find it ([`Partly`]).
    FQDNNotServed,
    /// Endpoints name a node that the API server does not list, or lists without an IPv4 InternalIP: they are not served. Speakers find it
    /// ([`Partly`]).
    NodeNotListed,
    /// Pods stand on a node that has no speaker yet: they are not served until it has, or until others translate. Speakers find it
    /// ([`Partly`]).
    NodeWithoutSpeaker,
    /// Endpoints have an address to which nothing is sent: an address of a Service, a link-local or a loopback one. Speakers find it
    /// ([`Partly`]).
    EndpointAddress,
    /// The cluster has more EndpointSlices than a speaker keeps: the endpoints of some are not served. Speakers find it ([`Partly`]).
    TooManyEndpointSlices,
    /// The ports of an EndpointSlice beyond the first [`MAX_PORTS`](crate::MAX_PORTS). Speakers find it ([`Partly`]).
    TooManyEndpointPorts,
    /// Endpoints stand on no node, or on one without a speaker: they see the address of the node that translates for them. Speakers find it ([`Partly`]).
    ClientAddressLost,
    /// Another host of the segment announces the address as well. Speakers find it ([`Partly`], [`NoOwner`]).
    AddressConflict,
}

impl Refusal {
    /// All of them, for metrics that must exist with value zero.
    pub const ALL: [Refusal; 46] = [
        Refusal::NoPool,
        Refusal::UnknownPool,
        Refusal::PoolMalformed,
        Refusal::PoolDisabled,
        Refusal::ServiceNotSelected,
        Refusal::PoolExhausted,
        Refusal::LimitReached,
        Refusal::AddressNotInPool,
        Refusal::AddressInUse,
        Refusal::SharingConflict,
        Refusal::AddressMalformed,
        Refusal::AddressOfNode,
        Refusal::AddressOfGateway,
        Refusal::AddressOfAPIServer,
        Refusal::AddressInPodRange,
        Refusal::AddressInServiceRange,
        Refusal::NetworkAddress,
        Refusal::BroadcastAddress,
        Refusal::LoopbackAddress,
        Refusal::MulticastAddress,
        Refusal::LinkLocalAddress,
        Refusal::ReservedAddress,
        Refusal::SubnetNotReported,
        Refusal::AnsweredByHost,
        Refusal::AddressAmbiguous,
        Refusal::AddressModeUnknown,
        Refusal::PortInUseOnNode,
        Refusal::PortTakenOnNode,
        Refusal::NoNodeForService,
        Refusal::DhcpNotSupported,
        Refusal::SourceRangesMalformed,
        Refusal::SourceRangesTooMany,
        Refusal::SourceRangesWithoutIPv4,
        Refusal::SourceRangesOutsideOnly,
        Refusal::StartupProbeUnknown,
        Refusal::IPv6NotServed,
        Refusal::ProtocolNotServed,
        Refusal::TooManyPorts,
        Refusal::FQDNNotServed,
        Refusal::NodeNotListed,
        Refusal::NodeWithoutSpeaker,
        Refusal::EndpointAddress,
        Refusal::TooManyEndpointSlices,
        Refusal::TooManyEndpointPorts,
        Refusal::ClientAddressLost,
        Refusal::AddressConflict,
    ];

    /// The one name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Refusal::NoPool => "NoPool",
            Refusal::UnknownPool => "UnknownPool",
            Refusal::PoolMalformed => "PoolMalformed",
            Refusal::PoolDisabled => "PoolDisabled",
            Refusal::ServiceNotSelected => "ServiceNotSelected",
            Refusal::PoolExhausted => "PoolExhausted",
            Refusal::LimitReached => "LimitReached",
            Refusal::AddressNotInPool => "AddressNotInPool",
            Refusal::AddressInUse => "AddressInUse",
            Refusal::SharingConflict => "SharingConflict",
            Refusal::AddressMalformed => "AddressMalformed",
            Refusal::AddressOfNode => "AddressOfNode",
            Refusal::AddressOfGateway => "AddressOfGateway",
            Refusal::AddressOfAPIServer => "AddressOfAPIServer",
            Refusal::AddressInPodRange => "AddressInPodRange",
            Refusal::AddressInServiceRange => "AddressInServiceRange",
            Refusal::NetworkAddress => "NetworkAddress",
            Refusal::BroadcastAddress => "BroadcastAddress",
            Refusal::LoopbackAddress => "LoopbackAddress",
            Refusal::MulticastAddress => "MulticastAddress",
            Refusal::LinkLocalAddress => "LinkLocalAddress",
            Refusal::ReservedAddress => "ReservedAddress",
            Refusal::SubnetNotReported => "SubnetNotReported",
            Refusal::AnsweredByHost => "AnsweredByHost",
            Refusal::AddressAmbiguous => "AddressAmbiguous",
            Refusal::AddressModeUnknown => "AddressModeUnknown",
            Refusal::PortInUseOnNode => "PortInUseOnNode",
            Refusal::PortTakenOnNode => "PortTakenOnNode",
            Refusal::NoNodeForService => "NoNodeForService",
            Refusal::DhcpNotSupported => "DhcpNotSupported",
            Refusal::SourceRangesMalformed => "SourceRangesMalformed",
            Refusal::SourceRangesTooMany => "SourceRangesTooMany",
            Refusal::SourceRangesWithoutIPv4 => "SourceRangesWithoutIPv4",
            Refusal::SourceRangesOutsideOnly => "SourceRangesOutsideOnly",
            Refusal::StartupProbeUnknown => "StartupProbeUnknown",
            Refusal::IPv6NotServed => "IPv6NotServed",
            Refusal::ProtocolNotServed => "ProtocolNotServed",
            Refusal::TooManyPorts => "TooManyPorts",
            Refusal::FQDNNotServed => "FQDNNotServed",
            Refusal::NodeNotListed => "NodeNotListed",
            Refusal::NodeWithoutSpeaker => "NodeWithoutSpeaker",
            Refusal::EndpointAddress => "EndpointAddress",
            Refusal::TooManyEndpointSlices => "TooManyEndpointSlices",
            Refusal::TooManyEndpointPorts => "TooManyEndpointPorts",
            Refusal::ClientAddressLost => "ClientAddressLost",
            Refusal::AddressConflict => "AddressConflict",
        }
    }

    /// Whether it says that no Service may have an address, whoever asks.
    pub const fn guards(self) -> bool {
        use Refusal::*;
        matches!(
            self,
            AddressOfNode
                | AddressOfGateway
                | AddressOfAPIServer
                | AddressInPodRange
                | AddressInServiceRange
                | NetworkAddress
                | BroadcastAddress
                | LoopbackAddress
                | MulticastAddress
                | LinkLocalAddress
                | ReservedAddress
                | SubnetNotReported
                | AnsweredByHost
        )
    }

    /// The name as an error of a port in `status.loadBalancer.ingress[].ports`: below a domain, because Kubernetes keeps plain
    /// names for its own (KEP-1435).
    pub fn port_error(self) -> String {
        format!("{}/{self}", crate::GROUP)
    }
}

/// Reason of a pool's conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PoolReason {
    /// Addresses are granted from it (True).
    Valid,
    /// An entry is neither a CIDR nor an ordered range (False).
    Malformed,
    /// It shares addresses with an older pool (False): nothing new is granted from it.
    Overlapping,
    /// Its spec says so (False).
    Disabled,
    /// No speaker of a subnet of its addresses answers requests to probe them (of [`CONDITION_NOT_PROBED`]).
    NotProbed,
    /// A gateway, or a host that answers for every address, has answered probes of its addresses (of [`CONDITION_PROXY_ARP`]).
    ProxyArp,
}

impl PoolReason {
    pub const ALL: [Self; 6] =
        [Self::Valid, Self::Malformed, Self::Overlapping, Self::Disabled, Self::NotProbed, Self::ProxyArp];

    /// The one name.
    pub const fn as_str(self) -> &'static str {
        match self {
            PoolReason::Valid => "Valid",
            PoolReason::Malformed => "Malformed",
            PoolReason::Overlapping => "Overlapping",
            PoolReason::Disabled => "Disabled",
            PoolReason::NotProbed => "NotProbed",
            PoolReason::ProxyArp => "ProxyArp",
        }
    }
}

/// Reason of an L2Advertisement's [`CONDITION_READY`] condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AdvertisementReason {
    /// It is followed (True).
    Valid,
    /// A selector cannot be read (False): it selects nothing.
    Malformed,
    /// It names pools that do not exist (False). The rest of it is followed.
    UnknownPool,
    /// There are [`MAX_L2_ADVERTISEMENTS`](crate::MAX_L2_ADVERTISEMENTS) older ones (False): it selects nothing.
    TooManyAdvertisements,
}

impl AdvertisementReason {
    pub const ALL: [Self; 4] = [Self::Valid, Self::Malformed, Self::UnknownPool, Self::TooManyAdvertisements];

    /// The one name.
    pub const fn as_str(self) -> &'static str {
        match self {
            AdvertisementReason::Valid => "Valid",
            AdvertisementReason::Malformed => "Malformed",
            AdvertisementReason::UnknownPool => "UnknownPool",
            AdvertisementReason::TooManyAdvertisements => "TooManyAdvertisements",
        }
    }
}

/// Why a VirtualIP has no owner: `status.reason`, written by speakers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NoOwner {
    /// The last owner let go and the next one has not claimed yet.
    HandingOver,
    /// The last owner does not answer any more, and no other node has claimed.
    OwnerLost,
    /// The last owner let go, and no other node may or can hold the address.
    NoEligibleNode,
    /// Its pool is not announced.
    NotAnnounced,
    /// No Service behind the address is served any more.
    NotServed,
    /// The last owner was kept from running for longer than the dead interval.
    NodeFrozen,
    /// The last owner lost its link.
    NoCarrier,
    /// The last owner received half of the members or fewer.
    NoQuorum,
    /// The kernel of the last owner refused the entry, or the lease.
    MapWriteFailed,
    /// The speakers of another cluster have it; the owner of this one is silent until they have gone.
    AddressConflict,
    /// The address is one of a node: it is never served.
    AddressOfNode,
    /// The address is one of the host that wrote this, although no Node object names it.
    AddressOfHost,
    /// The address is a gateway of the host that wrote this.
    AddressOfGateway,
}

impl NoOwner {
    pub const ALL: [Self; 13] = [
        Self::HandingOver,
        Self::OwnerLost,
        Self::NoEligibleNode,
        Self::NotAnnounced,
        Self::NotServed,
        Self::NodeFrozen,
        Self::NoCarrier,
        Self::NoQuorum,
        Self::MapWriteFailed,
        Self::AddressConflict,
        Self::AddressOfNode,
        Self::AddressOfHost,
        Self::AddressOfGateway,
    ];

    /// The one name.
    pub const fn as_str(self) -> &'static str {
        match self {
            NoOwner::HandingOver => "HandingOver",
            NoOwner::OwnerLost => "OwnerLost",
            NoOwner::NoEligibleNode => "NoEligibleNode",
            NoOwner::NotAnnounced => "NotAnnounced",
            NoOwner::NotServed => "NotServed",
            NoOwner::NodeFrozen => "NodeFrozen",
            NoOwner::NoCarrier => "NoCarrier",
            NoOwner::NoQuorum => "NoQuorum",
            NoOwner::MapWriteFailed => "MapWriteFailed",
            NoOwner::AddressConflict => "AddressConflict",
            NoOwner::AddressOfNode => "AddressOfNode",
            NoOwner::AddressOfHost => "AddressOfHost",
            NoOwner::AddressOfGateway => "AddressOfGateway",
        }
    }
}

/// What is not served of a VirtualIP that has an owner: `status.reason` beside `status.owner`, written by the owner's speaker. Of several
/// the reason has all names, separated by commas, in the order of [`Partly::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Partly {
    /// Another host of the segment announces the address.
    AddressConflict,
    /// A Service with EndpointSlices that hold names (address type FQDN).
    FQDNNotServed,
    /// A Service with endpoints that name a node which the API server does not list, or lists without an IPv4 InternalIP.
    NodeNotListed,
    /// A Service with pods on a node that has no speaker yet.
    NodeWithoutSpeaker,
    /// A Service with endpoints that have an address to which nothing is sent.
    EndpointAddress,
    /// A Service with EndpointSlices for which the speaker has no room ([`MAX_SLICES`](crate::MAX_SLICES)).
    TooManyEndpointSlices,
    /// A Service with an EndpointSlice of more ports than [`MAX_PORTS`](crate::MAX_PORTS).
    TooManyEndpointPorts,
    /// A Service with endpoints of no node, or of a node without a speaker.
    ClientAddressLost,
    /// Ports of a Service beyond the first [`MAX_PORTS`](crate::MAX_PORTS). Not beside others: the controller finds it itself.
    TooManyPorts,
}

impl Partly {
    /// Of `status.reason`, by the definition of VirtualIP.
    const MAX_LENGTH: usize = 64;

    pub const ALL: [Self; 9] = [
        Self::AddressConflict,
        Self::FQDNNotServed,
        Self::NodeNotListed,
        Self::NodeWithoutSpeaker,
        Self::EndpointAddress,
        Self::TooManyEndpointSlices,
        Self::TooManyEndpointPorts,
        Self::ClientAddressLost,
        Self::TooManyPorts,
    ];

    /// The one name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Partly::AddressConflict => "AddressConflict",
            Partly::FQDNNotServed => "FQDNNotServed",
            Partly::NodeNotListed => "NodeNotListed",
            Partly::NodeWithoutSpeaker => "NodeWithoutSpeaker",
            Partly::EndpointAddress => "EndpointAddress",
            Partly::TooManyEndpointSlices => "TooManyEndpointSlices",
            Partly::TooManyEndpointPorts => "TooManyEndpointPorts",
            Partly::ClientAddressLost => "ClientAddressLost",
            Partly::TooManyPorts => "TooManyPorts",
        }
    }

    /// For `status.reason`; `None` of nothing. What does not fit into the field is left out: the last of five may not.
    pub fn join(parts: &BTreeSet<Self>) -> Option<String> {
        let beside = |part: &&Self| **part != Self::TooManyPorts || parts.len() == 1;
        let mut reason = String::new();
        for part in parts.iter().filter(beside) {
            let separator = if reason.is_empty() { "" } else { "," };
            if reason.len() + separator.len() + part.as_str().len() <= Self::MAX_LENGTH {
                reason = reason + separator + part.as_str();
            }
        }
        (!reason.is_empty()).then_some(reason)
    }

    /// Of a `status.reason`. A name of another time is none of these.
    pub fn parse(reason: &str) -> BTreeSet<Self> {
        let named = |name: &str| Self::ALL.into_iter().find(|part| part.as_str() == name);
        reason.split(',').filter_map(named).collect()
    }
}

macro_rules! display_as_str {
    ($($reason:ty),*) => {$(
        impl std::fmt::Display for $reason {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    )*};
}
display_as_str!(Refusal, PoolReason, AdvertisementReason, NoOwner, Partly);

#[cfg(test)]
mod tests;
