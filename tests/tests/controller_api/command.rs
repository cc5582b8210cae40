//! The command line, as a person runs it.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::objects::Objects;
use super::replica;

/// What `sheave` has printed, and its exit code.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub error: String,
}

/// With this typed.
pub fn sheave(objects: &Objects, words: &[&str], typed: &str) -> Result<Said> {
    let mut command = Command::new(replica::binary("sheave")?);
    command.args(words).arg("--kubeconfig").arg(objects.0.kubeconfig());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("start sheave")?;
    // It may end without reading.
    let _ = child.stdin.take().expect("piped").write_all(typed.as_bytes());
    let output = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Said { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), error: text(&output.stderr) })
}

pub fn refused(objects: &Objects, words: &[&str], sentence: &str) -> Result<()> {
    let said = sheave(objects, words, "")?;
    ensure!(said.code == 2 && said.error.contains(sentence), "{words:?}: {said:?}");
    Ok(())
}
