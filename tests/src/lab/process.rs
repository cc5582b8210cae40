//! Processes of the lab: started detached with a log, recorded by pid and start time, ended for certain.
//!
//! A pid alone is not enough: after a crash of the lab's program the number may belong to another process.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::wait::wait_for;

/// A process that the lab started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    pub pid: i32,
    /// Clock ticks after boot, from /proc/PID/stat: with it the pid cannot mean another process.
    pub started: u64,
}

impl Recorded {
    pub fn of(pid: i32) -> Result<Self> {
        let started = Stat::of(pid).with_context(|| format!("process {pid} ended at once"))?.started;
        Ok(Self { pid, started })
    }

    pub fn alive(&self) -> bool {
        // A zombie that is our own child would stay for ever otherwise.
        let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        // One whose first thread has ended is a zombie too while the others still hold its files and ports.
        let runs = |stat: &Stat| stat.state != 'Z' || threads(self.pid) > 1;
        Stat::of(self.pid).is_some_and(|stat| stat.started == self.started && runs(&stat))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        if !self.alive() {
            bail!("process {} is gone", self.pid);
        }
        kill(Pid::from_raw(self.pid), signal).with_context(|| format!("signal {signal} to process {}", self.pid))
    }

    /// SIGKILL, then waits until the process is gone. Nothing happens if it is gone already.
    pub fn end(&self) -> Result<()> {
        if self.alive() {
            match kill(Pid::from_raw(self.pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => bail!("kill process {}: {error}", self.pid),
            }
        }
        wait_for(&format!("process {} to end", self.pid), ENDS_WITHIN, || Ok((!self.alive()).then_some(())))
    }
}

fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// Starts `command` in a session of its own (Ctrl-C does not reach it), output appended to `log`.
pub fn start(mut command: Command, log: &Path) -> Result<Recorded> {
    let file =
        OpenOptions::new().create(true).append(true).open(log).with_context(|| format!("log {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    // SAFETY: setsid is async-signal-safe.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(std::io::Error::from));
    }
    let child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
    Recorded::of(i32::try_from(child.id())?)
}

/// Processes whose network namespace is the one with this inode, with their names.
pub fn in_netns(inode: u64) -> Vec<(i32, String)> {
    pids()
        .filter(|pid| netns_of(*pid) == Some(inode))
        .map(|pid| (pid, fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()))
        .collect()
}

pub fn children_of(parent: i32) -> Vec<i32> {
    pids().filter(|pid| Stat::of(*pid).is_some_and(|stat| stat.parent == parent)).collect()
}

/// The last lines of a log, for error messages.
pub fn tail(log: &Path) -> String {
    let text = File::open(log).and_then(std::io::read_to_string).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn netns_of(pid: i32) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|found| found.ino())
}

struct Stat {
    state: char,
    parent: i32,
    started: u64,
}

impl Stat {
    fn of(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may itself contain spaces and parentheses: what follows the last one is regular.
        let fields: Vec<_> = text.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}

const ENDS_WITHIN: Duration = Duration::from_secs(10);
const TAIL_LINES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_recognised_and_ended() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let recorded = Recorded::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(recorded.alive());
        let other = Recorded { started: recorded.started + 1, ..recorded.clone() };
        assert!(!other.alive(), "the same pid with another start time is another process");
        recorded.end().unwrap();
        assert!(!recorded.alive());
        // Reaped already, by `alive`.
        assert!(child.wait().is_err());
    }
}
