//! How often a speaker transmits and how long its silence lasts until it is dead: its own choice, by which the others judge it.
//!
//! Two bytes of a node advert (docs/election.md section Wire): dead intervals in the upper 4 bits, milliseconds between heartbeats in the
//! lower 12. Both 0: a speaker of a version that sends none; it is judged as if its pace were the receiver's.

use super::reject::Reject;
use crate::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Between heartbeats.
    pub interval: Duration,
    /// Silence of this many intervals, and a skew, is death.
    pub dead_intervals: u32,
}

impl Pace {
    pub const LEN: usize = 2;
    /// A peer outside of these is refused: it would be dead by any jitter, or for seconds the owner of VIPs that it does not serve.
    pub const SHORTEST: Duration = Duration::from_millis(10);
    const INTERVALS: core::ops::RangeInclusive<Duration> = Self::SHORTEST..=Duration::from_millis(1000);
    const DEAD_INTERVALS: core::ops::RangeInclusive<u32> = 3..=10;

    /// Between the claims of nodes that are next in rank.
    pub fn skew(self) -> Duration {
        self.interval / 5
    }

    /// A little more than the intervals: the heartbeat that is due at their end must have had time to arrive, else two lost
    /// ones and some jitter are a death.
    pub fn dead(self) -> Duration {
        self.interval * self.dead_intervals + self.skew()
    }

    /// A heartbeat is overdue.
    pub fn overdue(self) -> Duration {
        self.interval * 3 / 2
    }

    /// `None`: it cannot be sent.
    pub fn to_bytes(pace: Option<Self>) -> [u8; Self::LEN] {
        let sent = pace.filter(|pace| pace.is_allowed() && pace.interval.subsec_nanos() % 1_000_000 == 0);
        let number = sent.map_or(0, |pace| (pace.dead_intervals << 12) as u16 | pace.interval.as_millis() as u16);
        number.to_be_bytes()
    }

    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Result<Option<Self>, Reject> {
        let number = u16::from_be_bytes(bytes);
        let interval = Duration::from_millis(u64::from(number & 0xfff));
        let pace = Self { interval, dead_intervals: u32::from(number >> 12) };
        match number {
            0 => Ok(None),
            _ if pace.is_allowed() => Ok(Some(pace)),
            _ => Err(Reject::BadPace),
        }
    }

    fn is_allowed(self) -> bool {
        Self::INTERVALS.contains(&self.interval) && Self::DEAD_INTERVALS.contains(&self.dead_intervals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(millis: u64, dead_intervals: u32) -> Pace {
        Pace { interval: Duration::from_millis(millis), dead_intervals }
    }

    #[test]
    fn vectors_both_ways() {
        for (of, bytes) in [
            (pace(50, 3), [0x30, 50]),
            (pace(10, 10), [0xa0, 10]),
            (pace(1000, 3), [0x33, 0xe8]),
            (pace(200, 5), [0x50, 200]),
        ] {
            assert_eq!((Pace::to_bytes(Some(of)), Pace::from_bytes(bytes)), (bytes, Ok(Some(of))));
        }
        assert_eq!((Pace::to_bytes(None), Pace::from_bytes([0, 0])), ([0, 0], Ok(None)));
        assert_eq!(
            (pace(50, 3).dead(), pace(200, 5).dead()),
            (Duration::from_millis(160), Duration::from_millis(1040))
        );
    }

    /// All of the 65,536.
    #[test]
    fn what_is_out_of_range_is_refused_and_not_sent() {
        for number in 1..=u16::MAX {
            let (millis, intervals) = (u64::from(number & 0xfff), u32::from(number >> 12));
            let of = pace(millis, intervals);
            let allowed = (10..=1000).contains(&millis) && (3..=10).contains(&intervals);
            let expected = if allowed { Ok(Some(of)) } else { Err(Reject::BadPace) };
            assert_eq!(Pace::from_bytes(number.to_be_bytes()), expected, "{number:#x}");
            assert_eq!(Pace::to_bytes(Some(of)) == [0, 0], !allowed, "{number:#x}");
        }
        let odd = Pace { interval: Duration::from_micros(50_500), dead_intervals: 3 };
        assert_eq!(Pace::to_bytes(Some(odd)), [0, 0]);
    }
}
