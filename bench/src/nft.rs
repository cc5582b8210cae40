//! Runs of the nft program in the network namespace of this process: their time, elapsed and of a processor, and their memory.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, unshare};

use crate::commit;

/// What is measured, and where: printed first. From then on this process is in a network namespace of its own.
pub fn begin() -> Result<()> {
    let (commit, clean) = commit::here()?;
    let changed = if clean { "" } else { ", changed" };
    let nft = String::from_utf8(Command::new("nft").arg("--version").output().context("start nft")?.stdout)?;
    println!("commit {commit}{changed}; {}; {}\n", nft.trim(), machine()?);
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace needs root")
}

/// One run of nft.
pub struct Run {
    took: Duration,
    cpu: Duration,
    /// The most memory that it took, in kB.
    memory: i64,
    outcome: Result<(), String>,
}

impl Run {
    pub fn describe(&self) -> String {
        let Self { took, cpu, memory, outcome } = self;
        let (took, cpu) = (took.as_secs_f64(), cpu.as_secs_f64());
        let failed = outcome.as_ref().err().map(|error| format!("failed ({error}) after ")).unwrap_or_default();
        format!("{failed}{took:.2} s, of a processor {cpu:.2} s, {:.0} MB", *memory as f64 / 1000.0)
    }

    pub fn done(&self) -> Result<()> {
        ensure!(self.outcome.is_ok(), "nft: {:?}", self.outcome);
        Ok(())
    }
}

pub fn apply(text: &str) -> Result<Run> {
    nft(&["-f", "-"], text)
}

/// Ended when the speaker would end it.
pub fn nft(arguments: &[&str], input: &str) -> Result<Run> {
    let began = Instant::now();
    let mut command = Command::new("timeout");
    command.args(["--signal", "KILL", LONGEST, "nft"]).args(arguments).env("LC_ALL", "C");
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().context("start nft")?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    // One that was ended reads no further, which its status says.
    let _ = stdin.context("a pipe")?.write_all(input.as_bytes());
    let (mut listing, mut errors) = (String::new(), String::new());
    stdout.context("a pipe")?.read_to_string(&mut listing)?;
    stderr.context("a pipe")?.read_to_string(&mut errors)?;
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: our own child, which nothing else waits for; the kernel fills in status and usage.
    let usage = unsafe {
        ensure!(libc::wait4(child.id() as i32, &raw mut status, 0, usage.as_mut_ptr()) > 0, "wait for nft");
        usage.assume_init()
    };
    let of = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    let cpu = of(usage.ru_utime) + of(usage.ru_stime);
    let first: String = errors.lines().next().unwrap_or("ended").chars().take(80).collect();
    let outcome = if status == 0 { Ok(()) } else { Err(first) };
    Ok(Run { took: began.elapsed(), cpu, memory: usage.ru_maxrss, outcome })
}

/// What else the machine has to do.
pub fn machine() -> Result<String> {
    let load = fs::read_to_string("/proc/loadavg")?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let processors = std::thread::available_parallelism()?;
    let load: Vec<&str> = load.split_whitespace().take(2).collect();
    Ok(format!("Linux {}, {processors} processors, load {}", kernel.trim(), load.join(" and ")))
}

/// In seconds; the speaker's own.
const LONGEST: &str = "60";
