//! What `sheave endpoint init` writes for each distribution of Kubernetes, and what the distribution itself must be told. Pure: a [`Plan`]
//! in, texts out.
//!
//! Read: [`Distribution`] (the table) → `file` (endpoint.yaml) → `pod` and `unit` (what starts the speaker) → `snippet`.

mod file;
mod pod;
mod snippet;
mod unit;

use std::net::Ipv4Addr;

use crate::refusal::{Refusal, Refusals};
use crate::{Check, Endpoint, Keys, Member, Port, Profile};

pub use pod::{MANIFEST, reference};
pub use snippet::SHUTDOWN_DELAY;
pub use unit::{LIBRARY, UNIT, UNIT_PATH};

/// Where the file of the endpoint is on every member.
pub const FILE: &str = "/etc/sheave/endpoint.yaml";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Preset {
    Kubeadm,
    K3s,
    Rke2,
    K0s,
    MicroK8s,
}

/// What starts the speaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// The kubelet, from a folder of manifests, without an API server.
    StaticPod,
    Systemd,
}

/// What is known of a distribution.
#[derive(Debug, PartialEq, Eq)]
pub struct Distribution {
    pub name: &'static str,
    /// What its API servers serve, the API first.
    pub ports: &'static [(u16, Check)],
    /// What only joining nodes use, and only on request.
    pub join: Option<u16>,
    /// Who signed the API servers' certificates.
    pub ca: &'static str,
    /// A client of its API servers that is on every member: certificate and key.
    pub client: (&'static str, &'static str),
    /// Where its kubelet finds static pods; `None`: nodes with its API servers run no kubelet, or none with static pods.
    pub manifests: Option<&'static str>,
    /// What is started without `--run`.
    pub run: Run,
    /// Where it takes images from when it starts.
    pub images: Option<&'static str>,
    /// A containerd client that sees the kubelet's images, and its arguments.
    pub ctr: &'static [&'static str],
}

/// kubernetes/website, "Creating Highly Available clusters with kubeadm" (commit 014c8a8): 6443 and the folder of the certificates; the
/// client is the one that kubeadm's API server shows to kubelets (`--kubelet-client-certificate`). Static pods beside kubeadm's own are
/// fine: `kubeadm init` looks for its own manifests alone, `kubeadm join` since 1.23 (kubernetes/kubernetes pull request 104942).
const KUBEADM: Distribution = Distribution {
    name: "kubeadm",
    ports: &[(6443, Check::Https)],
    join: None,
    ca: "/etc/kubernetes/pki/ca.crt",
    client: ("/etc/kubernetes/pki/apiserver-kubelet-client.crt", "/etc/kubernetes/pki/apiserver-kubelet-client.key"),
    manifests: Some("/etc/kubernetes/manifests"),
    // Its kubelet starts static pods before there is any API server.
    run: Run::StaticPod,
    images: None,
    ctr: &["ctr", "--namespace", "k8s.io"],
};

/// k3s-io/k3s pkg/daemons/control/deps/deps.go (commit 09ac65a): names of certificates below server/tls; docs.k3s.io, "Air-Gap Install":
/// agent/images. kube-proxy's certificate is the one with the fewest rights. Its API servers refuse anonymous requests with 401.
const K3S: Distribution = Distribution {
    name: "k3s",
    ports: &[(6443, Check::Https)],
    join: None,
    ca: "/var/lib/rancher/k3s/server/tls/server-ca.crt",
    client: (
        "/var/lib/rancher/k3s/server/tls/client-kube-proxy.crt",
        "/var/lib/rancher/k3s/server/tls/client-kube-proxy.key",
    ),
    manifests: Some("/var/lib/rancher/k3s/agent/pod-manifests"),
    // Its kubelet is a part of the server, and starts after it.
    run: Run::Systemd,
    images: Some("/var/lib/rancher/k3s/agent/images"),
    ctr: &["k3s", "ctr", "--namespace", "k8s.io"],
};

/// rancher/rke2-docs install/ha.md (commit 039563a): 9345 for registration, 6443 for the API; certificates as k3s has them.
const RKE2: Distribution = Distribution {
    name: "RKE2",
    ports: &[(6443, Check::Https), (9345, Check::Tls)],
    join: None,
    ca: "/var/lib/rancher/rke2/server/tls/server-ca.crt",
    client: (
        "/var/lib/rancher/rke2/server/tls/client-kube-proxy.crt",
        "/var/lib/rancher/rke2/server/tls/client-kube-proxy.key",
    ),
    manifests: Some("/var/lib/rancher/rke2/agent/pod-manifests"),
    run: Run::Systemd,
    images: Some("/var/lib/rancher/rke2/agent/images"),
    ctr: &[
        "/var/lib/rancher/rke2/bin/ctr",
        "--address",
        "/run/k3s/containerd/containerd.sock",
        "--namespace",
        "k8s.io",
    ],
};

/// k0sproject/k0s high-availability.md (commit 12ad27c): 6443, 8132 konnectivity, 9443 joining of controllers;
/// pkg/component/controller/certificates.go (commit 05a531a): admin.key is root's, the others belong to users of the components.
const K0S: Distribution = Distribution {
    name: "k0s",
    ports: &[(6443, Check::Https), (9443, Check::Tls), (8132, Check::Tls)],
    join: None,
    ca: "/var/lib/k0s/pki/ca.crt",
    client: ("/var/lib/k0s/pki/admin.crt", "/var/lib/k0s/pki/admin.key"),
    // Its controllers run no kubelet.
    manifests: None,
    run: Run::Systemd,
    images: None,
    ctr: &[],
};

