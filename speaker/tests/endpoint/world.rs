//! Three members and a client on one segment, in network namespaces; a speaker with its file on each member, and beside it a speaker of the
//! DaemonSet with what it had on disk when it last saw an API server: keys, and a view with one Service.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use sheave_tests::lab::process::{self, Recorded};
use sheave_tests::lab::wait::wait_for;
use sheave_tests::lab::{netns, xdp};
use speaker_core::view::{
    Conditions, Endpoint, EndpointSlice, Node, Object, ObjectName, Port, Protocol, Service, ServiceAttributes,
    SpeakerState, View, VirtualIp,
};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::PATIENCE;
use crate::client::{Connection, Failure};

pub const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
/// Of the Service, on port 443. Its pods are the servers of the members.
pub const SERVICE_VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 101);
pub const MEMBERS: [&str; 3] = ["a", "b", "c"];
pub const CLIENT: &str = "client";
const SWITCH: &str = "sw";
const SOCKET: &str = "run/endpoint.sock";
/// In the same directory, as on a real node.
const POD_SOCKET: &str = "run/speaker.sock";

/// A speaker of a member.
#[derive(Clone, Copy, Debug)]
pub enum Program {
    /// Of the endpoint.
    HostSpeaker,
    /// The DaemonSet's.
    Pod,
}

pub struct World {
    dir: PathBuf,
    ca: CertifiedIssuer<'static, KeyPair>,
    tls: Arc<ClientConfig>,
    speakers: BTreeMap<&'static str, Recorded>,
    pods: BTreeMap<&'static str, Recorded>,
    servers: BTreeMap<&'static str, Recorded>,
    /// The DaemonSet's speakers that start now have the endpoint's address as that of a Service.
    pub cluster_grants_the_vip: bool,
}

