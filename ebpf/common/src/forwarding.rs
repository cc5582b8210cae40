//! Where a VIP packet goes: VIP -> service port -> ring row -> node.

/// Value of map `VIPS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipValue {
    /// Reserved, 0.
    pub flags: u32,
}

/// Key of map `SERVICES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The VIP, network byte order.
    pub addr: [u8; 4],
    /// The service port, network byte order.
    pub port: [u8; 2],
    /// IP protocol: 6 TCP, 17 UDP.
    pub proto: u8,
    pub pad: u8,
}

impl ServiceKey {
    /// Of its bytes, byte 0 lowest.
    pub const fn from_word(word: u64) -> Self {
        let [a0, a1, a2, a3, p0, p1, proto, pad] = word.to_le_bytes();
        Self { addr: [a0, a1, a2, a3], port: [p0, p1], proto, pad }
    }
}

/// Value of map `SERVICES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceValue {
    /// Slot in `RINGS`.
    pub ring: u32,
    /// Bit set of [`ServiceValue::CLIENT_AFFINITY`], [`ServiceValue::SERVED_HERE`], [`ServiceValue::NO_NEW_FLOWS`],
    /// [`ServiceValue::SOURCE_RANGES`], [`ServiceValue::EXCLUDED_TAKE`], [`ServiceValue::NODE_FLOWS`]; bits 5 to 15 are
    /// [`ServiceValue::counter_slot`], bits 16 to 27 are [`ServiceValue::ranges_slot`].
    pub flags: u32,
}

impl ServiceValue {
    /// sessionAffinity ClientIP: the row is chosen by the client's address and the VIP only, and SYNs search for the client's node.
    pub const CLIENT_AFFINITY: u32 = 1;
    /// The nftables table of this node has a pod for it: a SYN that a peer sent here by an older ring is taken.
    pub const SERVED_HERE: u32 = 2;
    /// There are pods but none is ready: a SYN is refused as if the ring were empty, open flows go on.
    pub const NO_NEW_FLOWS: u32 = 4;
    /// Only clients within the Service's source ranges are admitted.
    pub const SOURCE_RANGES: u32 = 8;
    /// Nodes with the exclude label ([`Node::EXCLUDED`]) take new flows of it, so SYNs ask them for their client as they ask others.
    pub const EXCLUDED_TAKE: u32 = 16;
    /// A port of a node's address from which the node's kernel may open flows of its own, and of pods that it masquerades: what is no
    /// SYN may be an answer to one of those. So it goes up the stack first, where conntrack knows them, and else on to its row.
    pub const NODE_FLOWS: u32 = 1 << 31;

    /// More is to be looked at than the row.
    #[inline(always)]
    pub const fn asks_more(self) -> bool {
        self.flags & (Self::CLIENT_AFFINITY | Self::NO_NEW_FLOWS | Self::SOURCE_RANGES | Self::NODE_FLOWS) != 0
    }

    /// The flags of a service port whose Service has its source ranges in this slot.
    pub const fn restricted_to(slot: u16) -> u32 {
        Self::SOURCE_RANGES | (slot as u32) << Self::RANGES_AT & Self::RANGES
    }

    /// The flags of a service port whose Service is counted in this slot.
    pub const fn counted_in(slot: u16) -> u32 {
        (slot as u32) << Self::COUNTERS_AT & Self::COUNTERS
    }

    /// Where the traffic of the Service is counted.
    pub const fn counter_slot(self) -> u16 {
        ((self.flags & Self::COUNTERS) >> Self::COUNTERS_AT) as u16
    }

    const COUNTERS_AT: u32 = 5;
    const COUNTERS: u32 = (crate::MAX_COUNTED - 1) << Self::COUNTERS_AT;
    const RANGES_AT: u32 = 16;
    const RANGES: u32 = (crate::MAX_RESTRICTED - 1) << Self::RANGES_AT;

    /// Where the source ranges of the Service are, with [`ServiceValue::SOURCE_RANGES`].
    pub const fn ranges_slot(self) -> u16 {
        ((self.flags & Self::RANGES) >> Self::RANGES_AT) as u16
    }
}

/// What is matched in map `SOURCE_RANGES`: a Service and a client of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RangeKey {
    /// Network byte order, so that it comes first in a comparison of bits.
    pub slot: [u8; 2],
    pub pad: [u8; 2],
    /// Network byte order.
    pub client: [u8; 4],
}

impl RangeKey {
    /// Bits of the key that stand before the client's address and always count.
    pub const SLOT_BITS: u32 = 32;
    /// Length of the key of one client.
    pub const BITS: u32 = Self::SLOT_BITS + 32;