/// canonical/microk8s microk8s-resources/default-args/kube-apiserver (commit 0071dd1): port 16443; actions/common/utils.sh: the client
/// certificate (1.28 and newer). 25000 is the cluster agent, which takes nodes in by tokens that one member alone knows.
const MICROK8S: Distribution = Distribution {
    name: "MicroK8s",
    ports: &[(16443, Check::Https)],
    join: Some(25000),
    ca: "/var/snap/microk8s/current/certs/ca.crt",
    client: (
        "/var/snap/microk8s/current/certs/apiserver-kubelet-client.crt",
        "/var/snap/microk8s/current/certs/apiserver-kubelet-client.key",
    ),
    // By default its kubelet looks for no static pods.
    manifests: None,
    run: Run::Systemd,
    images: None,
    ctr: &[],
};

impl Preset {
    pub const ALL: [Self; 5] = [Self::Kubeadm, Self::K3s, Self::Rke2, Self::K0s, Self::MicroK8s];

    pub fn distribution(self) -> &'static Distribution {
        match self {
            Self::Kubeadm => &KUBEADM,
            Self::K3s => &K3S,
            Self::Rke2 => &RKE2,
            Self::K0s => &K0S,
            Self::MicroK8s => &MICROK8S,
        }
    }

    /// As `--preset` has it.
    pub fn flag(self) -> String {
        self.distribution().name.to_ascii_lowercase()
    }

    fn manifest(self) -> Option<String> {
        Some(format!("{}/{MANIFEST}", self.distribution().manifests?))
    }
}

/// What a person asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    pub preset: Preset,
    pub run: Run,
    pub addresses: Vec<Ipv4Addr>,
    pub interface: Option<String>,
    /// In the order given: the first one is the first that is installed.
    pub members: Vec<Member>,
    /// Further ports of the address, and where the members serve them.
    pub also: Vec<(u16, u16)>,
    pub profile: Profile,
    /// MicroK8s: port 25000, too.
    pub with_join: bool,
    /// Of the static pod.
    pub image: Option<String>,
}

/// A file that is to be on a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub path: String,
    pub mode: u32,
    pub text: String,
}

impl Plan {
    /// The endpoint that is asked for, or everything that is wrong with it. Its file is read as a speaker would.
    pub fn endpoint(&self, keys: &Keys) -> Result<Endpoint, Refusals> {
        let mut refusals = Refusals::default();
        self.flags(&mut refusals);
        match Endpoint::parse(&self.file(keys)) {
            Ok(endpoint) => refusals.or(endpoint),
            Err(more) => {
                more.0.into_iter().for_each(|refusal| refusals.add(refusal));
                Err(refusals)
            }
        }
    }

    fn flags(&self, refusals: &mut Refusals) {
        let Distribution { name, join, manifests, .. } = self.preset.distribution();
        if self.run == Run::StaticPod && manifests.is_none() {
            let allowed = format!("systemd: {name} starts no static pods where its API servers run");
            refusals.add(Refusal::new("--run", "static-pod", allowed));
        }
        if self.with_join && join.is_none() {
            let allowed = format!("for microk8s alone; {name} joins nodes by the ports that are served anyway");
            refusals.add(Refusal::new("--with-join", "given", allowed));
        }
        let allowed =
            "the reference of an imported image of the speaker, such as docker.io/library/sheave-speaker:0.1.0";
        match (self.run, &self.image) {
            (Run::StaticPod, None) => refusals.add(Refusal::missing("--image", allowed)),
            (Run::StaticPod, Some(image)) if reference(image).is_none() => {
                refusals.add(Refusal::new("--image", image, allowed));
            }
            (Run::Systemd, Some(image)) => refusals.add(Refusal::new("--image", image, "for static pods alone")),
            _ => {}
        }
    }

    /// As they stand in the file: those of the distribution, then the further ones.
    pub fn ports(&self) -> Vec<Port> {
        let distribution = self.preset.distribution();
        let join = distribution.join.filter(|_| self.with_join).map(|port| (port, Check::Tls));
        let own: Vec<(u16, Check)> = distribution.ports.iter().copied().chain(join).collect();
        let check = |target| own.iter().find(|(port, _)| *port == target).map_or(Check::Tls, |(_, check)| *check);
        let also = self.also.iter().map(|(listen, target)| (*listen, *target, check(*target)));
        let all = own.iter().map(|(port, check)| (*port, *port, *check)).chain(also);
        all.map(|(listen, target, check)| Port { listen, target, check, sources: Vec::new() }).collect()
    }

    /// What is to be on each member, in the order in which it is written: what starts the speaker comes last.
    pub fn files(&self, keys: &Keys) -> Vec<Written> {
        let file = Written { path: FILE.into(), mode: 0o600, text: self.file(keys) };
        let start = match (self.run, self.preset.manifest()) {
            (Run::StaticPod, Some(path)) => Written { path, mode: 0o600, text: self.pod() },
            _ => Written { path: UNIT_PATH.into(), mode: 0o644, text: UNIT.into() },
        };
        vec![file, start]
    }

    /// What would start a second speaker if it were there.
    pub fn other_start(&self) -> Option<String> {
        match self.run {
            Run::StaticPod => Some(UNIT_PATH.into()),
            Run::Systemd => self.preset.manifest(),
        }
    }
}

#[cfg(test)]
mod tests;
