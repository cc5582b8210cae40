//! The pause before something that failed is tried again.

use std::time::Duration;

/// Doubles with every failure; starts again after a success.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Backoff {
    pub const FIRST: Duration = Duration::from_millis(200);
    pub const LONGEST: Duration = Duration::from_secs(30);

    pub fn failed(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (2 * pause).min(Self::LONGEST);
        pause
    }

    pub fn succeeded(&mut self) {
        *self = Self::default();
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self(Self::FIRST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_200_ms_to_30_s() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..10).map(|_| backoff.failed().as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        backoff.succeeded();
        assert_eq!(backoff.failed(), Backoff::FIRST);
    }
}
