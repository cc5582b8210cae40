//! How a packet of a flow that may be another node's travels: the second chance.
//!
//! Read first: docs/dataplane.md, "Second chance". XDP knows the row (which nodes may have the flow), conntrack knows the flows.
//! XDP passes each VIP packet to the stack with a [`Mark`] in place of the source MAC address, which has no reader at that point.
//! A filter chain behind conntrack forwards packets of unknown flows to the node in the mark. Between nodes the packet carries a
//! [`SearchState`] in two fields of its IPv4 header that no dispatched packet needs: the reserved flag (RFC 791 section 3.1: must
//! be zero; packets from clients that have it set are dropped) marks its presence, the time to live holds it.
//!
//! Between fragments it is the other way round. The kernel puts a datagram together before conntrack, and makes fragments again of
//! the copy that is forwarded: they lose the flag (net/ipv4/ip_output.c, `ip_frag_next`) and keep the time to live. So fragments
//! that a dispatcher sends carry the flag, and fragments in search do not.

use crate::ALTERNATES;

/// The first bytes of every mark: locally administered, then "Sh".
pub const MARK_PREFIX: [u8; 3] = [0x02, 0x53, 0x68];

/// The reserved bit of the IPv4 header, in the 16 bits of flags and fragment offset.
pub const RESERVED_FLAG: u16 = 0x8000;

/// Where the kernel's chains send a packet of a flow that conntrack does not know. The number is byte 3 of the mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NextHop {
    /// It stays: a new flow, a reset, or no other node may have the flow (with sessionAffinity ClientIP: the client).
    Local,
    /// Forward to alternate 1 to [`ALTERNATES`].
    Alternate(u8),
    /// Return to the primary, which takes it: no node had the flow, and UDP needs one that has it. A SYN of a service with
    /// sessionAffinity ClientIP returns to the node where its search began: no node had its client.
    ToPrimary,
    /// This node knows no alternate: return to the dispatcher, whose row may be newer. The rate is limited, so that a flood of segments
    /// of no flow does not load the dispatcher with the work of all nodes.
    ToDispatcher,
    /// As `Alternate(1)`, for a datagram that came in fragments. It is forwarded in fragments: they need their identification.
    InFragments,
    /// None: its client is outside of the Service's source ranges, at a port from which the node opens flows itself
    /// (`ServiceValue::NODE_FLOWS`). Conntrack knows those; everything else is refused.
    SourceDenied,
}

impl NextHop {
    /// In byte 3 of the mark.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        match self {
            Self::Local => 0,
            Self::Alternate(n) => n,
            Self::ToPrimary => SearchState::LAST_HOP,
            Self::ToDispatcher => SearchState::LAST_HOP + 1,
            Self::InFragments => SearchState::LAST_HOP + 2,
            Self::SourceDenied => SearchState::LAST_HOP + 3,
        }
    }

    /// Of the [`SearchState`] with which the packet is forwarded; 0: it is not.
    #[inline(always)]
    pub const fn hop(self) -> u8 {
        match self {
            Self::ToDispatcher | Self::InFragments => 1,
            Self::SourceDenied => 0,
            _ => self.number(),
        }
    }

    /// Another node is likely to have the flow, or it is to be refused: the packet goes no further without our chains, see
    /// [`Mark::GUARD_TTL`].
    #[inline(always)]
    pub const fn needs_ttl_guard(self) -> bool {
        !matches!(self, Self::Local | Self::ToDispatcher)
    }
}

/// What XDP writes over the source MAC address of every VIP packet that it passes to the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub next_hop: NextHop,
    /// Conntrack called the packet invalid on an earlier node. If no node knows the flow, the last one drops the packet without a
    /// reset, which could end a flow that lives elsewhere.
    pub no_reset: bool,
    /// The node to forward it to. With [`NextHop::Local`] the node that dispatched a SYN; 0: none.
    pub slot: u16,
}

impl Mark {
    pub const LOCAL: Self = Self { next_hop: NextHop::Local, no_reset: false, slot: 0 };
    pub const SOURCE_DENIED: Self = Self { next_hop: NextHop::SourceDenied, no_reset: false, slot: 0 };
    /// In byte 3, beside [`NextHop`].
    pub const NO_RESET: u8 = 0x10;
    /// The TTL guard: the time to live of a packet of a flow that another node may have, until our chains set another one. While
    /// a third party has deleted our table, other chains would make the packet a flow of their own, and its client would get a
    /// reset. With this time to live the kernel does not forward it, and the client retransmits.
    pub const GUARD_TTL: u8 = 1;
    /// Set where the flow is known.
    pub const KNOWN_TTL: u8 = 64;

