//! API servers on the nodes, each with an etcd member beside it, behind an address that the nodes' speakers serve from a file, or, for
//! comparison, keepalived and HAProxy on the same nodes.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use sheave_tests::lab::ha::{self, Ha, Part};
//! use sheave_tests::lab::{Balancer, Distribution, Lab, quiet};
//! let speaker = Balancer::Sheave("target/debug/sheave-speaker".into(), Distribution::Kubeadm);
//! let lab = Lab::up(ha::config("ha", speaker, quiet))?;    // nothing of the cluster runs
//! let ha = Ha::of(&lab)?;
//! for node in ha.nodes() {
//!     ha.start_balancer(&node)?;
//!     [Part::Etcd, Part::ApiServer].into_iter().try_for_each(|part| ha.start(&node, part))?;
//! }
//! # Ok(())
//! # }
//! ```
//! Each part is a service of its node, which its first process starts again when it ends (boot.sh): [`Ha::stop`] keeps it away, also over
//! boots. What was started before a loss of power comes back with the power.

pub mod installed;
mod keepalived_haproxy;

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use sheave_endpoint::preset::SHUTDOWN_DELAY;
use sheave_endpoint::status::Status;

use super::certs::{ADMIN, Pki};
use super::control_plane::{self, api_server_arguments};
use super::fault::{Fault, usage};
use super::netns::{self, run};
use super::plan::{Balancer, ENDPOINT, Endpoint, LabConfig, Plan, kubernetes_bin, node_address};
use super::process::{self, Recorded};
use super::{Lab, service, wait_for};
use crate::traffic;
use installed::{CLIENT_CERTIFICATE, CLIENT_KEY};

/// A lab with API servers on its nodes.
#[derive(Clone, Debug)]
pub struct Ha {
    pub lab: Lab,
    plan: Plan,
    endpoint: Endpoint,
}

/// What runs on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Etcd,
    ApiServer,
    /// On the further ports of the distribution, if it has any.
    Further,
    Speaker,
    Haproxy,
    Keepalived,
    Containerd,
    Kubelet,
    KubeProxy,
}

/// Three nodes, and none of their parts runs.
pub fn config(name: &str, balancer: Balancer, progress: fn(f64, &str)) -> LabConfig {
    let endpoint = Some(Endpoint { address: ENDPOINT, balancer });
    LabConfig { name: name.to_owned(), sheave: false, endpoint, progress, ..LabConfig::default() }
}

impl Ha {
    pub fn of(lab: &Lab) -> Result<Self> {
        let plan = lab.state()?.plan;
        let endpoint = plan.endpoint.clone().context("the lab's API servers are not on its nodes")?;
        Ok(Self { lab: lab.clone(), plan, endpoint })
    }

