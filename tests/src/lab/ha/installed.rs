//! The endpoint as a person installs it: `sheave endpoint init` on each node, in the order of its own advice, and the speaker from the very
//! files that it has written. The unit is read by a script in place of systemd: its line, its folders, its capabilities.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use sheave_endpoint::preset::{FILE, LIBRARY, UNIT_PATH};

use super::{Ha, REAL_TIME};
use crate::lab::certs::Pki;
use crate::lab::image;
use crate::lab::plan::{Balancer, Distribution, Plan};

/// Before the node boots: the archive with the speaker, and what the distribution has of certificates.
pub fn prepare(plan: &Plan, pki: &Pki, node: &str, speaker: &Path, distribution: Distribution) -> Result<()> {
    for folder in OWN {
        fs::create_dir_all(plan.node_dir(node).join("own").join(folder))?;
    }
    for (name, program) in [("sheave-speaker", speaker), ("nft", Path::new("/usr/sbin/nft"))] {
        let link = place(plan, node, &format!("{LIBRARY}/{name}"))?;
        symlink(program, &link).with_context(|| link.display().to_string())?;
    }
    let preset = distribution.preset().distribution();
    let files = [(preset.ca, "ca.crt"), (preset.client.0, CLIENT_CERTIFICATE), (preset.client.1, CLIENT_KEY)];
    for (path, file) in files {
        let to = place(plan, node, path)?;
        fs::copy(pki.file(file), &to).with_context(|| to.display().to_string())?;
    }
    Ok(())
}

/// Where a path of the node is on this machine, with its folder. Only before the node boots.
fn place(plan: &Plan, node: &str, path: &str) -> Result<PathBuf> {
    let (dir, path) = (plan.node_dir(node), path.trim_start_matches('/'));
    // /var/lib is the node's own anyway (boot.sh).
    let at = if path.starts_with("var/lib/") { dir.join(path) } else { dir.join("own").join(path) };
    fs::create_dir_all(at.parent().context("a folder")?)?;
    Ok(at)
}

/// What starts the speaker as its unit says.
pub fn service_script() -> String {
    format!(
        "{REAL_TIME}value() {{ sed -n \"s/^$1=//p\" {UNIT_PATH}; }}\n\
         umask \"$(value UMask)\"\n\
         mkdir -p \"/var/lib/$(value StateDirectory)\" \"/run/$(value RuntimeDirectory)\"\n\
         keep=\n\
         for name in $(value CapabilityBoundingSet); do name=${{name#CAP_}}; keep+=,+${{name,,}}; done\n\
         exec setpriv --bounding-set \"-all$keep\" --inh-caps -all --no-new-privs -- $(value ExecStart)\n"
    )
}

/// On all nodes, which run: the first one first, its file copied to the others. No speaker is started.
pub fn install(ha: &Ha) -> Result<()> {
    let Balancer::Sheave(_, distribution) = ha.endpoint.balancer else { return Ok(()) };
    let nodes = ha.nodes();
    let (first, others) = nodes.split_first().context("labs have nodes")?;
    init(ha, first, distribution)?;
    let file = ha.lab.node_command(first, "cat")?.arg(FILE).output()?;
    ensure!(file.status.success(), "{FILE} of {first}: {}", String::from_utf8_lossy(&file.stderr));
    thread::scope(|scope| {
        let installs = others.iter().map(|node| {
            let file = &file.stdout;
            scope.spawn(move || copy(ha, node, file).and_then(|()| init(ha, node, distribution)))
        });
        let installs: Vec<_> = installs.collect();
        installs.into_iter().try_for_each(|install| install.join().expect("an installation"))
    })
}

/// What the checks of a node's speaker show from now on: certificate and key.
pub fn renew_client_certificate(ha: &Ha, node: &str, files: &[String; 2]) -> Result<()> {
    let Balancer::Sheave(_, distribution) = ha.endpoint.balancer else { return Ok(()) };
    let preset = distribution.preset().distribution();
    for (file, path) in files.iter().zip([preset.client.0, preset.client.1]) {
        let beside = format!("{path}.new");
        on(ha, node, &["install", "-m", "0600", file, &beside])?;
        on(ha, node, &["mv", &beside, path])?;
    }
    Ok(())
}

/// What the unit starts from now on.
pub fn link_speaker(ha: &Ha, node: &str, program: &Path) -> Result<()> {
    on(ha, node, &["ln", "-sfn", &program.to_string_lossy(), &format!("{LIBRARY}/sheave-speaker")])
}

fn on(ha: &Ha, node: &str, command: &[&str]) -> Result<()> {
    let (program, arguments) = command.split_first().context("a program")?;
    let output = ha.lab.node_command(node, program)?.args(arguments).output()?;
    ensure!(output.status.success(), "{} on {node}: {}", command.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn copy(ha: &Ha, node: &str, file: &[u8]) -> Result<()> {
    let mut command = ha.lab.node_command(node, "install")?;
    command.args(["-D", "-m", "0600", "/dev/stdin", FILE]).stdin(Stdio::piped());
    let mut install = command.spawn()?;
    install.stdin.take().context("stdin")?.write_all(file)?;
    ensure!(install.wait()?.success(), "{FILE} was not copied to {node}");
    Ok(())
}

fn init(ha: &Ha, node: &str, distribution: Distribution) -> Result<()> {
    let sheave = image::static_binary("sheave");
    ensure!(sheave.exists(), "no {}: `make images` builds it", sheave.display());
    let members =
        ha.nodes().iter().map(|node| Ok(format!("{node}={}", ha.node_address(node)?))).collect::<Result<Vec<_>>>()?;
    let mut command: Command = ha.lab.node_command(node, &sheave.to_string_lossy())?;
    command.args(["endpoint", "init", "--run", "systemd", "--preset", &distribution.preset().flag()]);
    command.args(["--vip", &ha.address().ip().to_string(), "--members", &members.join(",")]);
    let output = command.output().context("start sheave")?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("sheave endpoint init on {node}, {}: {}", output.status, String::from_utf8_lossy(&said));
    }
    Ok(())
}

/// Folders in which a node has files of its own (boot.sh).
const OWN: [&str; 3] = ["etc", "usr/local", "var"];
pub const CLIENT_CERTIFICATE: &str = "client.crt";
pub const CLIENT_KEY: &str = "client.key";
