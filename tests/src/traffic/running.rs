//! A measuring command that runs, as a test or the demo sees it.

use std::io::{BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use super::clock::now_ns;
use super::report::{ArpReport, ConnectReport, HoldReport, ProbeReport};
use crate::lab::{ClientKind, Lab};

/// Ends with [`Running::report`]; dropping it kills the command.
pub struct Running<R> {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    what: String,
    report: PhantomData<fn() -> R>,
}

/// `hold`: connections from a client to an address like "192.168.77.200:80". Returns when all are connected.
pub fn hold(lab: &Lab, from: ClientKind, to: &str, connections: u16, interval_ms: u64) -> Result<Running<HoldReport>> {
    let (connections, interval) = (connections.to_string(), interval_ms.to_string());
    start(lab, from, &["hold", "--to", to, "--connections", &connections, "--interval-ms", &interval])
}

/// `probe`: UDP, one probe a millisecond on each of some flows.
pub fn probe(lab: &Lab, from: ClientKind, to: &str, flows: u16) -> Result<Running<ProbeReport>> {
    start(lab, from, &["probe", "--udp", "--to", to, "--flows", &flows.to_string()])
}

/// `connect`: a new connection every 5 ms. May be started before anything answers.
pub fn connect(lab: &Lab, from: ClientKind, to: &str) -> Result<Running<ConnectReport>> {
    start(lab, from, &["connect", "--to", to])
}

/// `arp-watch`, on the segment: a question every 10 ms.
pub fn arp_watch(lab: &Lab, ip: &str) -> Result<Running<ArpReport>> {
    start(lab, ClientKind::Segment, &["arp-watch", "--ip", ip])
}

/// Any measuring command with its arguments; returns when it is ready. Clients stand for other machines: they come before whatever the
/// nodes do, or they would measure how long they wait for this machine themselves.
pub fn start<R: DeserializeOwned>(lab: &Lab, from: ClientKind, arguments: &[&str]) -> Result<Running<R>> {
    let mut command = lab.client_command(from, &lab.traffic()?.to_string_lossy())?;
    command.args(arguments);
    before_all_others(&mut command);
    let running = Running::start(command)?;
    running.wait_ready()?;
    Ok(running)
}

fn before_all_others(command: &mut Command) {
    // SAFETY: two system calls, which touch nothing of this process.
    unsafe {
        command.pre_exec(|| {
            let first = libc::sched_param { sched_priority: 1 };
            if libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) != 0 {
                // In a control group without a real-time budget. It reports its own delays.
                libc::setpriority(libc::PRIO_PROCESS, 0, -20);
            }
            Ok(())
        });
    }
}

impl<R: DeserializeOwned> Running<R> {
    /// Starts a command that follows the protocol of [`super::control`]. It may not be ready yet.
    pub fn start(mut command: Command) -> Result<Self> {
        let what = format!("{command:?}");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().with_context(|| format!("start {what}"))?;
        let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let (sends, lines) = channel();
        thread::spawn(move || {
            let mut reader = BufReader::new(stdout).lines();
            while let Some(Ok(line)) = reader.next() {
                if sends.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, stdin, lines, what, report: PhantomData })
    }

    pub fn wait_ready(&self) -> Result<()> {
        match self.line(READY_WITHIN)?.as_str() {
            "ready" => Ok(()),
            other => bail!("{}: {other:?} instead of \"ready\"", self.what),
        }
    }

    /// Marks that the fault happens now; returns that time (CLOCK_MONOTONIC).
    pub fn mark(&mut self) -> Result<u64> {
        let now = now_ns();
        self.mark_at(now)?;
        Ok(now)
    }

    /// As [`Self::mark`], for several commands that measure the same fault.
    pub fn mark_at(&mut self, at_ns: u64) -> Result<()> {
        writeln!(self.stdin, "mark {at_ns}").with_context(|| format!("tell {}", self.what))
    }

    /// Requests the report and waits for it and for the end of the command.
    pub fn report(mut self) -> Result<R> {
        writeln!(self.stdin, "report").with_context(|| format!("tell {}", self.what))?;
        let line = self.line(REPORT_WITHIN)?;
        self.child.wait()?;
        serde_json::from_str(&line).with_context(|| format!("{}: report {line:?}", self.what))
    }

    fn line(&self, within: Duration) -> Result<String> {
        self.lines.recv_timeout(within).map_err(|error| match error {
            RecvTimeoutError::Timeout => anyhow::anyhow!("{} said nothing for {} s", self.what, within.as_secs()),
            RecvTimeoutError::Disconnected => anyhow::anyhow!("{} ended without a report", self.what),
        })
    }
}

impl<R> Drop for Running<R> {
    fn drop(&mut self) {
        // Both fail when it has ended, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const READY_WITHIN: Duration = Duration::from_secs(30);
const REPORT_WITHIN: Duration = Duration::from_secs(30);
