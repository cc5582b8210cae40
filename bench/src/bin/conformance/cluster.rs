//! The lab as Kubernetes' suite needs it: the images it asks for, and a cluster DNS.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use sheave_tests::lab::image::{self, About, Image};
use sheave_tests::lab::plan::{self, POOL, repository};
use sheave_tests::lab::{ClientKind, Lab, LabConfig, ProxyMode};
use sheave_tests::scenario::deploy;

use crate::Side;

pub struct Cluster {
    lab: Lab,
    side: Side,
}

/// Where tests/conformance/build.sh puts what it builds.
pub fn built() -> PathBuf {
    repository().join("target/conformance")
}

impl Cluster {
    /// Without Sheave at first.
    pub fn up(name: &str, proxy_mode: ProxyMode) -> Result<Self> {
        let images = pack()?;
        let config = LabConfig {
            name: name.to_owned(),
            nodes: NODES,
            proxy_mode,
            sheave: false,
            dns: Some(DNS),
            ..LabConfig::default()
        };
        let lab = Lab::up(config)?;
        lab.import(&images)?;
        lab.apply(&dns())?;
        lab.wait_rolled_out()?;
        Ok(Self { lab, side: Side::Without })
    }

    /// One that was left up.
    pub fn attach(name: &str, proxy_mode: ProxyMode) -> Result<Self> {
        let lab = Lab::attach(name)?;
        let plan = lab.state()?.plan;
        if plan.proxy_mode != proxy_mode || plan.dns != Some(DNS) || plan.nodes != NODES {
            bail!(
                "name: lab {name:?} has kube-proxy {}, {} nodes and cluster DNS {:?}; needed: {proxy_mode}, {NODES}, {DNS}",
                plan.proxy_mode,
                plan.nodes,
                plan.dns
            );
        }
        let sheave = lab.kubectl(&["get", "namespace", "sheave-system", "--ignore-not-found", "--output=name"])?;
        Ok(Self { lab, side: if sheave.is_empty() { Side::Without } else { Side::With } })
    }

    /// There is no way back: what Sheave leaves behind is the subject of other tests.
    pub fn to(&mut self, side: Side) -> Result<()> {
        match (self.side, side) {
            (Side::Without, Side::With) => {
                self.lab.install_sheave()?;
                let (first, last) = POOL;
                self.lab.apply(&deploy::pool("conformance", first, last))?;
            }
            (Side::With, Side::Without) => bail!("Sheave is installed already"),
            _ => (),
        }
        self.side = side;
        Ok(())
    }

    pub fn side(&self) -> Side {
        self.side
    }

    /// A program behind the router, which takes nothing but packets from there to the nodes: its address is not of the nodes' range.
    pub fn outside(&self, program: &str) -> Result<Command> {
        let mut command = self.lab.client_command(ClientKind::BehindRouter, program)?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = [plan::kubernetes_bin()].into_iter().chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(folders)?).env("KUBECONFIG", self.lab.kubeconfig_inside());
        Ok(command)
    }

    pub fn down(&self) -> Result<()> {
        self.lab.down()
    }
}

/// The images by the names that the suite gives them, and CoreDNS.
fn pack() -> Result<Vec<Image>> {
    let list = built().join("images");
    let names = std::fs::read_to_string(&list).with_context(|| list.display().to_string())?;
    let name = |part: &str| {
        let found = names.lines().find(|name| name.contains(part));
        found.with_context(|| format!("{} names no image {part}", list.display()))
    };
    let agnhost =
        About { reference: name("/agnhost:")?, entrypoint: "/agnhost", command: &["pause"], path: "/usr/bin:/bin" };
    let pause = About { reference: name("/pause:")?, entrypoint: "/pause", command: &[], path: "/" };
    let coredns = About { reference: "docker.io/library/coredns:lab", entrypoint: "/coredns", command: &[], path: "/" };
    [("agnhost", agnhost), ("pause", pause), ("coredns", coredns)]
        .into_iter()
        .map(|(name, about)| {
            let tar = built().join(format!("suite-{name}.tar"));
            image::pack_as(&tar, &about, &built().join("rootfs").join(name))
        })
        .collect()
}

fn dns() -> String {
    format!(
        "apiVersion: v1
kind: ServiceAccount
metadata: {{name: coredns, namespace: kube-system}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: coredns}}
rules:
- {{apiGroups: [''], resources: [services, pods, namespaces], verbs: [list, watch]}}
- {{apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: coredns}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: coredns}}
subjects: [{{kind: ServiceAccount, name: coredns, namespace: kube-system}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: coredns, namespace: kube-system}}
data:
  Corefile: |
    .:53 {{
      errors
      ready
      kubernetes cluster.local in-addr.arpa ip6.arpa {{
        pods insecure
      }}
      cache 5
      loadbalance
    }}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: coredns, namespace: kube-system}}
spec:
  replicas: 2
  selector: {{matchLabels: {{k8s-app: kube-dns}}}}
  template:
    metadata: {{labels: {{k8s-app: kube-dns}}}}
    spec:
      serviceAccountName: coredns
      dnsPolicy: Default
      containers:
      - name: coredns
        image: coredns:lab
        imagePullPolicy: Never
        args: [-conf, /etc/coredns/Corefile]
        resources: {{requests: {{cpu: 50m}}}}
        readinessProbe: {{httpGet: {{path: /ready, port: 8181}}, periodSeconds: 1}}
        volumeMounts: [{{name: config, mountPath: /etc/coredns}}]
      volumes: [{{name: config, configMap: {{name: coredns}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system}}
spec:
  clusterIP: {DNS}
  selector: {{k8s-app: kube-dns}}
  ports:
  - {{name: dns, protocol: UDP, port: 53}}
  - {{name: dns-tcp, protocol: TCP, port: 53}}
"
    )
}

/// As many as the suite's specs ask for.
pub const NODES: u8 = 3;
const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
