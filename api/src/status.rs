//! Every name a refusal or a state can have. One enum variant = Event reason = condition reason = metric label = log
//! field, so that what a user reads in `kubectl describe` can be searched for in metrics and logs.

/// Condition on a Service: does it have an address from one of our pools?
pub const CONDITION_ALLOCATED: &str = "sheave.dev/Allocated";
/// Condition on an AddressPool: are new addresses granted from it?
pub const CONDITION_READY: &str = "Ready";

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

/// Why a Service has no address, or has one with a remark: it is elsewhere than the Service wants it, or serves a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// No pool exists, or none assigns automatically.
    NoPool,
    /// The annotation names a pool that does not exist.
    UnknownPool,
    /// Every pool that could serve this Service is malformed or overlaps another one.
    PoolMalformed,
    /// Every pool that could serve this Service has no address left.
    PoolExhausted,
    /// The wanted address is in no pool (or not in the pool that the annotation names), or the pool has shrunk since.
    AddressNotInPool,
    /// The wanted address was granted to another Service.
    AddressInUse,
    /// The wanted address is not one, or there is more than one of a family.
    AddressMalformed,
    /// An entry of the source ranges is no range: no client is admitted.
    SourceRangesMalformed,
    /// More source ranges than [`MAX_SOURCE_RANGES`](crate::MAX_SOURCE_RANGES): no client is admitted.
    SourceRangesTooMany,
    /// The source ranges have no range of IPv4: no IPv4 client is admitted.
    SourceRangesWithoutIPv4,
    /// The Service wants IPv6, alone or beside IPv4.
    IPv6NotServed,
    /// Ports of a protocol that the packet path does not carry (SCTP).
    ProtocolNotServed,
    /// Ports beyond the first [`MAX_PORTS`](crate::MAX_PORTS).
    TooManyPorts,
    /// All EndpointSlices hold names, not addresses. Speakers find it ([`Partly`]).
    FQDNNotServed,
    /// Endpoints stand on no node: they see the address of the node that translates for them. Speakers find it ([`Partly`]).
    ClientAddressLost,
}

impl Refusal {
    /// All of them, for metrics that must exist with value zero.
    pub const ALL: [Refusal; 15] = [
        Refusal::NoPool,
        Refusal::UnknownPool,
        Refusal::PoolMalformed,
        Refusal::PoolExhausted,
        Refusal::AddressNotInPool,
        Refusal::AddressInUse,
        Refusal::AddressMalformed,
        Refusal::SourceRangesMalformed,
        Refusal::SourceRangesTooMany,
        Refusal::SourceRangesWithoutIPv4,
        Refusal::IPv6NotServed,
        Refusal::ProtocolNotServed,
        Refusal::TooManyPorts,
        Refusal::FQDNNotServed,
        Refusal::ClientAddressLost,
    ];

    /// The one name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Refusal::NoPool => "NoPool",
            Refusal::UnknownPool => "UnknownPool",
            Refusal::PoolMalformed => "PoolMalformed",
            Refusal::PoolExhausted => "PoolExhausted",
            Refusal::AddressNotInPool => "AddressNotInPool",
            Refusal::AddressInUse => "AddressInUse",
            Refusal::AddressMalformed => "AddressMalformed",
            Refusal::SourceRangesMalformed => "SourceRangesMalformed",
            Refusal::SourceRangesTooMany => "SourceRangesTooMany",
            Refusal::SourceRangesWithoutIPv4 => "SourceRangesWithoutIPv4",
            Refusal::IPv6NotServed => "IPv6NotServed",
            Refusal::ProtocolNotServed => "ProtocolNotServed",
            Refusal::TooManyPorts => "TooManyPorts",
            Refusal::FQDNNotServed => "FQDNNotServed",
            Refusal::ClientAddressLost => "ClientAddressLost",
        }
    }

    /// The name as an error of a port in `status.loadBalancer.ingress[].ports`: below a domain, because Kubernetes keeps plain
    /// names for its own (KEP-1435).
    pub fn port_error(self) -> String {
        format!("{}/{self}", crate::GROUP)
    }
}

