//! `sheave endpoint`, as an administrator runs it on a member: this program is that one, too.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sheave_endpoint::status::events::Event;

use crate::PATIENCE;
use crate::world::World;

/// What it prints, if it succeeds.
pub fn succeeds(world: &World, on: &str, words: &[&str]) -> Result<String> {
    let output = run(world, on, words)?;
    let [said, error] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    ensure!(output.status.success() && error.is_empty(), "{words:?} on {on}: {}: {said}{error}", output.status);
    Ok(said)
}

/// Its error, if it fails and prints nothing else.
pub fn fails(world: &World, on: &str, words: &[&str]) -> Result<String> {
    let output = run(world, on, words)?;
    ensure!(!output.status.success() && output.stdout.is_empty(), "{words:?} on {on}: {output:?}");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn run(world: &World, on: &str, words: &[&str]) -> Result<Output> {
    Ok(command(world, on, words)?.output()?)
}

/// By the socket of the speaker on this node.
fn command(world: &World, on: &str, words: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("endpoint").args(words).arg("--socket").arg(world.socket(on));
    Ok(command)
}

pub fn drain(world: &World, on: &str, member: &str) -> Result<()> {
    let said = succeeds(world, on, &["drain", member])?;
    ensure!(said.starts_with(&format!("{member} is drained: it gets no new connections")), "{said}");
    Ok(())
}

pub fn undrain(world: &World, on: &str, member: &str) -> Result<()> {
    let said = succeeds(world, on, &["undrain", member])?;
    ensure!(said.starts_with(&format!("{member} gets new connections")), "{said}");
    Ok(())
}

/// `sheave endpoint events --follow`: runs until this is dropped.
pub struct Follower {
    process: Child,
    lines: Receiver<String>,
}

impl Follower {
    pub fn start(world: &World, on: &str) -> Result<Self> {
        let mut command = command(world, on, &["events", "--follow", "--output", "json"])?;
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from));
        }
        let mut process = command.spawn()?;
        let output = BufReader::new(process.stdout.take().context("its output")?);
        let (sender, lines) = channel();
        // It ends with the process.
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Self { process, lines })
    }

    /// The next event that it prints.
    pub fn next(&self) -> Result<Event> {
        let line = self.lines.recv_timeout(PATIENCE).context("it prints no more events")?;
        serde_json::from_str(&line).with_context(|| format!("no event: {line}"))
    }

    /// The next one of which this holds.
    pub fn find(&self, is: impl Fn(&Event) -> bool) -> Result<Event> {
        loop {
            let event = self.next()?;
            if is(&event) {
                return Ok(event);
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