    /// The endpoint.
    pub fn address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.endpoint.address, self.endpoint.port())
    }

    /// The API server of a node.
    pub fn api_server(&self, node: &str) -> Result<SocketAddrV4> {
        Ok(SocketAddrV4::new(self.node_address(node)?, self.endpoint.api_port()))
    }

    /// Those of the endpoint beside the API servers' one.
    pub fn further_ports(&self) -> Vec<u16> {
        self.endpoint.further_ports()
    }

    /// What serves the endpoint on a node.
    pub fn balancer(&self) -> &'static [Part] {
        match self.endpoint.balancer {
            Balancer::Sheave(..) => &[Part::Speaker],
            Balancer::KeepalivedHaproxy(_) => &[Part::Haproxy, Part::Keepalived],
        }
    }

    pub fn start_balancer(&self, node: &str) -> Result<()> {
        self.balancer().iter().try_for_each(|part| self.start(node, *part))
    }

    /// The controller manager and the scheduler, beside the client on the segment. The endpoint has to be served.
    pub fn start_controllers(&self) -> Result<()> {
        self.lab.change(|state| control_plane::start_controllers(state, &Pki::of(&self.plan)))
    }

    pub fn nodes(&self) -> Vec<String> {
        self.plan.node_names()
    }

    pub fn node_address(&self, node: &str) -> Result<Ipv4Addr> {
        self.plan.node_number(node).map(node_address)
    }

    /// Returns when its process runs, which is before it serves.
    pub fn start(&self, node: &str, part: Part) -> Result<()> {
        let stopped = stopped(&self.plan, node).join(format!("stop-{}", part.program()));
        if stopped.exists() {
            fs::remove_file(&stopped).with_context(|| stopped.display().to_string())?;
        }
        service::start(&self.lab.state()?, node, part.program()).map(drop)
    }

    /// SIGKILL, and it stays away.
    pub fn stop(&self, node: &str, part: Part) -> Result<()> {
        keep_away(&self.plan, node, part)?;
        service::stop(&self.lab.state()?, node, part.program())
    }

    /// It ends as it likes, and stays away. Does not wait for its end.
    pub fn terminate(&self, node: &str, part: Part) -> Result<()> {
        keep_away(&self.plan, node, part)?;
        service::keep_away(&self.plan, node, part.program())?;
        self.signal(node, part, Signal::SIGTERM)
    }

    pub fn signal(&self, node: &str, part: Part, signal: Signal) -> Result<()> {
        let process = self.process(node, part)?.with_context(|| format!("{node} runs no {}", part.program()))?;
        process.signal(signal)
    }

    pub fn process(&self, node: &str, part: Part) -> Result<Option<Recorded>> {
        service::process_of(&self.lab.state()?, node, part.program())
    }

    /// Resident memory of what serves the endpoint on a node, in bytes.
    pub fn memory(&self, node: &str) -> Result<u64> {
        let names = self.balancer().iter().map(|part| part.program()).collect::<Vec<_>>();
        let processes = process::in_netns(netns::inode(&self.plan.netns(node))?);
        let mut bytes = 0;
        for (pid, _) in processes.into_iter().filter(|(_, name)| names.contains(&name.as_str())) {
            bytes += usage(&Recorded::of(pid)?)?.0;
        }
        Ok(bytes)
    }

    pub fn power_off(&self, node: &str) -> Result<()> {
        self.lab.fault(Fault::PowerOff { node: node.to_owned() })
    }

    pub fn has_power(&self, node: &str) -> Result<bool> {
        Ok(self.lab.state()?.nodes.contains_key(node))
    }

    pub fn power_on(&self, node: &str) -> Result<()> {
        self.lab.fault(Fault::PowerOn { node: node.to_owned() })
    }

    /// The node that the client on the segment sends to, by the MAC address that it has for the endpoint.
    pub fn owner(&self) -> Result<Option<String>> {
        let client = self.plan.netns("client");
        let entry = run("ip", &["-netns", &client, "neighbour", "show", &self.endpoint.address.to_string()])?;
        let mac = entry.split_whitespace().skip_while(|word| *word != "lladdr").nth(1);
        Ok(mac.and_then(mac_bytes).and_then(|mac| self.plan.node_of_mac(&mac)))
    }

    /// What the API server of a node has logged of the requests of a program.
    pub fn audit(&self, node: &str, user_agent: &str) -> Result<Vec<Value>> {
        let is_its = |event: &Value| event["userAgent"].as_str().is_some_and(|name| name.starts_with(user_agent));
        self.audited(node, user_agent, is_its)
    }

    /// The same of a user that the policy names.
    pub fn audit_of(&self, node: &str, user: &str) -> Result<Vec<Value>> {
        self.audited(node, user, |event| event["user"]["username"] == user)
    }

    fn audited(&self, node: &str, name: &str, wanted: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
        let file = self.plan.node_dir(node).join("var/log/audit.log");
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            // It has never started.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context(file.display().to_string()),
        };
        // The last line may be written now.
        let lines = text.lines().filter(|line| line.contains(name));
        Ok(lines.filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(wanted).collect())
    }

    /// Files of the authority's certificate, and of an API server's.
    pub fn authority(&self) -> PathBuf {
        Pki::of(&self.plan).file("ca.crt").into()
    }

    pub fn certificate(&self, node: &str) -> PathBuf {
        Pki::of(&self.plan).server(node, "crt").into()
    }

    /// A new certificate with a new key for a node's API server, and for the checks of its speaker: files that take the place of the old
    /// ones, as `kubeadm certs renew` writes them.
    pub fn renew_certificates(&self, node: &str) -> Result<()> {
        const NEW: &str = ".new";
        let pki = Pki::of(&self.plan);
        pki.issue_server(&self.plan, node, NEW)?;
        pki.issue_client(NEW)?;
        for what in ["key", "crt"] {
            let file = pki.server(node, what);
            fs::rename(file.clone() + NEW, &file).with_context(|| file.clone())?;
        }
        installed::renew_client_certificate(
            self,
            node,
            &[CLIENT_CERTIFICATE, CLIENT_KEY].map(|name| pki.file(name) + NEW),
        )
    }

    /// The speaker of a node is this program from now on.
    pub fn replace_speaker(&self, node: &str, program: &Path) -> Result<()> {
        let old = self.process(node, Part::Speaker)?.with_context(|| format!("{node} runs no speaker"))?;
        installed::link_speaker(self, node, program)?;
        self.terminate(node, Part::Speaker)?;
        wait_for(&format!("the speaker of {node} to end"), SPEAKER_ENDS_WITHIN, || Ok((!old.alive()).then_some(())))?;
        self.start(node, Part::Speaker)
    }

    /// By how much the wall clock of the node's speaker is wrong, which is a test build (feature `wall-offset`).
    pub fn set_wall_offset(&self, node: &str, seconds: i64) -> Result<()> {
        let file = self.plan.node_dir(node).join("run/sheave-wall-offset");
        fs::write(&file, seconds.to_string()).with_context(|| file.display().to_string())
    }

    /// `sheave endpoint status` on a node.
    pub fn status(&self, node: &str) -> Result<Status> {
        let sheave = super::image::static_binary("sheave");
        let mut command = self.lab.node_command(node, &sheave.to_string_lossy())?;
        // Its exit code says whether the endpoint is whole.
        let output = command.args(["endpoint", "status", "--output", "json"]).output().context("start sheave")?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("status of {node}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// The administrator's.
    pub fn token(&self) -> Result<String> {
        Pki::of(&self.plan).token(ADMIN)
    }

    /// Everything of the lab is below it.
    pub fn folder(&self) -> PathBuf {
        self.plan.dir()
    }

    /// The network namespace of a node, or of the client.
    pub fn netns(&self, role: &str) -> String {
        self.plan.netns(role)
    }

    /// Where a node's kubelet finds its static pods.
    pub fn static_pods(&self, node: &str) -> PathBuf {
        self.plan.node_dir(node).join("var/lib/kubelet/manifests")
    }

    /// The log of a part, for messages.
    pub fn log(&self, node: &str, part: Part) -> PathBuf {
        self.plan.log(&format!("{node}-{}", part.program()))
    }
}

impl Part {
    const ALL: [Self; 9] = [
        Self::Etcd,
        Self::ApiServer,
        Self::Further,
        Self::Speaker,
        Self::Haproxy,
        Self::Keepalived,
        Self::Containerd,
        Self::Kubelet,
        Self::KubeProxy,
    ];

    /// The name of its process.
    pub fn program(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::Further => "sheave-traffic",
            Self::Speaker => "sheave-speaker",
            Self::Haproxy => "haproxy",
            Self::Keepalived => "keepalived",
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
        }
    }
}