    #[inline(always)]
    pub const fn new(slot: u16, client: [u8; 4]) -> Self {
        Self { slot: slot.to_be_bytes(), pad: [0; 2], client }
    }
}

/// Nodes besides the primary that may have flows of a row, in the order of the search.
pub const ALTERNATES: usize = 3;

/// One row of a ring: node slots, 16 bits each, the primary lowest, then the alternates (0: none). No node stands in
/// a row twice.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row(pub u64);

impl Row {
    pub const fn new(primary: u16, alternates: [u16; ALTERNATES]) -> Self {
        let [first, second, third] = alternates;
        Self(primary as u64 | (first as u64) << 16 | (second as u64) << 32 | (third as u64) << 48)
    }
    pub const fn primary(self) -> u16 {
        self.0 as u16
    }
    pub const fn alternates(self) -> [u16; ALTERNATES] {
        [(self.0 >> 16) as u16, (self.0 >> 32) as u16, (self.0 >> 48) as u16]
    }
    /// Without this alternate.
    pub const fn without(self, alternate: usize) -> Self {
        Self(self.0 & !(0xffff << (16 * (alternate + 1))))
    }
    /// The primary, then the alternates: the order in which a packet of an unknown flow is forwarded.
    pub const fn nodes(self) -> [u16; 1 + ALTERNATES] {
        [self.0 as u16, (self.0 >> 16) as u16, (self.0 >> 32) as u16, (self.0 >> 48) as u16]
    }
}

/// Value of map `NODES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The node's address on the segment, network byte order; for people who read the map.
    pub addr: [u8; 4],
    /// Where to send frames for it. All zero: not known (yet), see `Verdict::NoNeighbour`.
    pub mac: [u8; 6],
    /// Bit set of [`Node::EXISTING_FLOWS_ONLY`], [`Node::EXCLUDED`].
    pub flags: u16,
}

impl Node {
    /// It is an alternate for its flows alone: SYNs do not ask it for their client.
    pub const EXISTING_FLOWS_ONLY: u16 = 1;
    /// The same, except for services with [`ServiceValue::EXCLUDED_TAKE`].
    pub const EXCLUDED: u16 = 2;
}

/// Key of map `PEERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacKey {
    pub mac: [u8; 6],
    pub pad: [u8; 2],
}

/// In the target hardware address of an ARP request, which RFC 826 leaves without meaning: the sender queries whether a program
/// of ours runs at the target. A program that knows the sender as a peer answers in the kernel's place, with the same value in
/// the same field of the reply.
pub const PROGRAM_QUERY: [u8; 6] = [0x02, 0x53, 0x68, 0x3f, 0, 0];

const _: () = assert!(size_of::<VipValue>() == 4);
const _: () = assert!(size_of::<ServiceKey>() == 8);
const _: () = assert!(size_of::<ServiceValue>() == 8);
const _: () = assert!(size_of::<RangeKey>() == 8);
const _: () = assert!(size_of::<Row>() == 8);
const _: () = assert!(size_of::<Node>() == 12);
const _: () = assert!(size_of::<MacKey>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_stand_beside_all_other_flags() {
        let served = ServiceValue::SERVED_HERE | ServiceValue::NO_NEW_FLOWS | ServiceValue::EXCLUDED_TAKE;
        let others = ServiceValue::CLIENT_AFFINITY | ServiceValue::NODE_FLOWS | served;
        for slot in [0, 1, 0x801, crate::MAX_RESTRICTED as u16 - 1] {
            let value = ServiceValue { ring: 7, flags: others | ServiceValue::restricted_to(slot) };
            assert_eq!((value.ranges_slot(), value.counter_slot()), (slot, 0));
            assert_eq!(value.flags & 0xf000_ffff, others | ServiceValue::SOURCE_RANGES);
            for counters in [0, 1, 1024, crate::MAX_COUNTED as u16 - 1] {
                let both = ServiceValue { flags: value.flags | ServiceValue::counted_in(counters), ..value };
                assert_eq!((both.ranges_slot(), both.counter_slot()), (slot, counters));
                assert_eq!(both.flags & 0xf000_001f, others | ServiceValue::SOURCE_RANGES);
            }
        }
    }

    #[test]
    fn a_row_gives_back_what_it_was_made_of() {
        let row = Row::new(0xffff, [1, 0x8000, 1023]);
        assert_eq!(
            (row.primary(), row.alternates(), row.nodes()),
            (0xffff, [1, 0x8000, 1023], [0xffff, 1, 0x8000, 1023])
        );
        let without = [0, 1, 2].map(|alternate| row.without(alternate).nodes());
        assert_eq!(without, [[0xffff, 0, 0x8000, 1023], [0xffff, 1, 0, 1023], [0xffff, 1, 0x8000, 0]]);
    }
}
