//! Three members, a client and another host on one segment, in network namespaces; each member has a root directory of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use sheave_endpoint::preset::{FILE, LIBRARY, Preset, Run};
use sheave_tests::lab::process::{self, Recorded};
use sheave_tests::lab::wait::wait_for;
use sheave_tests::lab::{netns, xdp};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::client::{Connection, Failure};
use crate::root::Root;

pub const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
pub const MEMBERS: [&str; 3] = ["a", "b", "c"];
pub const CLIENT: &str = "client";
pub const OTHER: &str = "other";
const SWITCH: &str = "sw";

pub struct World {
    pub dir: PathBuf,
    ca: CertifiedIssuer<'static, KeyPair>,
    tls: Arc<ClientConfig>,
    roots: BTreeMap<&'static str, Root>,
    processes: BTreeMap<String, Recorded>,
}

/// What a run of `sheave` said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub text: String,
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
        let (roots, processes) = (BTreeMap::new(), BTreeMap::new());
        let world = Self { dir, ca, tls: Arc::new(tls), roots, processes };
        world.connect_all()?;
        Ok(world)
    }

    fn connect_all(&self) -> Result<()> {
        let switch = name(SWITCH);
        netns::create(&switch)?;
        netns::ip(&switch, "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set br0 up\n")?;
        // A new namespace has 1 there: the bridge would translate too.
        netns::sysctl(&switch, &[("bridge/bridge-nf-call-iptables", "0")])?;
        for role in MEMBERS.into_iter().chain([CLIENT, OTHER]) {
            let (inside, port) = (name(role), format!("p-{role}"));
            netns::create(&inside)?;
            let link = format!("link add {port} type veth peer name eth0 address {} netns {inside}\n", mac(role));
            netns::ip(&switch, &format!("{link}link set {port} master br0\n"))?;
            // What XDP sends on must have whole checksums, and a program at the other end (tests/src/lab/topology.rs).
            netns::inside(&switch, || netns::run("ethtool", &["-K", &port, "tx", "off"]).map(drop))?;
            netns::ip(&inside, &format!("address add {}/24 dev eth0\nlink set eth0 up\n", address(role)))?;
            netns::ip(&switch, &format!("link set {port} up\n"))?;
            if MEMBERS.contains(&role) {
                netns::sysctl(&inside, &[("ipv4/ip_forward", "1"), ("ipv4/conf/all/rp_filter", "0")])?;
                netns::inside(&switch, || xdp::attach_pass(&port))?;
            }
        }
        Ok(())
    }

    /// New machines, with the programs of the archive, and the certificates where the distribution has them.
    pub fn install(&mut self, preset: Preset) -> Result<()> {
        self.end_all();
        let distribution = preset.distribution();
        for node in MEMBERS {
            let dir = self.dir.join(node);
            for old in [&dir, &dir.with_extension("pod")] {
                if old.exists() {
                    fs::remove_dir_all(old)?;
                }
            }
            let root = Root::new(&dir)?;
            root.program("/usr/local/bin/sheave", &std::env::current_exe()?)?;
            root.program(&format!("{LIBRARY}/sheave-speaker"), &speaker())?;
            root.program(&format!("{LIBRARY}/nft"), &nft()?)?;
            let client = self.certificate(vec![])?;
            root.write(distribution.ca, &pem("CERTIFICATE", self.ca.der()))?;
            root.write(distribution.client.0, &client.0)?;
            root.write(distribution.client.1, &client.1)?;
            self.roots.insert(node, root);
        }
        Ok(())
    }

    /// As PEM: certificate and key.
    fn certificate(&self, names: Vec<String>) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.ca)?;
        Ok((pem("CERTIFICATE", certificate.der()), pem("PRIVATE KEY", &key.serialize_der())))
    }

    pub fn root(&self, node: &str) -> Result<&Root> {
        self.roots.get(node).context("it is installed")
    }

    /// `sheave endpoint init` on a member.
    pub fn init(&self, node: &str, line: &str) -> Result<Said> {
        let words: Vec<&str> =
            ["/usr/local/bin/sheave", "endpoint", "init"].into_iter().chain(line.split(' ')).collect();
        let output = self.root(node)?.command(&name(node), &words)?.output().context("unshare (util-linux)")?;
        let text = [output.stdout, output.stderr].map(|part| String::from_utf8_lossy(&part).into_owned()).concat();
        Ok(Said { code: output.status.code(), text })
    }

    /// With its mode, as `scp -p` would.
    pub fn copy_file(&self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (self.root(from)?.at(FILE), self.root(to)?.at(FILE));
        fs::create_dir_all(to.parent().context("a folder")?)?;
        fs::copy(&from, &to)?;
        Ok(fs::set_permissions(&to, fs::metadata(&from)?.permissions())?)
    }

    pub fn start_speaker(&mut self, node: &'static str, preset: Preset, run: Run) -> Result<()> {
        let root = self.root(node)?;
        let command = match (run, preset.distribution().manifests) {
            (Run::StaticPod, Some(folder)) => {
                root.pod(&name(node), &format!("{folder}/{}", sheave_endpoint::preset::MANIFEST), &speaker())?
            }
            _ => root.unit(&name(node))?,
        };
        self.start(command, node, "speaker")
    }

    /// With these names in its certificate.
    pub fn start_server(&mut self, node: &'static str, ports: &BTreeSet<u16>, names: &[&str]) -> Result<()> {
        let folder = self.dir.join(format!("{node}-server"));
        fs::create_dir_all(&folder)?;
        let (certificate, key) = self.certificate(names.iter().map(ToString::to_string).collect())?;
        for (file, text) in
            [("ca.crt", pem("CERTIFICATE", self.ca.der())), ("server.crt", certificate), ("server.key", key)]
        {
            fs::write(folder.join(file), text)?;
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", node]).arg(folder).args(ports.iter().map(ToString::to_string));
        netns::enter(&mut command, &name(node))?;
        self.start(command, node, "server")
    }

    /// It ends with this process.
    pub fn start(&mut self, mut command: Command, node: &str, what: &str) -> Result<()> {
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from));
        }
        let started = process::start(command, &self.log(node, what))?;
        self.processes.insert(format!("{node}-{what}"), started);
        Ok(())
    }

    pub fn end(&mut self, node: &str, what: &str) -> Result<()> {
        self.processes.remove(&format!("{node}-{what}")).context("it runs")?.end()
    }

    /// As an administrator would: it may tidy up.
    pub fn stop(&mut self, node: &str, what: &str) -> Result<()> {
        let process = self.processes.remove(&format!("{node}-{what}")).context("it runs")?;
        process.signal(Signal::SIGTERM)?;
        wait_for(&format!("{what} to end"), Duration::from_secs(10), || Ok((!process.alive()).then_some(())))
    }

    /// The client of the containerd on member a.
    pub fn ctr(&self, words: &[&str]) -> Result<Output> {
        let words: Vec<&str> = ["/usr/local/bin/ctr", "--namespace", "k8s.io"].iter().chain(words).copied().collect();
        Ok(self.root("a")?.command(&name("a"), &words)?.output()?)
    }

    fn end_all(&mut self) {
        for (_, process) in std::mem::take(&mut self.processes) {
            report(process.end());
        }
    }

    pub fn connect(&self, from: &str, port: u16) -> Result<Connection, Failure> {
        let tls = self.tls.clone();
        let opened = netns::inside(&name(from), || Ok(Connection::open(SocketAddr::from((VIP, port)), tls)));
        opened.unwrap_or_else(|error| Err(Failure::Other(error.to_string())))
    }

    pub fn print_logs(&self) {
        for log in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if log.path().extension().is_some_and(|extension| extension == "log") {
                let text = fs::read_to_string(log.path()).unwrap_or_default();
                println!("--- {}\n{text}", log.file_name().display());
            }
        }
    }

    fn log(&self, node: &str, what: &str) -> PathBuf {
        self.dir.join(format!("{node}-{what}.log"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.end_all();
        report(remove(std::process::id()));
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

pub fn speaker() -> PathBuf {
    env!("CARGO_BIN_EXE_sheave-speaker").into()
}

fn nft() -> Result<PathBuf> {
    let places = ["/usr/sbin/nft", "/sbin/nft"].map(Path::new);
    Ok(places.into_iter().find(|path| path.exists()).context("nft (Debian package nftables)")?.to_path_buf())
}

fn report(result: Result<()>) {
    if let Err(error) = result {
        eprintln!("cleanup: {error:#}");
    }
}

/// Of runs that were killed.
fn remove_leftovers() -> Result<()> {
    let pids = netns::list(PREFIX).into_iter().filter_map(|name| name.split('-').nth(2)?.parse::<u32>().ok());
    for pid in pids.collect::<BTreeSet<_>>() {
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
    if dir.exists() { Ok(fs::remove_dir_all(dir)?) } else { Ok(()) }
}

pub fn name(role: &str) -> String {
    format!("{PREFIX}{}-{role}", std::process::id())
}

pub fn address(role: &str) -> IpAddr {
    let others = [CLIENT, OTHER].iter().position(|other| *other == role).map(|index| 50 + index as u8);
    let last = MEMBERS.iter().position(|member| *member == role).map(|index| 11 + index as u8);
    IpAddr::from([192, 0, 2, last.or(others).unwrap_or(99)])
}

pub fn mac(role: &str) -> String {
    let IpAddr::V4(address) = address(role) else { unreachable!("all are IPv4") };
    format!("02:00:00:00:00:{:02x}", address.octets()[3])
}

const PREFIX: &str = "sheave-ei-";
