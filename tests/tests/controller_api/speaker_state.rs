//! A SpeakerState is written by the speaker of its own node alone: with tokens as a pod has them, and with others.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheave_tests::lab::{Lab, wait_for};

use super::objects::Objects;
use super::replica::{self, NAMESPACE};

/// A policy is in force some time after it was made; the garbage collector works at its own pace.
pub const IN_FORCE: Duration = Duration::from_secs(30);

/// `node1` is the lab's; the others are Node objects without a machine.
pub fn chapters(lab: &Lab, objects: &Objects, folder: &Path) -> Result<()> {
    for node in ["node2", "node3"] {
        lab.apply(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {node}}}"))?;
    }
    let speakers = Speakers::new(lab, folder)?;
    speakers.only_their_own(objects).context("only their own")?;
    speakers.claim_for_their_own_node(objects).context("the status of a VirtualIP")?;
    useful_to_a_person(lab).context("kubectl get")?;
    goes_with_its_node(lab, objects).context("goes with its Node")?;
    stays_behind(lab, objects).context("a Node deleted with --cascade=orphan")?;
    lab.kubectl(&[
        "-n",
        NAMESPACE,
        "delete",
        "pod",
        "speaker-node1",
        "speaker-node2",
        "--force",
        "--ignore-not-found",
    ])?;
    lab.kubectl(&["delete", "speakerstates", "--all"]).map(drop)
}

/// kubeconfigs of the speakers' account: what its token is bound to differs.
pub struct Speakers<'a> {
    pub lab: &'a Lab,
    pub node1: PathBuf,
    pub node2: PathBuf,
    /// Bound to a Node instead of a pod (Kubernetes 1.31).
    pub node3: PathBuf,
    /// Of the same account, and bound to nothing.
    pub unbound: PathBuf,
}

impl<'a> Speakers<'a> {
    fn new(lab: &'a Lab, folder: &Path) -> Result<Self> {
        let account = |name: &str, bound: &[&str]| account(lab, folder, name, bound);
        let pod = |node: &str| speaker_of(lab, folder, node);
        let node = ["--bound-object-kind=Node", "--bound-object-name=node3"];
        Ok(Self {
            lab,
            node1: pod("node1")?,
            node2: pod("node2")?,
            node3: account("speaker-node3", &node)?,
            unbound: account("speaker-unbound", &[])?,
        })
    }

    fn only_their_own(&self, objects: &Objects) -> Result<()> {
        // A dry run goes through admission and makes nothing.
        wait_for("the policy to be in force", IN_FORCE, || {
            Ok(self.make(&self.unbound, "node1", &["--dry-run=server"])?.is_err().then_some(()))
        })?;
        let refused = |who: &Path, node: &str, sentence: &str| -> Result<()> {
            let attempts = [
                ("make", self.make(who, node, &[])?),
                ("write the status of", self.write(who, node, "impostor")?),
                ("take the owner from", self.disown(who, node)?),
            ];
            for (what, attempt) in attempts {
                let Err(said) = attempt else { anyhow::bail!("{} could {what} {node}", who.display()) };
                // One that is not there cannot be patched.
                let absent = what != "make" && said.contains("NotFound");
                ensure!(absent || said.contains(sentence), "{} {what} {node}: {said}", who.display());
            }
            Ok(())
        };
        let other = "SpeakerState node1 is written by the speaker of that node alone";
        refused(&self.node2, "node1", other)?;
        refused(&self.unbound, "node1", "names no node")?;
        for (who, node) in [(&self.node1, "node1"), (&self.node2, "node2"), (&self.node3, "node3")] {
            self.make(who, node, &[])?.map_err(anyhow::Error::msg).with_context(|| format!("{node} makes its own"))?;
            self.write(who, node, "1.2.3")?
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("{node} writes its own"))?;
        }
        refused(&self.node2, "node1", other)?;
        refused(&self.node3, "node1", "names node node3")?;
        refused(&self.node1, "node2", "names node node1")?;
        refused(&self.unbound, "node1", "names no node")?;
        // An administrator's token names no node either.
        refused(&self.lab.kubeconfig(), "node1", "names no node")?;
        let deleted = self.run(&self.node1, &["delete", "speakerstate", "node1"], None)?;
        ensure!(deleted.is_err_and(|said| said.contains("Forbidden")), "a speaker can delete");
        let state = objects.get(&["speakerstate", "node1"])?;
        ensure!(state["status"]["version"] == "1.2.3", "{}", state["status"]);
        ensure!(state["metadata"]["ownerReferences"][0]["name"] == "node1", "{}", state["metadata"]);
        Ok(())
    }

    /// With the Node as owner.
    fn make(&self, who: &Path, node: &str, how: &[&str]) -> Result<Result<(), String>> {
        let uid = self.lab.kubectl(&["get", "node", node, "-o", "jsonpath={.metadata.uid}"])?;
        let owner = format!("{{apiVersion: v1, kind: Node, name: {node}, uid: {uid}}}");
        self.apply(who, node, &format!("ownerReferences: [{owner}]}}\nspec: {{}}"), how)
    }

    fn write(&self, who: &Path, node: &str, version: &str) -> Result<Result<(), String>> {
        self.apply(who, node, &format!("}}\nstatus: {{version: {version}}}"), &["--subresource=status"])
    }

    /// Server-side, as the speaker does: it may not read the subresource, which `kubectl patch` would.
    fn apply(&self, who: &Path, node: &str, rest: &str, how: &[&str]) -> Result<Result<(), String>> {
        apply(self.lab, who, node, rest, how)
    }

    pub fn server_side(&self, who: &Path, object: &str, how: &[&str]) -> Result<Result<(), String>> {
        server_side(self.lab, who, object, how)
    }

    fn disown(&self, who: &Path, node: &str) -> Result<Result<(), String>> {
        let patch = r#"{"metadata":{"ownerReferences":null}}"#;
        self.run(who, &["patch", "speakerstate", node, "--type=merge", "-p", patch], None)
    }

    fn run(&self, who: &Path, words: &[&str], input: Option<&str>) -> Result<Result<(), String>> {
        run(self.lab, who, words, input)
    }
}

