//! Sheave is removed from the nodes, as manifests/uninstall does it.

use anyhow::Result;

use super::Scene;
use super::inside::on_node;
use crate::lab::plan::repository;

/// What is still on the nodes afterwards, each with its node; empty if all is as before the installation.
pub fn uninstall(scene: &Scene) -> Result<Vec<String>> {
    let lab = &scene.lab;
    let overlay = repository().join("manifests/overlays/lab-uninstall").to_string_lossy().into_owned();
    let namespace = "--namespace=sheave-system";
    lab.kubectl(&[namespace, "delete", "daemonset", "sheave-speaker", "--wait"])?;
    lab.kubectl(&["apply", "-k", &overlay])?;
    lab.kubectl(&[namespace, "rollout", "status", "daemonset", "sheave-uninstall", "--timeout=60s"])?;
    let mut left = Vec::new();
    for node in &scene.nodes {
        let found = on_node(lab, node, "sh", &["-c", LEFTOVERS])?;
        left.extend(found.lines().map(|line| format!("{node}: {line}")));
    }
    lab.kubectl(&["delete", "-k", &overlay])?;
    Ok(left)
}

/// Prints a line for each thing that should not be there. The kernel's default for ICMP redirects is 1.
const LEFTOVERS: &str = r#"
[ -e /sys/fs/bpf/sheave ] && echo "pins: $(ls /sys/fs/bpf/sheave)"
ip link show dev eth0 | grep -q xdp && echo "an XDP program on eth0"
nft list tables | grep sheave
ls /var/lib/sheave | sed 's/^/state: /'
ls /run/sheave | sed 's/^/run: /'
for device in all eth0; do
  [ "$(cat /proc/sys/net/ipv4/conf/$device/send_redirects)" = 1 ] || echo "send_redirects of $device"
done
true
"#;
