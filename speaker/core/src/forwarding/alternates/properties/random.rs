//! Chance from a seed: the same world each time.

use ebpf_common::siphash13;

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        siphash13(&[7, 7], self.0, 0) as usize % end.max(1)
    }
}
