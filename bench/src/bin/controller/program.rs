//! A controller as a process in the lab's network, with the rights of its own ServiceAccount and nothing else; what processes use.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sheave_tests::lab::Lab;
use sheave_tests::lab::fault::usage;
use sheave_tests::lab::process::Recorded;
use tokio::process::{Child, Command};

/// The network namespace of the lab that the controllers and this program are in: as far from the API server as a node is.
pub const PLACE: &str = "client";

/// Killed when it is dropped.
pub struct Program {
    child: Child,
    pid: i32,
    log: PathBuf,
}

/// How a program is started.
pub struct Order {
    pub binary: PathBuf,
    pub arguments: Vec<String>,
    pub environment: Vec<(&'static str, String)>,
}

impl Program {
    pub fn start(lab: &Lab, order: &Order, log: &Path) -> Result<Self> {
        let binary = order.binary.to_string_lossy();
        let mut command = lab.netns_command(PLACE, &binary)?;
        command.args(&order.arguments).envs(order.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(File::create(log)?).stderr(File::options().append(true).open(log)?);
        let mut command = Command::from(command);
        let child = command.kill_on_drop(true).spawn().with_context(|| format!("start {binary}"))?;
        let pid = i32::try_from(child.id().context("it ended at once")?)?;
        Ok(Self { child, pid, log: log.to_path_buf() })
    }

    /// SIGTERM, as a kubelet ends a pod, and waits until it has ended.
    pub async fn terminate(mut self) -> Result<()> {
        self.alive()?;
        kill(Pid::from_raw(self.pid), Signal::SIGTERM)?;
        self.child.wait().await?;
        Ok(())
    }

    /// An error with the end of its log, if it has ended by itself.
    pub fn alive(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(ended.is_none(), "ended by itself ({ended:?}):\n{}", sheave_tests::lab::process::tail(&self.log));
        Ok(())
    }

    pub fn usage(&self) -> Result<Usage> {
        let (resident, ticks) = usage(&Recorded::of(self.pid)?)?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        let peak: f64 = peak.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(Usage { resident_mb: resident as f64 / 1e6, peak_mb: peak * 1024.0 / 1e6, seconds: seconds(ticks) })
    }
}

/// What a process has used until now.
#[derive(Clone, Copy)]
pub struct Usage {
    pub resident_mb: f64,
    /// The most that it was since the start.
    pub peak_mb: f64,
    /// Of processor time.
    pub seconds: f64,
}

/// A kubeconfig that is a ServiceAccount, as its pod would have it.
pub fn account(lab: &Lab, folder: &Path, namespace: &str, account: &str) -> Result<PathBuf> {
    let path = folder.join(format!("{namespace}.kubeconfig"));
    let inside = format!("--kubeconfig={}", lab.kubeconfig_inside().display());
    std::fs::write(&path, lab.kubectl(&[&inside, "config", "view", "--raw", "--minify"])?)?;
    let token = lab.kubectl(&["-n", namespace, "create", "token", account, "--duration=4h"])?;
    let file = format!("--kubeconfig={}", path.display());
    lab.kubectl(&[&file, "config", "set-credentials", "account", &format!("--token={}", token.trim())])?;
    lab.kubectl(&[&file, "config", "set-context", "--current", "--user=account"])?;
    Ok(path)
}

/// Processor time, in seconds, of the parts of the control plane, and of this program.
pub fn processor_times(lab: &Lab) -> Result<BTreeMap<String, f64>> {
    let processes = lab.state()?.processes;
    let parts = processes.iter().map(|(name, process)| Ok((name.clone(), seconds(usage(process)?.1))));
    let mut times: BTreeMap<String, f64> = parts.collect::<Result<_>>()?;
    let own = Recorded::of(i32::try_from(std::process::id())?)?;
    times.insert("this program".into(), seconds(usage(&own)?.1));
    Ok(times)
}

/// USER_HZ, which is part of the kernel's interface to programs, is 100.
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / 100.0
}
