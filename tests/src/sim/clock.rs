//! Clocks of nodes: each starts somewhere and runs a little fast or slow.

use std::time::Duration;

use speaker_core::time::Instant;

use super::random::Random;

/// The boot clock of one node against the true time of the simulation.
#[derive(Clone, Debug)]
pub struct Clock {
    offset: u64,
    parts_per_million: i64,
}

impl Clock {
    /// Within 200 parts per million of the truth, as cheap crystals are.
    pub fn new(random: &mut Random) -> Self {
        Self { offset: random.word() % 1_000_000_000_000, parts_per_million: random.within(-200..201) }
    }

    pub fn read(&self, truth: Duration) -> Instant {
        let nanos = truth.as_nanos() as i64;
        let drift = i128::from(nanos) * i128::from(self.parts_per_million) / 1_000_000;
        Instant::from_nanos(self.offset + (nanos + drift as i64) as u64)
    }

    /// The first moment at which the clock shows `local` or later.
    pub fn when(&self, local: Instant) -> Duration {
        let elapsed = local.as_nanos().saturating_sub(self.offset);
        let guess = i128::from(elapsed) * 1_000_000 / i128::from(1_000_000 + self.parts_per_million);
        let mut truth = Duration::from_nanos((guess as u64).saturating_sub(2));
        while self.read(truth) < local {
            truth += Duration::from_nanos(1);
        }
        truth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_is_the_inverse_of_read() {
        let mut random = Random::new(1);
        for _ in 0..1000 {
            let clock = Clock::new(&mut random);
            let truth = random.duration(Duration::from_nanos(1)..Duration::from_secs(100));
            let local = clock.read(truth);
            let when = clock.when(local);
            assert!(when <= truth && clock.read(when) >= local);
        }
    }
}
