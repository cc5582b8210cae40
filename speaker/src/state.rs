//! What outlives the speaker on this node's disk: the keys, the last known view, the former rings, and the boot epoch.
//!
//! The view lets a speaker that restarts without an API server go on; the epoch numbers incarnations, so that a wall clock
//! that was set back does not make a new incarnation look like an old one.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use speaker_core::forwarding::history::Saved;
use speaker_core::view::View;

use crate::io::clock;
use crate::keys::Stored;

/// Far above any real view; a larger file is not ours.
const MAX_FILE: u64 = 256 << 20;
const VIEW: &str = "view.json";
const FORWARDING: &str = "forwarding.json";
const KEYS: &str = "keys.json";

#[derive(Clone)]
pub struct StateDir {
    dir: PathBuf,
}

/// What the packet path has to know of the time before this speaker.
#[derive(Debug, Serialize, Deserialize)]
pub struct Remembered {
    /// Former rings of each service.
    pub history: Saved,
    /// Nodes whose packet path was ready (`presence`).
    pub present: BTreeSet<String>,
}

impl StateDir {
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create the state directory {}", dir.display()))?;
        Ok(Self { dir: dir.to_path_buf() })
    }

    /// Larger than every epoch this node used before. The number is on disk before it is used.
    pub fn next_boot_epoch(&self) -> Result<u64> {
        let path = self.dir.join("boot-epoch");
        let before = match fs::read_to_string(&path) {
            Ok(text) => match text.trim().parse::<u64>() {
                Ok(epoch) => epoch,
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "boot epoch unreadable, starting from the wall clock");
                    0
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let epoch = clock::wall_nanos().max(before.saturating_add(1));
        write_atomically(&path, epoch.to_string().as_bytes())?;
        Ok(epoch)
    }

    pub fn save_view(&self, view: &View) -> Result<()> {
        let bytes = serde_json::to_vec(view).context("serialise the view")?;
        write_atomically(&self.view_path(), &bytes)
    }

    /// The last saved view. A file that cannot be read is reported and counts as absent: the API server will tell anew.
    pub fn load_view(&self) -> Option<View> {
        load(&self.view_path(), "last known view unreadable, waiting for the API server")
    }

    pub fn save_forwarding(&self, remembered: &Remembered) -> Result<()> {
        let bytes = serde_json::to_vec(remembered).context("serialise the former rings")?;
        write_atomically(&self.forwarding_path(), &bytes)
    }

    /// What the last speaker remembered. A file that cannot be read is reported and counts as absent: the other nodes know what
    /// they hold, and say so.
    pub fn load_forwarding(&self) -> Option<Remembered> {
        load(&self.forwarding_path(), "former rings unreadable, the other nodes will tell")
    }

    pub fn save_keys(&self, keys: &Stored) -> Result<()> {
        let bytes = serde_json::to_vec(keys).context("serialise the keys")?;
        write_atomically(&self.dir.join(KEYS), &bytes)
    }

    /// The keys of the speaker before this one. A file that cannot be read is reported and counts as absent: the Secret has them.
    pub fn load_keys(&self) -> Option<Stored> {
        load(&self.dir.join(KEYS), "keys on disk unreadable, waiting for the Secret")
    }

    /// They are of another cluster.
    pub fn remove_keys(&self) -> Result<()> {
        let path = self.dir.join(KEYS);
        remove_if_there(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Nothing stays behind; the directory itself may be a mount of the pod.
    pub fn remove(dir: &Path) -> Result<()> {
        for name in ["boot-epoch", VIEW, FORWARDING, KEYS] {
            let path = dir.join(name);
            for path in [path.with_extension("new"), path] {
                remove_if_there(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    fn view_path(&self) -> PathBuf {
        self.dir.join(VIEW)
    }

    fn forwarding_path(&self) -> PathBuf {
        self.dir.join(FORWARDING)
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// `None` for a file that is not there, and, with a warning, for one that cannot be read.
fn load<T: DeserializeOwned>(path: &Path, consequence: &str) -> Option<T> {
    match read_bounded(path).and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other)) {
        Ok(content) => Some(content),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "{consequence}");
            None
        }
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::Error::other(format!("larger than {MAX_FILE} bytes")));
    }
    fs::read(path)
}

/// The old content or the new one, never half of it, also when power is lost. Readable by root only: keys are among it.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        // One that a crash left may have other rights.
        remove_if_there(&temporary)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // The name as well: keys that are acknowledged must be found after a power cut.
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_grow_whatever_the_file_says() {
        let dir = std::env::temp_dir().join(format!("sheave-state-{}", std::process::id()));
        let state = StateDir::open(&dir).expect("opens");
        let future = u64::MAX - 10;
        fs::write(dir.join("boot-epoch"), future.to_string()).expect("writes");
        assert_eq!(state.next_boot_epoch().expect("first"), future + 1);
        assert_eq!(state.next_boot_epoch().expect("second"), future + 2);
        fs::write(dir.join("boot-epoch"), "no number").expect("writes");
        assert!(state.next_boot_epoch().expect("third") > 0);
        fs::write(dir.join("view.json"), "{").expect("writes");
        assert!(state.load_view().is_none());
        fs::write(dir.join("forwarding.json"), "[]").expect("writes");
        assert!(state.load_forwarding().is_none());
        fs::remove_dir_all(&dir).expect("cleans up");
    }
}
