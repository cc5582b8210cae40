//! A real speaker on the lab's segment: `sheave init` with hosts that answer and a real DHCP server (busybox's udhcpd), and what the
//! speaker says when it must not read a kind of objects.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sheave_tests::lab::{Lab, wait_for};

use crate::command::{refused, sheave};
use crate::objects::Objects;
use crate::replica;
use crate::speaker_state::speaker_of;

const NODE: &str = "node1";
const NODE_IP: &str = "192.168.77.11";
/// The client of the segment, where the DHCP server runs.
const SERVER: &str = "192.168.77.5";
const OFFERED: &str = "192.168.77.100";
/// A speaker that starts, and one that is refused: watches are tried again after 0.8 s, then ever later.
const WITHIN: Duration = Duration::from_secs(40);

pub fn chapter(objects: &Objects, folder: &Path) -> Result<()> {
    let lab = objects.0;
    let _server = dhcp_server(lab, folder)?;
    may_read(lab, false)?;
    let mut speaker = Speaker::start(lab, folder)?;
    let told = speaker.must_not_read(objects).and_then(|()| may_read(lab, true)).and_then(|()| {
        speaker.may_read_again()?;
        found(objects).context("sheave init")
    });
    may_read(lab, true)?;
    told.with_context(|| std::fs::read_to_string(&speaker.log).unwrap_or_default())?;
    speaker.end()?;
    lab.kubectl(&["-n", replica::NAMESPACE, "delete", "pod", "speaker-node1", "--force"])?;
    lab.kubectl(&["delete", "speakerstates", "--all"]).map(drop)
}

/// Hosts of the lab: the API server's and the client; the router is the gateway, and known. From .204 on none answers.
fn found(objects: &Objects) -> Result<()> {
    let range = "192.168.77.247-192.168.77.254";
    let said = sheave(objects, &["init", "--pool", "found", "--size", "8"], &format!("{range}\n"))?;
    for sentence in [
        "192.168.77.0/24: subnet of node1",
        "254 addresses probed by the speaker of node1",
        "192.168.77.2 (",
        &format!("{SERVER} ("),
        &format!(") offers {OFFERED}"),
        "AddressPool found created: 8 addresses, 192.168.77.247-192.168.77.254",
    ] {
        ensure!(said.code == 0 && said.out.contains(sentence), "{sentence}: {said:?}");
    }
    ensure!(!said.out.contains(&format!("{NODE_IP} (")), "the node answers itself: {said:?}");
    objects.delete("addresspool", "found")?;
    let in_use = |range: &str, sentence: &str| {
        refused(objects, &["init", "--pool", "found", "--yes-this-range", range], sentence)
    };
    in_use(
        "192.168.77.4-192.168.77.6",
        "RangeInUse: 192.168.77.4-192.168.77.6 is not free: 192.168.77.5: a host answers (",
    )?;
    in_use(OFFERED, &format!("{OFFERED}: offered by the DHCP server {SERVER}"))?;
    in_use("192.168.77.200", "192.168.77.200: granted to a Service")
}

