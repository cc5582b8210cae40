//! Draws that are the same for the same seed, on every machine.

use sha2::{Digest, Sha256};

/// The hash of a seed and a count.
pub struct Random {
    seed: u64,
    drawn: u64,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.drawn += 1;
        let hash = Sha256::digest([self.seed.to_be_bytes(), self.drawn.to_be_bytes()].concat());
        (u64::from_be_bytes(hash[..8].try_into().expect("eight bytes")) % end as u64) as usize
    }

    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below((to - from) as usize) as u64
    }
}
