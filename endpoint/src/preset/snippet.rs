//! What the distribution itself must be told, for a person to copy. None of it is run by us.

use super::{Plan, Preset};

/// How long an API server that is told to end goes on serving, not ready (--shutdown-delay-duration): two checks and the hand-over to the
/// others take less than one second.
pub const SHUTDOWN_DELAY: &str = "3s";

impl Plan {
    /// Its configuration, and the commands that take it, in the order of the installation.
    pub fn snippet(&self) -> String {
        let Some(vip) = self.addresses.first() else { return String::new() };
        let list = |indent: &str| self.addresses.iter().map(|vip| format!("{indent}- {vip}\n")).collect::<String>();
        let first = self.members.first().map_or("", |member| member.name.as_str());
        match self.preset {
            Preset::Kubeadm => format!(
                "# kubeadm-config.yaml on {first} (v1beta4: kubeadm 1.31 and newer); then
#   kubeadm init --config kubeadm-config.yaml --upload-certs
# and on the others the `kubeadm join {vip}:6443 --control-plane` that it prints.
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
controlPlaneEndpoint: {vip}:6443
apiServer:
  certSANs:
{}  extraArgs:
  # It goes on serving while the speakers learn that it is not ready.
  - name: shutdown-delay-duration
    value: {SHUTDOWN_DELAY}
",
                list("  ")
            ),
            Preset::K3s => format!(
                "# /etc/rancher/k3s/config.yaml on {first}, the first server:
cluster-init: true
tls-san:
{san}
# /etc/rancher/k3s/config.yaml on the other servers (agents: server and token alone):
server: https://{vip}:6443
token: # that of {first}: /var/lib/rancher/k3s/server/token
tls-san:
{san}",
                san = list("")
            ),
            Preset::Rke2 => format!(
                "# /etc/rancher/rke2/config.yaml on {first}, the first server:
tls-san:
{san}
# /etc/rancher/rke2/config.yaml on the other servers (agents: server and token alone):
server: https://{vip}:9345
token: # that of {first}: /var/lib/rancher/rke2/server/node-token
tls-san:
{san}",
                san = list("")
            ),
            Preset::K0s => format!(
                "# /etc/k0s/k0s.yaml on every controller. With externalAddress k0s refuses node-local load balancing
# (spec.network.nodeLocalLoadBalancing): workers reach the controllers through the address.
apiVersion: k0s.k0sproject.io/v1beta1
kind: ClusterConfig
metadata:
  name: k0s
spec:
  api:
    externalAddress: {vip}
    sans:
{}    extraArgs:
      # It goes on serving while the speakers learn that it is not ready.
      shutdown-delay-duration: {SHUTDOWN_DELAY}
",
                list("    ")
            ),
            Preset::MicroK8s => self.microk8s(),
        }
    }

    /// refresh-certs keeps the CA when one certificate is named.
    fn microk8s(&self) -> String {
        let numbered = self.addresses.iter().enumerate();
        let lines: String = numbered.map(|(index, vip)| format!("IP.{} = {vip}\n", 100 + index)).collect();
        let vip = self.addresses.first().map(ToString::to_string).unwrap_or_default();
        let join = if self.with_join {
            "# Port 25000 is served, too: a token of `microk8s add-node` is known to the member alone that made it, so that
# joining through the address works for tokens that all members have (--token with add-node on each of them).
"
        } else {
            ""
        };
        format!(
            "# On every member, in /var/snap/microk8s/current/certs/csr.conf.template, below the line #MOREIPS:
{lines}# and then:
#   microk8s refresh-certs --cert server.crt
# Kubeconfigs (`microk8s config`) name https://{vip}:16443 as server.
{join}"
        )
    }
}
