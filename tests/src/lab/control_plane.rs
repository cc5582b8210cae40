//! etcd, the API servers, the controller manager, the scheduler, and a relay from this machine's loopback. API servers on the nodes:
//! [`super::ha`].

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use super::certs::{ADMIN, CONTROLLER_MANAGER, Pki, SCHEDULER};
use super::plan::{API_PORT, Plan, SERVICE_RANGE, SERVICE_RANGE_V6, kubernetes_bin};
use super::process::{self, Recorded};
use super::state::State;
use super::{netns, service};
use crate::traffic;

/// etcd, the API servers and the way to them.
pub fn start(state: &mut State, pki: &Pki) -> Result<()> {
    let plan = state.plan.clone();
    let (role, _) = plan.control_plane_alone()[0].clone();
    start_etcd(state)?;
    for (role, _) in plan.control_plane() {
        start_api_server(state, &role)?;
    }
    start_access(state, pki, &role)
}

/// Also how it starts again, with what is in its folder then.
pub fn start_etcd(state: &mut State) -> Result<()> {
    let plan = &state.plan;
    let (role, address) = plan.control_plane_alone()[0].clone();
    let arguments = [
        format!("--data-dir={}", plan.dir().join(ETCD).display()),
        format!("--listen-client-url=http://{address}:2379"),
        "--listen-peer-url=http://127.0.0.1:2380".to_owned(),
    ];
    let etcd = part(plan, ETCD, &role, ETCD, &arguments)?;
    state.processes.insert(ETCD.to_owned(), etcd);
    Ok(())
}

/// Once an API server is ready: the controller manager ends for good if it may not read /healthz within ten seconds, and
/// the roles that allow it are made by the API server after its start. Under a kubelet it would start again.
pub fn start_controllers(state: &mut State, pki: &Pki) -> Result<()> {
    let plan = state.plan.clone();
    let (role, server) = match plan.control_plane_alone().into_iter().next() {
        Some((role, address)) => (role, SocketAddrV4::new(address, API_PORT)),
        // By the endpoint, and on none of its nodes: they outlive each.
        None => ("client".to_owned(), plan.api()),
    };
    for (name, user) in [("kube-controller-manager", CONTROLLER_MANAGER), ("kube-scheduler", SCHEDULER)] {
        let config = plan.dir().join(format!("{name}.kubeconfig"));
        pki.kubeconfig(&config, user, server)?;
        let process = part(&plan, name, &role, name, &controller_arguments(name, &config.to_string_lossy(), pki))?;
        state.processes.insert(name.to_owned(), process);
    }
    Ok(())
}

/// The administrator's kubeconfigs, and the relay that one of them names, which runs in a namespace.
pub fn start_access(state: &mut State, pki: &Pki, role: &str) -> Result<()> {
    let (dir, server) = (state.plan.dir(), state.plan.api());
    state.relay_port = start_relay(state, "relay", role, server)?;
    pki.kubeconfig(&dir.join("kubeconfig"), ADMIN, SocketAddrV4::new(Ipv4Addr::LOCALHOST, state.relay_port))?;
    pki.kubeconfig(&dir.join("kubeconfig.segment"), ADMIN, server)
}

/// Also how a stopped API server starts again: the data is in etcd.
pub fn start_api_server(state: &mut State, role: &str) -> Result<()> {
    let plan = state.plan.clone();
    if plan.endpoint.is_some() {
        return service::start(state, role, API_SERVER).map(drop);
    }
    let servers = plan.control_plane();
    let (_, address) =
        servers.iter().find(|(name, _)| name == role).with_context(|| format!("no API server {role}"))?;
    let pki = Pki::of(&plan);
    let mut arguments = api_server_arguments(role, SocketAddrV4::new(*address, API_PORT), servers[0].1, &pki);
    if plan.dual_stack {
        // Of a flag that is given twice the second counts.
        arguments.push(format!("--service-cluster-ip-range={SERVICE_RANGE},{SERVICE_RANGE_V6}"));
    }
    let name = api_server_name(role);
    let process = part(&plan, API_SERVER, role, &name, &arguments)?;
    state.processes.insert(name, process);
    Ok(())
}

