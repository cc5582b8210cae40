//! The lab itself: a cluster that serves, a node that loses power and returns, two labs at a time, nothing left behind.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sheave_tests::lab::plan::{lab_dir, netns_prefix, node_address};
use sheave_tests::lab::{ClientKind, Fault, Lab, LabConfig, ProxyMode, State, netns, quiet, wait_for};
use sheave_tests::traffic::manifest::manifest;
use sheave_tests::traffic::report::{Greeting, HeldState};
use sheave_tests::traffic::{self};

#[test]
fn a_cluster_serves_and_survives_a_power_cut() -> Result<()> {
    let name = "tcluster";
    let lab = Lab::temporary(config(name))?;
    lab.apply(&manifest("web", 6, "NodePort"))?;
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;

    let port = lab.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}"])?;
    for kind in [ClientKind::Segment, ClientKind::BehindRouter] {
        for number in 1..=3 {
            let greeting = get(&lab, kind, &format!("{}:{port}", node_address(number)))?;
            ensure!(greeting.pod.starts_with("web-"), "{greeting:?}");
        }
    }
    let cluster_ip = lab.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
    let mut from_node = lab.node_command("node2", &lab.traffic()?.to_string_lossy())?;
    let answer = from_node.args(["get", "--to", &format!("{cluster_ip}:80")]).output()?;
    ensure!(answer.status.success(), "ClusterIP from node2: {}", String::from_utf8_lossy(&answer.stderr));

    // Refused, and this one stays up.
    let second = Lab::up(config(name)).err().context("a second lab of the same name")?.to_string();
    ensure!(second.contains("is up already"), "{second}");

    let wrong = lab.fault(Fault::PowerOff { node: "node9".into() }).unwrap_err().to_string();
    ensure!(wrong.contains("node1, node2, node3"), "{wrong}");

    // The path through node1 stays, the pods of node3 go.
    let to = format!("{}:{port}", node_address(1));
    let mut held = traffic::hold(&lab, ClientKind::Segment, &to, 60, 20)?;
    held.mark()?;
    lab.fault(Fault::PowerOff { node: "node3".into() })?;
    let off = lab.node_command("node3", "true").unwrap_err().to_string();
    ensure!(off.contains("no power"), "{off}");
    let report = held.report()?;
    let elsewhere = report.connections.iter().filter(|held| held.node != "node3").count();
    ensure!(report.count(HeldState::Alive, |held| held.node != "node3") == elsewhere, "{:?}", report.counts);
    ensure!(
        report.count(HeldState::Alive, |held| held.node == "node3") == 0,
        "node3 has no power: {:?}",
        report.counts
    );
    ensure!(elsewhere < 60, "none of 60 connections was on node3");

    lab.fault(Fault::PowerOn { node: "node3".into() })?;
    lab.wait_back("node3")?;
    get(&lab, ClientKind::BehindRouter, &format!("{}:{port}", node_address(3)))?;

    what_a_node_loses_comes_back(&lab, &cluster_ip)?;

    lab.fault(Fault::ApiStop { server: None })?;
    ensure!(lab.kubectl(&["get", "nodes", "--request-timeout=1s"]).is_err(), "the API server is stopped");
    get(&lab, ClientKind::Segment, &to)?;
    lab.fault(Fault::ApiStart { server: None })?;
    wait_for("the API server to be back", Duration::from_secs(30), || Ok(lab.kubectl(&["get", "nodes"]).ok()))?;

    drop(lab);
    nothing_left(name)
}

