//! Socket filters (classic BPF): what a stranger sends is dropped before the queue of a socket, so that it neither fills the
//! receive buffer nor wakes a thread.
//!
//! Read first: the kernel's Documentation/networking/filter.rst. Loads beyond the end of a packet drop it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use socket2::SockFilter;

/// Addresses that one filter compares with; with all of them a program is a fifth of the 4096 instructions that the kernel takes.
pub const MAX_ADDRESSES: usize = 512;

/// For a UDP socket: datagrams to `group`, and unicast ones of `peers`; both only as they leave a host (time to live 255, RFC 5082).
pub fn datagrams(group: Ipv4Addr, peers: &BTreeSet<Ipv4Addr>) -> Vec<SockFilter> {
    let mut program = Vec::new();
    program.extend([load(BYTE, NETWORK + 8), equal(255, 1, 0), DROP]);
    program.extend([load(WORD, NETWORK + 16), equal(group.into(), 0, 1), TAKE]);
    program.push(load(WORD, NETWORK + 12));
    member(&sorted(peers), &mut program);
    instructions(&program)
}

/// For a packet socket: ARP (RFC 826) for IPv4 over Ethernet, request or reply, whose sender is one of `nodes` and announces
/// itself.
pub fn arp(nodes: &BTreeSet<Ipv4Addr>) -> Vec<SockFilter> {
    let mut program = arp_sender();
    member(&sorted(nodes), &mut program);
    instructions(&program)
}

/// The same, whose sender is one of these addresses or lies between them; `None`: nothing.
pub fn arp_between(range: Option<(Ipv4Addr, Ipv4Addr)>) -> Vec<SockFilter> {
    let Some((low, high)) = range else { return instructions(&[DROP]) };
    let mut program = arp_sender();
    program.extend([step(JUMP | AT_LEAST, low.into(), 1, 0), DROP]);
    program.extend([step(JUMP | MORE_THAN, high.into(), 0, 1), DROP, TAKE]);
    instructions(&program)
}

/// Loads the sender's address.
fn arp_sender() -> Vec<Step> {
    let mut program = Vec::new();
    let mut require = |size, offset, value| program.extend([load(size, offset), equal(value, 1, 0), DROP]);
    require(HALF, 12, 0x0806);
    // Hardware type Ethernet, protocol IPv4, address lengths 6 and 4.
    require(WORD, 14, 0x0001_0800);
    require(HALF, 18, 0x0604);
    program.extend([load(HALF, 20), equal(1, 2, 0), equal(2, 1, 0), DROP]);
    // The sender in the frame is the sender of the frame, and no group.
    program.extend([load(WORD, 6), KEEP, load(WORD, 22), EQUAL_KEPT, DROP]);
    program.extend([load(HALF, 10), KEEP, load(HALF, 26), EQUAL_KEPT, DROP]);
    program.extend([load(BYTE, 22), step(JUMP | ANY_BIT, 1, 0, 1), DROP]);
    program.push(load(WORD, 28));
    program
}

/// For a packet socket: UDP over IPv4 to the DHCP client's port (RFC 2131 section 4.1), whole and without IP options.
pub fn dhcp_client() -> Vec<SockFilter> {
    let mut program = Vec::new();
    let mut require = |size, offset, value| program.extend([load(size, offset), equal(value, 1, 0), DROP]);
    require(HALF, 12, 0x0800);
    require(BYTE, 14, 0x45);
    require(BYTE, 23, 17);
    require(HALF, 36, 68);
    program.extend([load(HALF, 20), step(JUMP | ANY_BIT, 0x3fff, 0, 1), DROP, TAKE]);
    instructions(&program)
}

/// Ends the program: takes the packet if the loaded word is one of `values`, which ascend. Halves the values until few are left,
/// so that a flood costs a few comparisons a packet.
fn member(values: &[u32], program: &mut Vec<Step>) {
    if values.len() > FEW {
        let (low, high) = values.split_at(values.len() / 2);
        let mut lower = Vec::new();
        member(low, &mut lower);
        program.extend([step(JUMP | AT_LEAST, high[0], 0, 1), step(JUMP, lower.len() as u32, 0, 0)]);
        program.append(&mut lower);
        return member(high, program);
    }
    // Each jumps over the rest and the drop.
    let jumps = values.iter().enumerate().map(|(index, value)| equal(*value, (values.len() - index) as u8, 0));
    program.extend(jumps);
    program.extend([DROP, TAKE]);
}

/// More than [`MAX_ADDRESSES`] are left out; the view's limit of nodes is lower.
fn sorted(addresses: &BTreeSet<Ipv4Addr>) -> Vec<u32> {
    addresses.iter().take(MAX_ADDRESSES).map(|address| u32::from(*address)).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    code: u16,
    value: u32,
    then: u8,
    otherwise: u8,
}

const fn step(code: u16, value: u32, then: u8, otherwise: u8) -> Step {
    Step { code, value, then, otherwise }
}

const fn load(size: u16, offset: u32) -> Step {
    step(LOAD_AT | size, offset, 0, 0)
}

