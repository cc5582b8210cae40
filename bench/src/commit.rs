//! The commit that a figure belongs to.

use std::process::Command;

use anyhow::{Context, Result, bail};
use sheave_tests::lab::plan::repository;

/// Runs git in this repository and returns what it printed.
pub fn git(arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").arg("-C").arg(repository()).args(arguments).output().context("start git")?;
    if !output.status.success() {
        bail!("git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The commit that is checked out, and whether the files are those of it.
pub fn here() -> Result<(String, bool)> {
    Ok((git(&["rev-parse", "--short=10", "HEAD"])?, git(&["status", "--porcelain"])?.is_empty()))
}
