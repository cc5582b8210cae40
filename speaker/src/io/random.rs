//! The system's random source: seeds the election, whose challenges must be unguessable.

use std::io;

pub fn seed() -> io::Result<u64> {
    let mut bytes = [0_u8; 8];
    // SAFETY: writes at most `len` bytes to `bytes`, which outlives the call.
    let read = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // getrandom(2): requests of up to 256 bytes are never cut short once the pool is ready.
    if read == bytes.len() as isize { Ok(u64::from_ne_bytes(bytes)) } else { Err(io::Error::last_os_error()) }
}
