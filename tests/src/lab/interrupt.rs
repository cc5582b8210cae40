//! Ctrl-C removes the lab before the process ends.

use std::io::Read;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::{Lab, plan};

/// From now on SIGINT and SIGTERM remove the lab of this name (which need not exist yet) and exit with code 130.
/// The parts of a lab run in sessions of their own, so that a terminal's Ctrl-C reaches only the caller.
pub fn down_on_interrupt(name: &str) -> Result<()> {
    plan::check_name(name)?;
    let (mut wakes, sends) = UnixStream::pair()?;
    sends.set_nonblocking(true)?;
    WAKE.store(sends.into_raw_fd(), Ordering::Release);
    let action = SigAction::new(SigHandler::Handler(wake), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler calls only write(2).
        unsafe { sigaction(signal, &action) }.with_context(|| format!("handler for {signal}"))?;
    }
    let name = name.to_owned();
    debug_assert!(wakes.as_raw_fd() >= 0);
    std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
        let mut byte = [0];
        if wakes.read_exact(&mut byte).is_err() {
            return;
        }
        eprintln!("\ninterrupted: removing the lab {name:?}");
        if let Err(error) = Lab::remove_now(&name) {
            eprintln!("{error:#}");
        }
        std::process::exit(130);
    })?;
    Ok(())
}

extern "C" fn wake(_: libc::c_int) {
    // SAFETY: write is async-signal-safe; a full pipe means that the thread is awake already.
    unsafe {
        libc::write(WAKE.load(Ordering::Acquire), c"x".as_ptr().cast(), 1);
    }
}

static WAKE: AtomicI32 = AtomicI32::new(-1);
