pub mod relay;
pub mod report;
pub mod serve;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The `sheave-traffic` that belongs to the running program: `SHEAVE_TRAFFIC`, or beside it, or the static one.
pub fn binary() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("SHEAVE_TRAFFIC") {
        return Ok(PathBuf::from(named));
    }
    let running = std::env::current_exe()?;
    // Test programs are one folder deeper (deps) than binaries.
    let beside = running.ancestors().skip(1).take(2).map(|folder| folder.join(NAME));
    let candidates: Vec<_> = beside.chain([crate::lab::image::static_binary(NAME)]).collect();
    match candidates.iter().find(|path: &&PathBuf| Path::exists(path)) {
        Some(found) => Ok(found.clone()),
        None => bail!("{NAME} is in none of {candidates:?}: `cargo build -p sheave-tests --bins`, or set SHEAVE_TRAFFIC"),
    }
}

fn single_threaded() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

const NAME: &str = "sheave-traffic";
