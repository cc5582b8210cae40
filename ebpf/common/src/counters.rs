//! What is counted of a Service's traffic.

/// Value of map `SERVICE_COUNTERS`. Packets of clients are counted on the node where they come in.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounters {
    /// Packets of clients that the Service admits, ICMP errors about its flows included.
    pub packets: u64,
    /// Of these packets, IP header and data.
    pub bytes: u64,
    /// SYNs that led to a node, repeated ones included. (Which datagram begins a flow only conntrack knows.)
    pub new_flows: u64,
    /// Resets made by the packet path.
    pub resets: u64,
    /// Packets that another node did not know the flow of, where their search arrived first.
    pub second_chances: u64,
}

const _: () = assert!(size_of::<ServiceCounters>() == 40);
