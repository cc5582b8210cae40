//! The real `kubectl get`, once a second, from the client's namespace.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::lab::ha::Ha;
use crate::lab::plan::kubernetes_bin;
use crate::traffic::clock::{milliseconds, now_ns};

/// Runs until it is dropped.
pub struct Kubectl {
    runs: Arc<Mutex<Vec<Run>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone, Debug)]
struct Run {
    start_ns: u64,
    took_ms: f64,
    failed: Option<String>,
}

/// Of those that were started in a time and have ended.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Runs {
    pub ended: usize,
    pub good: usize,
    pub longest_ms: f64,
    /// The last lines of those that failed.
    pub failed: Vec<String>,
}

impl Kubectl {
    pub fn start(ha: &Ha) -> Result<Self> {
        let program = kubernetes_bin().join("kubectl");
        let (ha, program) = (ha.clone(), program.to_str().context("path of kubectl")?.to_owned());
        let runs = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (kept, stopped) = (runs.clone(), stop.clone());
        let thread = spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                let start_ns = now_ns();
                let failed = run(&ha, &program).err().map(|error| format!("{error:#}"));
                let run = Run { start_ns, took_ms: milliseconds(start_ns, now_ns()), failed };
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(run);
                // A rate, not a wait for something.
                sleep(EVERY.saturating_sub(Duration::from_nanos(now_ns().saturating_sub(start_ns))));
            }
        });
        Ok(Self { runs, stop, thread: Some(thread) })
    }

    pub fn seen(&self, from_ns: u64, until_ns: u64) -> Runs {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = Runs::default();
        for run in runs.iter().filter(|run| (from_ns..until_ns).contains(&run.start_ns)) {
            seen.ended += 1;
            seen.longest_ms = seen.longest_ms.max(run.took_ms);
            match &run.failed {
                None => seen.good += 1,
                Some(why) => seen.failed.push(why.clone()),
            }
        }
        seen
    }
}

fn run(ha: &Ha, program: &str) -> Result<()> {
    let mut command = ha.lab.netns_command("client", program)?;
    command.args(["get", "service", "kubernetes", "--output=name", "--request-timeout=10s", "--cache-dir"]);
    command.arg(ha.folder().join("kubectl-cache")).env("KUBECONFIG", ha.lab.kubeconfig_inside());
    let output = command.stdin(Stdio::null()).output().context("start kubectl")?;
    let error = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{}", error.lines().last().unwrap_or("no message"));
    Ok(())
}

impl Drop for Kubectl {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the thread of kubectl panicked");
        }
    }
}

const EVERY: Duration = Duration::from_secs(1);
