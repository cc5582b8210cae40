//! The life of a whole lab: up, down, images, Sheave.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::certs::Pki;
use super::image::{self, Image};
use super::interrupt::Busy;
use super::plan::{LabConfig, Plan, kubernetes_bin, lab_dir, netns_prefix, repository};
use super::process::{self, Recorded};
use super::state::{self, State};
use super::wait::wait_for;
use super::{Lab, cgroup, control_plane, ha, needs, netns, node, topology};

pub fn up(lab: &Lab, config: &LabConfig) -> Result<()> {
    let began = Instant::now();
    let say = |what: &str| (config.progress)(began.elapsed().as_secs_f64(), what);
    let plan = Plan::new(config)?;
    needs::check()?;
    // What a start that was killed has left.
    down(&plan.name)?;
    build_kubernetes()?;
    {
        let _busy = Busy::begin();
        let _lock = state::lock(&plan.name)?;
        let mut state = State::new(&plan);
        state.save()?;
        fs::create_dir_all(plan.dir().join("logs"))?;
        let images = link_images(&plan)?;
        if !images.iter().any(|image| image.name.starts_with("sheave-")) {
            say("there are no images of ours yet: `make images` builds them, `sheave-lab images` imports them");
        }
        raise_limits();

        say(&format!("network: a switch, {} nodes, a client, a router and a client behind it", plan.nodes));
        topology::create(&plan)?;
        state.namespaces = netns::list(&netns_prefix(&plan.name));
        state.save()?;
        let pki = Pki::create(&plan)?;
        if plan.endpoint.is_none() {
            say("control plane: etcd, API server");
            control_plane::start(&mut state, &pki)?;
            say(&format!("nodes: containerd, kubelet, kube-proxy ({})", plan.proxy_mode));
        } else {
            control_plane::start_access(&mut state, &pki, "client")?;
        }
        state.save()?;
        for name in plan.node_names() {
            node::prepare(&plan, &pki, &name)?;
            let node = node::power_on(&state, &name)?;
            state.nodes.insert(name, node);
            state.save()?;
        }
        state.namespaces = netns::list(&netns_prefix(&plan.name));
        state.save()?;
    }
    if plan.endpoint.is_some() {
        return ha::installed::install(&ha::Ha::of(lab)?);
    }
    wait_api(lab, &plan)?;
    say("the API server is ready: controller manager, scheduler");
    {
        let _busy = Busy::begin();
        let _lock = state::lock(&plan.name)?;
        let mut state = lab.state()?;
        control_plane::start_controllers(&mut state, &Pki::of(&plan))?;
        state.save()?;
    }
    wait_ready(lab)?;
    say("all nodes are Ready");
    if config.sheave {
        install_sheave(lab)?;
        say("Sheave is rolled out");
    }
    Ok(())
}

/// Works from what is on disk and from names alone, in whatever state the lab is.
pub fn down(name: &str) -> Result<()> {
    let dir = lab_dir(name);
    let namespaces = netns::list(&netns_prefix(name));
    if !dir.exists() && namespaces.is_empty() {
        return Ok(());
    }
    let lock = state::lock(name)?;
    // A file that a crash left unreadable is no reason to leave anything behind: the namespaces name the rest.
    if let Ok(state) = State::load(name) {
        let processes: Vec<&Recorded> = state.every_process().collect();
        processes.iter().filter(|process| process.alive()).for_each(|process| drop(process.signal(KILL)));
        processes.iter().try_for_each(|process| process.end())?;
    }
    end_strays(&namespaces)?;
    for namespace in &namespaces {
        netns::delete(namespace)?;
    }
    cgroup::remove(name, None)?;
    unmount_below(&dir)?;
    fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    drop(lock);
    // Only empty when this was the last lab.
    let _ = fs::remove_dir(super::plan::LABS);
    Ok(())
}

pub fn wait_ready(lab: &Lab) -> Result<()> {
    let state = lab.state()?;
    let nodes: Vec<_> = state.nodes.keys().map(|name| format!("node/{name}")).collect();
    if nodes.is_empty() {
        return Ok(());
    }
    let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
    // Not `kubectl wait --for=create`: it gives up at once when more than one of them is not there yet.
    let there =
        wait_for("the nodes to register", NODES_WITHIN, || Ok(lab.kubectl(&[&["get"], &nodes[..]].concat()).ok()));
    let ready = |_| lab.kubectl(&[&["wait", "--for=condition=Ready", "--timeout=60s"], &nodes[..]].concat());
    there.and_then(ready).map(drop).map_err(|error| {
        let logs =
            state.nodes.keys().flat_map(|name| ["boot", "kubelet", "containerd"].map(|part| format!("{name}-{part}")));
        let logs: Vec<_> = logs.map(|log| format!("--- {log}\n{}", process::tail(&state.plan.log(&log)))).collect();
        anyhow!("{error:#}\n{}", logs.join("\n"))
    })
}

