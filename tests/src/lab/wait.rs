//! Waiting for a condition, with a deadline and a message about what did not happen.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Calls `condition` until it returns something. An error of the condition ends the wait.
pub fn wait_for<T>(what: &str, within: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + within;
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s for {what}", within.as_secs_f32());
        }
        sleep(pause);
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LAST_PAUSE: Duration = Duration::from_millis(64);
