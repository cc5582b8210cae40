//! The clients that a Service with source ranges admits.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv4Addr;

use ebpf_common::siphash13;
use serde::{Deserialize, Serialize};

/// IPv4 ranges, in order and disjoint. None: no client is admitted. Shared, because each port of the Service has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Prefix>", into = "Vec<Prefix>")]
pub struct SourceRanges(Arc<[Prefix]>);

/// An address range in CIDR notation, without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Prefix {
    pub network: Ipv4Addr,
    pub length: u8,
}

impl SourceRanges {
    pub fn iter(&self) -> impl Iterator<Item = &Prefix> {
        self.0.iter()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn digest(&self) -> u64 {
        self.hash(0)
    }

    /// By its content; no two lists have the same.
    pub fn name(&self) -> u128 {
        u128::from(self.hash(1)) << 64 | u128::from(self.hash(2))
    }

    /// The same for lists that share their memory.
    pub fn address(&self) -> (usize, usize) {
        (self.0.as_ptr().addr(), self.len())
    }

    fn hash(&self, key: u64) -> u64 {
        self.iter().fold(self.len() as u64, |digest, Prefix { network, length }| {
            siphash13(&[digest, key], u64::from(u32::from(*network)), u64::from(*length))
        })
    }
}

/// Also what stands on disk passes through here: nftables and the packet path get disjoint ranges, or refuse all.
impl From<Vec<Prefix>> for SourceRanges {
    fn from(mut ranges: Vec<Prefix>) -> Self {
        ranges.retain(|range| range.length <= 32);
        for range in &mut ranges {
            range.network = (u32::from(range.network) & mask(range.length)).into();
        }
        ranges.sort_unstable();
        let mut end: Option<u32> = None;
        ranges.retain(|range| {
            let contained = end.is_some_and(|end| u32::from(range.network) <= end);
            if !contained {
                end = Some(u32::from(range.network) | !mask(range.length));
            }
            !contained
        });
        Self(ranges.into())
    }
}

impl From<SourceRanges> for Vec<Prefix> {
    fn from(ranges: SourceRanges) -> Self {
        ranges.0.to_vec()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(a: u8, b: u8, length: u8) -> Prefix {
        Prefix { network: Ipv4Addr::new(a, b, 0, 1), length }
    }

    #[test]
    fn ranges_are_masked_ordered_and_disjoint() {
        let ranges =
            SourceRanges::from(alloc::vec![range(10, 9, 16), range(192, 1, 24), range(10, 2, 8), range(9, 0, 33)]);
        let shown: Vec<_> = ranges.iter().map(|range| alloc::format!("{range}")).collect();
        assert_eq!(shown, ["10.0.0.0/8", "192.1.0.0/24"]);
        let all = SourceRanges::from(alloc::vec![range(10, 0, 32), range(0, 0, 0)]);
        assert_eq!(Vec::from(all), [Prefix { network: Ipv4Addr::UNSPECIFIED, length: 0 }]);
    }

    #[test]
    fn every_part_counts_in_the_digest() {
        let lists =
            [vec_of(&[]), vec_of(&[(10, 8)]), vec_of(&[(11, 8)]), vec_of(&[(10, 9)]), vec_of(&[(10, 8), (11, 8)])];
        let digests: alloc::collections::BTreeSet<u64> = lists.iter().map(SourceRanges::digest).collect();
        assert_eq!(digests.len(), lists.len());
        let names: alloc::collections::BTreeSet<u128> = lists.iter().map(SourceRanges::name).collect();
        assert_eq!(names.len(), lists.len());
        assert_eq!(vec_of(&[(10, 8)]).name(), vec_of(&[(10, 8)]).name());
    }

    fn vec_of(ranges: &[(u8, u8)]) -> SourceRanges {
        ranges.iter().map(|(a, length)| range(*a, 0, *length)).collect::<Vec<_>>().into()
    }
}