/// The services of a node, none of which starts with it, and what they read.
pub fn prepare(plan: &Plan, pki: &Pki, node: &str) -> Result<()> {
    let Some(endpoint) = &plan.endpoint else { return Ok(()) };
    let (dir, address) = (plan.node_dir(node), node_address(plan.node_number(node)?));
    fs::create_dir_all(dir.join("services"))?;
    fs::create_dir_all(stopped(plan, node))?;
    Part::ALL.into_iter().try_for_each(|part| keep_away(plan, node, part))?;

    let policy = plan.dir().join("audit-policy.yaml");
    fs::write(&policy, AUDIT_POLICY)?;
    let mut server = api_server_arguments(node, SocketAddrV4::new(address, endpoint.api_port()), address, pki);
    server.extend([
        format!("--audit-policy-file={}", policy.display()),
        "--audit-log-path=/var/log/audit.log".to_owned(),
        format!("--shutdown-delay-duration={SHUTDOWN_DELAY}"),
        // Else it waits a minute for watches, which do not end by themselves.
        format!("--shutdown-watch-termination-grace-period={WATCHES_END}"),
    ]);
    let mut programs = vec![
        (Part::Etcd, kubernetes_bin().join("etcd"), etcd_arguments(plan, node, address)),
        (Part::ApiServer, kubernetes_bin().join("kube-apiserver"), server),
    ];
    let further = endpoint.further_ports();
    if !further.is_empty() {
        let mut arguments = vec!["handshakes".to_owned()];
        arguments.extend(further.iter().map(|port| format!("--port={port}")));
        arguments.extend(
            [("certificate", "crt"), ("key", "key")].map(|(flag, file)| format!("--{flag}={}", pki.server(node, file))),
        );
        programs.push((Part::Further, traffic::binary()?, arguments));
    }
    match &endpoint.balancer {
        Balancer::Sheave(program, distribution) => {
            if distribution.is_anonymous_refused() {
                programs[1].2.push("--anonymous-auth=false".to_owned());
            }
            installed::prepare(plan, pki, node, program, *distribution)?;
            script(&dir, Part::Speaker, &installed::service_script())?;
        }
        Balancer::KeepalivedHaproxy(guide) => {
            programs.extend(keepalived_haproxy::prepare(plan, endpoint, *guide, node)?);
        }
    }
    for (part, program, arguments) in programs {
        script(&dir, part, &service_script(&program, &arguments))?;
    }
    Ok(())
}

