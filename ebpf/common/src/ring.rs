//! A ring as the kernel holds it: its different rows once, and for each row which of them it is.
//!
//! Few rows of a ring differ (a Service with three pods has three), so a ring of 4093 rows takes 1 kB, not 33 kB. Words of 64 bits: a
//! [`RingHead`], then the numbers of the rows, then the different [`Row`]s. An element of the map is [`RING_WORDS`] of them, because the
//! kernel takes 0.15 us to fill in each element.

#[cfg(not(target_arch = "bpf"))]
use crate::Row;

/// Words in one element of a ring.
pub const RING_WORDS: usize = 8;

/// Word 0 of a ring: the number of rows (bits 0 to 31), the word of the first different row (32 to 55), the logarithm of how many
/// numbers one word holds (56 to 63; 2 for numbers of 16 bits, 6 for one bit).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingHead(pub u64);

impl RingHead {
    /// For so many rows, of which so many differ (at most 2^16).
    pub const fn new(rows: u32, different: u32) -> Self {
        let mut per_word = 6;
        while per_word > 2 && (different as u64) > 1 << (64 >> per_word) {
            per_word -= 1;
        }
        let numbers = rows.div_ceil(1 << per_word);
        Self(rows as u64 | (1 + numbers as u64) << 32 | (per_word as u64) << 56)
    }

    #[inline(always)]
    pub const fn rows(self) -> u32 {
        self.0 as u32
    }

    /// The word of the first different row, which is also how many words come before it.
    #[inline(always)]
    pub const fn first(self) -> u32 {
        (self.0 >> 32) as u32 & 0xff_ffff
    }

    /// The word that holds the number of a row.
    #[inline(always)]
    pub const fn number_at(self, row: u32) -> u32 {
        (row >> self.per_word()).wrapping_add(1)
    }

    /// The word of the row itself, by the one that holds its number.
    #[inline(always)]
    pub const fn row_at(self, row: u32, numbers: u64) -> u32 {
        let number = (numbers >> self.shift(row)) as u32 & (((1u64 << self.bits()) - 1) as u32);
        self.first().wrapping_add(number)
    }

    /// Where in its word the number of a row begins.
    #[inline(always)]
    const fn shift(self, row: u32) -> u32 {
        ((row & ((1 << self.per_word()) - 1)) * self.bits()) & 63
    }

    /// Of a number.
    #[inline(always)]
    const fn bits(self) -> u32 {
        64 >> self.per_word()
    }

    #[inline(always)]
    const fn per_word(self) -> u32 {
        (self.0 >> 56) as u32 & 7
    }
}

#[cfg(not(target_arch = "bpf"))]
pub use user::{numbered, pack};

#[cfg(not(target_arch = "bpf"))]
mod user {
    extern crate alloc;

    use alloc::collections::BTreeMap;
    use alloc::vec;
    use alloc::vec::Vec;

    use super::{RING_WORDS, RingHead, Row};

    /// The elements of a ring of at most [`crate::MAX_ROWS`] rows.
    pub fn pack(rows: &[Row]) -> Vec<[u64; RING_WORDS]> {
        let (numbers, different) = numbered(rows.iter().copied());
        let head = RingHead::new(rows.len() as u32, different.len() as u32);
        let mut elements = vec![[0; RING_WORDS]; (head.first() as usize + different.len()).div_ceil(RING_WORDS)];
        let words = elements.as_flattened_mut();
        words[0] = head.0;
        for (row, number) in (0..).zip(numbers) {
            words[head.number_at(row) as usize] |= u64::from(number) << head.shift(row);
        }
        for (word, row) in words[head.first() as usize..].iter_mut().zip(different) {
            *word = row.0;
        }
        elements
    }

    /// For each row which of the different ones it is, at most 2^16 of them; and these, in order of their first place.
    pub fn numbered(rows: impl Iterator<Item = Row>) -> (Vec<u16>, Vec<Row>) {
        let (mut known, mut different) = (BTreeMap::new(), Vec::new());
        // Most rows have been met before: one look instead of ten.
        let mut met = vec![None; 1 << MET_BITS];
        let number = |row: Row| {
            let place = &mut met[(row.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - MET_BITS)) as usize];
            match place {
                Some((same, number)) if *same == row => *number,
                _ => {
                    let number = *known.entry(row).or_insert_with(|| {
                        different.push(row);
                        (different.len() - 1) as u16
                    });
                    *place = Some((row, number));
                    number
                }
            }
        };
        let numbers = rows.map(number).collect();
        (numbers, different)
    }

    const MET_BITS: u32 = 10;
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::MAX_ROWS;

    fn unpack(elements: &[[u64; RING_WORDS]]) -> Vec<Row> {
        let words = elements.as_flattened();
        let head = RingHead(words[0]);
        let numbers = |row| words[head.number_at(row) as usize];
        (0..head.rows()).map(|row| Row(words[head.row_at(row, numbers(row)) as usize])).collect()
    }

    fn ring(rows: u32, different: u32) -> Vec<Row> {
        (0..rows).map(|row| Row(u64::from(row.wrapping_mul(0x9e37_79b1) % different))).collect()
    }

    proptest! {
        #[test]
        fn rows_come_out_as_they_went_in(rows in prop::collection::vec(any::<u64>().prop_map(|row| Row(row % 300)), 0..5000)) {
            prop_assert_eq!(unpack(&pack(&rows)), rows);
        }
    }

    #[test]
    fn at_every_width() {
        for different in [1, 2, 3, 4, 5, 16, 17, 256, 257, 65_488] {
            for rows in [1, 4093, MAX_ROWS] {
                let rows = ring(rows, different);
                assert_eq!(unpack(&pack(&rows)), rows, "{different}");
            }
        }
    }

    #[test]
    fn sizes() {
        let bytes = |rows, different| size_of_val(&*pack(&ring(rows, different)));
        assert_eq!([bytes(4093, 1), bytes(4093, 3), bytes(4093, 16), bytes(4093, 40)], [576, 1088, 2240, 4480]);
        assert_eq!([bytes(MAX_ROWS, 200), bytes(MAX_ROWS, 1000)], [67_136, 139_008]);
        assert_eq!(pack(&[]).as_flattened()[..2], [RingHead::new(0, 0).0, 0]);
    }
}
