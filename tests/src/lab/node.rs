//! A node: its network namespace, the files of its daemons, and a first process that holds everything together.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use serde_json::Value;

use super::certs::{PROXY, Pki};
use super::plan::{self, POD_RANGE, Plan, ProxyMode, kubernetes_bin};
use super::process::{self, Recorded, children_of};
use super::state::{Node, State};
use super::wait::wait_for;
use super::{cgroup, ha, netns, realtime, topology};

/// Writes what the daemons read. Done once: a node that lost power finds it again.
pub fn prepare(plan: &Plan, pki: &Pki, name: &str) -> Result<()> {
    let dir = plan.node_dir(name);
    fs::create_dir_all(dir.join("cni"))?;
    let number = plan.node_number(name)?;
    let server = plan.api();
    pki.kubeconfig(&dir.join("kubelet.kubeconfig"), &format!("system:node:{name}"), server)?;
    pki.kubeconfig(&dir.join("kube-proxy.kubeconfig"), PROXY, server)?;
    let base = realtime::base_specification(&dir)?;
    let files = [
        ("containerd.toml", containerd(&dir.join("cni").to_string_lossy(), base.as_deref())),
        ("cni/10-lab.conflist", cni(number)),
        ("kubelet.yaml", kubelet(plan)),
        ("boot.sh", BOOT.to_owned()),
    ];
    for (file, text) in files {
        fs::write(dir.join(file), text).with_context(|| format!("{file} of {name}"))?;
    }
    prepare_kube_proxy(plan, name, plan.proxy_mode)?;
    if plan.endpoint.is_some() { ha::prepare(plan, pki, name) } else { Ok(()) }
}

/// Creates the node's network and starts its first process. The node is Ready some seconds later.
pub fn power_on(state: &State, name: &str) -> Result<Node> {
    let plan = &state.plan;
    topology::create_node(state, name)?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("a clock before 1970")?.as_secs();
    let dir = plan.node_dir(name);
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--uts", "--cgroup", "--fork", "--kill-child=KILL", "bash"])
        .arg(dir.join("boot.sh"))
        .env_clear()
        .env("LAB", plan.dir())
        .env("NODE", &dir)
        .env("NAME", name)
        .env("BIN", kubernetes_bin())
        .env("ADDRESS", state.node_address(name)?.to_string())
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    netns::enter(&mut command, &plan.netns(name))?;
    cgroup::enter(&mut command, &plan.name, name)?;
    let log = plan.log(&format!("{name}-boot"));
    let booted = dir.join("run/booted");
    match fs::remove_file(&booted) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context("of the boot before"),
        _ => {}
    }
    let keeper = process::start(command, &log)?;
    let init = wait_for(&format!("the first process of {name}"), Duration::from_secs(5), || {
        if !keeper.alive() {
            bail!("{name} did not start; {}:\n{}", log.display(), process::tail(&log));
        }
        // With its mounts: what enters them later than its first process must find them.
        Ok(children_of(keeper.pid).first().copied().filter(|_| booted.exists()))
    })?;
    cgroup::set_aside(keeper.pid, &plan.name)?;
    Ok(Node { init: Recorded::of(init)?, keeper, since, address: None })
}

/// The loss of power as the others see it: the link first, then everything behind it.
pub fn power_off(state: &mut State, name: &str) -> Result<()> {
    let plan = state.plan.clone();
    plan.node_number(name)?;
    let Some(node) = state.nodes.remove(name) else { bail!("node {name} has no power already") };
    topology::set_port(&plan, name, false)?;
    node.init.end()?;
    node.keeper.end()?;
    cgroup::remove(&plan.name, Some(name))?;
    topology::remove_node(&plan, name)
}

/// Whether a node that got power at `since` is back: its kubelet has reported since, and each of its pods is Ready and was
/// started since. Before that the API server shows what was true before the loss.
pub fn is_back(node: &Value, pods: &[&Value], since: u64) -> bool {
    let condition = |object: &Value| {
        let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|one| one["type"] == "Ready" && one["status"] == "True")
    };
    let later = |time: &Value| time.as_str().and_then(unix_seconds).is_some_and(|at| at >= since);
    let reported = condition(node).is_some_and(|ready| later(&ready["lastHeartbeatTime"]));
    let started = |pod: &Value| {
        let containers = pod["status"]["containerStatuses"].as_array();
        containers.is_some_and(|all| all.iter().all(|one| later(&one["state"]["running"]["startedAt"])))
    };
    let stays = |pod: &&&Value| pod["metadata"]["deletionTimestamp"].is_null();
    reported && pods.iter().filter(stays).all(|pod| condition(pod).is_some() && started(pod))
}

