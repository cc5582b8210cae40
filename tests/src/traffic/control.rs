//! How a measuring command is told what happens: lines on stdin, signals, a duration.
//!
//! `mark` (or `mark NANOSECONDS`) says that the fault happens now (or then); `report`, the end of stdin, SIGINT, SIGTERM
//! and the end of `--duration` ask for the report.

use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;

use super::clock::now_ns;

#[derive(Clone)]
pub struct Control {
    mark: Arc<AtomicU64>,
    report: Arc<Mutex<Receiver<()>>>,
    duration: Option<Duration>,
}

impl Control {
    /// To be called before other threads start: they inherit that these signals are blocked.
    pub fn start(seconds: Option<f64>) -> Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block().context("block signals")?;
        let mark = Arc::new(AtomicU64::new(0));
        let (wants_report, report) = channel();

        let by_signal = wants_report.clone();
        thread::spawn(move || {
            if signals.wait().is_ok() {
                let _ = by_signal.send(());
            }
        });
        let (marked, timed) = (mark.clone(), seconds.is_some());
        thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                let mut words = line.split_whitespace();
                match words.next() {
                    Some("mark") => {
                        let at = words.next().and_then(|word| word.parse().ok()).unwrap_or_else(now_ns);
                        marked.store(at, Ordering::Release);
                    }
                    Some("report") => break,
                    _ => eprintln!("stdin: {line:?} is neither mark nor report"),
                }
            }
            // With a duration the end of stdin means nothing: it may be /dev/null.
            if !timed {
                let _ = wants_report.send(());
            }
        });
        let duration = seconds.map(Duration::from_secs_f64);
        Ok(Self { mark, report: Arc::new(Mutex::new(report)), duration })
    }

    pub fn mark_ns(&self) -> Option<u64> {
        Some(self.mark.load(Ordering::Acquire)).filter(|at| *at != 0)
    }

    /// Blocks until the report is wanted.
    pub fn wait(&self) {
        let report = self.report.lock().expect("nobody panics while waiting");
        match self.duration {
            None => {
                let _ = report.recv();
            }
            Some(duration) => {
                if report.recv_timeout(duration) == Err(RecvTimeoutError::Disconnected) {
                    thread::sleep(duration);
                }
            }
        }
    }

    pub async fn wanted(&self) {
        let control = self.clone();
        let _ = tokio::task::spawn_blocking(move || control.wait()).await;
    }
}

/// The line that tells the caller: from now on everything is measured.
pub fn say_ready() -> Result<()> {
    print_line("ready")
}

pub fn print_report(report: &impl Serialize) -> Result<()> {
    print_line(&serde_json::to_string(report)?)
}

fn print_line(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush().context("stdout")
}
