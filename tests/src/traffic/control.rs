//! How a measuring command is controlled: lines on stdin, signals, a duration.
//!
//! `mark` (or `mark NANOSECONDS`): a fault happens now (or then), as often as there are faults; `report`, the end of stdin,
//! SIGINT, SIGTERM and the end of `--duration` request the report.

use std::io::{BufRead, Write};
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
    marks: Arc<Mutex<Vec<u64>>>,
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
        let marks = Arc::new(Mutex::new(Vec::new()));
        let (wants_report, report) = channel();

        let by_signal = wants_report.clone();
        thread::spawn(move || {
            if signals.wait().is_ok() {
                let _ = by_signal.send(());
            }
        });
        let (marked, timed) = (marks.clone(), seconds.is_some());
        thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                let mut words = line.split_whitespace();
                match words.next() {
                    Some("mark") => {
                        let at = words.next().and_then(|word| word.parse().ok()).unwrap_or_else(now_ns);
                        marked.lock().expect("no holder panics with the marks").push(at);
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
        Ok(Self { marks, report: Arc::new(Mutex::new(report)), duration })
    }

    /// The first fault.
    pub fn mark_ns(&self) -> Option<u64> {
        self.marks.lock().expect("no holder panics with the marks").first().copied()
    }

    /// All faults, in the order of their marks.
    pub fn marks(&self) -> Vec<u64> {
        self.marks.lock().expect("no holder panics with the marks").clone()
    }

    /// Blocks until the report is wanted.
    pub fn wait(&self) {
        let report = self.report.lock().expect("no holder panics while waiting");
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

/// The line that announces to the caller: from now on everything is measured.
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
