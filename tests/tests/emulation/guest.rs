//! A node in a kernel of its own: Debian's, emulated, with the speaker of the images (`make images`) on an initial RAM disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use sheave_tests::lab::netns::run;
use sheave_tests::lab::plan::repository;
use speaker_core::attributes::{Prefix, ServiceAttributes};
use speaker_core::view::{
    Affinity, Conditions, Endpoint, EndpointSlice, Node, Object, ObjectName, Port, Protocol, Service, View, VirtualIp,
};

/// What a scenario found out, by name.
pub struct Findings(BTreeMap<String, String>);

impl Findings {
    /// Those whose name begins with this word, without it.
    pub fn of(&self, phase: &str) -> BTreeMap<&str, &str> {
        let all = self.0.iter().filter_map(|(name, value)| Some((name.strip_prefix(phase)?.strip_prefix('.')?, value)));
        all.map(|(name, value)| (name, value.as_str())).collect()
    }
}

/// Boots a node, plays a scenario of this folder in it, and returns when it has powered itself off.
pub fn play(scenario: &str) -> Result<Findings> {
    let work = repository().join(format!("target/emulation/{scenario}-{}", std::process::id()));
    let findings = boot(&work, scenario);
    match fs::remove_dir_all(&work) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context(work.display().to_string()),
        _ => findings,
    }
}

fn boot(work: &Path, scenario: &str) -> Result<Findings> {
    let kernel = repository().join("target/emulation/kernel");
    ensure!(kernel.join("vmlinuz").exists(), "{}: no kernel there; `make setup` fetches it", kernel.display());
    lay_out(&work.join("root"), &kernel)?;
    let [disk, console, findings] = ["initrd", "console", "findings"].map(|name| work.join(name));
    let pack = format!("cd {0}/root && find . | busybox cpio -o -H newc >{0}/initrd", work.display());
    run("sh", &["-c", &pack])?;
    // By name: hardware acceleration, where there is some, may not run this kernel.
    let mut machine = Command::new("qemu-system-x86_64");
    machine.args(["-accel", "tcg", "-cpu", "max", "-m", "512", "-nodefaults", "-display", "none", "-no-reboot"]);
    machine.arg("-kernel").arg(kernel.join("vmlinuz")).arg("-initrd").arg(disk);
    // On a busy machine the emulated timer is late, and the kernel takes it for a broken one.
    let kernel = format!("console=ttyS0 quiet panic=-1 no_timer_check scenario={scenario}");
    machine.args(["-append", &kernel]);
    for port in [&console, &findings] {
        machine.args(["-serial", &format!("file:{}", port.display())]);
    }
    let ended = end_of(machine.stdin(Stdio::null()).spawn().context("start qemu (Debian package qemu-system-x86)")?);
    let read = |file: &Path| match fs::read(file) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).context(file.display().to_string()),
    };
    let (found, said) = (read(&findings)?, read(&console)?);
    let found: BTreeMap<String, String> = found.lines().map(finding).collect();
    if let Err(error) = ended.and_then(|()| is_complete(&found)) {
        let lines: Vec<&str> = said.lines().collect();
        bail!("{scenario}: {error:#}\nfound: {found:?}\n{}", lines[lines.len().saturating_sub(120)..].join("\n"));
    }
    Ok(Findings(found))
}

/// NAME VALUE; the value may be empty.
fn finding(line: &str) -> (String, String) {
    let (name, value) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    (name.into(), value.trim().into())
}

fn is_complete(found: &BTreeMap<String, String>) -> Result<()> {
    match found.get("end").map(String::as_str) {
        Some("done") => Ok(()),
        Some(_) => bail!("the scenario failed"),
        None => bail!("the guest ended before the scenario did"),
    }
}

/// Until it powers itself off. One that does not is ended.
fn end_of(mut machine: Child) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(status) = machine.try_wait()? {
            ensure!(status.success(), "qemu: {status}");
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    machine.kill()?;
    machine.wait()?;
    bail!("the guest still runs after {PATIENCE:?}");
}

/// The guest's files.
fn lay_out(root: &Path, kernel: &Path) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulation");
    for script in ["ipvs.sh", "conntrack_full.sh"] {
        copy(&folder.join(script), &root.join(script))?;
    }
    let init = root.join("init");
    copy(&folder.join("node.sh"), &init)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let speaker = repository().join("target/images/rootfs/sheave-speaker/sheave-speaker");
    ensure!(speaker.exists(), "{}: `make images` builds it", speaker.display());
    copy(&speaker, &root.join("usr/sbin/sheave-speaker"))?;
    copy(Path::new("/bin/busybox"), &root.join("bin/busybox"))?;
    fs::create_dir_all(root.join("sbin"))?;
    // The kernel starts it by this name.
    symlink("/bin/busybox", root.join("sbin/modprobe"))?;
    for program in ["ip", "nft", "ipvsadm", "nc.openbsd"] {
        copy_program(program, root)?;
    }
    run("cp", &["-r", &kernel.join("lib/modules").to_string_lossy(), &root.join("lib").to_string_lossy()])?;
    state(root)
}

