//! Real-time priority for the speakers on kernels that ration it (CONFIG_RT_GROUP_SCHED with cgroup v1, as on our machines).
//!
//! There a process in a control group may be SCHED_FIFO only if its group has a budget, and no container gets one. Most
//! distributions build without that option, so a node of theirs grants what the capability SYS_NICE promises; the lab's
//! nodes do the same: a hook of the container runtime gives the speaker's container a part of the node's budget.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::plan::kubernetes_bin;

/// Gives a node's group its budget and the lab's group above it the sum. Without one (the kernel does not ration, or other labs
/// have taken all of it) the speakers run at normal priority and log it.
pub fn grant_node(group: &Path) {
    let budget = |group: &Path| -> Option<u32> { fs::read_to_string(group.join(BUDGET)).ok()?.trim().parse().ok() };
    let (Some(lab), Some(_)) = (group.parent(), budget(group)) else { return };
    let siblings = fs::read_dir(lab).into_iter().flatten().flatten().map(|entry| entry.path());
    let others: u32 = siblings.filter(|path| path != group).filter_map(|path| budget(&path)).sum();
    if budget(lab).is_some_and(|now| now < others + NODE) {
        let _ = fs::write(lab.join(BUDGET), (others + NODE).to_string());
    }
    let _ = fs::write(group.join(BUDGET), NODE.to_string());
}

/// Writes a specification that all containers of a node start from, with the hook. `None` where the kernel does not ration.
pub fn base_specification(node_dir: &Path) -> Result<Option<PathBuf>> {
    let rationed = fs::read_dir("/sys/fs/cgroup")?.flatten().any(|entry| entry.path().join(BUDGET).exists());
    if !rationed {
        return Ok(None);
    }
    let printed = Command::new(kubernetes_bin().join("ctr")).args(["oci", "spec"]).output().context("ctr oci spec")?;
    let mut specification: Value = serde_json::from_slice(&printed.stdout).context("output of ctr oci spec")?;
    let hook = node_dir.join("realtime-hook.sh");
    fs::write(&hook, HOOK)?;
    // Files: as many as containerd may open, as without a base specification. ctr's 1024 are fewer than connections to one pod
    // when few are left: new ones waited in the backlog of a server that could not accept them.
    specification["process"]["rlimits"] = json!([]);
    specification["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", hook]}]});
    let path = node_dir.join("container.json");
    fs::write(&path, specification.to_string()).with_context(|| path.display().to_string())?;
    Ok(Some(path))
}

const BUDGET: &str = "cpu.rt_runtime_us";
/// Microseconds of a second. Three labs of three nodes fit into what the kernel has to give.
const NODE: u32 = 100_000;

/// Gets the container's state on stdin; never fails a container.
const HOOK: &str = r#"state=$(cat)
case $state in *sheave-speaker*) ;; *) exit 0 ;; esac
pid=$(printf %s "$state" | sed 's/.*"pid": *\([0-9]*\).*/\1/')
group=$(awk -F: '$2 ~ /(^|,)cpu(,|$)/ { print $2 $3 }' "/proc/$pid/cgroup")
echo 95000 >"/sys/fs/cgroup/$(dirname "$group")/cpu.rt_runtime_us"
# Half, so that a container that is on its way out does not keep the next one from its share.
echo 45000 >"/sys/fs/cgroup/$group/cpu.rt_runtime_us"
exit 0
"#;
