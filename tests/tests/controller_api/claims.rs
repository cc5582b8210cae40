//! The status of a VirtualIP: a speaker names its own node, and takes its own name off.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheave_tests::lab::wait_for;

use super::objects::Objects;
use super::replica::NAMESPACE;
use super::speaker_state::{IN_FORCE, Speakers};

const VIP: &str = "192.0.2.77";

/// Writes a status as the speaker of a node. A field that is left out is removed.
pub fn write(objects: &Objects, node: &str, vip: &str, status: &str) -> Result<()> {
    let bound = ["--bound-object-kind=Node", &format!("--bound-object-name={node}")];
    let token = objects.0.kubectl(&[&["-n", NAMESPACE, "create", "token", "sheave-speaker"], &bound[..]].concat())?;
    // A real speaker, which patches, may have written it before.
    let apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=sheave.dev/speaker"];
    let mut command = objects.0.kubectl_command();
    command
        .args(apply)
        .args(["--subresource=status", "-f", "-"])
        .arg(format!("--token={}", token.trim()))
        .stdin(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.stdout(Stdio::null()).spawn().context("start kubectl")?;
    let object =
        format!("apiVersion: sheave.dev/v1alpha1\nkind: VirtualIP\nmetadata: {{name: {vip}}}\nstatus: {status}\n");
    child.stdin.take().expect("piped").write_all(object.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{node} writes {status}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Speakers<'_> {
    pub fn claim_for_their_own_node(&self, objects: &Objects) -> Result<()> {
        let spec = "{address: 192.0.2.77, pool: p, services: [{namespace: default, name: web, uid: u}]}";
        self.lab.apply(&format!(
            "apiVersion: sheave.dev/v1alpha1\nkind: VirtualIP\nmetadata: {{name: {VIP}}}\nspec: {spec}"
        ))?;
        // A dry run goes through admission and writes nothing.
        wait_for("the policy to be in force", IN_FORCE, || {
            Ok(self.claim(&self.unbound, Some("node1"), &["--dry-run=server"])?.is_err().then_some(()))
        })?;
        self.refused(&self.unbound, Some("node1"), "names no node")?;
        self.refused(&self.lab.kubeconfig(), Some("node1"), "names no node").context("an administrator")?;
        self.refused(
            &self.node1,
            Some("node2"),
            "owner node2 of VirtualIP 192.0.2.77 is written by the speaker of that node alone",
        )?;
        self.accepted(objects, &self.node1, Some("node1"))?;
        self.refused(
            &self.node2,
            None,
            "owner node1 of VirtualIP 192.0.2.77 is removed by the speaker of that node alone",
        )?;
        // Not by the way of its own name either.
        self.refused(&self.node1, Some("node2"), "names node node1")?;
        self.accepted(objects, &self.node2, Some("node2")).context("another node takes over")?;
        self.refused(&self.node1, Some("node3"), "names node node1")?;
        self.refused(&self.node3, None, "names node node3")?;
        self.accepted(objects, &self.node3, Some("node3")).context("a token that is bound to the Node")?;
        self.accepted(objects, &self.node3, None).context("an owner that steps down")?;
        self.accepted(objects, &self.node1, None).context("a reason without owner")?;
        self.accepted(objects, &self.node1, Some("node1"))?;
        let lost = object("reason: OwnerLost");
        self.server_side(&self.node2, &lost, &["--subresource=status"])?.map_err(anyhow::Error::msg)?;
        let status = objects.get(&["virtualip", VIP])?["status"].take();
        ensure!(status["owner"].is_null() && status["reason"] == "OwnerLost", "an owner that is lost: {status}");
        let Err(said) = self.server_side(&self.unbound, &lost, &["--subresource=status"])? else {
            anyhow::bail!("a token that names no node could write")
        };
        ensure!(said.contains("names no node"), "{said}");
        self.lab.kubectl(&["delete", "virtualip", VIP]).map(drop)
    }

    fn accepted(&self, objects: &Objects, who: &Path, owner: Option<&str>) -> Result<()> {
        self.claim(who, owner, &[])?.map_err(anyhow::Error::msg)?;
        let status = objects.get(&["virtualip", VIP])?["status"].take();
        ensure!(status["owner"] == owner.map_or(Value::Null, Value::from), "{status}");
        Ok(())
    }

    fn refused(&self, who: &Path, owner: Option<&str>, sentence: &str) -> Result<()> {
        let Err(said) = self.claim(who, owner, &[])? else { anyhow::bail!("{} wrote {owner:?}", who.display()) };
        ensure!(said.contains("Forbidden") && said.contains(sentence), "{} {owner:?}: {said}", who.display());
        Ok(())
    }

    /// A field that is left out is removed: all write as one field manager.
    fn claim(&self, who: &Path, owner: Option<&str>, how: &[&str]) -> Result<Result<(), String>> {
        let owner = owner.map_or(String::new(), |owner| format!("owner: {owner}, "));
        let object = object(&format!("{owner}reason: Tested"));
        let how = [&["--subresource=status"], how].concat();
        self.server_side(who, &object, &how)
    }
}

fn object(status: &str) -> String {
    format!("apiVersion: sheave.dev/v1alpha1\nkind: VirtualIP\nmetadata: {{name: {VIP}}}\nstatus: {{{status}}}\n")
}
