//! Control groups of the nodes: below our own group, one folder per lab and node, in every hierarchy (v1 or v2).
//!
//! A node gets a cgroup namespace whose root is its folder (boot.sh), so that its kubelet and containerd see their own
//! containers only: cadvisor spends seconds on every container it cannot find. What a killed node leaves behind is found
//! by name.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::realtime;
use super::wait::wait_for;

/// Makes a command start in the node's groups, which are created.
pub fn enter(command: &mut Command, lab: &str, node: &str) -> Result<()> {
    let mut files = Vec::new();
    for base in bases()? {
        let mut group = base;
        for part in [folder(lab).as_str(), node] {
            let parent = group.clone();
            group.push(part);
            fs::create_dir_all(&group).with_context(|| format!("control group {}", group.display()))?;
            pass_controllers(&parent);
            inherit_cpuset(&parent, &group)?;
        }
        prefer(&group);
        realtime::grant_node(&group);
        let file = group.join("cgroup.procs");
        files.push(OpenOptions::new().write(true).open(&file).with_context(|| file.display().to_string())?);
    }
    // SAFETY: write is async-signal-safe; "0" means the writing process.
    unsafe {
        command.pre_exec(move || files.iter().try_for_each(|mut file: &File| file.write_all(b"0")));
    }
    Ok(())
}

/// All nodes of a lab together would get as much of the machine as one thread of the API server, and pods would wait for nodes that boot.
fn prefer(node: &Path) {
    let Some(lab) = node.parent() else { return };
    for (file, share) in [("cpu.shares", "10240"), ("cpu.weight", "1000")] {
        let file = lab.join(file);
        if file.exists() {
            // Of the hierarchy of processors, in v1 or v2. Without it a lab is only slower.
            let _ = fs::write(file, share);
        }
    }
}

/// v2: a group that passes controllers on may have no processes. The node's daemons leave its root by themselves; this is
/// for the process that waits for the first one and cannot be named from inside.
pub fn set_aside(pid: i32, lab: &str) -> Result<()> {
    if !Path::new(V2_ROOT).exists() {
        return Ok(());
    }
    for base in bases()? {
        let group = base.join(folder(lab)).join("keepers");
        fs::create_dir_all(&group)?;
        fs::write(group.join("cgroup.procs"), pid.to_string()).with_context(|| group.display().to_string())?;
    }
    Ok(())
}

/// Removes the groups of a node (or of the whole lab), whose processes have ended or are about to.
pub fn remove(lab: &str, node: Option<&str>) -> Result<()> {
    for base in bases()? {
        let mut group = base.join(folder(lab));
        if let Some(node) = node {
            group.push(node);
        }
        let what = format!("control group {} to become empty", group.display());
        wait_for(&what, EMPTY_WITHIN, || {
            remove_tree(&group);
            Ok((!group.exists()).then_some(()))
        })?;
    }
    Ok(())
}

fn folder(lab: &str) -> String {
    format!("sheave-{lab}")
}

/// Below which groups ours are made: v1, our own in every hierarchy; v2, the root, because our own has processes and cannot
/// pass controllers on.
fn bases() -> Result<Vec<PathBuf>> {
    let root = Path::new("/sys/fs/cgroup");
    if Path::new(V2_ROOT).exists() {
        return Ok(vec![root.to_owned()]);
    }
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let groups = text.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let mount = match controllers {
            "" => root.join("unified"),
            named => root.join(named.strip_prefix("name=").unwrap_or(named)),
        };
        let group = mount.join(path.trim_start_matches('/'));
        group.join("cgroup.procs").exists().then_some(group)
    });
    Ok(groups.collect())
}

/// v2: lets the groups below use the controllers. A controller that this machine does not have is no error.
fn pass_controllers(group: &Path) {
    let file = group.join("cgroup.subtree_control");
    if file.exists() {
        for controller in ["cpuset", "cpu", "io", "memory", "pids"] {
            let _ = fs::write(&file, format!("+{controller}"));
        }
    }
}

/// cpuset (v1): a new group has no processors and takes no process until it gets some.
fn inherit_cpuset(parent: &Path, group: &Path) -> Result<()> {
    for key in ["cpuset.cpus", "cpuset.mems"] {
        if group.join(key).exists() && !group.join("cgroup.controllers").exists() {
            fs::write(group.join(key), fs::read(parent.join(key))?)
                .with_context(|| format!("{key} of {}", group.display()))?;
        }
    }
    Ok(())
}

fn remove_tree(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    // Only folders can be removed in a control group, and only empty ones; the caller tries again.
    let _ = fs::remove_dir(group);
}

/// There when the unified hierarchy is the only one.
const V2_ROOT: &str = "/sys/fs/cgroup/cgroup.controllers";
const EMPTY_WITHIN: Duration = Duration::from_secs(5);