    #[inline(always)]
    pub const fn mac(self) -> [u8; 6] {
        let [p0, p1, p2] = MARK_PREFIX;
        let [s0, s1] = self.slot.to_be_bytes();
        [p0, p1, p2, self.next_hop.number() | if self.no_reset { Self::NO_RESET } else { 0 }, s0, s1]
    }
}

/// Hops that a packet has made in search of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SearchState {
    /// 1 to [`SearchState::LAST_HOP`]. The node that gets it with the last hop keeps it.
    pub hop: u8,
    pub no_reset: bool,
}

impl SearchState {
    pub const LAST_HOP: u8 = ALTERNATES as u8 + 1;
    /// The time to live of hop `n` is this less `n`: it counts by being decremented.
    pub const TTL_BASE: u8 = 16;
    pub const TTL_BASE_NO_RESET: u8 = 32;

    /// From the time to live of a packet with the reserved flag. Anything else than what we send is at its last hop.
    #[inline(always)]
    pub const fn from_ttl(ttl: u8) -> Self {
        let (base, no_reset) =
            if ttl > Self::TTL_BASE { (Self::TTL_BASE_NO_RESET, true) } else { (Self::TTL_BASE, false) };
        let hop = base.wrapping_sub(ttl);
        if hop >= 1 && hop <= Self::LAST_HOP { Self { hop, no_reset } } else { Self { hop: Self::LAST_HOP, no_reset } }
    }

    #[inline(always)]
    pub const fn ttl(self) -> u8 {
        (if self.no_reset { Self::TTL_BASE_NO_RESET } else { Self::TTL_BASE }) - self.hop
    }

    /// From the time to live of a fragment without the reserved flag; `None`: it is not in search.
    #[inline(always)]
    pub const fn of_fragment(ttl: u8) -> Option<Self> {
        let state = Self::from_ttl(ttl);
        if state.ttl() == ttl { Some(state) } else { None }
    }

    /// The identification of a packet whose search began at the node with this address, so that no node is visited twice: 10 bits
    /// of the address. The field means nothing in packets that are in one piece and stay so (RFC 6864 section 4.1). The 6 bits
    /// below count the segments of a packet that the kernel merged and splits again (each has the identification of the one
    /// before it plus one).
    #[inline(always)]
    pub const fn origin_id(address: [u8; 4]) -> u16 {
        let [_, _, high, low] = address;
        u16::from_be_bytes([high, low]) << Self::SEGMENTS
    }

    /// Two nodes look the same if their addresses are 1024 apart: then the search leaves one of them out.
    #[inline(always)]
    pub const fn is_origin(id: u16, address: [u8; 4]) -> bool {
        id >> Self::SEGMENTS == Self::origin_id(address) >> Self::SEGMENTS
    }

    /// 64 of them: 64 kB have 45 segments of 1460 bytes.
    const SEGMENTS: u32 = 6;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_survives_the_wire_and_ends_with_every_other_ttl() {
        for no_reset in [false, true] {
            for hop in 1..=SearchState::LAST_HOP {
                let state = SearchState { hop, no_reset };
                assert_eq!(SearchState::from_ttl(state.ttl()), state);
                assert_eq!(SearchState::of_fragment(state.ttl()), Some(state));
            }
        }
        for ttl in 0..=u8::MAX {
            let hop = SearchState::from_ttl(ttl).hop;
            assert!((1..=SearchState::LAST_HOP).contains(&hop));
            assert_eq!(SearchState::of_fragment(ttl).is_some(), matches!(ttl, 12..=15 | 28..=31));
            // What counts down ends: the next hop is later, or it was the last one.
            assert!(hop == SearchState::LAST_HOP || SearchState::from_ttl(ttl - 1).hop > hop);
        }
    }

    #[test]
    fn every_segment_names_the_origin_of_its_search() {
        let node = [192, 168, 77, 13];
        for segment in 0..45 {
            let id = SearchState::origin_id(node) + segment;
            assert!(SearchState::is_origin(id, node));
            assert!([12, 14].iter().all(|last| !SearchState::is_origin(id, [192, 168, 77, *last])));
        }
        assert!(SearchState::is_origin(SearchState::origin_id([10, 0, 7, 13]), [10, 0, 3, 13]), "1024 apart");
    }

    #[test]
    fn marks_are_distinct() {
        assert_eq!(Mark::LOCAL.mac(), [2, 0x53, 0x68, 0, 0, 0]);
        assert_eq!(Mark::SOURCE_DENIED.mac(), [2, 0x53, 0x68, 7, 0, 0]);
        assert_eq!(
            Mark { next_hop: NextHop::Alternate(2), no_reset: true, slot: 0x1234 }.mac(),
            [2, 0x53, 0x68, 0x12, 0x12, 0x34]
        );
    }
}