/// Kubernetes' times: 2026-11-21T09:40:26Z.
fn unix_seconds(time: &str) -> Option<u64> {
    let mut numbers = time.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (numbers.next()?, numbers.next()?, numbers.next()?);
    let seconds = numbers.next()? * 3600 + numbers.next()? * 60 + numbers.next()?;
    // Days since 1970 in the Gregorian calendar, with years that begin in March so that the leap day is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + seconds)
}

/// A command in all namespaces of a running node: its network, its mounts (/run, /var/lib, /sys/fs/bpf), its processes.
/// The command dies with the returned process (`nsenter`).
pub fn command(state: &State, name: &str, program: &str) -> Result<Command> {
    state.plan.node_number(name)?;
    let Some(node) = state.nodes.get(name) else {
        bail!("node {name} has no power: `sheave-lab fault power-on {name}`")
    };
    if !node.init.alive() {
        bail!("node {name} is dead: its first process {} ended", node.init.pid);
    }
    let mut command = Command::new("nsenter");
    command.arg(format!("--target={}", node.init.pid)).args([
        "--net",
        "--mount",
        "--uts",
        "--pid",
        "--",
        "setpriv",
        "--pdeathsig=KILL",
        "--",
        program,
    ]);
    Ok(command)
}

/// Only what pods need: no NRI, no other snapshotters, no transfer or sandbox services.
fn containerd(cni: &str, base: Option<&Path>) -> String {
    let base = base.map_or(String::new(), |path| format!("base_runtime_spec = \"{}\"", path.display()));
    format!(
        r#"version = 4
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs", "io.containerd.differ.v1.erofs",
]

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "docker.io/library/pause:lab"

[plugins.'io.containerd.cri.v1.runtime']
  # Without CAP_SYS_RESOURCE runc cannot lower an OOM score and says "can't get final child's PID from pipe: EOF".
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]
    conf_dir = "{cni}"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    {base}
"#
    )
}

fn cni(number: u8) -> String {
    let range = plan::pod_range(number);
    format!(
        r#"{{
  "cniVersion": "1.0.0",
  "name": "lab",
  "plugins": [
    {{
      "type": "ptp",
      "ipMasq": false,
      "ipam": {{
        "type": "host-local",
        "dataDir": "/run/cni",
        "ranges": [[{{"subnet": "{range}"}}]],
        "routes": [{{"dst": "0.0.0.0/0"}}]
      }}
    }},
    {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
  ]
}}
"#
    )
}

/// Writes kube-proxy's configuration: the mode may be another one than that of the plan.
pub fn prepare_kube_proxy(plan: &Plan, name: &str, mode: ProxyMode) -> Result<()> {
    let dir = plan.node_dir(name);
    let text = kube_proxy(name, mode, &dir.join("kube-proxy.kubeconfig").to_string_lossy());
    fs::write(dir.join("kube-proxy.yaml"), text).with_context(|| format!("kube-proxy.yaml of {name}"))
}

fn kube_proxy(name: &str, mode: ProxyMode, kubeconfig: &str) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n\
         kind: KubeProxyConfiguration\n\
         mode: {mode}\n\
         clusterCIDR: {POD_RANGE}\n\
         hostnameOverride: {name}\n\
         clientConnection: {{kubeconfig: {kubeconfig}}}\n\
         # The limits of conntrack belong to the machine.\n\
         conntrack: {{maxPerCore: 0, min: 0}}\n\
         oomScoreAdj: 0\n\
         nftables: {{minSyncPeriod: 100ms, syncPeriod: 30s}}\n\
         iptables: {{minSyncPeriod: 100ms, syncPeriod: 30s}}\n"
    )
}

fn kubelet(plan: &Plan) -> String {
    let dns = plan.dns.map_or(String::new(), |address| format!("clusterDNS: [{address}]\n"));
    format!("{KUBELET}{dns}")
}

/// Without QoS groups and evictions: several kubelets share one machine and its control groups.
const KUBELET: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
staticPodPath: /var/lib/kubelet/manifests
resolvConf: ''
clusterDomain: cluster.local
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
oomScoreAdj: 0
maxOpenFiles: 65536
localStorageCapacityIsolation: false
evictionHard: {memory.available: 0%, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
nodeStatusUpdateFrequency: 2s
nodeLeaseDurationSeconds: 16
syncFrequency: 10s
serializeImagePulls: false
";

const BOOT: &str = include_str!("boot.sh");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_kubernetes() {
        assert_eq!(unix_seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(unix_seconds("2024-02-29T12:00:01Z"), Some(1_709_208_001));
        assert_eq!(unix_seconds("2026-11-21T09:40:26Z"), Some(1_795_254_026));
        assert_eq!(unix_seconds("null"), None);
    }
}
