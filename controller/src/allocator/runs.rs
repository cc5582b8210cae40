//! Pure: a set of numbers as runs of consecutive ones, so that what is granted in a row is passed over in one step: in a /64 as in a /30.

use std::collections::BTreeMap;

/// Each run by its first number, with its last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs(BTreeMap<u128, u128>);

impl Runs {
    pub fn insert(&mut self, number: u128) {
        if self.end(number).is_some() {
            return;
        }
        let last = number.checked_add(1).and_then(|next| self.0.remove(&next)).unwrap_or(number);
        match self.0.range_mut(..number).next_back() {
            Some((_, end)) if end.checked_add(1) == Some(number) => *end = last,
            _ => drop(self.0.insert(number, last)),
        }
    }

    pub fn remove(&mut self, number: u128) {
        let Some((first, last)) = self.run(number) else { return };
        self.0.remove(&first);
        if first < number {
            self.0.insert(first, number - 1);
        }
        if number < last {
            self.0.insert(number + 1, last);
        }
    }

    /// The last number of the run that contains this one.
    pub fn end(&self, number: u128) -> Option<u128> {
        self.run(number).map(|(_, last)| last)
    }

    fn run(&self, number: u128) -> Option<(u128, u128)> {
        let (first, last) = self.0.range(..=number).next_back()?;
        (number <= *last).then_some((*first, *last))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against one entry per number, also at the end of all numbers.
        #[test]
        fn runs_are_what_single_numbers_are(
            steps in prop::collection::vec((0u128..24, any::<bool>()), 0..80),
            base in prop::sample::select(vec![0, u128::MAX - 23]),
        ) {
            let (mut runs, mut model) = (Runs::default(), BTreeSet::new());
            for (number, comes) in steps {
                let number = base + number;
                if comes {
                    runs.insert(number);
                    model.insert(number);
                } else {
                    runs.remove(number);
                    model.remove(&number);
                }
                for number in (0..24).map(|n| base + n) {
                    let end = (number..=base + 23).take_while(|n| model.contains(n)).last();
                    prop_assert_eq!(runs.end(number), end);
                }
                let ends: Vec<(u128, u128)> = runs.0.iter().map(|(first, last)| (*first, *last)).collect();
                prop_assert!(ends.is_sorted_by(|(_, end), (first, _)| end + 1 < *first), "not joined: {:?}", ends);
            }
        }
    }
}
