//! Exponential back-off with jitter, per node: probes of nodes that do not answer must not load the segment.
//!
//! The jitter is a function of seed, node and attempt, so that two speakers do not probe in step and a machine needs no state for
//! it.

use ebpf_common::siphash13;

use crate::name::NodeName;
use crate::rank::hash_bytes;
use crate::time::Duration;

#[derive(Clone, Debug)]
pub struct Backoff {
    /// After the first attempt.
    pub first: Duration,
    /// No pause is longer.
    pub most: Duration,
    /// Differs from node to node and from start to start.
    pub seed: u64,
}

impl Backoff {
    /// Between attempt number `attempt` (from 0) and the next: doubles from `first` to `most`, less up to a quarter.
    pub fn pause(&self, node: &NodeName, attempt: u32) -> Duration {
        let factor = 1_u32.checked_shl(attempt).unwrap_or(u32::MAX);
        let full = self.first.saturating_mul(factor).min(self.most);
        let random = siphash13(&[self.seed, 0], hash_bytes(node.as_str().as_bytes()), u64::from(attempt));
        // 1024ths of a quarter: exact in integers.
        full - full / 4 * (random % 1024) as u32 / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_most_and_never_beyond() {
        let backoff = Backoff { first: Duration::from_millis(100), most: Duration::from_secs(30), seed: 7 };
        let node = NodeName::new("n1").unwrap();
        let mut full = Duration::from_millis(100);
        for attempt in 0..70 {
            let pause = backoff.pause(&node, attempt);
            assert!(pause <= full && pause >= full * 3 / 4, "attempt {attempt}: {pause:?} of {full:?}");
            full = (full * 2).min(Duration::from_secs(30));
        }
    }

    #[test]
    fn seeds_and_nodes_do_not_keep_step() {
        let pause = |seed, node: &str| {
            let backoff = Backoff { first: Duration::from_millis(100), most: Duration::from_secs(30), seed };
            backoff.pause(&NodeName::new(node).unwrap(), 9)
        };
        assert_ne!(pause(1, "n1"), pause(2, "n1"));
        assert_ne!(pause(1, "n1"), pause(1, "n2"));
    }
}