/// With its libraries.
fn copy_program(name: &str, root: &Path) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let program = folders.map(|folder| folder.join(name)).find(|path| path.exists());
    let program = program.with_context(|| format!("{name} is not installed; `make setup` installs it"))?;
    let libraries = run("ldd", &[&program.to_string_lossy()])?;
    // "name => /path (address)" for libraries, "/path (address)" for the loader.
    let paths = libraries.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    for path in paths {
        copy(Path::new(path), &root.join(path.trim_start_matches('/')))?;
    }
    copy(&program, &root.join("usr/sbin").join(name))
}

/// What a speaker that ran here before has left on the disk, and the way to an API server that does not answer.
fn state(root: &Path) -> Result<()> {
    let (dir, etc) = (root.join("var/lib/sheave"), root.join("etc"));
    fs::create_dir_all(&dir)?;
    fs::create_dir_all(&etc)?;
    fs::write(dir.join("view.json"), serde_json::to_vec(&view())?)?;
    // Base64 of 8, 16 and 32 bytes: no secrets, for nothing else has them.
    let (id, half, whole) =
        ("AQIDBAUGBwg=", "AAECAwQFBgcICQoLDA0ODw==", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
    let keys = json!({
        "kubernetes": null, "cluster-id": id, "flow-hash": half, "confirmed": true,
        "signing": whole, "other": null, "current": whole, "previous": null,
    });
    fs::write(dir.join("keys.json"), keys.to_string())?;
    let authority = etc.join("ca.crt").to_string_lossy().into_owned();
    let key = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    run("openssl", &[&key[..], &["-subj", "/CN=nobody", "-keyout", "/dev/null", "-out", &authority]].concat())?;
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "none",
        "clusters": [{"name": "none", "cluster": {"server": "https://127.0.0.1:1", "certificate-authority": "/etc/ca.crt"}}],
        "users": [{"name": "none", "user": {}}],
        "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
    });
    fs::write(etc.join("kubeconfig"), kubeconfig.to_string())?;
    Ok(())
}

/// One node and one pod at two VIPs. The second one's Service has source ranges, and the guest's client is in none of them.
fn view() -> View {
    let name = ObjectName::new("default", "web");
    let ports = |http, echo| {
        let port = |name: &str, port| Port { name: name.into(), port, protocol: Protocol::Tcp };
        vec![port("http", http), port("echo", echo)]
    };
    let pod =
        Endpoint { address: Ipv4Addr::new(10, 99, 1, 2), node: Some("node".into()), conditions: Conditions::READY };
    let slice = EndpointSlice { service: "web".into(), ports: ports(8080, 8081), endpoints: vec![pod] };
    let closed = ObjectName::new("default", "closed");
    let ranges = vec![Prefix { network: Ipv4Addr::new(198, 51, 100, 0), length: 24 }];
    let source_ranges = ServiceAttributes { source_ranges: Some(ranges.into()), ..ServiceAttributes::default() };
    let vip = |last, service: &ObjectName| {
        let vip = VirtualIp { pool: "pool".into(), services: vec![service.clone()], ..VirtualIp::default() };
        Object::VirtualIp(Ipv4Addr::new(192, 0, 2, last), vip)
    };
    let slice_of = |service: &str| EndpointSlice { service: service.into(), ..slice.clone() };
    View::from(vec![
        Object::Node("node".into(), Node::at(Ipv4Addr::new(192, 0, 2, 11))),
        Object::Service(name.clone(), Service { ports: ports(80, 81), attributes: Affinity::None.into() }),
        Object::Service(closed.clone(), Service { ports: ports(80, 81), attributes: source_ranges }),
        Object::EndpointSlice(name.clone(), slice_of("web")),
        Object::EndpointSlice(closed.clone(), slice_of("closed")),
        vip(200, &name),
        vip(202, &closed),
    ])
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file in a folder")?)?;
    fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    Ok(())
}

/// For a scenario that takes half a minute on an idle machine, at the lowest priority on a busy one.
const PATIENCE: Duration = Duration::from_secs(600);
