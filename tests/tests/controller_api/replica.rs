//! A controller as a process of this machine, with the rights of its own ServiceAccount and nothing else.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sheave_tests::lab::{Lab, wait_for};

/// It takes a tenth of a second; the machine may be busy with other clusters.
const READY_WITHIN: Duration = Duration::from_secs(60);
pub const NAMESPACE: &str = "sheave-system";
pub const METRICS_LISTEN: &str = "--metrics-listen";

/// A running replica; killed when dropped.
pub struct Replica {
    child: Child,
    probes: SocketAddr,
    pub metrics: SocketAddr,
    log: PathBuf,
}

impl Replica {
    /// Starts a replica and waits until it has seen everything. `flags`: beside those that every replica has.
    pub fn start(name: &str, kubeconfig: &Path, folder: &Path, flags: &[&str]) -> Result<Self> {
        let replica = Self::begin(name, kubeconfig, folder, flags)?;
        wait_for(&format!("{name} to be ready"), READY_WITHIN, || {
            Ok(replica.readyz().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")).then_some(()))
        })
        .with_context(|| replica.log())?;
        Ok(replica)
    }

    /// Starts a replica, and waits until it answers.
    pub fn begin(name: &str, kubeconfig: &Path, folder: &Path, flags: &[&str]) -> Result<Self> {
        let probes = free("127.0.0.1:0")?;
        let named = flags.iter().skip_while(|flag| **flag != METRICS_LISTEN).nth(1);
        let metrics = named.map_or_else(|| free("127.0.0.1:0"), |address| Ok(address.parse()?))?;
        let listen = named.is_none().then(|| [METRICS_LISTEN.to_owned(), metrics.to_string()]);
        let log = folder.join(format!("{name}.log"));
        let child = Command::new(binary("sheave-controller")?)
            .args(["--probe-listen", &probes.to_string(), "--log", "info,sheave_controller=debug"])
            .args(listen.into_iter().flatten())
            .args(flags)
            .env("KUBECONFIG", kubeconfig)
            .env("POD_NAME", name)
            .env("POD_NAMESPACE", NAMESPACE)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("start the controller")?;
        let replica = Replica { child, probes, metrics, log };
        wait_for(&format!("{name} to answer"), Duration::from_secs(30), || Ok(replica.readyz().ok()))
            .with_context(|| replica.log())?;
        Ok(replica)
    }

    pub fn leads(&self) -> Result<bool> {
        Ok(self.metric("sheave_controller_leader")? == 1.0)
    }

    /// The value of a metric, labels and all.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let text = get(self.metrics, "/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("{name} is not in\n{text}"))?.trim().parse()?)
    }

    /// kill -9.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid()?, signal)?)
    }

    pub fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    /// SIGTERM; returns how long it took to end, which must be in order.
    pub fn terminate(mut self) -> Result<Duration> {
        let began = Instant::now();
        self.signal(Signal::SIGTERM)?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("ended with {status}:\n{}", self.log());
        }
        Ok(began.elapsed())
    }

    /// Resident memory in kB.
    pub fn memory(&self) -> Result<u64> {
        self.status("VmRSS:")
    }

    /// The most that it was since the start, in kB.
    pub fn peak_memory(&self) -> Result<u64> {
        self.status("VmHWM:")
    }

    fn status(&self, field: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("a field of /proc")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// The whole answer.
    pub fn readyz(&self) -> Result<String> {
        get(self.probes, "/readyz")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that is free.
pub fn free(address: &str) -> Result<SocketAddr> {
    Ok(TcpListener::bind(address)?.local_addr()?)
}

fn get(server: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The newest program of this name there is: named, beside this program, or the static one of `make images`.
pub fn binary(name: &str) -> Result<PathBuf> {
    let variable = name.to_uppercase().replace('-', "_");
    if let Some(named) = std::env::var_os(&variable) {
        return Ok(PathBuf::from(named));
    }
    let running = std::env::current_exe()?;
    let beside = running.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    let candidates = beside.chain([sheave_tests::lab::image::static_binary(name)]);
    let built = |path: &PathBuf| path.metadata().and_then(|found| found.modified()).ok();
    let newest = candidates.filter(|path| built(path).is_some()).max_by_key(built);
    newest.with_context(|| format!("no {name}: build it with cargo, or set {variable}"))
}

/// A kubeconfig that is the controller's ServiceAccount, as its pod would have it.
pub fn kubeconfig(lab: &Lab, folder: &Path) -> Result<PathBuf> {
    let token = lab.kubectl(&["-n", NAMESPACE, "create", "token", "sheave-controller"])?;
    account(lab, folder, "controller", "sheave-controller", token.trim())
}

/// A kubeconfig, called `name`, that is a ServiceAccount with this token.
pub fn account(lab: &Lab, folder: &Path, name: &str, account: &str, token: &str) -> Result<PathBuf> {
    let path = folder.join(format!("{name}.kubeconfig"));
    let mut config: Value =
        serde_json::from_str(&lab.kubectl(&["config", "view", "--raw", "--minify", "-o", "json"])?)?;
    config["users"][0]["user"] = json!({ "token": token });
    std::fs::write(&path, config.to_string())?;
    let file = format!("--kubeconfig={}", path.display());
    let who = lab.kubectl(&[&file, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"])?;
    assert_eq!(who, format!("system:serviceaccount:{NAMESPACE}:{account}"));
    Ok(path)
}