impl World {
    pub fn new() -> Result<Self> {
        remove_leftovers()?;
        let mut params = CertificateParams::new(vec![])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone())?;
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let dir = std::env::temp_dir().join(name("files"));
        fs::create_dir_all(&dir)?;
        let (speakers, pods, servers) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let world = Self { dir, ca, tls: Arc::new(tls), speakers, pods, servers, cluster_grants_the_vip: true };
        world.connect_all()?;
        for node in MEMBERS {
            world.prepare(node)?;
        }
        Ok(world)
    }

    fn connect_all(&self) -> Result<()> {
        let switch = name(SWITCH);
        netns::create(&switch)?;
        netns::ip(&switch, "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set br0 up\n")?;
        // A new namespace has 1 there: the bridge would translate too.
        netns::sysctl(&switch, &[("bridge/bridge-nf-call-iptables", "0")])?;
        for role in MEMBERS.into_iter().chain([CLIENT]) {
            let (inside, port) = (name(role), format!("p-{role}"));
            netns::create(&inside)?;
            netns::ip(
                &switch,
                &format!(
                    "link add {port} type veth peer name eth0 address {} netns {inside}\nlink set {port} master br0\n",
                    mac(role)
                ),
            )?;
            // What XDP sends on must have whole checksums, and a program at the other end (tests/src/lab/topology.rs).
            netns::inside(&switch, || netns::run("ethtool", &["-K", &port, "tx", "off"]).map(drop))?;
            netns::ip(&inside, &format!("address add {}/24 dev eth0\nlink set eth0 up\n", address(role)))?;
            netns::ip(&switch, &format!("link set {port} up\n"))?;
            if role != CLIENT {
                netns::sysctl(&inside, &[("ipv4/ip_forward", "1"), ("ipv4/conf/all/rp_filter", "0")])?;
                netns::inside(&switch, || xdp::attach_pass(&port))?;
            }
        }
        Ok(())
    }

    /// The files of a member.
    fn prepare(&self, node: &str) -> Result<()> {
        let dir = self.dir.join(node);
        fs::create_dir_all(dir.join("bpf"))?;
        fs::create_dir_all(dir.join("run"))?;
        mount(Some("bpf"), &dir.join("bpf"), Some("bpf"), MsFlags::empty(), None::<&str>).context("a bpffs")?;
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec!["kubernetes.default.svc".into()])?.signed_by(&key, &self.ca)?;
        fs::write(dir.join("server.crt"), certificate.der())?;
        fs::write(dir.join("server.key"), key.serialize_der())?;
        let members: Vec<String> = MEMBERS.iter().map(|name| self.member_line(name)).collect();
        let file = format!(
            "addresses: [{VIP}]
ports:
- listen: 6443
- {{listen: 8443, target: 6443}}
- {{listen: 9443, target: 6443, sources: [198.51.100.0/24]}}
members:
{}key: {KEY}
health: {{caFile: {}}}
",
            members.concat(),
            dir.join("ca.crt").display()
        );
        fs::write(dir.join("endpoint.yaml"), file)?;
        Ok(fs::set_permissions(dir.join("endpoint.yaml"), fs::Permissions::from_mode(0o600))?)
    }

    pub fn start_speaker(&mut self, node: &'static str) -> Result<()> {
        let dir = self.dir.join(node);
        let mut command = Command::new(env!("CARGO_BIN_EXE_sheave-speaker"));
        command.args(["--log-format", "text", "endpoint"]);
        for (flag, path) in [
            ("--config", "endpoint.yaml"),
            ("--pin-dir", "bpf/sheave"),
            ("--state-dir", "state"),
            ("--local-socket", SOCKET),
        ] {
            command.arg(flag).arg(dir.join(path));
        }
        self.speakers.insert(node, self.start(command, node, "speaker")?);
        Ok(())
    }

    /// Until then its file names one that is not there.
    pub fn give_ca(&self, node: &str) -> Result<()> {
        let pem = STANDARD.encode(self.ca.der());
        let certificate = format!("-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n");
        Ok(fs::write(self.dir.join(node).join("ca.crt"), certificate)?)
    }

    /// Of the endpoint's speaker, which does not run.
    pub fn lose_state(&self, node: &str) -> Result<()> {
        Ok(fs::remove_dir_all(self.dir.join(node).join("state"))?)
    }

    /// The switch loses it, until it does no longer.
    pub fn filter_multicast(&self, filters: bool) -> Result<()> {
        let rules = match filters {
            true => {
                "add table bridge filter; add chain bridge filter group { type filter hook forward priority 0; }; \
                 add rule bridge filter group ip daddr 224.0.0.0/4 drop"
            }
            false => "delete table bridge filter",
        };
        netns::inside(&name(SWITCH), || netns::run("nft", &[rules]).map(drop))
    }

    pub fn file(&self, node: &str) -> Result<String> {
        Ok(fs::read_to_string(self.dir.join(node).join("endpoint.yaml"))?)
    }

    /// In place.
    pub fn write_file(&self, node: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.dir.join(node).join("endpoint.yaml"), text)?)
    }

    /// By another file that is renamed, as editors do.
    pub fn replace_file(&self, node: &str, change: impl Fn(&str) -> String) -> Result<()> {
        let (before, dir) = (self.file(node)?, self.dir.join(node));
        let text = change(&before);
        ensure!(text != before, "the file of {node} stays as it is: {before}");
        let other = dir.join("endpoint.yaml.new");
        fs::write(&other, text)?;
        fs::set_permissions(&other, fs::Permissions::from_mode(0o600))?;
        Ok(fs::rename(other, dir.join("endpoint.yaml"))?)
    }

    /// Of the file.
    pub fn member_line(&self, name: &str) -> String {
        format!("- {{name: {name}, address: {}}}\n", address(name))
    }

    pub fn hang_up(&self, node: &str) -> Result<()> {
        self.speakers.get(node).context("it runs")?.signal(Signal::SIGHUP)
    }

    pub fn speaker_log(&self, node: &str) -> Result<String> {
        Ok(fs::read_to_string(self.log(node, "speaker"))?)
    }

    /// The next key of the endpoint, beside the one until now, from the next start on.
    pub fn give_next_key(&self, node: &str) -> Result<()> {
        let file = self.dir.join(node).join("endpoint.yaml");
        let text = fs::read_to_string(&file)?;
        let both = format!("key: {NEXT_KEY}\npreviousKey: {KEY}\n");
        Ok(fs::write(file, text.replace(&format!("key: {KEY}\n"), &both))?)
    }

    /// What a speaker of the DaemonSet is that was here before: it has its keys, and the cluster's view.
    fn remember(&self, node: &str) -> Result<()> {
        let dir = self.dir.join(node).join("pod-state");
        fs::create_dir_all(&dir)?;
        if dir.join("keys.json").exists() {
            return Ok(());
        }
        let entry = |length| STANDARD.encode(vec![7_u8; length]);
        let (key, cluster, flow) = (entry(32), entry(8), entry(16));
        let keys = format!(
            r#"{{"kubernetes": null, "cluster-id": "{cluster}", "flow-hash": "{flow}", "confirmed": true, "signing": "{key}", "other": null,
"current": "{key}", "previous": null}}"#
        );
        fs::write(dir.join("keys.json"), keys)?;
        Ok(fs::write(dir.join("view.json"), serde_json::to_vec(&view(self.cluster_grants_the_vip))?)?)
    }

    /// The nftables tables in a node's namespace.
    pub fn tables(&self, node: &str) -> Result<String> {
        self.inside(node, || netns::run("nft", &["list", "tables"]))
    }

    pub fn rules(&self, node: &str, table: &str) -> Result<String> {
        self.inside(node, || netns::run("nft", &["list", "table", "ip", table]))
    }

    /// As a third party would.
    pub fn delete_table(&self, node: &str) -> Result<()> {
        self.inside(node, || netns::run("nft", &["delete", "table", "ip", "sheave"]).map(drop))
    }

    /// Of a file below the directory for BPF of a node.
    pub fn pin(&self, node: &str, name: &str) -> PathBuf {
        self.dir.join(node).join("bpf").join(name)
    }

    /// As in manifests/base/speaker.yaml; its paths are those of the host speaker, but for state and socket.
    pub fn start_pod(&mut self, node: &'static str) -> Result<()> {
        self.remember(node)?;
        let dir = self.dir.join(node);
        let kubeconfig = dir.join("kubeconfig");
        fs::write(
            &kubeconfig,
            "{apiVersion: v1, kind: Config, current-context: away, users: [{name: away, user: {token: none}}],
clusters: [{name: away, cluster: {server: 'https://127.0.0.1:1'}}], contexts: [{name: away, context: {cluster: away, user: away}}]}",
        )?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_sheave-speaker"));
        command.args(["--log-format", "text", "run", "--node-name", node, "--node-ip", &address(node).to_string()]);
        command.args(["--sysctl-dir", "/proc/sys/net"]).env("KUBECONFIG", kubeconfig);
        for (flag, path) in [("--pin-dir", "bpf/sheave"), ("--state-dir", "pod-state"), ("--local-socket", POD_SOCKET)]
        {
            command.arg(flag).arg(dir.join(path));
        }
        self.pods.insert(node, self.start(command, node, "pod")?);
        Ok(())
    }

    /// Returns when it has ended.
    pub fn end(&mut self, node: &str, program: Program, signal: Signal) -> Result<()> {
        let of_kind = match program {
            Program::HostSpeaker => &mut self.speakers,
            Program::Pod => &mut self.pods,
        };
        let process = of_kind.remove(node).with_context(|| format!("no {program:?} runs on {node}"))?;
        process.signal(signal)?;
        wait_for(&format!("the {program:?} of {node} to end"), PATIENCE, || Ok((!process.alive()).then_some(())))
    }

    pub fn pid(&self, node: &str, program: Program) -> Result<i32> {
        let process = match program {
            Program::HostSpeaker => self.speakers.get(node),
            Program::Pod => self.pods.get(node),
        };
        Ok(process.filter(|process| process.alive()).with_context(|| format!("no {program:?} runs on {node}"))?.pid)
    }

    /// As in manifests/uninstall, with the paths of the DaemonSet; of the host speaker if it is the one.
    pub fn uninstall(&self, node: &str, flags: &[&str]) -> Result<()> {
        let dir = self.dir.join(node);
        let path = |name: &str| dir.join(name).display().to_string();
        let (state, socket) = match flags.contains(&"--host-speaker") {
            true => ("state", SOCKET),
            false => ("pod-state", POD_SOCKET),
        };
        let (pins, state, socket) = (path("bpf/sheave"), path(state), path(socket));
        let mut words = vec!["uninstall", "--pin-dir", &pins, "--state-dir", &state, "--local-socket", &socket];
        words.extend(["--sysctl-dir", "/proc/sys/net"]);
        words.extend(flags);
        self.inside(node, || {
            let output = Command::new(env!("CARGO_BIN_EXE_sheave-speaker")).args(&words).output()?;
            // Its log is on the first one.
            let said = [output.stdout, output.stderr].concat();
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&said));
            Ok(())
        })
    }

    /// The local socket of the DaemonSet's speaker on this node.
    pub fn pod_socket(&self, node: &str) -> PathBuf {
        self.dir.join(node).join(POD_SOCKET)
    }

    /// The local socket of the speaker on this node.
    pub fn socket(&self, node: &str) -> PathBuf {
        self.dir.join(node).join(SOCKET)
    }

    /// In the network namespace of a node.
    pub fn inside<T: Send>(&self, node: &str, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        netns::inside(&name(node), what)
    }

    pub fn start_server(&mut self, node: &'static str) -> Result<()> {
        let dir = self.dir.join(node);
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", node]).arg(dir.join("server.crt")).arg(dir.join("server.key"));
        self.servers.insert(node, self.start(command, node, "server")?);
        Ok(())
    }

    /// It ends with this process.
    fn start(&self, mut command: Command, node: &str, what: &str) -> Result<Recorded> {
        netns::enter(&mut command, &name(node))?;
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from));
        }
        process::start(command, &self.log(node, what))
    }

    pub fn kill_speaker(&mut self, node: &str) -> Result<()> {
        self.speakers.remove(node).context("it runs")?.end()
    }

    pub fn signal_server(&mut self, node: &str, signal: Signal) -> Result<()> {
        match signal {
            Signal::SIGKILL => self.servers.remove(node).context("it runs")?.end(),
            signal => self.servers.get(node).context("it runs")?.signal(signal),
        }
    }

    pub fn connect(&self, from: &str, port: u16) -> Result<Connection, Failure> {
        self.connector(from, port)()
    }

    /// The same, for another thread.
    pub fn connector(&self, from: &str, port: u16) -> impl Fn() -> Result<Connection, Failure> + Send + use<> {
        self.connector_to(from, SocketAddr::from((VIP, port)))
    }

    pub fn connector_to(&self, from: &str, to: SocketAddr) -> impl Fn() -> Result<Connection, Failure> + Send + use<> {
        let (tls, from) = (self.tls.clone(), name(from));
        move || {
            let tls = tls.clone();
            let opened = netns::inside(&from, || Ok(Connection::open(to, tls)));
            opened.unwrap_or_else(|error| Err(Failure::Other(error.to_string())))
        }
    }

    pub fn addresses(&self, node: &str) -> Result<String> {
        netns::run("ip", &["-netns", &name(node), "-oneline", "address"])
    }

    /// Whose MAC address the client has for the VIP.
    pub fn owner(&self) -> Result<Option<&'static str>> {
        self.owner_of(VIP)
    }

    pub fn owner_of(&self, vip: Ipv4Addr) -> Result<Option<&'static str>> {
        let entry = netns::run("ip", &["-netns", &name(CLIENT), "neighbour", "show", &vip.to_string()])?;
        Ok(MEMBERS.into_iter().find(|node| entry.contains(&mac(node))))
    }

    pub fn print_logs(&self) {
        for node in MEMBERS {
            for what in ["speaker", "pod", "server"] {
                println!("--- {what} on {node}\n{}", fs::read_to_string(self.log(node, what)).unwrap_or_default());
            }
        }
    }

    fn log(&self, node: &str, what: &str) -> PathBuf {
        self.dir.join(node).join(format!("{what}.log"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let speakers = self.speakers.values().chain(self.pods.values());
        for process in speakers.chain(self.servers.values()) {
            report(process.end());
        }
        report(remove(std::process::id()));
    }
}

fn report(result: Result<()>) {
    if let Err(error) = result {
        eprintln!("cleanup: {error:#}");
    }
}

/// Of runs that were killed.
fn remove_leftovers() -> Result<()> {
    let pids = netns::list(PREFIX).into_iter().filter_map(|name| name.split('-').nth(2)?.parse::<u32>().ok());
    for pid in pids.collect::<std::collections::BTreeSet<_>>() {
        if !PathBuf::from(format!("/proc/{pid}")).exists() {
            remove(pid)?;
        }
    }
    Ok(())
}

fn remove(pid: u32) -> Result<()> {
    for name in netns::list(&format!("{PREFIX}{pid}-")) {
        netns::delete(&name)?;
    }
    let dir = std::env::temp_dir().join(format!("{PREFIX}{pid}-files"));
    for node in MEMBERS {
        let bpf = dir.join(node).join("bpf");
        if bpf.exists() {
            umount2(&bpf, MntFlags::MNT_DETACH).ok();
        }
    }
    if dir.exists() { Ok(fs::remove_dir_all(dir)?) } else { Ok(()) }
}

fn name(role: &str) -> String {
    format!("{PREFIX}{}-{role}", std::process::id())
}

pub fn address(role: &str) -> IpAddr {
    address_v4(role).into()
}

fn address_v4(role: &str) -> Ipv4Addr {
    let last = MEMBERS.iter().position(|member| *member == role).map_or(50, |index| 11 + index as u8);
    Ipv4Addr::from([192, 0, 2, last])
}

/// The cluster, as the DaemonSet's speakers last knew it. `grants_the_vip`: it has taken the endpoint's address for its Service, too.
fn view(grants_the_vip: bool) -> View {
    let port = |port| Port { name: String::new(), port, protocol: Protocol::Tcp };
    let service = ObjectName::new("default", "web");
    let pod =
        |node: &str| Endpoint { address: address_v4(node), node: Some(node.into()), conditions: Conditions::READY };
    let slice = EndpointSlice {
        service: service.name.clone(),
        ports: vec![port(6443)],
        endpoints: MEMBERS.iter().map(|node| pod(node)).collect(),
    };
    let vip = VirtualIp { pool: "pool".into(), services: vec![service.clone()], ..VirtualIp::default() };
    let speaker = |node: &str| SpeakerState { addresses: vec![address_v4(node)], ..SpeakerState::default() };
    let mut objects = vec![
        Object::Service(service.clone(), Service { ports: vec![port(443)], attributes: ServiceAttributes::default() }),
        Object::EndpointSlice(service, slice),
        Object::VirtualIp(SERVICE_VIP, vip.clone()),
    ];
    objects.extend(grants_the_vip.then_some(Object::VirtualIp(VIP, vip)));
    for node in MEMBERS {
        objects.push(Object::Node(node.into(), Node::at(address_v4(node))));
        objects.push(Object::SpeakerState(node.into(), speaker(node)));
    }
    View::from(objects)
}

fn mac(role: &str) -> String {
    let IpAddr::V4(address) = address(role) else { unreachable!("all are IPv4") };
    format!("02:00:00:00:00:{:02x}", address.octets()[3])
}

const PREFIX: &str = "sheave-ep-";
pub const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
pub const NEXT_KEY: &str = "AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
