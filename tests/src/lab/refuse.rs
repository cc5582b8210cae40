//! The kernel refuses every transaction on Sheave's nftables table: the table belongs to another program's socket (`flags owner`), as
//! when a firewall manager takes it for its own. Its rules stay in force, to the last one.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::wait::wait_for;
use super::{Lab, netns};

/// Dropped before [`NftRefusal::end`], or with the process, it takes the table with it.
pub struct NftRefusal {
    /// `nft -i`: one socket from the first command to the last.
    owner: Child,
    netns: String,
    ruleset: String,
    file: PathBuf,
}

impl NftRefusal {
    /// Returns when the table belongs to another socket.
    pub fn begin(lab: &Lab, node: &str) -> Result<Self> {
        let plan = lab.state()?.plan;
        plan.node_number(node)?;
        let netns = plan.netns(node);
        let ruleset = listing(&netns)?;
        let mut command = Command::new("nft");
        command.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        netns::enter(&mut command, &netns)?;
        let owner = command.spawn().context("start nft")?;
        let file = plan.dir().join(format!("refused-{node}.nft"));
        let mut refusal = Self { owner, netns, ruleset, file };
        let owned = refusal.ruleset.replacen('{', "{\n\tflags owner\n", 1);
        refusal.replace(&owned, true)?;
        Ok(refusal)
    }

    /// The table has no owner again, and the rules that it had.
    pub fn end(mut self) -> Result<()> {
        let ruleset = self.ruleset.clone();
        self.replace(&ruleset, false)?;
        drop(self.owner.stdin.take());
        self.owner.wait()?;
        fs::remove_file(&self.file).with_context(|| self.file.display().to_string())
    }

    /// In one transaction.
    fn replace(&mut self, ruleset: &str, owned: bool) -> Result<()> {
        fs::write(&self.file, format!("delete {TABLE}\n{ruleset}")).with_context(|| self.file.display().to_string())?;
        let stdin = self.owner.stdin.as_mut().context("nft has ended")?;
        writeln!(stdin, "include \"{}\"", self.file.display())?;
        wait_for("the table to change hands", WITHIN, || {
            if let Some(status) = self.owner.try_wait()? {
                bail!("nft ended: {status}");
            }
            Ok((listing(&self.netns)?.contains("flags owner") == owned).then_some(()))
        })
    }
}

impl Drop for NftRefusal {
    fn drop(&mut self) {
        // After `end` it has ended already.
        let _ = self.owner.kill();
        let _ = self.owner.wait();
    }
}

/// Without what changes by itself.
fn listing(netns: &str) -> Result<String> {
    netns::inside(netns, || netns::run("nft", &["--stateless", "list", TABLE]))
}

const TABLE: &str = "table ip sheave";
const WITHIN: Duration = Duration::from_secs(5);
