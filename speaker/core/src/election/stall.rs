//! For how long since the last heartbeat the election thread was kept from running: it overslept a deadline (SIGSTOP, a suspended
//! machine), or lost the processor while it worked. Its own work does not count: a node that is busy is not frozen
//! (docs/election.md R9). Daemon and simulator run this.

use crate::time::{Duration, Instant};

/// `ran` is the processor time of the thread.
#[derive(Clone, Debug)]
pub struct Stall {
    since_heartbeat: Duration,
    /// Up to when it is counted, and how long the thread had run by then.
    counted: (Instant, Duration),
}

impl Stall {
    pub fn new(now: Instant, ran: Duration) -> Self {
        Self { since_heartbeat: Duration::ZERO, counted: (now, ran) }
    }

    pub fn heartbeat_sent(&mut self) {
        self.since_heartbeat = Duration::ZERO;
    }

    /// The thread works: what it did not run since the last count, it was kept from running.
    pub fn since_heartbeat(&mut self, now: Instant, ran: Duration) -> Duration {
        self.count(now, ran);
        self.since_heartbeat
    }

    /// The wait begins.
    pub fn work_ends(&mut self, now: Instant, ran: Duration) {
        self.count(now, ran);
    }

    /// The wait is over; it was to end by `deadline` at the latest.
    pub fn work_begins(&mut self, now: Instant, deadline: Instant, ran: Duration) {
        self.since_heartbeat += now.since(deadline);
        self.counted = (now, ran);
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
        let mut stall = Stall::new(at(1000), millis(0));
        assert_eq!(stall.since_heartbeat(at(1200), millis(200)), millis(0), "200 ms of work");
        assert_eq!(stall.since_heartbeat(at(1500), millis(210)), millis(290), "300 ms of which it ran 10");
        stall.heartbeat_sent();
        stall.work_begins(at(2000), at(1950), millis(210));
        assert_eq!(stall.since_heartbeat, millis(50), "50 ms after the deadline of its wait");
        stall.work_begins(at(2010), at(2020), millis(210));
        assert_eq!(stall.since_heartbeat, millis(50), "a datagram ended the wait before its deadline");
    }
}
