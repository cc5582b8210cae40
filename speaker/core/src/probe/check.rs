//! Proxy ARP: who answers for addresses that are no host's. A gateway answers for what it routes, and some hosts for every address of the
//! subnet, which eight random addresses show. Their answers say nothing of an address.

use alloc::collections::{BTreeMap, BTreeSet};
use core::net::Ipv4Addr;

use super::Mac;
use crate::time::{Duration, Instant};

/// Addresses that are drawn of the subnet.
pub const RANDOM: usize = 8;
/// How long a verdict holds: a proxy that comes up meanwhile counts as a host on every address.
pub const HOLDS: Duration = Duration::from_secs(10);
/// Subnets longer than this have too few addresses to draw from.
const LONGEST: u8 = 27;
const MAX_GATEWAYS: usize = 4;
const DRAWS: usize = 64;

/// What lies around the addresses: of the uplink, as the kernel has it now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Around {
    pub own: BTreeSet<Ipv4Addr>,
    /// Network and prefix length.
    pub subnets: BTreeSet<(Ipv4Addr, u8)>,
    /// Of default routes.
    pub gateways: BTreeSet<Ipv4Addr>,
}

/// Who is a proxy on this segment.
#[derive(Clone, Debug)]
pub struct Check {
    began: Instant,
    around: Around,
    random: BTreeSet<Ipv4Addr>,
    verdict: Option<(BTreeSet<Mac>, BTreeSet<Mac>)>,
}

impl Check {
    /// `asked`: addresses that are probed anyway, which are not drawn.
    pub fn new(around: Around, asked: &[Ipv4Addr], seed: u64, now: Instant) -> Self {
        let subnet = around.subnets.iter().find(|subnet| asked.iter().any(|address| contains(**subnet, *address)));
        let random = subnet.map(|subnet| draw(*subnet, &around, asked, seed)).unwrap_or_default();
        Self { began: now, around, random, verdict: None }
    }

    /// Whether another one is needed: it is old, or the segment is another one.
    pub fn is_over(&self, around: &Around, now: Instant) -> bool {
        now.since(self.began) >= HOLDS || self.around != *around
    }

    pub fn has_verdict(&self) -> bool {
        self.verdict.is_some()
    }

    /// What is to be probed for it; nothing once there is a verdict.
    pub fn targets(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let open = self.verdict.is_none();
        let gateways = self.around.gateways.iter().take(MAX_GATEWAYS);
        gateways.chain(&self.random).copied().filter(move |_| open)
    }

    /// `macs`: those that have answered for an address.
    pub fn judge(&mut self, macs: impl Fn(&Ipv4Addr) -> Option<BTreeSet<Mac>>) {
        if self.verdict.is_some() {
            return;
        }
        let gateways = self.around.gateways.iter().take(MAX_GATEWAYS).filter_map(&macs).flatten().collect();
        let mut counts: BTreeMap<Mac, usize> = BTreeMap::new();
        for mac in self.random.iter().filter_map(&macs).flatten() {
            *counts.entry(mac).or_default() += 1;
        }
        let everywhere = counts.into_iter().filter(|(_, count)| *count == RANDOM);
        self.verdict = Some((gateways, everywhere.map(|(mac, _)| mac).collect()));
    }

    /// Gateways, and those that answer for every address.
    pub fn verdict(&self) -> (BTreeSet<Mac>, BTreeSet<Mac>) {
        self.verdict.clone().unwrap_or_default()
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0)
}

fn contains((network, length): (Ipv4Addr, u8), address: Ipv4Addr) -> bool {
    length <= 30 && u32::from(address) & mask(length) == u32::from(network)
}

/// Eight hosts' addresses of the subnet, or none if it has too few.
fn draw((network, length): (Ipv4Addr, u8), around: &Around, asked: &[Ipv4Addr], mut seed: u64) -> BTreeSet<Ipv4Addr> {
    let mut drawn = BTreeSet::new();
    if length > LONGEST {
        return drawn;
    }
    let (first, span) = (u32::from(network), !mask(length));
    for _ in 0..DRAWS {
        seed = scramble(seed);
        let address = Ipv4Addr::from(first | (seed >> 32) as u32 & span);
        let is_end = address == network || u32::from(address) == first | span;
        let is_known = around.own.contains(&address) || around.gateways.contains(&address) || asked.contains(&address);
        if !is_end && !is_known {
            drawn.insert(address);
        }
        if drawn.len() == RANDOM {
            return drawn;
        }
    }
    BTreeSet::new()
}

/// splitmix64.
fn scramble(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn eight_hosts_are_drawn_that_nobody_asks_for() {
        let network = Ipv4Addr::new(192, 0, 2, 0);
        let around = Around {
            own: BTreeSet::from([Ipv4Addr::new(192, 0, 2, 1)]),
            subnets: BTreeSet::from([(network, 27)]),
            gateways: BTreeSet::from([Ipv4Addr::new(192, 0, 2, 2)]),
        };
        let asked: Vec<Ipv4Addr> = (3..=12).map(|last| Ipv4Addr::new(192, 0, 2, last)).collect();
        for seed in 0..200 {
            let drawn = draw((network, 27), &around, &asked, seed);
            assert!(drawn.len() == RANDOM || drawn.is_empty(), "{drawn:?}");
            assert!(drawn.iter().all(|address| (13..=30).contains(&address.octets()[3])), "{drawn:?}");
        }
        assert_eq!(draw((network, 27), &around, &asked, 1).len(), RANDOM);
        assert!(draw((network, 28), &around, &[], 1).is_empty(), "too few");
        assert_eq!(draw((Ipv4Addr::new(10, 0, 0, 0), 8), &around, &[], 1).len(), RANDOM);
    }

    #[test]
    fn a_subnet_of_one_host_is_no_segment() {
        let address = Ipv4Addr::new(192, 0, 2, 77);
        assert!(contains((Ipv4Addr::new(192, 0, 2, 0), 24), address));
        assert!(!contains((address, 32), address) && !contains((Ipv4Addr::new(192, 0, 3, 0), 24), address));
    }
}
