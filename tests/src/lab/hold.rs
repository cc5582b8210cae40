//! Every nft that a node's speaker starts is held before its first instruction: the program and its input are real, it only does not run.
//!
//! By ptrace(2), of the one thread of the speaker that starts nft: a signal sent after the start would come too late for a program that
//! needs some milliseconds.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::Lab;

/// Dropping it resumes all of them.
pub struct NftHold {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<usize>>>,
}

impl NftHold {
    /// Returns when the next nft will be held.
    pub fn begin(lab: &Lab, node: &str) -> Result<Self> {
        let speaker = lab.speaker(node)?.with_context(|| format!("node {node} runs no speaker"))?;
        let worker = thread_of(speaker.pid, WORKER)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, (ready, begun)) = (stop.clone(), mpsc::channel());
        // Tracing belongs to a thread: when it ends, the kernel detaches all that it traced.
        let thread = thread::spawn(move || {
            let seized = seize(worker);
            let failed = seized.is_err();
            // The receiver is gone only if this process ends.
            let _ = ready.send(seized);
            if failed { Ok(0) } else { hold(worker, &stopped) }
        });
        begun.recv().context("the thread that holds nft ended")??;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// How many were held.
    pub fn end(mut self) -> Result<usize> {
        self.release()
    }

    fn release(&mut self) -> Result<usize> {
        self.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else { return Ok(0) };
        thread.join().map_err(|_| anyhow!("the thread that holds nft panicked"))?
    }
}

impl Drop for NftHold {
    fn drop(&mut self) {
        // After `end` there is nothing left.
        let _ = self.release();
    }
}

fn seize(worker: i32) -> Result<()> {
    let options = libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACEEXEC;
    trace(libc::PTRACE_SEIZE, worker, options as usize).with_context(|| format!("ptrace thread {worker}"))
}

fn hold(worker: i32, stop: &AtomicBool) -> Result<usize> {
    let (mut held, mut count) = (Vec::new(), 0);
    while !stop.load(Ordering::Acquire) {
        let Some((pid, status)) = next_stop()? else {
            // waitpid has no deadline, and a held process need not be handled at once.
            sleep(PAUSE);
            continue;
        };
        if !libc::WIFSTOPPED(status) {
            held.retain(|one| *one != pid);
            continue;
        }
        let (event, signal) = (status >> 16, libc::WSTOPSIG(status));
        match event {
            libc::PTRACE_EVENT_EXEC if pid != worker => {
                count += 1;
                held.push(pid);
            }
            // A stop of the whole process (SIGSTOP): it stays stopped until SIGCONT.
            libc::PTRACE_EVENT_STOP if signal != libc::SIGTRAP => go_on(libc::PTRACE_LISTEN, pid, 0)?,
            0 => go_on(libc::PTRACE_CONT, pid, signal as usize)?,
            _ => go_on(libc::PTRACE_CONT, pid, 0)?,
        }
    }
    held.into_iter().try_for_each(|pid| go_on(libc::PTRACE_DETACH, pid, 0))?;
    Ok(count)
}

/// Of what this thread traces; `None`: nothing has happened.
fn next_stop() -> Result<Option<(i32, i32)>> {
    let mut status = 0;
    // SAFETY: the status outlives the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG) };
    match pid {
        0 => Ok(None),
        -1 if io::Error::last_os_error().raw_os_error() == Some(libc::ECHILD) => Ok(None),
        -1 => bail!("waitpid: {}", io::Error::last_os_error()),
        pid => Ok(Some((pid, status))),
    }
}

/// A process that was killed meanwhile needs nothing.
fn go_on(request: libc::c_uint, pid: i32, data: usize) -> Result<()> {
    match trace(request, pid, data) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.with_context(|| format!("ptrace {pid}")),
    }
}

fn trace(request: libc::c_uint, pid: i32, data: usize) -> io::Result<()> {
    // SAFETY: none of these requests reads or writes memory of ours.
    let result = unsafe { libc::ptrace(request, pid, std::ptr::null_mut::<libc::c_void>(), data) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn thread_of(pid: i32, name: &str) -> Result<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("threads of process {pid}"))?;
    let named =
        |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name);
    let found = tasks.flatten().find(named).with_context(|| format!("process {pid} has no thread {name:?}"))?;
    found.file_name().to_string_lossy().parse().context("number of a thread")
}

/// The thread of the speaker that starts nft (speaker/src/backend/worker.rs).
const WORKER: &str = "nft";
const PAUSE: Duration = Duration::from_millis(1);
