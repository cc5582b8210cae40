//! The static pod. It refers to nothing that an API server would have to give: no Secret, ConfigMap, ServiceAccount, no environment.

use std::collections::BTreeSet;
use std::path::Path;

use super::{FILE, Plan};

/// The file's name in the kubelet's folder.
pub const MANIFEST: &str = "sheave-endpoint.yaml";

impl Plan {
    pub(super) fn pod(&self) -> String {
        let distribution = self.preset.distribution();
        let image = self.image.as_deref().and_then(reference).unwrap_or_default();
        let (certificate, key) = distribution.client;
        // Whole folders: files are renewed by renaming, and come after the pod.
        let folders: BTreeSet<&str> = [distribution.ca, certificate, key].into_iter().filter_map(folder).collect();
        let mut mounts = String::new();
        let mut volumes = String::new();
        for (index, folder) in folders.into_iter().enumerate() {
            mounts.push_str(&format!(
                "    - name: credentials-{index}\n      mountPath: {folder}\n      readOnly: true\n"
            ));
            volumes.push_str(&format!(
                "  - name: credentials-{index}\n    hostPath:\n      path: {folder}\n      type: DirectoryOrCreate\n"
            ));
        }
        let config = folder(FILE).unwrap_or("/");
        format!(
            "# Written by `sheave endpoint init --preset {preset}`: the speaker that serves {FILE}. The kubelet starts it
# without an API server.
apiVersion: v1
kind: Pod
metadata:
  name: sheave-endpoint
  namespace: kube-system
  labels:
    app.kubernetes.io/name: sheave-endpoint
spec:
  # It handles packets of the node itself.
  hostNetwork: true
  # It resolves no names.
  dnsPolicy: Default
  # As kubeadm has it for the API server.
  priorityClassName: system-node-critical
  priority: 2000001000
  # Enough to hand its addresses over before it lets them go.
  terminationGracePeriodSeconds: 10
  containers:
  - name: speaker
    image: {image}
    imagePullPolicy: IfNotPresent
    args:
    - endpoint
    - --config
    - {FILE}
    - --sysctl-dir
    - /host/proc/sys/net
    livenessProbe:
      httpGet:
        host: 127.0.0.1
        path: /livez
        port: 7486
      periodSeconds: 10
      timeoutSeconds: 3
    resources:
      requests:
        cpu: 50m
        memory: 32Mi
      limits:
        memory: 256Mi
    securityContext:
      privileged: false
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      # Capabilities reach the process only as root.
      runAsUser: 0
      seccompProfile:
        type: RuntimeDefault
      capabilities:
        drop: [ALL]
        add:
        - BPF # load programs and maps
        - NET_ADMIN # attach them; nftables, neighbours, routes
        - NET_RAW # ARP
        - PERFMON # required by the verifier for programs that read packets by pointer
        - SYS_NICE # real-time priority of the election thread
    volumeMounts:
    - name: config
      mountPath: {config}
      readOnly: true
    - name: bpf
      mountPath: /sys/fs/bpf
      mountPropagation: HostToContainer
    - name: state
      mountPath: /var/lib/sheave-endpoint
    - name: run
      mountPath: /run/sheave
    - name: sysctl-net
      mountPath: /host/proc/sys/net
{mounts}  volumes:
  - name: config
    hostPath:
      path: {config}
      type: Directory
  # Maps and links are pinned here and outlive the pod.
  - name: bpf
    hostPath:
      path: /sys/fs/bpf
      type: Directory
  - name: state
    hostPath:
      path: /var/lib/sheave-endpoint
      type: DirectoryOrCreate
  - name: run
    hostPath:
      path: /run/sheave
      type: DirectoryOrCreate
  # /proc/sys is read-only in a container; ICMP redirects are switched off on the uplink.
  - name: sysctl-net
    hostPath:
      path: /proc/sys/net
      type: Directory
{volumes}",
            preset = self.preset.flag()
        )
    }
}

fn folder(path: &str) -> Option<&str> {
    Path::new(path).parent()?.to_str()
}

/// As containerd keeps it (`sheave-speaker:1` is docker.io/library/sheave-speaker:1); `None`: it names no image.
pub fn reference(image: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
    let first = image.split('/').next().unwrap_or_default();
    if image.len() > MOST_REFERENCE
        || first.is_empty()
        || !image.bytes().all(allowed)
        || image.ends_with([':', '/', '@'])
    {
        return None;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    let tag = if last.contains([':', '@']) { "" } else { ":latest" };
    let is_registry = image.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let prefix = match (is_registry, image.contains('/')) {
        (true, _) => "",
        (false, true) => "docker.io/",
        (false, false) => "docker.io/library/",
    };
    Some(format!("{prefix}{image}{tag}"))
}

const MOST_REFERENCE: usize = 512;