/// By one request for all of them.
pub fn wait_back(lab: &Lab, names: &[String]) -> Result<()> {
    wait_for(&format!("{} and their pods to be back", names.join(", ")), Duration::from_secs(60), || {
        let state = lab.state()?;
        let all: Value =
            serde_json::from_str(&lab.kubectl(&["get", "nodes,pods", "--all-namespaces", "-o", "json"])?)?;
        let all = all["items"].as_array().context("a list of nodes and pods")?;
        for name in names {
            state.plan.node_number(name)?;
            let Some(node) = state.nodes.get(name) else { bail!("node {name} has no power") };
            let object = all.iter().find(|object| object["kind"] == "Node" && object["metadata"]["name"] == *name);
            let object = object.with_context(|| format!("node {name} is not registered"))?;
            let pods: Vec<&Value> =
                all.iter().filter(|pod| pod["kind"] == "Pod" && pod["spec"]["nodeName"] == *name).collect();
            if !node::is_back(object, &pods, node.since) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}

pub fn import_images(lab: &Lab) -> Result<Vec<Image>> {
    let state = lab.state()?;
    let images = link_images(&state.plan)?;
    import_everywhere(&state, &images)?;
    Ok(images)
}

/// Images that were packed for this lab alone, on every node that has power.
pub fn import(lab: &Lab, images: &[Image]) -> Result<()> {
    let state = lab.state()?;
    copy_images(&state.plan, images)?;
    import_everywhere(&state, images)
}

fn import_everywhere(state: &State, images: &[Image]) -> Result<()> {
    thread::scope(|scope| {
        let nodes: Vec<_> = state.nodes.keys().map(|name| scope.spawn(|| import_on(state, name, images))).collect();
        nodes.into_iter().try_for_each(|node| node.join().map_err(|_| anyhow!("an import panicked"))?)
    })
}

pub fn install_sheave(lab: &Lab) -> Result<()> {
    let overlay = repository().join("manifests/overlays/lab");
    if !overlay.join("kustomization.yaml").exists() {
        bail!("{} is missing: start the lab with --no-sheave", overlay.display());
    }
    for name in ["sheave-controller", "sheave-speaker"] {
        let binary = image::static_binary(name);
        if !binary.exists() {
            bail!("{} is missing: `make images` builds it (or start the lab with --no-sheave)", binary.display());
        }
    }
    apply(lab, &overlay, &["--server-side", "--force-conflicts"])?;
    wait_rolled_out(lab)
}

/// `kubectl apply -k`.
pub fn apply(lab: &Lab, overlay: &Path, how: &[&str]) -> Result<()> {
    // Objects of a kind can be created only some moments after its definition.
    let overlay = overlay.to_string_lossy().into_owned();
    let apply = [&["apply", "-k", &overlay], how].concat();
    let mut last = None;
    wait_for(&format!("kubectl apply -k {overlay} to succeed"), Duration::from_secs(30), || match lab.kubectl(&apply) {
        Ok(_) => Ok(Some(())),
        Err(error) if error.to_string().contains("no matches for kind") => Ok(None),
        Err(error) => {
            last = Some(error);
            bail!("apply")
        }
    })
    .map_err(|error| last.unwrap_or(error))
}

/// Waits until every Deployment and DaemonSet is as it was ordered.
pub fn wait_rolled_out(lab: &Lab) -> Result<()> {
    let workloads = lab.kubectl(&["get", "deployments,daemonsets", "--all-namespaces", "-o", WORKLOADS])?;
    for line in workloads.lines() {
        let Some((namespace, workload)) = line.split_once(' ') else { continue };
        let rolled_out = lab.kubectl(&["--namespace", namespace, "rollout", "status", workload, "--timeout=90s"]);
        rolled_out.or_else(|error| {
            let ask = |arguments: &[&str]| {
                lab.kubectl(&[&["--namespace", namespace], arguments].concat()).unwrap_or_default()
            };
            let pods = ask(&["get", "pods", "-o", "wide"]);
            let events = ask(&["events", "--types=Warning"]);
            let logs = ask(&["logs", workload, "--all-pods", "--tail=5", "--prefix"]);
            bail!("{error:#}\n{pods}\n{events}\n{logs}")
        })?;
    }
    Ok(())
}

fn wait_api(lab: &Lab, plan: &Plan) -> Result<()> {
    wait_for("the API server to be ready", Duration::from_secs(60), || {
        let state = lab.state()?;
        let dead = state.processes.iter().find(|(_, process)| !process.alive());
        if let Some((name, _)) = dead {
            bail!("{name} ended:\n{}", process::tail(&plan.log(name)));
        }
        let answer = Command::new(kubernetes_bin().join("kubectl"))
            .env("KUBECONFIG", lab.kubeconfig())
            .args(["get", "--raw", "/readyz"])
            .output()?;
        Ok(answer.status.success().then_some(()))
    })
    .map_err(|error| anyhow!("{error:#}\n{}", control_plane::explain(plan)))
}

/// The build is a no-op of some milliseconds when everything is there, and prints itself how long it takes otherwise.
fn build_kubernetes() -> Result<()> {
    let script = repository().join("tests/kubernetes/build.sh");
    let status = Command::new(&script).status().with_context(|| script.display().to_string())?;
    if !status.success() {
        bail!("{} failed", script.display());
    }
    Ok(())
}

/// The images of `target/images` below the lab's folder, which the nodes see.
fn link_images(plan: &Plan) -> Result<Vec<Image>> {
    let images = image::pack_all(&kubernetes_bin().join("pause"))?;
    copy_images(plan, &images)?;
    Ok(images)
}

fn copy_images(plan: &Plan, images: &[Image]) -> Result<()> {
    let folder = plan.dir().join("images");
    fs::create_dir_all(&folder)?;
    for image in images {
        let copy = folder.join(image.tar.file_name().context("a file")?);
        let modified = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
        if modified(&copy).is_none_or(|copied| modified(&image.tar).is_some_and(|packed| packed > copied)) {
            fs::copy(&image.tar, &copy).with_context(|| copy.display().to_string())?;
        }
    }
    Ok(())
}

fn import_on(state: &State, name: &str, images: &[Image]) -> Result<()> {
    for image in images {
        let file = image.tar.file_name().context("a file")?.to_string_lossy().into_owned();
        let tar = state.plan.dir().join("images").join(&file);
        let mut command = node::command(state, name, &kubernetes_bin().join("ctr").to_string_lossy())?;
        command.args(["--namespace=k8s.io", "images", "import", "--no-unpack", "--local"]).arg(&tar);
        let output = command.output()?;
        if !output.status.success() {
            bail!("import {} on {name}: {}", image.name, String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    Ok(())
}

/// What runs in the lab's namespaces and was not recorded: commands of clients, and what a crash kept from being recorded.
/// A namespace with our name and its inode are proof enough that it is ours.
fn end_strays(namespaces: &[String]) -> Result<()> {
    for namespace in namespaces {
        let inode = netns::inode(namespace)?;
        for (pid, _) in process::in_netns(inode) {
            if let Ok(stray) = Recorded::of(pid) {
                stray.end()?;
            }
        }
    }
    Ok(())
}

/// Nodes mount in namespaces of their own; this is for what an interrupted boot may have left in ours.
fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let below = format!("{}/", dir.display());
    for target in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|target| target.starts_with(&below)) {
        netns::run("umount", &["--lazy", "--recursive", target])?;
    }
    Ok(())
}

/// What the machine gives too little of for a whole cluster. It stays raised.
fn raise_limits() {
    for (file, wanted) in LIMITS {
        let now = fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u32>().ok());
        if now.is_some_and(|now| now < wanted) {
            // On a machine that does not allow it the cluster may work all the same.
            let _ = fs::write(file, wanted.to_string());
        }
    }
}

const LIMITS: [(&str, u32); 2] = [
    // Each kubelet and containerd takes some of the 128 that a user has by default.
    ("/proc/sys/fs/inotify/max_user_instances", 1024),
    // All cables of a lab share one queue for each CPU. Its 1000 packets are full when a CPU does something else for a
    // tenth of a second, and what comes then is lost: a thing that no network card of a node does to another node's packets.
    ("/proc/sys/net/core/netdev_max_backlog", 100_000),
];
const KILL: nix::sys::signal::Signal = nix::sys::signal::Signal::SIGKILL;
const NODES_WITHIN: Duration = Duration::from_secs(60);
const WORKLOADS: &str = "jsonpath={range .items[*]}{.metadata.namespace} {.kind}/{.metadata.name}{\"\\n\"}{end}";