/// The API server of one node, and kube-proxy's rules there in the other mode.
fn what_a_node_loses_comes_back(lab: &Lab, cluster_ip: &str) -> Result<()> {
    let node = || "node2".to_owned();
    let reaches_api = || -> Result<bool> {
        let knock = "exec 3<>/dev/tcp/192.168.77.2/6443";
        Ok(lab.node_command("node2", "timeout")?.args(["1", "bash", "-c", knock]).output()?.status.success())
    };
    lab.fault(Fault::ApiCut { node: node() })?;
    ensure!(!reaches_api()?, "node2 is cut off from the API server");
    lab.fault(Fault::ApiHeal { node: node() })?;
    ensure!(reaches_api()?, "node2 reaches the API server again");

    let serves = || -> Result<Option<()>> {
        let mut get = lab.node_command("node2", &lab.traffic()?.to_string_lossy())?;
        let output = get.args(["get", "--timeout-ms", "300", "--to", &format!("{cluster_ip}:80")]).output()?;
        Ok(output.status.success().then_some(()))
    };
    lab.fault(Fault::KubeProxyStop { node: node() })?;
    lab.fault(Fault::KubeProxyFlush { node: node() })?;
    ensure!(serves()?.is_none(), "a ClusterIP without rules");
    for mode in [ProxyMode::Iptables, ProxyMode::Nftables] {
        lab.fault(Fault::KubeProxyMode { node: node(), mode })?;
        wait_for(&format!("a ClusterIP by kube-proxy {mode}"), Duration::from_secs(20), serves)?;
        ensure!(lab.kube_proxy_mode("node2")? == mode);
    }
    Ok(())
}

/// Runs beside the other test, with the same addresses.
#[test]
fn a_killed_program_leaves_nothing_that_down_does_not_find() -> Result<()> {
    let name = "tkilled";
    Lab::remove(name)?;
    let program = env!("CARGO_BIN_EXE_sheave-lab");
    let mut up = Command::new(program)
        .args(["up", "--name", name, "--nodes", "1", "--no-sheave", "--proxy-mode", "iptables"])
        .stdout(Stdio::null())
        .spawn()?;
    wait_for("the node to have power", Duration::from_secs(30), || {
        ensure!(up.try_wait()?.is_none(), "sheave-lab up ended");
        Ok(State::load(name).ok().filter(|state| !state.nodes.is_empty()))
    })?;
    up.kill()?;
    up.wait()?;
    ensure!(!netns::list(&netns_prefix(name)).is_empty(), "it was killed in the middle");
    let status = Command::new(program).args(["down", "--name", name]).status()?;
    ensure!(status.success());
    nothing_left(name)?;
    // Twice is as good as once.
    ensure!(Command::new(program).args(["down", "--name", name]).status()?.success());
    Ok(())
}

fn config(name: &str) -> LabConfig {
    let (name, proxy_mode) = (name.to_owned(), ProxyMode::Nftables);
    LabConfig { name, proxy_mode, sheave: false, progress: quiet, ..LabConfig::default() }
}

fn get(lab: &Lab, kind: ClientKind, to: &str) -> Result<Greeting> {
    let mut command = lab.client_command(kind, &lab.traffic()?.to_string_lossy())?;
    let output = command.args(["get", "--to", to]).output()?;
    ensure!(output.status.success(), "{to} as {kind:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).with_context(|| format!("greeting of {to}"))
}

fn nothing_left(name: &str) -> Result<()> {
    let namespaces = netns::list(&netns_prefix(name));
    ensure!(namespaces.is_empty(), "namespaces {namespaces:?}");
    ensure!(!lab_dir(name).exists(), "{}", lab_dir(name).display());
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let folder = lab_dir(name).to_string_lossy().into_owned();
    ensure!(!mounts.contains(&folder), "mounts below {folder}");
    wait_for(&format!("processes {:?} to end", processes_of(name)), Duration::from_secs(5), || {
        Ok(processes_of(name).is_empty().then_some(()))
    })?;
    let groups = groups_named(Path::new("/sys/fs/cgroup"), &format!("sheave-{name}"));
    ensure!(groups.is_empty(), "control groups {groups:?}");
    Ok(())
}

fn processes_of(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let read = |file: &str| fs::read_to_string(process.path().join(file)).unwrap_or_default();
        let (group, folder) = (format!("/sheave-{name}/"), format!("{}/", lab_dir(name).display()));
        // One that has ended stays until its parent, maybe the machine's first process, takes notice.
        let ended = read("stat").rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z"));
        if !ended && (read("cgroup").contains(&group) || read("cmdline").contains(&folder)) {
            found.push(format!("{} {}", process.file_name().display(), read("comm").trim_end()));
        }
    }
    found
}

fn groups_named(folder: &Path, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name() == name {
            found.push(entry.path().display().to_string());
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(groups_named(&entry.path(), name));
        }
    }
    found
}
