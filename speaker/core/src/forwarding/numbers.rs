//! Many small numbers in few bits each: which node a row names, which kind of alternates it has.
//!
//! Most rings have two or three nodes. 10,000 of them with two bytes for each of their 4,093 rows would take 82 MB, with as many bits as
//! the highest number needs 10 MB.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// Numbers of up to 16 bits. Equal lists are equal.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Numbers {
    len: u32,
    /// Of each; at least one.
    bits: u8,
    /// A number may begin in one and end in the next.
    words: Vec<u64>,
}

impl Numbers {
    pub fn len(&self) -> usize {
        self.len as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, at: usize) -> Option<u16> {
        (at < self.len()).then(|| self.read(at))
    }

    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..self.len()).map(|at| self.read(at))
    }

    /// One that there is.
    fn read(&self, at: usize) -> u16 {
        let bits = usize::from(self.bits);
        let (word, shift) = (at * bits / 64, at * bits % 64);
        let mut number = self.words[word] >> shift;
        if shift + bits > 64 {
            number |= self.words[word + 1] << (64 - shift);
        }
        number as u16 & (u16::MAX >> (16 - bits))
    }
}

impl From<Vec<u16>> for Numbers {
    fn from(numbers: Vec<u16>) -> Self {
        let highest = numbers.iter().copied().max().unwrap_or(0);
        let bits = (16 - highest.leading_zeros() as usize).max(1);
        let mut words = vec![0; (numbers.len() * bits).div_ceil(64)];
        for (at, number) in numbers.iter().enumerate() {
            let (word, shift) = (at * bits / 64, at * bits % 64);
            words[word] |= u64::from(*number) << shift;
            if shift + bits > 64 {
                words[word + 1] |= u64::from(*number) >> (64 - shift);
            }
        }
        Self { len: numbers.len() as u32, bits: bits as u8, words }
    }
}

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_out_as_they_went_in(bits in 0..=16_u32, numbers in prop::collection::vec(any::<u16>(), 0..500)) {
            let numbers: Vec<u16> = numbers.iter().map(|number| (u32::from(*number) & ((1 << bits) - 1)) as u16).collect();
            let packed = Numbers::from(numbers.clone());
            prop_assert_eq!(packed.iter().collect::<Vec<_>>(), &*numbers);
            prop_assert_eq!((packed.len(), packed.is_empty()), (numbers.len(), numbers.is_empty()));
            prop_assert_eq!(packed.get(numbers.len()), None);
            for (at, number) in numbers.iter().enumerate() {
                prop_assert_eq!(packed.get(at), Some(*number));
            }
        }
    }

    #[test]
    fn three_nodes_take_two_bits_a_row() {
        let bytes =
            |highest: u16| 8 * Numbers::from((0..4093).map(|row| row % (highest + 1)).collect::<Vec<_>>()).words.len();
        assert_eq!([0, 1, 2, 3, 4, 255, 256].map(bytes), [512, 512, 1024, 1024, 1536, 4096, 4608]);
    }
}
