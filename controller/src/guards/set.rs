//! Pure: addresses that no Service may have, as disjoint spans. Of two guards on one address the one that was added first counts, so
//! every address has one reason and is counted once.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::Bound::{Excluded, Included};
use std::sync::Arc;

use ipnet::Ipv4Net;
use sheave_api::Refusal;

use crate::request::Refused;

/// Guarded addresses by the first number of their span.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardSet(BTreeMap<u32, Guarded>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Guarded {
    last: u32,
    reason: Refusal,
    /// What they are: "an address of node a".
    what: Arc<str>,
}

impl GuardSet {
    pub fn add_address(&mut self, address: Ipv4Addr, reason: Refusal, what: impl Into<Arc<str>>) {
        self.add(address.into(), address.into(), reason, what);
    }

    pub fn add_network(&mut self, network: Ipv4Net, reason: Refusal, what: impl Into<Arc<str>>) {
        self.add(network.network().into(), network.broadcast().into(), reason, what);
    }

    /// Guards what no earlier call has guarded of this inclusive span.
    pub fn add(&mut self, first: u32, last: u32, reason: Refusal, what: impl Into<Arc<str>>) {
        let what = what.into();
        let gaps: Vec<(u32, u32)> = self.gaps(first, last).collect();
        self.0.extend(gaps.into_iter().map(|(first, last)| (first, Guarded { last, reason, what: what.clone() })));
    }

    /// Why no Service may have this address.
    pub fn check(&self, address: Ipv4Addr) -> Option<Refused> {
        let guarded = self.0.range(..=u32::from(address)).next_back()?.1;
        (u32::from(address) <= guarded.last)
            .then(|| Refused { reason: guarded.reason, message: format!("{address} is {}", guarded.what) })
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.0.range(..=u32::from(address)).next_back().is_some_and(|(_, guarded)| u32::from(address) <= guarded.last)
    }

    /// The parts of an inclusive span that are not guarded, lowest first. Lazy: a wide guarded range costs one step.
    pub fn gaps(&self, first: u32, last: u32) -> impl Iterator<Item = (u32, u32)> {
        let end = u64::from(last) + 1;
        let guarded = self.within(first, last).map(|(from, guarded)| (u64::from(from), u64::from(guarded.last)));
        let mut next = u64::from(first);
        guarded.chain(std::iter::once((end, end))).filter_map(move |(from, to)| {
            let gap = if from > next { u32::try_from(next).ok().zip(u32::try_from(from - 1).ok()) } else { None };
            next = next.max(to + 1);
            gap
        })
    }

    /// The guarded parts of an inclusive span, with their reasons.
    pub fn spans(&self, first: u32, last: u32) -> impl Iterator<Item = (u32, u32, Refusal)> {
        self.within(first, last).map(move |(from, guarded)| (from.max(first), guarded.last.min(last), guarded.reason))
    }

    /// Guarded spans that share addresses with this one, in order.
    fn within(&self, first: u32, last: u32) -> impl Iterator<Item = (u32, &Guarded)> {
        let around = self.0.range(..=first).next_back().filter(|(_, guarded)| guarded.last >= first);
        let after = (first < last).then(|| self.0.range((Excluded(first), Included(last))));
        around.into_iter().chain(after.into_iter().flatten()).map(|(from, guarded)| (*from, guarded))
    }
}

/// How many addresses of an inclusive span are guarded, by reason.
#[cfg(test)]
pub fn count(set: &GuardSet, (first, last): (u32, u32)) -> BTreeMap<Refusal, u64> {
    let mut counts = BTreeMap::new();
    for (first, last, reason) in set.spans(first, last) {
        *counts.entry(reason).or_default() += u64::from(last) - u64::from(first) + 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_guard_of_an_address_counts_and_the_others_keep_what_is_left() {
        let mut set = GuardSet::default();
        set.add(5, 5, Refusal::AddressOfNode, "a");
        set.add(3, 9, Refusal::AddressInPodRange, "b");
        set.add(0, u32::MAX, Refusal::ReservedAddress, "c");
        let reason = |number: u32| set.check(number.into()).unwrap().reason;
        let found = [2, 3, 5, 9, 10, u32::MAX].map(reason);
        use Refusal::*;
        assert_eq!(
            found,
            [ReservedAddress, AddressInPodRange, AddressOfNode, AddressInPodRange, ReservedAddress, ReservedAddress]
        );
        assert_eq!(
            count(&set, (4, 10)),
            BTreeMap::from([(AddressOfNode, 1), (AddressInPodRange, 5), (ReservedAddress, 1)])
        );
        assert_eq!(set.gaps(0, u32::MAX).count(), 0);
    }

    proptest! {
        /// Against one reason per address.
        #[test]
        fn spans_are_what_single_addresses_are(
            guards in prop::collection::vec((0u32..40, 0u32..12), 0..8), first in 0u32..40, length in 0u32..40
        ) {
            let mut set = GuardSet::default();
            let mut model: BTreeMap<u32, Refusal> = BTreeMap::new();
            for (number, (from, length)) in guards.into_iter().enumerate() {
                let reason = Refusal::ALL[number];
                set.add(from, from + length, reason, "x");
                for n in from..=from + length {
                    model.entry(n).or_insert(reason);
                }
            }
            let last = first + length;
            for number in 0..60 {
                let found = set.check(number.into()).map(|refused| refused.reason);
                prop_assert_eq!(found, model.get(&number).copied());
                prop_assert_eq!(set.contains(number.into()), found.is_some());
            }
            let gaps: Vec<u32> = set.gaps(first, last).flat_map(|(from, to)| from..=to).collect();
            let free: Vec<u32> = (first..=last).filter(|n| !model.contains_key(n)).collect();
            prop_assert_eq!(gaps, free);
            let mut counts = BTreeMap::new();
            model.range(first..=last).for_each(|(_, reason)| *counts.entry(*reason).or_insert(0u64) += 1);
            prop_assert_eq!(count(&set, (first, last)), counts);
        }
    }
}
