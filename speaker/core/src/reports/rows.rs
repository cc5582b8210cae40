//! A set of rows of one ring, in memory as on the wire: a list, or one bit for each row, whichever is shorter.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use ebpf_common::MAX_ROWS;

/// Some rows of a ring with [`of`](Rows::of) rows. Equal sets are equal values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    of: u32,
    form: Form,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// In order. The largest ring has fewer than 2^16 rows.
    List(Vec<u16>),
    /// The row number is the number of the bit, the lowest first.
    Bits(Vec<u8>),
}

impl Rows {
    /// Rows beyond the end of the ring are left out.
    pub fn new(of: u32, rows: impl IntoIterator<Item = u32>) -> Self {
        let of = of.min(MAX_ROWS);
        let mut bits = vec![0u8; of.div_ceil(8) as usize];
        for row in rows.into_iter().filter(|&row| row < of) {
            bits[row as usize / 8] |= 1 << (row % 8);
        }
        Self { of, form: Form::shorter(bits) }
    }

    /// As many bits as the ring has rows, and none set beyond; else `None`.
    pub fn from_bits(of: u32, bits: &[u8]) -> Option<Self> {
        let fits = of <= MAX_ROWS && bits.len() == of.div_ceil(8) as usize && ones(bits).all(|row| row < of);
        fits.then(|| Self { of, form: Form::shorter(bits.to_vec()) })
    }

    /// If a list is shorter than bits.
    pub fn as_list(&self) -> Option<&[u16]> {
        match &self.form {
            Form::List(list) => Some(list),
            Form::Bits(_) => None,
        }
    }

    pub fn bits(&self) -> Vec<u8> {
        let mut bits = vec![0u8; self.of.div_ceil(8) as usize];
        for row in self.iter() {
            bits[row as usize / 8] |= 1 << (row % 8);
        }
        bits
    }

    /// How many rows the ring has.
    pub fn of(&self) -> u32 {
        self.of
    }

    pub fn iter(&self) -> impl Iterator<Item = u32> {
        let (list, bits) = match &self.form {
            Form::List(list) => (&list[..], &[][..]),
            Form::Bits(bits) => (&[][..], &bits[..]),
        };
        list.iter().map(|&row| u32::from(row)).chain(ones(bits))
    }

    pub fn contains(&self, row: u32) -> bool {
        match &self.form {
            Form::List(list) => u16::try_from(row).is_ok_and(|row| list.binary_search(&row).is_ok()),
            Form::Bits(bits) => bits.get(row as usize / 8).is_some_and(|byte| byte & 1 << (row % 8) != 0),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

impl Form {
    fn shorter(bits: Vec<u8>) -> Self {
        let count: u32 = bits.iter().map(|byte| byte.count_ones()).sum();
        if count as usize * 2 < bits.len() {
            Self::List(ones(&bits).map(|row| row as u16).collect())
        } else {
            Self::Bits(bits)
        }
    }
}

fn ones(bits: &[u8]) -> impl Iterator<Item = u32> {
    let of_byte = |(at, &byte): (usize, &u8)| {
        let first = at as u32 * 8;
        (0..8).filter(move |bit| byte & 1 << bit != 0).map(move |bit| first + bit)
    };
    bits.iter().enumerate().filter(|(_, byte)| **byte != 0).flat_map(of_byte)
}

/// The rows of a ring with `theirs` rows that share flows with this row of a ring with `ours`: a row is an interval of the hash
/// space (`ebpf_common::row_of`).
pub fn overlapping(row: u32, ours: u32, theirs: u32) -> RangeInclusive<u32> {
    if ours == theirs {
        return row..=row;
    }
    #[expect(clippy::reversed_empty_ranges, reason = "no rows")]
    if theirs == 0 || row >= ours {
        return 1..=0;
    }
    let (row, ours, theirs) = (u64::from(row), u64::from(ours), u64::from(theirs));
    // The first hash (its upper 32 bits) of this row, and the first of the next.
    let first = (row << 32).div_ceil(ours);
    let next = ((row + 1) << 32).div_ceil(ours);
    let at = |hash: u64| ((hash * theirs) >> 32) as u32;
    at(first)..=at(next - 1)
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use ebpf_common::row_of;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_shorter_form() {
        let few = Rows::new(4093, [7, 4092, 4093, 7]);
        assert_eq!(few.form, Form::List(vec![7, 4092]));
        assert!(matches!(Rows::new(4093, 0..300).form, Form::Bits(_)));
        assert!(Rows::new(0, [0]).is_empty() && Rows::new(4093, []).is_empty());
    }

    proptest! {
        #[test]
        fn a_set_is_a_set(rows: BTreeSet<u16>, of in 0..=MAX_ROWS) {
            let rows: BTreeSet<u32> = rows.into_iter().map(u32::from).filter(|&row| row < of).collect();
            let set = Rows::new(of, rows.iter().rev().copied());
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), rows.iter().copied().collect::<Vec<_>>());
            prop_assert!(rows.iter().all(|&row| set.contains(row)));
            prop_assert!(!(0..of).any(|row| set.contains(row) && !rows.contains(&row)));
        }

        /// For any hash, its row in the other ring is among those that overlap its row in this one.
        #[test]
        fn overlapping_rows_share_hashes(hash: u64, ours in prop::sample::select(vec![1u32, 5, 4093, 65488]), theirs in prop::sample::select(vec![1u32, 7, 4093, 65488])) {
            let row = row_of(hash, ours).unwrap();
            prop_assert!(overlapping(row, ours, theirs).contains(&row_of(hash, theirs).unwrap()));
        }

        /// And no other row is among them: each end of the range is hit.
        #[test]
        fn overlapping_rows_are_tight(row in 0u32..4093) {
            for (ours, theirs) in [(4093, 65488), (65488, 4093)] {
                let range = overlapping(row, ours, theirs);
                let back = |theirs_row| overlapping(theirs_row, theirs, ours).contains(&row);
                prop_assert!(back(*range.start()) && back(*range.end()));
            }
        }
    }
}
