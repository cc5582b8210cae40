//! The allocator's memory: what a large change or a long list has left goes back to the kernel, which counts it against the limit
//! of the container.
//!
//! Read first: malloc_trim(3). Since glibc 2.8 it gives back whole free pages anywhere in the heap, not only at its end.

/// Takes a few milliseconds for a hundred megabytes.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: locks the heaps one by one, as any allocation does.
    unsafe {
        libc::malloc_trim(0);
    }
}
