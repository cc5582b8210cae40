//! Every way a frame can leave the packet path. The number is the index in `COUNTERS`, the label the Prometheus label.

/// What happens to the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Up the stack.
    Pass,
    /// Out of the interface it came in by.
    Tx,
    Drop,
}

macro_rules! verdicts {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal, $fate:ident;)*) => {
        /// Why a frame left the packet path the way it did. Numbers are stable.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Verdict { $($(#[$doc])* $name = $number,)* }

        impl Verdict {
            pub const ALL: &'static [Verdict] = &[$(Verdict::$name),*];
            /// The name in metrics and logs.
            pub const fn label(self) -> &'static str { match self { $(Verdict::$name => $label),* } }
            #[inline(always)]
            pub const fn fate(self) -> Fate { match self { $(Verdict::$name => Fate::$fate),* } }
        }
    };
}

verdicts! {
    /// Neither ARP for a VIP nor IPv4 to a VIP, or a frame that cannot be read so far: the kernel judges.
    NotOurs = 0, "not_ours", Pass;
    /// IPv4 to a VIP in a frame for another MAC (flooded by a switch): the kernel drops it, we must not forward it.
    NotOurMac = 1, "not_our_mac", Pass;
    /// 802.1Q tag: not for this interface.
    Vlan = 2, "vlan", Pass;

    /// ARP request for a VIP that this node owns: answered.
    ArpAnswered = 8, "arp_answered", Tx;
    /// ARP request for a VIP that another node owns: dropped, so that no program of this node answers.
    ArpNotOwner = 9, "arp_not_owner", Drop;
    /// ARP request for a VIP in `OWN`, but the lease has run out: the speaker is dead, frozen or starved.
    ArpLeaseOver = 10, "arp_lease_over", Drop;
    /// ARP for a VIP while no speaker has given a sign of life for long: passed.
    ArpMuteOver = 11, "arp_mute_over", Pass;
    /// ARP that names a VIP but is no request for it (an announcement of another node): passed.
    ArpAnnouncement = 12, "arp_announcement", Pass;
    /// Another node queried whether a program of ours runs here ([`crate::PROGRAM_QUERY`]): answered.
    ProgramAnswered = 13, "program_answered", Tx;

    /// The row names this node alone, or the packet opens a flow: to the stack, to the local pod.
    DispatchedLocal = 16, "dispatched_local", Pass;
    /// The row names another node: sent there.
    DispatchedPeer = 17, "dispatched_peer", Tx;
    /// From another node's dispatcher, and no alternate may know the flow: to the stack.
    FromPeer = 18, "from_peer", Pass;
    /// An ICMP error about a flow of ours; the row of that flow names this node.
    IcmpLocal = 19, "icmp_local", Pass;
    /// An ICMP error about a flow of ours, sent to the node that has the flow.
    IcmpPeer = 20, "icmp_peer", Tx;
    /// `CONFIG` is not filled yet: to the stack.
    NotReady = 21, "not_ready", Pass;

    /// TCP to an unserved VIP port: reset.
    UnservedReset = 24, "unserved_reset", Tx;
    /// A reset to an unserved VIP port, or to an empty ring: never answered (RFC 9293 section 3.10.7.1).
    UnservedRst = 25, "unserved_rst", Drop;
    /// UDP to an unserved VIP port: to the guard in nftables, which answers port unreachable.
    UnservedUnreachable = 26, "unserved_unreachable", Pass;
    /// The same with `Config::UDP_SILENT`.
    UnservedSilent = 27, "unserved_silent", Drop;
    /// TCP to a service whose ring is empty, or a SYN to a service without new flows: reset, so that clients fail fast.
    EmptyRingReset = 28, "empty_ring_reset", Tx;
    /// UDP to a service whose ring is empty: as unserved.
    EmptyRingUnreachable = 29, "empty_ring_unreachable", Pass;
    /// The same with `Config::UDP_SILENT`.
    EmptyRingSilent = 30, "empty_ring_silent", Drop;
    /// ICMP echo request to a VIP that this node owns: answered while the lease runs.
    EchoAnswered = 31, "echo_answered", Tx;

    /// The row names this node, other nodes may have the flow: to the stack, marked with the first of them.
    SecondChanceLocal = 32, "second_chance_local", Pass;
    /// Came from another node's dispatcher, others may have the flow: to the stack, marked with the first of them.
    SecondChancePeer = 33, "second_chance_peer", Pass;
    /// In search of its flow: to the stack, marked with the next hop of the search, if there is one.
    SecondChanceArrived = 34, "second_chance_arrived", Pass;
    /// A SYN that another dispatcher sent here by an older ring, and this node has no pod for it: to the primary of the row.
    SynPassedOn = 35, "syn_passed_on", Tx;

    /// TCP without SYN of a client outside the Service's source ranges: reset.
    SourceReset = 36, "source_reset", Tx;

    /// A later fragment of a datagram, sent to the node that the first one went to.
    FragmentPeer = 37, "fragment_peer", Tx;
    /// A later fragment of a datagram that stays here, or one from another node: to the stack, which puts it together.
    FragmentLocal = 38, "fragment_local", Pass;

    /// A fragment of TCP or ICMP, or an ICMP error about a later fragment: not served.
    Fragment = 40, "fragment", Drop;
    /// TTL 1 (or 0) and the row names another node.
    TtlExpired = 41, "ttl_expired", Drop;
    /// Short or contradictory headers of a packet to a VIP.
    Malformed = 42, "malformed", Drop;
    /// An IP protocol to a VIP that is not TCP, UDP or ICMP, or an ICMP type that needs no answer.
    Protocol = 43, "protocol", Drop;
    /// The row names a node whose MAC address is not known.
    NoNeighbour = 44, "no_neighbour", Drop;
    /// A service names a ring that does not exist, or a row names a node out of range: a fault of the speaker.
    BadRing = 45, "bad_ring", Drop;
    /// The kernel refused to change the size of the frame for a reset or an answer.
    NoRoom = 46, "no_room", Drop;
    /// Any other packet of a client outside the Service's source ranges.
    SourceDenied = 47, "source_denied", Drop;
    /// A later fragment that overtook the first one, or whose first one was refused, or came too long ago, or made room for others.
    FragmentWithoutFirst = 48, "fragment_without_first", Drop;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MAX_VERDICTS;

    #[test]
    fn numbers_and_labels_are_unique_and_fit_the_counters() {
        for (index, verdict) in Verdict::ALL.iter().enumerate() {
            assert!((*verdict as u32) < MAX_VERDICTS);
            for other in &Verdict::ALL[index + 1..] {
                assert_ne!(*verdict as u32, *other as u32);
                assert_ne!(verdict.label(), other.label());
            }
        }
    }
}
