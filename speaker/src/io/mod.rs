//! The edge: one syscall family per file, no decisions.
//!
//! | file | what | capability |
//! |---|---|---|
//! | clock.rs | CLOCK_BOOTTIME | none |
//! | arp.rs | AF_PACKET socket for ARP: gratuitous announcements, signs of life of other kernels, address probes | NET_RAW |
//! | dhcp.rs | AF_PACKET socket for DHCP: which servers offer addresses | NET_RAW |
//! | filter.rs | classic BPF: what the sockets of arp.rs, dhcp.rs and udp.rs queue | none |
//! | tcp_probe.rs | TCP probes of pods | none |
//! | udp.rs | the sockets of heartbeats and flow reports | NET_RAW (SO_BINDTODEVICE) |
//! | listening.rs | sockets that listen, from /proc/net | none |
//! | netlink.rs | links, addresses, neighbours, routes | none (reading); NET_ADMIN (neighbours.rs) |
//! | random.rs | the system's random source | none |
//! | schedule.rs | SCHED_FIFO for the election thread | SYS_NICE (works without) |

pub mod arp;
pub mod clock;
pub mod dhcp;
pub mod filter;
pub mod listening;
pub mod netlink;
pub mod random;
pub mod schedule;
pub mod tcp_probe;
pub mod udp;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    pub const BROADCAST: Mac = Mac([0xff; 6]);
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::fmt::Debug for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
pub(crate) mod tests;
