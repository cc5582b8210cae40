//! What the program and the bench share: the packets to make.
#![cfg_attr(target_arch = "bpf", no_std)]

/// Which packets the program makes. Each run makes one and counts `next` up.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    pub next: u64,
    /// Packets go round over so many flows; 0: every packet is a flow of its own.
    pub flows: u64,
    /// Flows of different seeds are different flows.
    pub seed: u64,
    /// Ethernet, IPv4 and TCP header, and two bytes of payload; the client's address and port and both checksums are zero.
    pub head: [u64; 7],
    /// Sums of the 16-bit words that the checksums of this head cover.
    pub ip_sum: u32,
    pub tcp_sum: u32,
    /// The client is the destination: an answer.
    pub answer: u32,
    /// Of the program that does not look anything up: the action to return.
    pub action: u32,
}

/// A client: two words of address and one of port, as they stand in the packet. 64.0.0.0 to 95.255.255.255, ports from 16384.
#[inline(always)]
pub fn client(seed: u64, number: u64) -> [u16; 3] {
    // splitmix64: all numbers give different results, in no order.
    let mut bits = seed.wrapping_add(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    // The first byte of a word is its low one: BPF objects are built for little-endian machines here.
    [(bits as u16 & 0xff1f) | 0x40, (bits >> 16) as u16, (bits >> 32) as u16 | 0x40]
}

/// The key of a known flow, as XDP reads it from a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    pub client: [u16; 2],
    pub vip: [u16; 2],
    pub client_port: u16,
    pub vip_port: u16,
    pub proto: u32,
}

/// What the map program writes over both addresses of a packet that it sends to the alternate, as words.
pub const TO_ALTERNATE: [u16; 6] = [0x0002, 0, 0x0299, 0x0002, 0, 0x0100];
