//! Pure: addresses that no Service may have, as disjoint spans. Of two guards on one address the one that was added first counts, so
//! every address has one reason and is counted once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Bound::{Excluded, Included};
use std::sync::Arc;

use ipnet::IpNet;
use sheave_api::Refusal;

use crate::family::{number, span};
use crate::request::Refused;

/// Guarded addresses by the first number of their span.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardSet(BTreeMap<u128, Guarded>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Guarded {
    last: u128,
    reason: Refusal,
    /// What they are: "an address of node a".
    what: Arc<str>,
}

impl GuardSet {
    pub fn add_address(&mut self, address: impl Into<IpAddr>, reason: Refusal, what: impl Into<Arc<str>>) {
        let number = number(address);
        self.add(number, number, reason, what);
    }

    pub fn add_network(&mut self, network: impl Into<IpNet>, reason: Refusal, what: impl Into<Arc<str>>) {
        let (first, last) = span(network);
        self.add(first, last, reason, what);
    }

    /// Guards what no earlier call has guarded of this inclusive span of numbers ([`family::number`](crate::family::number)).
    pub fn add(&mut self, first: u128, last: u128, reason: Refusal, what: impl Into<Arc<str>>) {
        let what = what.into();
        let gaps: Vec<(u128, u128)> = self.gaps(first, last).collect();
        self.0.extend(gaps.into_iter().map(|(first, last)| (first, Guarded { last, reason, what: what.clone() })));
    }

    /// Why no Service may have this address.
    pub fn check(&self, address: impl Into<IpAddr>) -> Option<Refused> {
        let address = address.into();
        let guarded = self.find(address)?;
        Some(Refused { reason: guarded.reason, message: format!("{address} is {}", guarded.what) })
    }

    pub fn contains(&self, address: impl Into<IpAddr>) -> bool {
        self.find(address.into()).is_some()
    }

    fn find(&self, address: IpAddr) -> Option<&Guarded> {
        let number = number(address);
        self.0.range(..=number).next_back().map(|(_, guarded)| guarded).filter(|guarded| number <= guarded.last)
    }

    /// The parts of an inclusive span that are not guarded, lowest first. Lazy: a wide guarded range costs one step.
    pub fn gaps(&self, first: u128, last: u128) -> impl Iterator<Item = (u128, u128)> {
        let guarded = self.within(first, last).map(|(from, guarded)| Some((from, guarded.last)));
        // None behind the last number that there is.
        let mut next = Some(first);
        guarded.chain(std::iter::once(None)).filter_map(move |span| {
            let start = next?;
            let Some((from, to)) = span else { return (start <= last).then_some((start, last)) };
            next = to.checked_add(1).map(|after| after.max(start));
            from.checked_sub(1).filter(|before| *before >= start).map(|before| (start, before))
        })
    }

    /// The guarded parts of an inclusive span, with their reasons.
    pub fn spans(&self, first: u128, last: u128) -> impl Iterator<Item = (u128, u128, Refusal)> {
        self.within(first, last).map(move |(from, guarded)| (from.max(first), guarded.last.min(last), guarded.reason))
    }

    /// Guarded spans that share addresses with this one, in order.
    fn within(&self, first: u128, last: u128) -> impl Iterator<Item = (u128, &Guarded)> {
        let around = self.0.range(..=first).next_back().filter(|(_, guarded)| guarded.last >= first);
        let after = (first < last).then(|| self.0.range((Excluded(first), Included(last))));
        around.into_iter().chain(after.into_iter().flatten()).map(|(from, guarded)| (*from, guarded))
    }
}

/// How many addresses of an inclusive span are guarded, by reason.
#[cfg(test)]
pub fn count(set: &GuardSet, (first, last): (u128, u128)) -> BTreeMap<Refusal, u128> {
    let mut counts = BTreeMap::new();
    for (first, last, reason) in set.spans(first, last) {
        *counts.entry(reason).or_default() += last - first + 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::family::address;

    #[test]
    fn the_first_guard_of_an_address_counts_and_the_others_keep_what_is_left() {
        let mut set = GuardSet::default();
        set.add(5, 5, Refusal::AddressOfNode, "a");
        set.add(3, 9, Refusal::AddressInPodRange, "b");
        set.add(0, u128::MAX, Refusal::ReservedAddress, "c");
        let reason = |number: u128| set.check(address(number)).unwrap().reason;
        let found = [2, 3, 5, 9, 10, u128::MAX].map(reason);
        use Refusal::*;
        assert_eq!(
            found,
            [ReservedAddress, AddressInPodRange, AddressOfNode, AddressInPodRange, ReservedAddress, ReservedAddress]
        );
        assert_eq!(
            count(&set, (4, 10)),
            BTreeMap::from([(AddressOfNode, 1), (AddressInPodRange, 5), (ReservedAddress, 1)])
        );
        assert_eq!(set.gaps(0, u128::MAX).count(), 0);
    }

    proptest! {
        /// Against one reason per address.
        #[test]
        fn spans_are_what_single_addresses_are(
            guards in prop::collection::vec((0u128..40, 0u128..12), 0..8), first in 0u128..40, length in 0u128..40,
            // At either end of all numbers, and in between.
            base in prop::sample::select(vec![0, 0xffff_0000_0000, u128::MAX - 99]),
        ) {
            let mut set = GuardSet::default();
            let first = base + first;
            let mut model: BTreeMap<u128, Refusal> = BTreeMap::new();
            for (number, (from, length)) in guards.into_iter().enumerate() {
                let (reason, from) = (Refusal::ALL[number], base + from);
                set.add(from, from + length, reason, "x");
                for n in from..=from + length {
                    model.entry(n).or_insert(reason);
                }
            }
            let last = first + length;
            for number in (0..60).map(|n| base + n) {
                let found = set.check(address(number)).map(|refused| refused.reason);
                prop_assert_eq!(found, model.get(&number).copied());
                prop_assert_eq!(set.contains(address(number)), found.is_some());
            }
            let gaps: Vec<u128> = set.gaps(first, last).flat_map(|(from, to)| from..=to).collect();
            let free: Vec<u128> = (first..=last).filter(|n| !model.contains_key(n)).collect();
            prop_assert_eq!(gaps, free);
            let mut counts = BTreeMap::new();
            model.range(first..=last).for_each(|(_, reason)| *counts.entry(*reason).or_insert(0u128) += 1);
            prop_assert_eq!(count(&set, (first, last)), counts);
        }
    }
}
