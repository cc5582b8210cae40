//! The one clock of the speaker: CLOCK_BOOTTIME, the same that the eBPF program reads (`bpf_ktime_get_boot_ns`).

use std::time::Duration;

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
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
