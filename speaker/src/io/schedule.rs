//! Scheduling of the election thread: before every normal process if the system allows it.
//!
//! At normal priority on a busy machine a lease of 120 ms was overslept. Read first: sched(7), sched_setattr(2).

use std::io;

/// What the system allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// SCHED_FIFO, priority 1: runs before every normal process.
    Fifo,
    /// SCHED_OTHER, nice -20, the shortest slice: among normal processes the first in turn.
    Nice,
    /// The shortest slice alone.
    Slice,
}

impl Policy {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Fifo => "fifo",
            Self::Nice => "nice",
            Self::Slice => "slice",
        }
    }
}

/// Requests the best policy there is. FIFO needs capability SYS_NICE, and on kernels with CONFIG_RT_GROUP_SCHED a real-time
/// budget that a container has only if it is granted (the lab does); nice needs SYS_NICE; the slice (Linux 6.12) needs nothing.
/// Threads started from this one are normal.
pub fn prefer() -> io::Result<Policy> {
    let attempts = [(Policy::Fifo, libc::SCHED_FIFO, 1, 0, 0), (Policy::Nice, libc::SCHED_OTHER, 0, -20, SLICE_NS)];
    for (policy, number, priority, nice, slice) in attempts {
        if set(number, priority, nice, slice).is_ok() {
            return Ok(policy);
        }
    }
    set(libc::SCHED_OTHER, 0, 0, SLICE_NS).map(|()| Policy::Slice)
}

/// The kernel's smallest: 0.1 ms. A short slice means an early deadline (EEVDF), also for the whole container's group.
const SLICE_NS: u64 = 100_000;

fn set(policy: i32, priority: u32, nice: i32, runtime: u64) -> io::Result<()> {
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: policy as u32,
        flags: RESET_ON_FORK,
        nice,
        priority,
        runtime,
        deadline: 0,
        period: 0,
    };
    // SAFETY: `attributes` is a `struct sched_attr` of the size it names and outlives the call; pid 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &attributes, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct sched_attr`, version 0 (include/uapi/linux/sched/types.h).
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// `SCHED_FLAG_RESET_ON_FORK`.
const RESET_ON_FORK: u64 = 1;