const fn equal(value: u32, then: u8, otherwise: u8) -> Step {
    step(JUMP | EQUAL, value, then, otherwise)
}

fn instructions(program: &[Step]) -> Vec<SockFilter> {
    program.iter().map(|step| SockFilter::new(step.code, step.then, step.otherwise, step.value)).collect()
}

// include/uapi/linux/bpf_common.h and filter.h.
const WORD: u16 = 0x00;
const HALF: u16 = 0x08;
const BYTE: u16 = 0x10;
/// `BPF_LD | BPF_ABS`.
const LOAD_AT: u16 = 0x20;
/// `BPF_JMP | BPF_JA`, with a constant.
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x10;
const MORE_THAN: u16 = 0x20;
const AT_LEAST: u16 = 0x30;
const ANY_BIT: u16 = 0x40;
/// `SKF_NET_OFF`: from the network header on, wherever the socket's own data begin.
const NETWORK: u32 = -0x10_0000_i32 as u32;
/// `BPF_MISC | BPF_TAX`.
const KEEP: Step = step(0x07, 0, 0, 0);
/// `BPF_JMP | BPF_JEQ | BPF_X`: skips the drop behind it.
const EQUAL_KEPT: Step = step(JUMP | EQUAL | 0x08, 0, 1, 0);
const DROP: Step = step(0x06, 0, 0, 0);
/// The whole packet.
const TAKE: Step = step(0x06, u32::MAX, 0, 0);
/// Comparisons one after the other.
const FEW: usize = 16;

#[cfg(test)]
pub(super) mod tests {
    use std::io::{Read, Write};

    use socket2::{Domain, Socket, Type};

    use super::*;

    /// The kernel runs the filter on what one end of a local pair sends: packets and offsets are as on a packet socket.
    pub fn taken(filter: &[SockFilter], packet: &[u8]) -> bool {
        let (mut from, mut to) = Socket::pair(Domain::UNIX, Type::DGRAM, None).unwrap();
        to.attach_filter(filter).unwrap();
        to.set_nonblocking(true).unwrap();
        // The kernel reports the drop to a local sender (EPERM), not to one on the network.
        let _ = from.write(packet);
        to.read(&mut [0; 2048]).is_ok()
    }

    fn frame() -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 9, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
        frame.extend([2, 0, 0, 0, 0, 9, 192, 0, 2, 9, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
        frame
    }

    fn nodes(count: u32) -> BTreeSet<Ipv4Addr> {
        (0..count).map(|node| Ipv4Addr::from(0xc000_0209 + 3 * node)).collect()
    }

    #[test]
    fn arp_of_a_node_is_taken_and_each_fault_is_not() {
        let filter = arp(&nodes(3));
        assert!(taken(&filter, &frame()));
        for (what, offset, value) in [
            ("another protocol", 13, 0x00),
            ("another hardware type", 15, 6),
            ("another address length", 19, 16),
            ("RARP", 21, 3),
            ("a sender that is not the frame's", 27, 8),
            ("a frame that is not the sender's", 6, 0x0a),
            ("an address that is no node's", 31, 10),
        ] {
            let mut frame = frame();
            assert_ne!(frame[offset], value, "{what}");
            frame[offset] = value;
            assert!(!taken(&filter, &frame), "{what}");
        }
        let mut group = frame();
        (group[6], group[22]) = (3, 3);
        assert!(!taken(&filter, &group), "a group as sender");
        assert!(!taken(&filter, &frame()[..30]), "cut short");
        assert!(!taken(&arp(&BTreeSet::new()), &frame()), "no node is known yet");
    }

    #[test]
    fn arp_between_two_addresses_is_taken() {
        let between = |low: u8, high: u8| {
            let [low, high] = [low, high].map(|last| Ipv4Addr::new(192, 0, 2, last));
            taken(&arp_between(Some((low, high))), &frame())
        };
        assert!(between(9, 9) && between(8, 9) && between(9, 10) && between(1, 200));
        assert!(!between(10, 20) && !between(1, 8));
        assert!(!taken(&arp_between(None), &frame()));
        let mut forged = frame();
        forged[27] ^= 1;
        assert!(!taken(&arp_between(Some((Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST))), &forged));
    }

    /// Every member and no neighbour of one, for trees of any depth; the kernel takes the longest too.
    #[test]
    fn membership_is_exact() {
        for count in [1, 2, 16, 17, 33, 100, MAX_ADDRESSES as u32] {
            let filter = arp(&nodes(count));
            for node in (0..count).step_by(count as usize / 16 + 1).chain([count - 1]) {
                for (off, expected) in [(0, true), (1, false), (2, false)] {
                    let mut frame = frame();
                    frame[28..32].copy_from_slice(&(0xc000_0209 + 3 * node + off).to_be_bytes());
                    assert_eq!(taken(&filter, &frame), expected, "node {node} + {off} of {count}");
                }
            }
            let mut below = frame();
            below[31] = 8;
            assert!(!taken(&filter, &below), "{count}");
        }
    }
}
