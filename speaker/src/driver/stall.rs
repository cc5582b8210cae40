//! For how long since the last heartbeat the election thread was kept from running: it overslept a deadline (SIGSTOP, a suspended
//! machine), or lost the processor while it worked. Its own work does not count: a node that is busy is not frozen
//! (docs/election.md R9).

use std::time::Duration;

use speaker_core::time::Instant;

use crate::io::clock;

#[derive(Debug)]
pub struct Stall {
    since_heartbeat: Duration,
    /// Up to when it is counted, and how long the thread had run by then.
    counted: (Instant, Duration),
}

impl Stall {
    pub fn new(now: Instant) -> Self {
        Self { since_heartbeat: Duration::ZERO, counted: (now, clock::thread_time()) }
    }

    pub fn heartbeat_sent(&mut self) {
        self.since_heartbeat = Duration::ZERO;
    }

    /// The thread works: what it did not run since the last count, it was kept from running.
    pub fn since_heartbeat(&mut self, now: Instant) -> Duration {
        self.count(now, clock::thread_time());
        self.since_heartbeat
    }

    /// The wait begins.
    pub fn work_ends(&mut self, now: Instant) {
        self.count(now, clock::thread_time());
    }

    /// The wait is over; it was to end by `deadline` at the latest.
    pub fn work_begins(&mut self, now: Instant, deadline: Instant) {
        self.since_heartbeat += now.since(deadline);
        self.counted = (now, clock::thread_time());
    }

    fn count(&mut self, now: Instant, ran: Duration) {
        let (at, had_run) = self.counted;
        self.since_heartbeat += now.since(at).saturating_sub(ran.saturating_sub(had_run));
        self.counted = (now, ran);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn oversleeping_and_a_lost_processor_count_and_own_work_does_not() {
        let millis = Duration::from_millis;
        let mut stall = Stall { since_heartbeat: Duration::ZERO, counted: (at(1000), millis(0)) };
        stall.count(at(1200), millis(200));
        assert_eq!(stall.since_heartbeat, millis(0), "200 ms of work");
        stall.count(at(1500), millis(210));
        assert_eq!(stall.since_heartbeat, millis(290), "300 ms of which it ran 10");
        stall.heartbeat_sent();
        stall.work_begins(at(2000), at(1950));
        assert_eq!(stall.since_heartbeat, millis(50), "50 ms after the deadline of its wait");
        stall.work_begins(at(2010), at(2020));
        assert_eq!(stall.since_heartbeat, millis(50), "a datagram ended the wait before its deadline");
    }
}