/// Reason of a pool's [`CONDITION_READY`] condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PoolReason {
    /// Addresses are granted from it (True).
    Valid,
    /// An entry is neither a CIDR nor an ordered range (False).
    Malformed,
    /// It shares addresses with an older pool (False): nothing new is granted from it.
    Overlapping,
}

impl PoolReason {
    /// The one name.
    pub const fn as_str(self) -> &'static str {
        match self {
            PoolReason::Valid => "Valid",
            PoolReason::Malformed => "Malformed",
            PoolReason::Overlapping => "Overlapping",
        }
    }
}

/// Why a VirtualIP has no owner: `status.reason`, written by speakers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NoOwner {
    /// The last owner let go and the next one has not claimed yet.
    HandingOver,
    /// The last owner let go, and no other node may or can hold the address.
    NoEligibleNode,
    /// No Service behind the address is served any more.
    NotServed,
    /// The last owner was kept from running for longer than the dead interval.
    NodeFrozen,
    /// The last owner lost its link.
    NoCarrier,
    /// The last owner received half of the members or fewer.
    NoQuorum,
    /// The kernel of the last owner refused the entry.
    MapWriteFailed,
    /// The address is one of a node: it is never served.
    AddressOfNode,
    /// The address is one of the host that wrote this, although no Node object names it.
    AddressOfHost,
    /// The address is a gateway of the host that wrote this.
    AddressOfGateway,
}

impl NoOwner {
    pub const ALL: [Self; 10] = [
        Self::HandingOver,
        Self::NoEligibleNode,
        Self::NotServed,
        Self::NodeFrozen,
        Self::NoCarrier,
        Self::NoQuorum,
        Self::MapWriteFailed,
        Self::AddressOfNode,
        Self::AddressOfHost,
        Self::AddressOfGateway,
    ];

    /// The one name.
    pub const fn as_str(self) -> &'static str {
        match self {
            NoOwner::HandingOver => "HandingOver",
            NoOwner::NoEligibleNode => "NoEligibleNode",
            NoOwner::NotServed => "NotServed",
            NoOwner::NodeFrozen => "NodeFrozen",
            NoOwner::NoCarrier => "NoCarrier",
            NoOwner::NoQuorum => "NoQuorum",
            NoOwner::MapWriteFailed => "MapWriteFailed",
            NoOwner::AddressOfNode => "AddressOfNode",
            NoOwner::AddressOfHost => "AddressOfHost",
            NoOwner::AddressOfGateway => "AddressOfGateway",
        }
    }
}

/// What is not served of a VirtualIP that has an owner: `status.reason` beside `status.owner`, written by the owner's speaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Partly {
    /// Ports of a Service beyond the first [`MAX_PORTS`](crate::MAX_PORTS).
    TooManyPorts,
    /// A Service all of whose EndpointSlices hold names (address type FQDN).
    FQDNNotServed,
    /// A Service with endpoints of no node.
    ClientAddressLost,
}

impl Partly {
    pub const ALL: [Self; 3] = [Self::TooManyPorts, Self::FQDNNotServed, Self::ClientAddressLost];

    /// The one name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Partly::TooManyPorts => "TooManyPorts",
            Partly::FQDNNotServed => "FQDNNotServed",
            Partly::ClientAddressLost => "ClientAddressLost",
        }
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
display_as_str!(Refusal, PoolReason, NoOwner, Partly);

#[cfg(test)]
mod tests {
    use super::*;

    /// The derived `Debug` is the variant's name; the name in the API must be the same.
    #[test]
    fn the_name_is_the_variant() {
        for refusal in Refusal::ALL {
            assert_eq!(refusal.as_str(), format!("{refusal:?}"));
            assert_eq!(refusal.port_error(), format!("sheave.dev/{refusal:?}"));
        }
        for reason in [PoolReason::Valid, PoolReason::Malformed, PoolReason::Overlapping] {
            assert_eq!(reason.as_str(), format!("{reason:?}"));
        }
        for reason in Partly::ALL {
            assert_eq!(reason.as_str(), format!("{reason:?}"));
        }
        for reason in NoOwner::ALL {
            assert_eq!(reason.as_str(), format!("{reason:?}"));
        }
    }
}