/// A kubeconfig of the speakers' account.
fn account(lab: &Lab, folder: &Path, name: &str, bound: &[&str]) -> Result<PathBuf> {
    let token = [&["-n", NAMESPACE, "create", "token", "sheave-speaker"], bound].concat();
    replica::account(lab, folder, name, "sheave-speaker", lab.kubectl(&token)?.trim())
}

/// A kubeconfig of the speaker of this node.
pub fn speaker_of(lab: &Lab, folder: &Path, node: &str) -> Result<PathBuf> {
    let name = format!("speaker-{node}");
    // Its container never starts: the token is bound to the object.
    lab.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: sheave-speaker, automountServiceAccountToken: false,\n\
         containers: [{{name: none, image: none, imagePullPolicy: Never}}]}}"
    ))?;
    account(lab, folder, &name, &["--bound-object-kind=Pod", &format!("--bound-object-name={name}")])
}

/// What a speaker says of its node: `status` is YAML.
pub fn report(lab: &Lab, who: &Path, node: &str, status: &str) -> Result<()> {
    apply(lab, who, node, "}\nspec: {}", &[])?.map_err(anyhow::Error::msg)?;
    apply(lab, who, node, &format!("}}\nstatus: {status}"), &["--subresource=status"])?.map_err(anyhow::Error::msg)
}

fn apply(lab: &Lab, who: &Path, node: &str, rest: &str, how: &[&str]) -> Result<Result<(), String>> {
    let object = format!("apiVersion: sheave.dev/v1alpha1\nkind: SpeakerState\nmetadata: {{name: {node}, {rest}\n");
    server_side(lab, who, &object, how)
}

pub fn server_side(lab: &Lab, who: &Path, object: &str, how: &[&str]) -> Result<Result<(), String>> {
    let apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=sheave.dev/speaker", "-f", "-"];
    run(lab, who, &[&apply[..], how].concat(), Some(object))
}

/// kubectl with a kubeconfig: what it said if it failed.
fn run(lab: &Lab, who: &Path, words: &[&str], input: Option<&str>) -> Result<Result<(), String>> {
    let mut command = lab.kubectl_command();
    command.env("KUBECONFIG", who).args(words).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start kubectl")?;
    child.stdin.take().expect("piped").write_all(input.unwrap_or_default().as_bytes())?;
    let output = child.wait_with_output()?;
    Ok(output.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn useful_to_a_person(lab: &Lab) -> Result<()> {
    let table = lab.kubectl(&["get", "speakerstates"])?;
    for word in ["NAME", "VERSION", "READY", "REASON", "ENTRY", "PROXY", "UPLINK", "AGE", "node1", "1.2.3"] {
        ensure!(table.contains(word), "{word} is not in\n{table}");
    }
    let explained = lab.kubectl(&["explain", "speakerstate.status.serviceProxy"])?;
    ensure!(explained.contains("kube-proxy's mode"), "{explained}");
    Ok(())
}

fn find(lab: &Lab, kind: &str, name: &str) -> Result<bool> {
    Ok(!lab.kubectl(&["get", kind, name, "--ignore-not-found", "-o", "name"])?.is_empty())
}

fn goes_with_its_node(lab: &Lab, objects: &Objects) -> Result<()> {
    objects.get(&["speakerstate", "node2"])?;
    lab.kubectl(&["delete", "node", "node2", "--wait=false"])?;
    wait_for("node2's SpeakerState to be collected", IN_FORCE, || {
        Ok((!find(lab, "speakerstate", "node2")?).then_some(()))
    })?;
    ensure!(find(lab, "speakerstate", "node1")?, "another node's went too");
    Ok(())
}

/// The policy keeps no Node from going.
fn stays_behind(lab: &Lab, objects: &Objects) -> Result<()> {
    lab.kubectl(&["delete", "node", "node3", "--cascade=orphan", "--wait=false"])?;
    wait_for("node3 to be gone", IN_FORCE, || Ok((!find(lab, "node", "node3")?).then_some(())))?;
    let left: Value = objects.get(&["speakerstate", "node3"])?;
    ensure!(left["metadata"]["ownerReferences"].is_null(), "{}", left["metadata"]);
    Ok(())
}
