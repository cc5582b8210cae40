//! CLOCK_MONOTONIC as numbers: the same in every process and namespace of this machine.

use std::time::Duration;

use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

use super::report::Late;

pub fn now_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_MONOTONIC)
}

/// What to subtract from a time of day to get [`now_ns`]: the kernel stamps packets with the time of day.
pub fn realtime_minus_monotonic() -> i128 {
    i128::from(nanoseconds(ClockId::CLOCK_REALTIME)) - i128::from(now_ns())
}

pub fn sleep_until(at_ns: u64) {
    let at = Duration::from_nanos(at_ns).into();
    // Interrupted by a signal it is only early: the callers read the clock anyway.
    let _ = clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &at);
}

/// A span between two times, in milliseconds; 0 if they are in the other order.
pub fn milliseconds(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1e6
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("this clock exists on every Linux");
    u64::try_from(Duration::from(time).as_nanos()).expect("584 years")
}

/// Checks every 10 ms whether this program runs, for ever; reports each time how long it was away, and until when. Whatever it
/// measures or answers is late by as much, with two cores for a whole cluster.
pub async fn watch_itself(mut tell: impl FnMut(Late)) {
    loop {
        let before = now_ns();
        // Nothing is waited for: how late this ends is what is measured.
        tokio::time::sleep(LOOKS_EVERY).await;
        let until_ns = now_ns();
        tell(Late { until_ns, ms: milliseconds(before, until_ns) });
    }
}

const LOOKS_EVERY: Duration = Duration::from_millis(10);
