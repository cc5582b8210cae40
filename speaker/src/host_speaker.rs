//! Who has the XDP link of a node with two speakers, the one of the API server endpoint (the *host speaker*) and the DaemonSet's pod: the
//! host speaker, whose program calls the pod's. Read: docs/decisions/0016.
//!
//! They meet in the directory of their local sockets, /run/sheave, which the pods of both mount. The kernel takes a lock back however its
//! process ends; none of them names a process, whose number is another in a pod.
//!
//! |file|there|locked|
//! |---|---|---|
//! |`host-speaker`|from a host speaker's first start until `uninstall --host-speaker` or a boot|while it runs|
//! |`packet-path`|from a speaker's first start until `uninstall` or a boot|by the speaker that has the link|
//! |`services`|from a pod's first start beside a host speaker until that is removed, or a boot|by the pod that serves beside it|
//!
//! The pod goes by whether `host-speaker` is there, not by whether it is locked: a host speaker that restarts finds the packet path as it
//! left it, with the open connections.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use speaker_core::backend::Place;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

/// Between two looks at the files: two system calls.
const LOOK: Duration = Duration::from_millis(100);
/// For a predecessor that hands over and saves (`--handover-timeout-ms`: 30 s at most).
const PATIENCE: Duration = Duration::from_secs(40);

/// The files of a node.
#[derive(Clone, Debug)]
pub struct Locks {
    dir: PathBuf,
}

/// Until it is dropped.
#[derive(Debug, Default)]
pub struct Held(#[expect(dead_code, reason = "what is held, is held open")] Vec<File>);

impl Held {
    /// Or is another one: its threads write to the kernel until then.
    pub fn until_the_process_ends(self) {
        std::mem::forget(self);
    }
}

/// What a speaker of the DaemonSet is to do.
#[derive(Debug)]
pub enum Turn {
    Serve(Held),
    /// A host speaker has this node, or had it and is to again: serve beside it, or stand by where it has no place for another.
    Beside,
}

/// Until when a speaker serves where it does.
#[derive(Clone, Debug)]
pub struct Tenure {
    locks: Locks,
    place: Place,
}

impl Tenure {
    pub fn new(locks: Locks, place: Place) -> Self {
        Self { locks, place }
    }

    /// Returns when a host speaker appears, or the one that it serves beside leaves.
    pub async fn ends(&self) {
        match self.place {
            Place::Second => self.locks.leaves().await,
            Place::Alone | Place::First => self.locks.appears().await,
        }
    }
}

/// Never, where none can end.
pub async fn ends(tenure: Option<&Tenure>) {
    match tenure {
        Some(tenure) => tenure.ends().await,
        None => std::future::pending().await,
    }
}

/// Two would serve.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "HostSpeakerRuns: {0} is locked by another `sheave-speaker endpoint` of this node; one serves all addresses of a file"
    )]
    HostSpeakerRuns(String),
    #[error(
        "PacketPathTaken: {0} is locked by another speaker of this node, which has not handed over within {wait} s; one serves a node",
        wait = PATIENCE.as_secs()
    )]
    PacketPathTaken(String),
}

impl Locks {
    /// `socket`: the speaker's local socket.
    pub fn beside(socket: &Path) -> Self {
        Self { dir: socket.parent().unwrap_or(Path::new(".")).to_path_buf() }
    }

    /// For the host speaker: it serves as soon as the DaemonSet's speaker, if one serves, has handed over. Where no file can be made it
    /// serves nevertheless: clusters cannot begin without it.
    pub async fn claim(&self) -> Result<Held> {
        self.claim_within(PATIENCE).await
    }