/// L2Advertisements, by the speaker's ClusterRole.
fn may_read(lab: &Lab, may: bool) -> Result<()> {
    let kinds =
        if may { r#"["virtualips","l2advertisements","placements"]"# } else { r#"["virtualips","placements"]"# };
    let role = lab.kubectl(&["get", "clusterrole", "sheave-speaker", "-o", "json"])?;
    let role: serde_json::Value = serde_json::from_str(&role)?;
    let rules = role["rules"].as_array().context("rules")?;
    let resource = |rule: &serde_json::Value| rule["resources"][0] == "virtualips";
    let at = rules.iter().position(resource).context("the rule of VirtualIPs")?;
    let patch = format!(r#"[{{"op":"replace","path":"/rules/{at}/resources","value":{kinds}}}]"#);
    lab.kubectl(&["patch", "clusterrole", "sheave-speaker", "--type=json", "-p", &patch]).map(drop)
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// It gives out one address.
fn dhcp_server(lab: &Lab, folder: &Path) -> Result<Server> {
    let file = |name: &str| folder.join(name).display().to_string();
    let conf = format!(
        "interface eth0\nstart {OFFERED}\nend {OFFERED}\nmax_leases 1\nlease_file {}\npidfile {}\noption subnet 255.255.255.0\n",
        file("udhcpd.leases"),
        file("udhcpd.pid")
    );
    std::fs::write(file("udhcpd.conf"), conf)?;
    std::fs::write(file("udhcpd.leases"), "")?;
    let mut command = lab.netns_command("client", "busybox")?;
    command.args(["udhcpd", "-f", "-a", "50", &file("udhcpd.conf")]).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(File::create(file("udhcpd.log"))?);
    Ok(Server(command.spawn().context("start busybox udhcpd")?))
}

/// A speaker in the node's network, with the rights of its own token.
struct Speaker<'a> {
    lab: &'a Lab,
    child: Child,
    log: PathBuf,
}

impl<'a> Speaker<'a> {
    fn start(lab: &'a Lab, folder: &Path) -> Result<Self> {
        let kubeconfig = speaker_of(lab, folder, NODE)?;
        // The node reaches the API server at its own address.
        let server = |path: &Path| -> Result<String> {
            let text = std::fs::read_to_string(path)?;
            let at = text.find("https://").context("a server")?;
            let end = |c: char| c.is_whitespace() || ",}\"'".contains(c);
            Ok(text[at..].split(end).next().unwrap_or_default().to_owned())
        };
        let (outside, inside) = (server(&kubeconfig)?, server(&lab.kubeconfig_inside())?);
        let text = std::fs::read_to_string(&kubeconfig)?.replace(&outside, &inside);
        std::fs::write(&kubeconfig, text)?;
        let log = folder.join("speaker.log");
        let mut command = Self::command(lab, &["run", "--log-format", "text", "--sysctl-dir", "/proc/sys/net"])?;
        command.env("KUBECONFIG", &kubeconfig).env("NODE_NAME", NODE).env("NODE_IP", NODE_IP);
        command.stdin(Stdio::null()).stdout(File::create(&log)?).stderr(File::options().append(true).open(&log)?);
        let child = command.spawn().context("start the speaker")?;
        Ok(Self { lab, child, log })
    }

    fn command(lab: &Lab, words: &[&str]) -> Result<Command> {
        let program = replica::binary("sheave-speaker")?;
        let mut command = lab.node_command(NODE, &program.to_string_lossy())?;
        command.args(words);
        Ok(command)
    }

    /// The body of an answer with status 200.
    fn get(&self, url: &str) -> Result<Option<String>> {
        let output = self.lab.node_command(NODE, "busybox")?.args(["wget", "-q", "-O", "-", url]).output()?;
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// It is ready all the same: what it knew before is served.
    fn must_not_read(&mut self, objects: &Objects) -> Result<()> {
        wait_for("the speaker to be ready with a note", WITHIN, || {
            ensure!(self.child.try_wait()?.is_none(), "the speaker ended");
            let ready = self.get("http://127.0.0.1:7482/readyz")?;
            Ok(ready.filter(|text| text.starts_with("ok") && text.contains("note: rights_missing")).map(drop))
        })?;
        let metrics = self.get("http://127.0.0.1:7483/metrics")?.context("metrics")?;
        let missing: Vec<&str> = metrics.lines().filter(|line| line.starts_with("sheave_rights_missing{")).collect();
        let named = r#"sheave_rights_missing{kind="L2Advertisement"} 1"#;
        let only = missing.iter().filter(|line| line.ends_with(" 1")).count() == 1;
        ensure!(missing.contains(&named) && only, "{missing:?}");
        wait_for("the SpeakerState to say so", WITHIN, || {
            let state = objects.get(&["speakerstates"])?["items"][0].take();
            let conditions = state["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let applied = conditions.iter().find(|one| one["type"] == "ViewApplied");
            Ok(applied.filter(|one| one["status"] == "False" && one["reason"] == "rights_missing").map(drop))
        })
    }

    fn may_read_again(&self) -> Result<()> {
        wait_for("the note to go", WITHIN, || {
            let ready = self.get("http://127.0.0.1:7482/readyz")?;
            Ok(ready.filter(|text| !text.contains("rights_missing")).map(drop))
        })
    }

    /// Nothing of it stays on the node.
    fn end(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        let output = Self::command(self.lab, &["uninstall", "--sysctl-dir", "/proc/sys/net"])?.output()?;
        ensure!(output.status.success(), "uninstall: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Speaker<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
