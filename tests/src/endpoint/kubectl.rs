//! The real `kubectl get`, once a second, from the client's namespace.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, scope, sleep, spawn};
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
    /// After so many milliseconds, and why it failed; `None` while it runs.
    ended: Option<(f64, Option<String>)>,
}

/// Of those that were started in a time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Runs {
    pub started: usize,
    pub good: usize,
    /// Of those that succeeded.
    pub longest_ms: f64,
    /// The last lines of those that failed.
    pub failed: Vec<String>,
}

impl Kubectl {
    /// One a second, whatever became of those before.
    pub fn start(ha: &Ha) -> Result<Self> {
        let program = kubernetes_bin().join("kubectl");
        let (ha, program) = (ha.clone(), program.to_str().context("path of kubectl")?.to_owned());
        let runs = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (kept, stopped) = (runs.clone(), stop.clone());
        let thread = spawn(move || {
            scope(|scope| {
                while !stopped.load(Ordering::Acquire) {
                    let start_ns = now_ns();
                    let index = {
                        let mut runs = lock(&kept);
                        runs.push(Run { start_ns, ended: None });
                        runs.len() - 1
                    };
                    scope.spawn({
                        let (ha, program, kept) = (&ha, &program, &kept);
                        move || {
                            let failed = run(ha, program).err().map(|error| format!("{error:#}"));
                            lock(kept)[index].ended = Some((milliseconds(start_ns, now_ns()), failed));
                        }
                    });
                    // A rate, not a wait for something.
                    sleep(EVERY.saturating_sub(Duration::from_nanos(now_ns().saturating_sub(start_ns))));
                }
            });
        });
        Ok(Self { runs, stop, thread: Some(thread) })
    }

    /// Whether every run that began before that time has ended.
    pub fn is_settled(&self, until_ns: u64) -> bool {
        lock(&self.runs).iter().all(|run| run.ended.is_some() || run.start_ns >= until_ns)
    }

    pub fn seen(&self, from_ns: u64, until_ns: u64) -> Runs {
        let mut seen = Runs::default();
        for run in lock(&self.runs).iter().filter(|run| (from_ns..until_ns).contains(&run.start_ns)) {
            seen.started += 1;
            match &run.ended {
                Some((took_ms, None)) => {
                    seen.good += 1;
                    seen.longest_ms = seen.longest_ms.max(*took_ms);
                }
                Some((_, Some(why))) => seen.failed.push(why.clone()),
                None => seen.failed.push("still runs".into()),
            }
        }
        seen
    }
}

fn lock(runs: &Mutex<Vec<Run>>) -> MutexGuard<'_, Vec<Run>> {
    runs.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(ha: &Ha, program: &str) -> Result<()> {
    let mut command = ha.lab.netns_command("client", program)?;
    let patience = format!("--request-timeout={}s", ENDS_WITHIN.as_secs());
    command.args(["get", "service", "kubernetes", "--output=name", &patience, "--cache-dir"]);
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
/// Of one request.
pub const ENDS_WITHIN: Duration = Duration::from_secs(10);