fn script(node: &Path, part: Part, text: &str) -> Result<()> {
    let script = node.join("services").join(part.program());
    fs::write(&script, text).with_context(|| script.display().to_string())?;
    Ok(fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?)
}

fn etcd_arguments(plan: &Plan, node: &str, address: Ipv4Addr) -> Vec<String> {
    let peer = |address: Ipv4Addr| format!("http://{address}:2380");
    let members = plan.control_plane().into_iter().map(|(name, address)| format!("{name}={}", peer(address)));
    vec![
        format!("--name={node}"),
        "--data-dir=/var/lib/etcd".to_owned(),
        format!("--listen-client-url=http://{address}:2379"),
        format!("--listen-peer-url={}", peer(address)),
        format!("--initial-cluster={}", members.collect::<Vec<_>>().join(",")),
    ]
}

fn service_script(program: &Path, arguments: &[String]) -> String {
    let arguments: String = arguments.iter().map(|argument| format!(" \\\n    '{argument}'")).collect();
    format!("{REAL_TIME}exec '{}'{arguments}\n", program.display())
}

fn keep_away(plan: &Plan, node: &str, part: Part) -> Result<()> {
    let file = stopped(plan, node).join(format!("stop-{}", part.program()));
    fs::write(&file, "").with_context(|| file.display().to_string())
}

/// boot.sh: what stays away over a boot.
fn stopped(plan: &Plan, node: &str) -> PathBuf {
    plan.node_dir(node).join("stopped")
}

fn mac_bytes(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

/// What a service runs may become real time, as a service manager grants it (see [`super::realtime`]); and it becomes the program itself,
/// so that signals reach that.
const REAL_TIME: &str = "\
#!/bin/bash
for budget in /sys/fs/cgroup/*/system/cpu.rt_runtime_us; do
    [[ -e $budget ]] && echo 50000 >\"$budget\"
done
";
/// A speaker that ends in order hands its addresses over.
const SPEAKER_ENDS_WITHIN: Duration = Duration::from_secs(10);
/// Who asked, from where.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, users: [admin, 'system:serviceaccount:sheave-system:sheave-speaker']}
- {level: None}
";
const WATCHES_END: &str = "3s";
