//! Processes of pods, found and read on their own node.

use anyhow::{Context, Result, bail};

use super::pods::Pod;
use crate::lab::Lab;
use crate::traffic::report::Greeting;

/// A process by its number on its node.
#[derive(Clone, Debug)]
pub struct Process {
    node: String,
    pid: i32,
}

/// The process of a pod with this command, separated from those of other pods by its environment.
pub fn process_of(lab: &Lab, pod: &Pod, command: &str) -> Result<Process> {
    // The kernel keeps fifteen bytes of a name.
    let name = &command[..command.len().min(15)];
    let script = format!(
        "for dir in /proc/[0-9]*; do \
           [ \"$(cat $dir/comm 2>/dev/null)\" = {name} ] || continue; \
           tr '\\0' '\\n' <$dir/environ 2>/dev/null | grep -qxE '(HOSTNAME|POD_NAME)={}' && echo ${{dir#/proc/}}; \
         done",
        pod.name
    );
    let found = on_node(lab, &pod.node, "sh", &["-c", &script])?;
    let pid = found.trim().parse().with_context(|| format!("{command} of {} on {}: {found:?}", pod.name, pod.node))?;
    Ok(Process { node: pod.node.clone(), pid })
}

impl Process {
    pub fn kill(&self, lab: &Lab) -> Result<()> {
        on_node(lab, &self.node, "kill", &["-KILL", &self.pid.to_string()]).map(drop)
    }

    /// One connection from the network of the process: the pod that answered, and the client address that it saw.
    pub fn greeting(&self, lab: &Lab, to: &str) -> Result<Greeting> {
        let traffic = lab.traffic()?;
        let inside = ["--target", &self.pid.to_string(), "--net", "--", &traffic.to_string_lossy(), "get", "--to", to];
        let output = lab.node_command(&self.node, "nsenter")?.args(inside).args(["--timeout-ms", "1000"]).output()?;
        if !output.status.success() {
            bail!(
                "from process {} on {} to {to}: {}",
                self.pid,
                self.node,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("from {} to {to}", self.node))
    }

    /// Resident memory in bytes.
    pub fn memory(&self, lab: &Lab) -> Result<u64> {
        let status = on_node(lab, &self.node, "cat", &[&format!("/proc/{}/status", self.pid)])?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kilobytes * 1024)
    }
}

/// What a program prints on a node.
pub fn on_node(lab: &Lab, node: &str, program: &str, arguments: &[&str]) -> Result<String> {
    let output = lab.node_command(node, program)?.args(arguments).output()?;
    if !output.status.success() && output.stdout.is_empty() {
        bail!("{program} on {node}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
