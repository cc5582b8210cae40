//! Rank of nodes for a VIP by rendezvous hash: the same order on every node, spread evenly over VIPs.
//!
//! Read first: Thaler, Ravishankar, "Using name-based mappings to increase hit rates" (1998), section 3.

use ebpf_common::siphash13;

use crate::name::{NodeName, Vip};

/// The weight of a node for a VIP; the highest comes first, ties by name.
pub fn weight(vip: Vip, node: &NodeName) -> u64 {
    weight_of_hash(vip, hash_name(node))
}

/// The same from [`hash_name`], for callers with many VIPs.
pub fn weight_of_hash(vip: Vip, hash: u64) -> u64 {
    siphash13(&KEY, hash, u64::from(u32::from(vip.0)))
}

pub fn hash_name(node: &NodeName) -> u64 {
    hash_bytes(node.as_str().as_bytes())
}

/// How many of `others` come before `node`.
pub fn rank<'a>(vip: Vip, node: &NodeName, others: impl IntoIterator<Item = &'a NodeName>) -> u32 {
    let own = (weight(vip, node), node);
    let before = others.into_iter().filter(|other| *other != node && (weight(vip, other), *other) > own).count();
    u32::try_from(before).unwrap_or(u32::MAX)
}

/// A hash of bytes of any length: SipHash-1-3 chained over words of 8 bytes, the length last.
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hash = 0;
    for block in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..block.len()].copy_from_slice(block);
        hash = siphash13(&KEY, hash, u64::from_le_bytes(word));
    }
    siphash13(&KEY, hash, bytes.len() as u64)
}

/// Not secret: it only spreads. Part of the protocol: all nodes must use the same (docs/election.md section Rank).
const KEY: [u64; 2] = [0x5368_6561_7665_2072, 0x616e_6b20_7631_0000];

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec::Vec;
    use core::net::Ipv4Addr;

    use super::*;

    fn nodes(count: usize) -> Vec<NodeName> {
        (0..count).map(|i| NodeName::new(&format!("node-{i}")).unwrap()).collect()
    }

    /// 1000 VIPs over 5 nodes: every node is first for about a fifth, and the rank is a permutation.
    #[test]
    fn spreads_evenly() {
        let nodes = nodes(5);
        let mut first = [0u32; 5];
        for i in 0..1000u32 {
            let vip = Vip(Ipv4Addr::from(0x0a00_0000 + i));
            let mut ranks: Vec<u32> = nodes.iter().map(|node| rank(vip, node, &nodes)).collect();
            first[ranks.iter().position(|r| *r == 0).unwrap()] += 1;
            ranks.sort_unstable();
            assert_eq!(ranks, [0, 1, 2, 3, 4]);
        }
        assert!(first.iter().all(|count| (150..250).contains(count)), "{first:?}");
    }

    /// The loss of a node changes the first of its own VIPs only.
    #[test]
    fn loss_moves_only_what_was_lost() {
        let all = nodes(5);
        for i in 0..200u32 {
            let vip = Vip(Ipv4Addr::from(0x0a00_0000 + i));
            let first = all.iter().find(|node| rank(vip, node, &all) == 0).unwrap();
            let left: Vec<NodeName> = all.iter().filter(|node| *node != &all[2]).cloned().collect();
            let now = left.iter().find(|node| rank(vip, node, &left) == 0).unwrap();
            assert!(first == now || first == &all[2]);
        }
    }

    /// Part of the protocol: a change of these numbers is a change of version.
    #[test]
    fn vector() {
        let node = NodeName::new("node-1").unwrap();
        assert_eq!(hash_bytes(b"node-1"), 12744525606318782355);
        assert_eq!(weight(Vip(Ipv4Addr::new(192, 0, 2, 1)), &node), 4480197851943210292);
    }
}
