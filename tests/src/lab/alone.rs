//! A lab for one test, and a folder for what programs beside it log.

use std::path::Path;

use anyhow::Result;

use super::{Lab, LabConfig};

/// Removes the lab, whatever happens.
struct Down(Lab);

impl Drop for Down {
    fn drop(&mut self) {
        if let Err(error) = self.0.down() {
            eprintln!("lab not removed: {error:#}");
        }
    }
}

/// Starts the lab, also after one of the same name that crashed. The folder is kept if `run` fails.
pub fn alone(config: LabConfig, run: impl FnOnce(&Lab, &Path) -> Result<()>) -> Result<()> {
    let name = config.name.clone();
    Lab::remove(&name)?;
    let lab = Down(Lab::up(config)?);
    let folder = std::env::temp_dir().join(format!("sheave-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = run(&lab.0, &folder);
    match &result {
        Ok(()) => std::fs::remove_dir_all(&folder)?,
        Err(_) => eprintln!("the logs are in {}", folder.display()),
    }
    result
}
