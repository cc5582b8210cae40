//! The ABI between the speaker (user space) and its eBPF programs: map names, limits, keys and values.
//!
//! Read first: docs/dataplane.md (map table). Every type here is `repr(C)` and has no implicit padding (asserted below); `[u8;
//! N]` fields are in network byte order. A change of any layout raises [`ABI_VERSION`]: pins live below a directory named after
//! it, so that a new speaker never reads the maps of an old one as its own.
#![no_std]

mod counters;
mod forwarding;
mod fragment;
mod hash;
mod lease;
mod ring;
mod second_chance;
mod verdict;

pub use counters::ServiceCounters;
pub use forwarding::{ALTERNATES, MacKey, Node, PROGRAM_QUERY, RangeKey, Row, ServiceKey, ServiceValue, VipValue};
pub use fragment::{FragmentKey, FragmentValue};
pub use hash::{FlowTuple, FlowWords, row_of, siphash13};
pub use lease::{Config, Lease, Own};
pub use ring::{RING_WORDS, RingHead};
#[cfg(not(target_arch = "bpf"))]
pub use ring::{numbered, pack};
pub use second_chance::{MARK_PREFIX, Mark, NextHop, RESERVED_FLAG, SearchState};
pub use verdict::{Fate, Verdict};

/// Raised with every change of a layout in this crate. Also the name of the pin directory.
pub const ABI_VERSION: u32 = if cfg!(feature = "next-abi") { 1000 } else { 3 };

/// Program section and function name of the XDP entry point.
pub const PROGRAM: &str = "sheave_xdp";
/// The same for a node with two speakers: frames that are not ours go to the program in [`map::NEXT`].
pub const CHAIN_PROGRAM: &str = "sheave_xdp_chain";

/// Map names, as in the object file and as pin names.
pub mod map {
    /// Array(1): [`Config`](crate::Config). Writer: dataplane sync.
    pub const CONFIG: &str = "CONFIG";
    /// Array(1): [`Lease`](crate::Lease). Writer: the election thread alone.
    pub const LEASE: &str = "LEASE";
    /// Hash: VIP (`[u8; 4]`) -> [`Own`](crate::Own). Writer: the election thread.
    pub const OWN: &str = "OWN";
    /// Hash: VIP (`[u8; 4]`) -> [`VipValue`](crate::VipValue): every granted VIP, owned or not. Writer: dataplane sync.
    pub const VIPS: &str = "VIPS";
    /// Hash: address of a node (`[u8; 4]`) -> u32, which means nothing: some of its ports are a Service's. Writer: dataplane sync.
    pub const NODE_ADDRESSES: &str = "NODE_ADDRESSES";
    /// Hash: [`ServiceKey`](crate::ServiceKey) -> [`ServiceValue`](crate::ServiceValue). Writer: dataplane sync.
    pub const SERVICES: &str = "SERVICES";
    /// Array of maps: ring slot -> Array of words (see [`RingHead`](crate::RingHead)). Equal rings share a slot.
    pub const RINGS: &str = "RINGS";
    /// Array: node slot -> [`Node`](crate::Node). Slot 0 is no node. Writer: dataplane sync.
    pub const NODES: &str = "NODES";
    /// Hash: [`MacKey`](crate::MacKey) -> u32 node slot. Frames from these come from a peer's dispatcher.
    pub const PEERS: &str = "PEERS";
    /// LPM trie: prefix of a [`RangeKey`](crate::RangeKey) -> u32, which means nothing: these clients are admitted. Writer: dataplane sync.
    pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
    /// Per-CPU array: slot of source ranges -> u64 packets of clients that are not admitted.
    pub const DENIED: &str = "DENIED";
    /// LRU hash: [`FragmentKey`](crate::FragmentKey) -> [`FragmentValue`](crate::FragmentValue). Writer: the program.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// Per-CPU array: slot of a Service's counters -> [`ServiceCounters`](crate::ServiceCounters).
    pub const SERVICE_COUNTERS: &str = "SERVICE_COUNTERS";
    /// Array of programs(1): that of the speaker beside this one. Writer: that speaker. Its layout is the same in every version.
    pub const NEXT: &str = "NEXT";
    /// Per-CPU array: [`Verdict`](crate::Verdict) as index -> u64 frames.
    pub const COUNTERS: &str = "COUNTERS";
}

/// Nodes a speaker can forward to. Slot 0 is reserved.
pub const MAX_NODES: u32 = 1024;
/// VIPs in the `VIPS` and `OWN` maps.
pub const MAX_VIPS: u32 = 4096;
/// Addresses of nodes in `NODE_ADDRESSES`; a node has several.
pub const MAX_NODE_ADDRESSES: u32 = 4 * MAX_NODES;
/// Service ports in `SERVICES`.
pub const MAX_SERVICES: u32 = 16_384;
/// Slots in `RINGS`: room for every service port to get another ring beside the one that it has.
pub const MAX_RINGS: u32 = 2 * MAX_SERVICES;
/// Rows of the largest ring.
pub const MAX_ROWS: u32 = 16 * 4093;
/// Services with source ranges. Slot 0 stays without ranges: it admits no client, and is for Services beyond a limit.
pub const MAX_RESTRICTED: u32 = 4096;
/// Source ranges of all Services together.
pub const MAX_SOURCE_RANGES: u32 = 65_536;
/// Services and VIPs that are counted. In slot 0 all those beyond the limit are counted together.
pub const MAX_COUNTED: u32 = 2048;
/// Datagrams in fragments whose later fragments find their way. Beyond it those used least recently make room.
pub const MAX_FRAGMENTED: u32 = 16_384;
/// Counter slots; verdict numbers stay below this.
pub const MAX_VERDICTS: u32 = 64;

#[cfg(feature = "user")]
mod user {
    //! SAFETY for all: `repr(C)`, only integers and byte arrays, no padding (asserted beside each type).
    // SAFETY: see above.
    unsafe impl aya::Pod for crate::Config {}
    // SAFETY: see above.
    unsafe impl aya::Pod for crate::Lease {}
    // SAFETY: see above.
    unsafe impl aya::Pod for crate::Own {}
    // SAFETY: see above.
    unsafe impl aya::Pod for crate::VipValue {}
    // SAFETY: see above.
    unsafe impl aya::Pod for crate::ServiceKey {}
    // SAFETY: see above.
    unsafe impl aya::Pod for crate::ServiceValue {}
    // SAFETY: see above.
    unsafe impl aya::Pod for crate::RangeKey {}
    // SAFETY: see above.
    unsafe impl aya::Pod for crate::ServiceCounters {}
    // SAFETY: see above.
    unsafe impl aya::Pod for crate::FragmentKey {}
    // SAFETY: see above.
    unsafe impl aya::Pod for crate::FragmentValue {}
    // SAFETY: see above.
    unsafe impl aya::Pod for crate::Node {}
    // SAFETY: see above.
    unsafe impl aya::Pod for crate::MacKey {}
}
