//! The nft program: one transaction in through stdin, listings out. Bounded in time and size.
//!
//! The program and not netlink: nft(8)'s text is the interface that its authors keep stable, and one `-f` is one transaction.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use speaker_core::backend::Place;
use speaker_core::backend::affinity::ClientSet;
use speaker_core::backend::ruleset::adverts;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

#[derive(Clone, Debug)]
pub struct Nft {
    program: PathBuf,
    /// Whose tables it works on.
    pub place: Place,
    timeout: Duration,
}

#[derive(Debug, Error)]
pub enum NftError {
    /// Environment: not installed, or not executable.
    #[error("cannot start {program}: {source}")]
    Start { program: PathBuf, source: std::io::Error },
    /// It was killed. The kernel may have taken the transaction before.
    #[error("nft did not finish within {after:?}")]
    Timeout { after: Duration, ended: bool },
    #[error("nft: {0}")]
    Pipe(#[from] std::io::Error),
    /// The kernel or nft refused it; nothing was changed.
    #[error("nft refused: {0}")]
    Refused(String),
    /// By a signal, for instance because memory was short. The kernel may have taken the transaction before.
    #[error("nft was ended: {0}")]
    Ended(String),
    #[error("nft printed more than {MAX_OUTPUT} bytes")]
    TooLong,
}

impl NftError {
    /// The metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Timeout { .. } => "timeout",
            Self::Pipe(_) => "pipe",
            Self::Refused(_) => "refused",
            Self::Ended(_) => "ended",
            Self::TooLong => "too_long",
        }
    }
}

