//! Ctrl-C removes the lab before the process ends.

use std::io::Read;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::{Lab, plan};

/// From now on SIGINT and SIGTERM remove the lab of this name (which need not exist yet) and exit with code 130.
/// The parts of a lab run in sessions of their own, so that a terminal's Ctrl-C reaches only the caller.
pub fn down_on_interrupt(name: &str) -> Result<()> {
    all_down_on_interrupt(&[name])
}

/// The same of several labs: only the last call counts.
pub fn all_down_on_interrupt(names: &[&str]) -> Result<()> {
    names.iter().try_for_each(|name| plan::check_name(name))?;
    let (mut wakes, sends) = UnixStream::pair()?;
    sends.set_nonblocking(true)?;
    WAKE.store(sends.into_raw_fd(), Ordering::Release);
    let action = SigAction::new(SigHandler::Handler(wake), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler calls only write(2).
        unsafe { sigaction(signal, &action) }.with_context(|| format!("handler for {signal}"))?;
    }
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
        let mut byte = [0];
        if wakes.read_exact(&mut byte).is_err() {
            return;
        }
        INTERRUPTED.store(true, Ordering::Release);
        eprintln!("\ninterrupted: removing the lab {}", names.join(" and "));
        while BUSY.load(Ordering::Acquire) > 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        for name in &names {
            if let Err(error) = Lab::remove(name) {
                eprintln!("{error:#}");
            }
        }
        std::process::exit(130);
    })?;
    Ok(())
}

/// Held while something is created: an interruption waits for its end (half a second), and lets nothing begin later.
pub struct Busy(());

impl Busy {
    /// Does not return once the lab is being removed.
    pub fn begin() -> Self {
        BUSY.fetch_add(1, Ordering::AcqRel);
        let busy = Self(());
        if INTERRUPTED.load(Ordering::Acquire) {
            drop(busy);
            loop {
                std::thread::park();
            }
        }
        busy
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.fetch_sub(1, Ordering::AcqRel);
    }
}

/// For callers with an error that may be the interruption's own doing: does not return once the lab is being removed.
pub fn rest_if_interrupted() {
    drop(Busy::begin());
}

extern "C" fn wake(_: libc::c_int) {
    // SAFETY: write is async-signal-safe; a full pipe means that the thread is awake already.
    unsafe {
        libc::write(WAKE.load(Ordering::Acquire), c"x".as_ptr().cast(), 1);
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static BUSY: AtomicUsize = AtomicUsize::new(0);
static WAKE: AtomicI32 = AtomicI32::new(-1);