    async fn claim_within(&self, patience: Duration) -> Result<Held> {
        let host = match self.open(HOST) {
            Ok(host) => host,
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "no lock: keep the DaemonSet off this node, both speakers would serve"
                );
                return Ok(Held::default());
            }
        };
        if !locked_within(&host, patience).await.with_context(|| self.shown(HOST))? {
            return Err(Refused::HostSpeakerRuns(self.shown(HOST)).into());
        }
        let path = self.packet_path(patience).await?;
        Ok(Held(vec![host, path]))
    }

    /// For the DaemonSet's speaker.
    pub async fn turn(&self) -> Result<Turn> {
        self.turn_within(PATIENCE).await
    }

    async fn turn_within(&self, patience: Duration) -> Result<Turn> {
        if self.has_host_speaker() {
            return Ok(Turn::Beside);
        }
        if let Err(error) = self.open(PATH) {
            warn!(error = format!("{error:#}"), "no lock: a host speaker of this node is not noticed");
            return Ok(Turn::Serve(Held::default()));
        }
        // A host speaker that starts now waits for the lock.
        tokio::select! {
            biased;
            () = self.appears() => Ok(Turn::Beside),
            path = self.packet_path(patience) => {
                let held = Held(vec![path?]);
                Ok(if self.has_host_speaker() { Turn::Beside } else { Turn::Serve(held) })
            }
        }
    }

    /// For a speaker beside the host speaker, once the one before it has handed over.
    pub async fn services(&self) -> Result<Held> {
        Ok(Held(vec![self.locked(SERVICES, PATIENCE).await?]))
    }

    /// Whether this node's packet path is a host speaker's.
    pub fn has_host_speaker(&self) -> bool {
        self.dir.join(HOST).exists()
    }

    /// Whether a host speaker runs.
    pub fn host_speaker_runs(&self) -> bool {
        // Without making it. A shared lock that others look by is no obstacle, and this one ends at once.
        let Ok(host) = File::open(self.dir.join(HOST)) else { return false };
        matches!(host.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    /// Returns when there is a host speaker.
    pub async fn appears(&self) {
        while !self.has_host_speaker() {
            sleep(LOOK).await;
        }
    }

    /// Returns when there is none any more.
    pub async fn leaves(&self) {
        while self.has_host_speaker() {
            sleep(LOOK).await;
        }
    }

    /// From now on this node has no host speaker. While another speaker serves it takes a lock away that is held.
    pub fn forget(&self) -> Result<()> {
        // In this order: without the last one the DaemonSet's speaker begins, and locks the first one.
        for name in [PATH, SERVICES, HOST] {
            let removed = crate::state::remove_if_there(&self.dir.join(name));
            removed.with_context(|| format!("remove {}", self.shown(name)))?;
        }
        Ok(())
    }

    async fn packet_path(&self, patience: Duration) -> Result<File> {
        self.locked(PATH, patience).await
    }

    async fn locked(&self, name: &str, patience: Duration) -> Result<File> {
        let path = self.open(name)?;
        if !locked_within(&path, patience).await.with_context(|| self.shown(name))? {
            return Err(Refused::PacketPathTaken(self.shown(name)).into());
        }
        Ok(path)
    }

    fn open(&self, name: &str) -> Result<File> {
        fs::create_dir_all(&self.dir).with_context(|| format!("create {}", self.dir.display()))?;
        // Whoever can open it can lock it.
        let mut root_alone = File::options();
        root_alone.read(true).write(true).create(true).truncate(false).mode(0o600);
        root_alone.open(self.dir.join(name)).with_context(|| format!("open {}", self.shown(name)))
    }

    fn shown(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

/// Whether this process has the lock now.
async fn locked_within(file: &File, patience: Duration) -> io::Result<bool> {
    let until = Instant::now() + patience;
    let mut waits = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) if Instant::now() >= until => return Ok(false),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Interrupted => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        if !std::mem::replace(&mut waits, true) {
            info!("another speaker serves this node; waiting until it has handed over");
        }
        sleep(LOOK).await;
    }
}

const HOST: &str = "host-speaker";
const PATH: &str = "packet-path";
const SERVICES: &str = "services";

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// Far longer than the looks that are waited for.
    const SOON: Duration = Duration::from_secs(20);
    const AT_ONCE: Duration = Duration::ZERO;

    struct Node {
        locks: Locks,
    }

    impl Node {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("sheave-locks-{}-{name}", std::process::id()));
            Self { locks: Locks::beside(&dir.join("speaker.sock")) }
        }

        async fn serves(&self) -> Held {
            match self.locks.turn_within(AT_ONCE).await.expect("not refused") {
                Turn::Serve(held) => held,
                Turn::Beside => panic!("no host speaker is there"),
            }
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.locks.dir).expect("cleans up");
        }
    }

    #[tokio::test]
    async fn the_daemonset_is_beside_a_host_speaker_that_serves_or_restarts() {
        let node = Node::new("stands-by");
        let host = node.locks.claim_within(AT_ONCE).await.expect("nobody serves");
        assert!(matches!(node.locks.turn_within(AT_ONCE).await, Ok(Turn::Beside)));
        assert!(node.locks.host_speaker_runs());
        drop(host);
        assert!(!node.locks.host_speaker_runs());
        assert!(matches!(node.locks.turn_within(AT_ONCE).await, Ok(Turn::Beside)), "it left its packet path");
        let again = node.locks.claim_within(AT_ONCE).await.expect("its own");
        drop(again);
        timeout(AT_ONCE, node.locks.leaves()).await.expect_err("it is there");
        node.locks.forget().expect("removed");
        timeout(SOON, node.locks.leaves()).await.expect("noticed");
        drop(node.serves().await);
    }

    /// A lock that others can take is none.
    #[tokio::test]
    async fn root_alone_can_lock() {
        use std::os::unix::fs::PermissionsExt;

        let node = Node::new("mode");
        let _host = node.locks.claim_within(AT_ONCE).await.expect("nobody serves");
        for name in [HOST, PATH] {
            let mode = fs::metadata(node.locks.dir.join(name)).expect("is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[tokio::test]
    async fn a_host_speaker_waits_until_the_daemonset_has_handed_over() {
        let node = Node::new("hands-over");
        let held = node.serves().await;
        timeout(AT_ONCE, node.locks.appears()).await.expect_err("none is there");
        let locks = node.locks.clone();
        let host = tokio::spawn(async move { locks.claim_within(SOON).await });
        timeout(SOON, node.locks.appears()).await.expect("the one that serves is told");
        assert!(!host.is_finished(), "two would serve");
        drop(held);
        let host = timeout(SOON, host).await.expect("in time").expect("no panic").expect("its turn");
        assert!(node.locks.host_speaker_runs());
        drop(host);
    }

    #[tokio::test]
    async fn a_second_one_of_either_kind_is_refused_by_name() {
        let node = Node::new("refused");
        let pod = node.serves().await;
        let refused = node.locks.turn_within(AT_ONCE).await.expect_err("two would serve");
        assert!(matches!(refused.downcast_ref(), Some(Refused::PacketPathTaken(_))), "{refused:#}");
        let refused = node.locks.claim_within(AT_ONCE).await.expect_err("it does not hand over");
        assert!(format!("{refused:#}").starts_with("PacketPathTaken: "), "{refused:#}");
        drop(pod);
        let _host = node.locks.claim_within(AT_ONCE).await.expect("nobody serves");
        let refused = node.locks.claim_within(AT_ONCE).await.expect_err("two would serve");
        assert!(matches!(refused.downcast_ref(), Some(Refused::HostSpeakerRuns(_))), "{refused:#}");
    }

    /// A file stands where the directory would: nothing can be locked.
    #[tokio::test]
    async fn where_nothing_can_be_locked_both_serve_as_before() {
        let node = Node::new("no-directory");
        fs::create_dir_all(&node.locks.dir).expect("created");
        let file = node.locks.dir.join("file");
        fs::write(&file, "").expect("written");
        let locks = Locks::beside(&file.join("speaker.sock"));
        assert!(matches!(locks.turn_within(AT_ONCE).await, Ok(Turn::Serve(_))));
        locks.claim_within(AT_ONCE).await.expect("serves");
        assert!(!locks.has_host_speaker() && !locks.host_speaker_runs());
    }
}