impl Nft {
    /// A program without a slash is looked up in PATH.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), place: Place::Alone, timeout: TIMEOUT }
    }

    pub fn at(self, place: Place) -> Self {
        Self { place, ..self }
    }

    #[cfg(test)]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// One transaction: all of it or nothing. It names the tables of a speaker that is alone.
    pub async fn apply(&self, ruleset: &str) -> Result<(), NftError> {
        self.run(&["-f", "-"], &self.place.renamed(ruleset)).await.map(drop)
    }

    /// Whether the kernel refuses a table for no other reason than that it cannot duplicate packets.
    pub async fn lacks_dup(&self) -> Result<bool, NftError> {
        Ok(self.refuses("dup to 127.0.0.1").await? && !self.refuses("accept").await?)
    }

    /// Whether a chain with this statement, in a table of its own, would be refused. Nothing is changed.
    async fn refuses(&self, statement: &str) -> Result<bool, NftError> {
        let probe = format!("table ip sheave-probe {{\n\tchain probe {{\n\t\t{statement}\n\t}}\n}}\n");
        match self.run(&["-c", "-f", "-"], &probe).await {
            Ok(_) => Ok(false),
            Err(NftError::Refused(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Removes our tables; fine if there is none.
    pub async fn delete(&self) -> Result<(), NftError> {
        self.run(&["-f", "-"], &self.place.delete()).await?;
        for table in self.place.removable_of_arp() {
            match self.apply(&format!("add table arp {table}\ndelete table arp {table}\n")).await {
                Ok(()) => {}
                // The kernel lacks the family, and so the table.
                Err(NftError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Which tables of `arp_guard` are there.
    pub async fn arp_tables(&self) -> Result<Vec<&'static str>, NftError> {
        let mut tables = Vec::new();
        for table in self.place.removable_of_arp() {
            match self.list("arp", table).await {
                Ok(listing) => tables.extend(listing.map(|_| *table)),
                Err(NftError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(tables)
    }

    /// Our tables without what packets change: counter values, clients; `None` if one is not there.
    pub async fn listing(&self) -> Result<Option<String>, NftError> {
        let mut all = String::new();
        // One by one: nft 1.0.6 knows only the last table of several in one command.
        for table in self.place.tables() {
            match self.list("ip", table).await? {
                Some(listing) => all.push_str(&without_clients(&listing)),
                None => return Ok(None),
            }
        }
        Ok(Some(all))
    }

    /// Which tables of this and earlier versions are there.
    pub async fn tables(&self) -> Result<Vec<&'static str>, NftError> {
        let mut tables = Vec::new();
        for table in self.place.removable() {
            if self.list("ip", table).await?.is_some() {
                tables.push(table);
            }
        }
        Ok(tables)
    }

    async fn list(&self, family: &str, table: &str) -> Result<Option<String>, NftError> {
        match self.run(&["-s", "list", "table", family, table], "").await {
            Ok(listing) => Ok(Some(listing)),
            Err(NftError::Refused(why)) if why.contains(NO_SUCH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Result<String, NftError> {
        let mut command = Command::new(&self.program);
        // The child dies with this future.
        command.args(arguments).env("LC_ALL", "C").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| NftError::Start { program: self.program.clone(), source })?;
        match tokio::time::timeout(self.timeout, Self::talk(&mut child, input)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let killed = async {
                    child.start_kill()?;
                    child.wait().await
                };
                let ended = tokio::time::timeout(KILLED, killed).await.is_ok_and(|ended| ended.is_ok());
                Err(NftError::Timeout { after: self.timeout, ended })
            }
        }
    }

    async fn talk(child: &mut Child, input: &str) -> Result<String, NftError> {
        let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let write = async {
            if let Some(pipe) = &mut stdin {
                // A child that stopped reading writes the cause to stderr; that is the error to report.
                let _ = pipe.write_all(input.as_bytes()).await;
            }
            drop(stdin);
        };
        let ((), stdout, stderr) = tokio::join!(write, read(stdout), read(stderr));
        let (stdout, stderr) = (stdout?, stderr?);
        let status = child.wait().await?;
        match status.code() {
            Some(0) => Ok(stdout),
            Some(_) => Err(NftError::Refused(shorten(&stderr, &status.to_string()))),
            None => Err(NftError::Ended(status.to_string())),
        }
    }
}

/// A listing without the elements of sets that packets fill.
fn without_clients(listing: &str) -> String {
    let heads = [ClientSet::PREFIX, adverts::OTHER_CLUSTERS].map(|name| format!("\tset {name}"));
    let (mut in_set, mut in_elements) = (false, false);
    let mut lines: Vec<&str> = Vec::new();
    for line in listing.lines() {
        // A set ends with a line of its own, which its elements never are.
        if line == "\t}" {
            (in_set, in_elements) = (false, false);
        }
        in_set |= heads.iter().any(|head| line.starts_with(head));
        in_elements |= in_set && line.starts_with("\t\telements = ");
        if !in_elements {
            lines.push(line);
        }
    }
    lines.join("\n") + "\n"
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> Result<String, NftError> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MAX_OUTPUT + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() as u64 > MAX_OUTPUT {
        Err(NftError::TooLong)
    } else {
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The first lines of nft's output: it repeats the ruleset below each error.
fn shorten(stderr: &str, status: &str) -> String {
    let text: String = stderr.lines().take(4).collect::<Vec<_>>().join(" | ").chars().take(400).collect();
    if text.is_empty() { status.into() } else { text }
}

/// nft 1.0.6 builds a table of 1000 services in 0.15 s, of 8192 in 11 s; an update of one in 0.06 s.
const TIMEOUT: Duration = Duration::from_secs(60);
/// A system call that cannot be interrupted may outlive the signal for so long.
const KILLED: Duration = Duration::from_secs(5);
/// A client of sessionAffinity takes up to 40 bytes of a listing.
const MAX_OUTPUT: u64 = 64 << 20;
/// Checked, never applied.
/// strerror(ENOENT) in the C locale.
pub(super) const NO_SUCH: &str = "No such file or directory";

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn a_listing_leaves_out_what_packets_add() {
        let set = |name: &str, elements: &str| format!("\tset {name} {{\n\t\ttype ipv4_addr\n{elements}\t}}\n\n");
        let clients =
            "\t\telements = { 192.0.2.5 timeout 3h, 192.0.2.6 timeout 3h,\n\t\t\t     192.0.2.7 timeout 3h }\n";
        let vips = set("vips", "\t\telements = { 192.0.2.1 }\n");
        let table = |clients: &str| format!("table ip sheave {{\n{}{vips}}}\n", set("affinity-0-10.0.0.1", clients));
        assert_eq!(without_clients(&table(clients)), table(""));
        assert_eq!(without_clients(&table("")), table(""));
        let others = |elements| set(adverts::OTHER_CLUSTERS, elements);
        let heard = "\t\telements = { 192.0.2.9 limit rate 4/second burst 1 packets expires 9s }\n";
        assert_eq!(without_clients(&others(heard)), others(""));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(Nft::new("/nonexistent/nft").apply("")).unwrap_err();
        assert_eq!(error.label(), "start");
        assert!(error.to_string().contains("/nonexistent/nft"));
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        // `tail -f -` waits for the end of a file that never ends.
        let nft = Nft::new("tail").with_timeout(Duration::from_millis(100));
        let error = run(nft.run(&["-f", "/dev/null"], "")).unwrap_err();
        assert_eq!(error.label(), "timeout");
    }

    #[test]
    fn a_program_that_is_killed_has_refused_nothing() {
        let error = run(Nft::new("sh").run(&["-c", "kill -9 $$"], "")).unwrap_err();
        assert_eq!(error.label(), "ended");
        assert!(error.to_string().contains("signal: 9"), "{error}");
    }

    #[test]
    fn endless_output_is_cut() {
        let error = run(Nft::new("yes").run(&[], "")).unwrap_err();
        assert_eq!(error.label(), "too_long");
    }
}
