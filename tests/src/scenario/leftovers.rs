//! What a lab may not leave behind.

use std::fs;

use anyhow::Result;

use crate::lab::{netns, plan};

/// Everything on this machine that still belongs to a lab of this name; empty after `down`.
pub fn leftovers(name: &str) -> Result<Vec<String>> {
    let prefix = plan::netns_prefix(name);
    let folder = plan::lab_dir(name);
    let mut found: Vec<_> = netns::list(&prefix).into_iter().map(|left| format!("namespace {left}")).collect();
    if folder.exists() {
        found.push(format!("folder {}", folder.display()));
    }
    let below = format!("{}/", folder.display());
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    found.extend(targets.filter(|target| target.starts_with(&below)).map(|target| format!("mount {target}")));
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process that ended meanwhile has nothing to read.
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&below) && pid != std::process::id() {
            found.push(format!("process {pid}: {command}"));
        }
    }
    Ok(found)
}
