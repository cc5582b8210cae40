//! kubelets, containerd and kube-proxies on the nodes, which know the API servers by the endpoint alone, and static pods of theirs.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lab::ha::{Ha, Part};
use crate::lab::plan::kubernetes_bin;
use crate::lab::wait_for;
use crate::traffic::clock::{milliseconds, now_ns};

/// Starts them; they need no API server for that. Returns when the images are there.
pub fn start(ha: &Ha) -> Result<()> {
    for node in ha.nodes() {
        [Part::Containerd, Part::KubeProxy].into_iter().try_for_each(|part| ha.start(&node, part))?;
    }
    for node in ha.nodes() {
        wait_for(&format!("the image of pods on {node}"), IMAGE_WITHIN, || {
            let images = ctr(ha, &node, &["images", "list", "--quiet"]).unwrap_or_default();
            Ok(images.contains(IMAGE).then_some(()))
        })?;
    }
    ha.nodes().iter().try_for_each(|node| ha.start(node, Part::Kubelet))
}

/// Gives every node a static pod and starts its kubelet anew: how long until each pod runs, by node.
pub fn restart_with_pods(ha: &Ha, pod: &str) -> Result<Vec<(String, f64)>> {
    let nodes = ha.nodes();
    for node in &nodes {
        ha.stop(node, Part::Kubelet)?;
        put_static_pod(ha, node, pod)?;
    }
    let from = now_ns();
    nodes.iter().try_for_each(|node| ha.start(node, Part::Kubelet))?;
    nodes.into_iter().map(|node| Ok((node.clone(), milliseconds(from, wait_pod(ha, &node, pod)?)))).collect()
}

/// Its container has the node's own programs.
pub fn put_static_pod(ha: &Ha, node: &str, pod: &str) -> Result<()> {
    let file = ha.static_pods(node).join(format!("{pod}.yaml"));
    fs::write(&file, POD.replace("POD", pod)).with_context(|| file.display().to_string())
}

/// When its container was seen running.
pub fn wait_pod(ha: &Ha, node: &str, pod: &str) -> Result<u64> {
    wait_for(&format!("{pod} on {node}"), POD_WITHIN, || {
        let label = format!("labels.\"io.kubernetes.container.name\"=={pod}");
        let container = ctr(ha, node, &["containers", "list", "--quiet", &label])?;
        let tasks = ctr(ha, node, &["tasks", "list"])?;
        let runs = |task: &str| task.contains("RUNNING") && container.lines().any(|id| task.starts_with(id));
        Ok(tasks.lines().any(runs).then(now_ns))
    })
}

fn ctr(ha: &Ha, node: &str, arguments: &[&str]) -> Result<String> {
    let program = kubernetes_bin().join("ctr");
    let mut command = ha.lab.node_command(node, &program.to_string_lossy())?;
    let output = command.arg("--namespace=k8s.io").args(arguments).output().context("start ctr")?;
    if !output.status.success() {
        bail!("ctr {} on {node}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

const IMAGE: &str = "docker.io/library/pause:lab";
/// Prints a line a second. The image sets a PATH without /bin: a loop that finds no `sleep` takes a whole processor.
const POD: &str = r#"apiVersion: v1
kind: Pod
metadata: {name: POD, namespace: default}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers:
  - name: POD
    image: docker.io/library/pause:lab
    imagePullPolicy: Never
    command: ["/bin/sh", "-c", "while :; do echo $((n += 1)); /bin/sleep 1; done"]
    volumeMounts:
    - {name: bin, mountPath: /bin}
    - {name: lib, mountPath: /lib}
    - {name: lib64, mountPath: /lib64}
  volumes:
  - {name: bin, hostPath: {path: /usr/bin}}
  - {name: lib, hostPath: {path: /usr/lib}}
  - {name: lib64, hostPath: {path: /usr/lib64}}
"#;
const IMAGE_WITHIN: Duration = Duration::from_secs(60);
const POD_WITHIN: Duration = Duration::from_secs(60);
