//! Scheduling of the election thread.

/// Asks for SCHED_FIFO at the lowest real-time priority: enough to run before every normal process. At normal priority on a
/// busy machine a lease of 120 ms was overslept. Children of the thread start at normal priority (SCHED_RESET_ON_FORK).
pub fn realtime() -> std::io::Result<()> {
    let param = libc::sched_param { sched_priority: 1 };
    // SAFETY: `param` outlives the call; pid 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &param) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
