//! The one clock of the speaker: CLOCK_BOOTTIME, the same that the eBPF program reads (`bpf_ktime_get_boot_ns`).

use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use speaker_core::time::Instant;

pub fn now() -> Instant {
    // The clock exists since Linux 2.6.39 and the call has no other way to fail; a speaker without a clock must not run.
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME is readable");
    Instant::from_nanos(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// How long this thread has run on a processor.
pub fn thread_time() -> Duration {
    // As above: since Linux 2.6.12.
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("CLOCK_THREAD_CPUTIME_ID is readable");
    time.into()
}

/// Names this boot: times of [`now`] mean nothing to another. Empty if the kernel does not name it, which then matches no other.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Wall clock, nanoseconds since 1970: only to number incarnations (boot epochs), never to measure.
pub fn wall_nanos() -> u64 {
    u64::try_from(since_1970().as_nanos()).unwrap_or(u64::MAX)
}

/// Wall clock, for people.
pub fn timestamp() -> Timestamp {
    // A wall clock beyond the year 9999 names no time.
    Timestamp::UNIX_EPOCH.checked_add(since_1970()).unwrap_or(Timestamp::MAX)
}

/// Wall clock, for certificates. It may be wrong by any amount, and jump.
pub fn since_1970() -> Duration {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    #[cfg(feature = "wall-offset")]
    let since = offset::apply(since);
    since
}

/// Tests put the wall clock of one speaker wrong while it runs.
#[cfg(feature = "wall-offset")]
mod offset {
    use std::time::Duration;

    /// Seconds, with a sign.
    const FILE: &str = "/run/sheave-wall-offset";

    pub fn apply(time: Duration) -> Duration {
        let seconds = std::fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i64>().ok()).unwrap_or(0);
        let offset = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 { time.saturating_sub(offset) } else { time + offset }
    }
}
