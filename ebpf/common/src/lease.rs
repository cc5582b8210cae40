//! What the node may claim and until when: the lease in the kernel.
//!
//! One lease covers all VIPs of the node, so that a renewal is one write whatever the number of VIPs; which VIPs it covers
//! stands in `OWN`. Times are nanoseconds on CLOCK_BOOTTIME (`bpf_ktime_get_boot_ns`, Linux 5.8): it runs on while a machine
//! is suspended, so that a node that wakes finds its lease over.

/// Map `LEASE`, one element. Written by the election thread only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// ARP for VIPs in `OWN` is answered before this time.
    pub until_ns: u64,
    /// The program drops ARP requests for VIPs of other nodes before this time and passes them to the kernel after it: an
    /// abandoned program must not mute what the operator installs next.
    pub mute_until_ns: u64,
}

/// Map `OWN`: VIP -> this. Present: the election gave the VIP to this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// The term in which it was won.
    pub term: u64,
}

/// Map `CONFIG`, one element. Written by dataplane sync.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// SipHash key of the flow hash, the same on every node.
    pub hash_key: [u64; 2],
    /// The uplink's own MAC address: what ARP answers name and what dispatched frames carry as source.
    pub mac: [u8; 6],
    /// Bit set of [`Config::UDP_SILENT`], [`Config::NODE_ADDRESSES`].
    pub flags: u16,
    /// This node's slot in `NODES`; 0 until known: then every VIP packet passes to the stack.
    pub self_slot: u32,
    pub abi: u32,
}

impl Config {
    /// UDP to an unserved VIP port is dropped in XDP. Without it the packet passes to the guard in nftables, which answers with
    /// ICMP port unreachable.
    pub const UDP_SILENT: u16 = 1;
    /// Map `NODE_ADDRESSES` has some. Else it is not asked: packets of the node itself, most of all, pay for a test of this flag.
    pub const NODE_ADDRESSES: u16 = 2;
}

const _: () = assert!(size_of::<Lease>() == 16);
const _: () = assert!(size_of::<Own>() == 8);
const _: () = assert!(size_of::<Config>() == 32);
