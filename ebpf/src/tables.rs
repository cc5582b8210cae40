//! What the packet path reads: the maps (docs/dataplane.md) and the clock.

use ebpf_common::{
    Config, FlowWords, FragmentKey, FragmentValue, Lease, Node, RingHead, Row, ServiceCounters, ServiceValue,
};

use crate::frame::MacWord;

pub trait Tables {
    /// Map `CONFIG`. `None` cannot happen with an array of one element; the path treats it as not ready.
    fn config(&self) -> Option<&Config>;
    /// Map `LEASE`.
    fn lease(&self) -> Lease;
    /// CLOCK_BOOTTIME in nanoseconds.
    fn now_ns(&self) -> u64;
    /// Map `VIPS`: granted to a Service, by whomever it is owned.
    fn is_vip(&self, addr: [u8; 4]) -> bool;
    /// `NODE_ADDRESSES` is not empty.
    #[inline(always)]
    fn has_node_addresses(&self) -> bool {
        self.config().is_some_and(|config| config.flags & Config::NODE_ADDRESSES != 0)
    }
    /// Map `NODE_ADDRESSES`: some ports of this address of a node are a Service's.
    fn is_node_address(&self, addr: [u8; 4]) -> bool;
    /// Map `OWN`: the election gave the VIP to this node.
    fn is_own(&self, vip: [u8; 4]) -> bool;
    /// Map `SERVICES`: of the flow's destination.
    fn service(&self, flow: FlowWords) -> Option<ServiceValue>;
    /// Map `SOURCE_RANGES`: a range of the Service in this slot has the client.
    fn admits(&self, slot: u16, client: [u8; 4]) -> bool;
    /// Map `DENIED`: one more packet of a client that the Service does not admit.
    fn count_denied(&self, slot: u16);
    /// Map `SERVICE_COUNTERS`; nothing happens if there is no such slot.
    fn count_in(&self, slot: u32, change: impl FnOnce(&mut ServiceCounters));
    /// Map `FRAGMENTS`.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentValue>;
    fn keep_fragment(&self, key: &FragmentKey, value: FragmentValue);
    /// Map `RINGS`. One look-up for all reads of a decision: the slot may be swapped at any time.
    fn ring(&self, slot: u32) -> Option<impl Ring>;
    /// Map `NODES`.
    fn node(&self, slot: u32) -> Option<Node>;
    /// Map `PEERS`: the slot of the node with this address.
    fn peer(&self, mac: MacWord) -> Option<u16>;
}

/// A ring, as it was when it was looked up.
pub trait Ring {
    fn head(&self) -> Option<RingHead>;
    /// `head`: of this ring.
    fn row(&self, head: RingHead, row: u32) -> Option<Row>;
}
