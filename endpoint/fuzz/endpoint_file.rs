//! Coverage-guided fuzzing of the reader of the endpoint's file (docs/api-endpoint.md): `make fuzz-endpoint-file`.
//!
//! A text is read as the speaker reads it. A panic, a broken promise (`promises.rs`), more than [`MOST_MEMORY`] or a second of time is a
//! finding; the text is kept.
#![no_main]

mod promises;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use libfuzzer_sys::fuzz_target;
use sheave_endpoint::{Check, Credential, Endpoint, limits};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    promises::judge(text);
    let took = MOST.load(Relaxed) - before;
    assert!(took <= MOST_MEMORY, "{took} bytes of memory for {} bytes of text", text.len());
});

/// The largest file takes 10 MB, most of them the YAML reader's events.
const MOST_MEMORY: usize = 32 << 20;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// The system's, with the bytes that are held and that were held at most.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(held, Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
