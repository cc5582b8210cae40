//! Where the fragments of a datagram go. Only the first one has ports; the others follow it.

/// Key of map `FRAGMENTS`: what all fragments of a datagram have in common (RFC 791 section 3.2), network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentKey {
    pub src: [u8; 4],
    /// The VIP.
    pub dst: [u8; 4],
    pub id: [u8; 2],
    pub proto: u8,
    pub pad: u8,
}

/// Value of map `FRAGMENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentValue {
    /// CLOCK_BOOTTIME. From then on another datagram may have the identification.
    pub until_ns: u64,
    /// The node that the first fragment went to, this one included.
    pub slot: u32,
    /// Slot in `SERVICE_COUNTERS`; [`FragmentValue::UNCOUNTED`] if there is no such Service.
    pub counters: u32,
}

impl FragmentValue {
    pub const UNCOUNTED: u32 = u32::MAX;
    /// As long as Linux waits for the rest of a datagram (`net.ipv4.ipfrag_time`).
    pub const LIFETIME_NS: u64 = 30_000_000_000;
}

const _: () = assert!(size_of::<FragmentKey>() == 12);
const _: () = assert!(size_of::<FragmentValue>() == 16);