pub fn stop_api_server(state: &mut State, role: &str) -> Result<()> {
    if state.plan.endpoint.is_some() {
        return service::stop(state, role, API_SERVER);
    }
    match state.processes.get(&api_server_name(role)) {
        Some(process) => process.end(),
        None => Ok(()),
    }
}

fn api_server_name(role: &str) -> String {
    format!("{API_SERVER}-{role}")
}

pub fn api_server_arguments(role: &str, address: SocketAddrV4, etcd: Ipv4Addr, pki: &Pki) -> Vec<String> {
    vec![
        format!("--etcd-servers=http://{etcd}:2379"),
        format!("--advertise-address={}", address.ip()),
        "--bind-address=0.0.0.0".to_owned(),
        format!("--secure-port={}", address.port()),
        format!("--tls-cert-file={}", pki.server(role, "crt")),
        format!("--tls-private-key-file={}", pki.server(role, "key")),
        format!("--client-ca-file={}", pki.file("ca.crt")),
        format!("--token-auth-file={}", pki.file("tokens.csv")),
        // As on a cluster in earnest: the tests show with which rights Sheave works.
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", pki.file("accounts.pub")),
        format!("--service-account-signing-key-file={}", pki.file("accounts.key")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--profiling=false".to_owned(),
    ]
}

fn controller_arguments(name: &str, kubeconfig: &str, pki: &Pki) -> Vec<String> {
    let mut arguments = vec![format!("--kubeconfig={kubeconfig}"), "--leader-elect=false".to_owned()];
    if name == "kube-controller-manager" {
        arguments.extend([
            format!("--service-account-private-key-file={}", pki.file("accounts.key")),
            format!("--root-ca-file={}", pki.file("ca.crt")),
            "--use-service-account-credentials=true".to_owned(),
            // A node that lost power is NotReady after 16 s instead of 50: tests wait for that.
            "--node-monitor-period=2s".to_owned(),
            "--node-monitor-grace-period=16s".to_owned(),
        ]);
    }
    arguments
}

fn part(plan: &Plan, program: &str, role: &str, log: &str, arguments: &[String]) -> Result<Recorded> {
    let mut command = Command::new(kubernetes_bin().join(program));
    command.args(arguments).current_dir(plan.dir());
    netns::enter(&mut command, &plan.netns(role))?;
    process::start(command, &plan.log(log))
}

/// Lets kubectl and the tests of this machine reach the API server: the socket that listens was made in the machine's
/// namespace and is handed to a process inside the lab, which connects there. No device joins the two.
fn start_relay(state: &mut State, name: &str, role: &str, server: SocketAddrV4) -> Result<u16> {
    let plan = &state.plan;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a port on loopback for the API server")?;
    let port = listener.local_addr()?.port();
    let descriptor = listener.as_raw_fd();
    let mut command = Command::new(traffic::binary()?);
    command.args(["relay", "--descriptor", &descriptor.to_string(), "--to", &server.to_string()]);
    netns::enter(&mut command, &plan.netns(role))?;
    // SAFETY: fcntl is async-signal-safe. The listener itself stays open until the process has started.
    unsafe {
        command.pre_exec(move || match libc::fcntl(descriptor, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let relay = process::start(command, &plan.log(name))?;
    state.processes.insert(name.to_owned(), relay);
    Ok(port)
}

/// A way of its own to one of several API servers: the port of this machine's loopback.
pub fn start_way(state: &mut State, role: &str) -> Result<u16> {
    let servers = state.plan.control_plane();
    let (_, address) =
        servers.iter().find(|(name, _)| name == role).with_context(|| format!("no API server {role}"))?;
    start_relay(state, &format!("relay-{role}"), role, SocketAddrV4::new(*address, API_PORT))
}

/// What went wrong, from the logs, when the control plane does not come up.
pub fn explain(plan: &Plan) -> String {
    let logs = ["etcd", "kube-apiserver-cp"].map(|name| {
        let log = plan.log(name);
        let size = fs::metadata(&log).map(|found| found.len()).unwrap_or(0);
        format!("--- {} ({size} bytes)\n{}", log.display(), process::tail(&log))
    });
    logs.join("\n")
}

const API_SERVER: &str = "kube-apiserver";
const ETCD: &str = "etcd";
