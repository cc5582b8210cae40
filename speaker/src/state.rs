//! What outlives the speaker on this node's disk: the keys, the last known view, the previous rings, how long departed nodes are gone, and
//! the boot epoch.
//!
//! The view lets a speaker that restarts without an API server go on; the epoch numbers incarnations, so that a wall clock
//! that was set back does not make a new incarnation look like an old one.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sheave_api::local::LocalDrain;
use speaker_core::forwarding::previous::SavedRings;
use speaker_core::health::drains::{self, Drains};
use speaker_core::view::View;

use crate::departed::SavedDepartures;
use crate::io::clock;
use crate::keys::Stored;

/// Far above any real view; a larger file is not ours.
const MAX_FILE: u64 = 256 << 20;
const VIEW: &str = "view.json";
const FORWARDING: &str = "forwarding.json";
const DEPARTED: &str = "departed.json";
const KEYS: &str = "keys.json";
const DRAIN: &str = "drain.json";
const MEMBER_DRAINS: &str = "member-drains.json";

#[derive(Clone)]
pub struct StateDir {
    dir: PathBuf,
}

/// What the packet path has to know of the time before this speaker.
#[derive(Debug, Serialize, Deserialize)]
pub struct PersistedState {
    /// Previous rings of each service port. The aliases are the names in files of earlier versions.
    #[serde(alias = "history")]
    pub previous_rings: SavedRings,
    /// Nodes whose packet path was ready (`readiness`).
    #[serde(alias = "present")]
    pub ready: BTreeSet<String>,
}

/// Numbers an incarnation of the speaker on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    pub number: u64,
    /// The next one will be higher even if the clock is set back.
    pub is_saved: bool,
}

impl StateDir {
    /// A directory that cannot be made costs persistence, not the start: every write to it fails and is reported.
    pub fn open(dir: &Path) -> Self {
        if let Err(error) = fs::create_dir_all(dir) {
            tracing::warn!(%error, path = %dir.display(), "state directory not created; no state will survive a restart");
        }
        Self { dir: dir.to_path_buf() }
    }

    /// Larger than every epoch this node used before, and on disk before it is used. Where the disk does not allow that, the wall clock
    /// decides.
    pub fn next_boot_epoch(&self) -> Epoch {
        let path = self.dir.join("boot-epoch");
        let read = fs::read_to_string(&path).and_then(|text| text.trim().parse().map_err(io::Error::other));
        let before: u64 = read.unwrap_or_else(|error: io::Error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, path = %path.display(), "boot epoch unreadable; starting from the wall clock");
            }
            0
        });
        let number = clock::wall_nanos().max(before.saturating_add(1));
        let saved = write_atomically(&path, number.to_string().as_bytes());
        if let Err(error) = &saved {
            tracing::warn!(
                error = format!("{error:#}"),
                "boot epoch not saved; if the clock is set back, peers reject the next speaker's adverts for a while"
            );
        }
        Epoch { number, is_saved: saved.is_ok() }
    }

    pub fn save_view(&self, view: &View) -> Result<()> {
        write_json(&self.view_path(), view)
    }

    /// The last saved view. A file that cannot be read is reported and ignored: the API server sends it anew.
    pub fn load_view(&self) -> Option<View> {
        load(&self.view_path(), "last known view unreadable; waiting for the API server").map(View::saved)
    }

    pub fn save_forwarding(&self, persisted: &PersistedState) -> Result<()> {
        write_json(&self.forwarding_path(), persisted)
    }

    /// The state of the last speaker. A file that cannot be read is reported and ignored: the other nodes report their flows.
    pub fn load_forwarding(&self) -> Option<PersistedState> {
        load(&self.forwarding_path(), "previous rings unreadable; continuing with the reports of other nodes")
    }

    pub fn save_departures(&self, departures: &SavedDepartures) -> Result<()> {
        let bytes = serde_json::to_vec(departures).context("serialize how long nodes are gone")?;
        write_atomically(&self.dir.join(DEPARTED), &bytes)
    }

    /// Those of the last speaker. A file that cannot be read is reported and ignored: the nodes stay for a whole window.
    pub fn load_departures(&self) -> Option<SavedDepartures> {
        load(
            &self.dir.join(DEPARTED),
            "time of departed nodes unreadable; their flows are followed for a whole drain window",
        )
    }

    pub fn save_keys(&self, keys: &Stored) -> Result<()> {
        let bytes = serde_json::to_vec(keys).context("serialise the keys")?;
        write_atomically(&self.dir.join(KEYS), &bytes)
    }

    /// The keys of the speaker before this one. A file that cannot be read is reported and ignored: the Secret has them.
    pub fn load_keys(&self) -> Option<Stored> {
        load(&self.dir.join(KEYS), "keys on disk unreadable; waiting for the Secret")
    }

    /// They are of another cluster.
    pub fn remove_keys(&self) -> Result<()> {
        let path = self.dir.join(KEYS);
        remove_if_there(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Made on this node; `None`: there is none.
    pub fn save_drain(&self, drain: Option<&LocalDrain>) -> Result<()> {
        let path = self.dir.join(DRAIN);
        let Some(drain) = drain else {
            let removed = remove_if_there(&path).and_then(|()| File::open(&self.dir)?.sync_all());
            return removed.with_context(|| format!("remove {}", path.display()));
        };
        write_atomically(&path, &serde_json::to_vec(drain).context("serialize the drain")?)
    }

    pub fn load_drain(&self) -> Option<LocalDrain> {
        load(&self.dir.join(DRAIN), "drain of this node unreadable; it is as if there were none")
    }

    pub fn save_member_drains(&self, drains: &Drains) -> Result<()> {
        let bytes = serde_json::to_vec(drains).context("serialize the drains of members")?;
        write_atomically(&self.dir.join(MEMBER_DRAINS), &bytes)
    }

    /// Of the endpoint's members; as many as there may be.
    pub fn load_member_drains(&self) -> Drains {
        let consequence = "drains of members unreadable; continuing with those that other nodes report";
        let mut drains = Drains::new();
        drains::merge(&mut drains, &load(&self.dir.join(MEMBER_DRAINS), consequence).unwrap_or_default());
        drains
    }

    /// Nothing stays behind; the directory itself may be a mount of the pod.
    pub fn remove(dir: &Path) -> Result<()> {
        for name in ["boot-epoch", VIEW, FORWARDING, DEPARTED, KEYS, DRAIN, MEMBER_DRAINS] {
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

pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// `None` for a file that is not there, and, with a warning, for a file that cannot be read.
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
    write_with(path, |file| file.write_all(bytes))
}

/// The same of what may be large: its text is never in memory as a whole.
fn write_json(path: &Path, content: &impl Serialize) -> Result<()> {
    write_with(path, |file| {
        let mut writer = BufWriter::new(file);
        serde_json::to_writer(&mut writer, content)?;
        writer.flush()
    })
}

fn write_with(path: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let temporary = path.with_extension("new");
    let write = move || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        // A file that a crash left may have other rights.
        file.set_permissions(Permissions::from_mode(0o600))?;
        content(&mut file)?;
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

    /// A directory of its own on a file system of this size, seen by this thread alone.
    fn on_tmpfs(options: &str, test: impl FnOnce(&Path) + Send + 'static) {
        let options = options.to_owned();
        let dir = std::env::temp_dir().join(format!("sheave-state-{}-{options}", std::process::id()));
        fs::create_dir_all(&dir).expect("a mount point");
        let mounted = dir.clone();
        let result = std::thread::spawn(move || {
            use nix::mount::{MsFlags, mount};
            use nix::sched::{CloneFlags, unshare};
            unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace needs CAP_SYS_ADMIN");
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .expect("private");
            mount(Some("tmpfs"), &mounted, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).expect("a tmpfs");
            test(&mounted);
        })
        .join();
        fs::remove_dir(&dir).expect("cleans up");
        result.expect("the test passes");
    }

    fn remount_read_only(dir: &Path) {
        use nix::mount::{MsFlags, mount};
        mount(None::<&str>, dir, None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>)
            .expect("read only");
    }

    #[test]
    fn a_read_only_directory_costs_persistence_alone() {
        on_tmpfs("size=1m", |mount| {
            let first = StateDir::open(mount).next_boot_epoch();
            assert!(first.is_saved);
            remount_read_only(mount);
            // The last epoch can be read.
            let second = StateDir::open(mount).next_boot_epoch();
            assert!(second.number > first.number && !second.is_saved);
            // The directory itself is missing and cannot be made.
            let state = StateDir::open(&mount.join("sheave"));
            let third = state.next_boot_epoch();
            assert!(third.number > second.number && !third.is_saved);
            assert!(state.save_view(&View::default()).is_err() && state.load_view().is_none());
        });
    }

    #[test]
    fn a_full_disk_costs_persistence_alone() {
        on_tmpfs("size=64k,nr_inodes=16", |mount| {
            let state = StateDir::open(mount);
            state.save_view(&View::default()).expect("saves");
            let mut filler = File::create(mount.join("filler")).expect("creates");
            while filler.write_all(&[0; 4096]).is_ok() {}
            let epoch = state.next_boot_epoch();
            assert!(epoch.number > 0 && !epoch.is_saved);
            assert!(state.save_view(&View::default()).is_err());
            assert_eq!(state.load_view(), Some(View::default()), "the last good one stays");
            drop(filler);
            fs::remove_file(mount.join("filler")).expect("removes");
            let next = state.next_boot_epoch();
            assert!(next.is_saved && next.number > epoch.number);
        });
    }

    /// As versions until November 2026 wrote it: an upgrade continues with their previous rings and ready nodes.
    #[test]
    fn a_forwarding_file_of_an_earlier_version_is_read() {
        let dir = std::env::temp_dir().join(format!("sheave-old-state-{}", std::process::id()));
        let state = StateDir::open(&dir);
        let earlier = r#"{"history":{"version":1,"boot":"b","saved_at_nanos":9000000000,"members":[[["a",2,false]],[["b",1,false]]],
            "services":[{"address":"192.0.2.1","port":80,"protocol":6,"current":0,"formers":[{"members":1,"age_millis":5}]}]},
            "present":["a","b"]}"#;
        fs::write(dir.join("forwarding.json"), earlier).expect("writes");
        let read = state.load_forwarding().expect("reads the earlier names");
        assert_eq!(read.ready, ["a", "b"].map(String::from).into());
        state.save_forwarding(&read).expect("saves");
        let written = fs::read_to_string(dir.join("forwarding.json")).expect("reads");
        for name in ["previous_rings", "previous", "ready"] {
            assert!(written.contains(&format!("{name:?}:")), "{name} is not in {written}");
        }
        assert_eq!(state.load_forwarding().expect("reads its own").previous_rings, read.previous_rings);
        fs::remove_dir_all(&dir).expect("cleans up");
    }

    /// One without L2Advertisements, labels of nodes and names of uplinks.
    #[test]
    fn a_view_of_an_earlier_version_is_read() {
        let dir = std::env::temp_dir().join(format!("sheave-old-view-{}", std::process::id()));
        let state = StateDir::open(&dir);
        let earlier = r#"[{"Node":["a",{"address":"192.0.2.11","ready":true}]},{"SpeakerState":["a",{"created":1}]},
            {"VirtualIp":["192.0.2.1",{"pool":"p","services":[]}]}]"#;
        fs::write(dir.join("view.json"), earlier).expect("writes");
        let view = state.load_view().expect("reads");
        let vip = &view.vips()[&std::net::Ipv4Addr::new(192, 0, 2, 1)];
        assert!(vip.advertisements.is_empty() && !vip.unannounced && view.uplink("a").is_none());
        assert!(view.nodes()["a"].labels.is_empty() && view.has_speaker_state("a"));
        state.save_view(&view).expect("saves");
        assert_eq!(state.load_view(), Some(view));
        fs::remove_dir_all(&dir).expect("cleans up");
    }

    #[test]
    fn drains_of_members_survive_and_are_bounded() {
        use speaker_core::health::drains::{Drain, MAX, Wish};
        let dir = std::env::temp_dir().join(format!("sheave-member-drains-{}", std::process::id()));
        let state = StateDir::open(&dir);
        assert_eq!(state.load_member_drains(), Drains::new());
        let drains: Drains = (0..2 * MAX as u8)
            .map(|last| ([192, 0, 2, last].into(), Drain { at: u64::MAX, wish: Wish::DrainByForce }))
            .collect();
        state.save_member_drains(&drains).expect("saves");
        let loaded = state.load_member_drains();
        assert!(loaded.len() == MAX && loaded.iter().all(|(member, drain)| drains.get(member) == Some(drain)));
        fs::write(dir.join("member-drains.json"), "[").expect("writes");
        assert_eq!(state.load_member_drains(), Drains::new());
        fs::remove_dir_all(&dir).expect("cleans up");
    }

    #[test]
    fn epochs_grow_whatever_the_file_says() {
        let dir = std::env::temp_dir().join(format!("sheave-state-{}", std::process::id()));
        let state = StateDir::open(&dir);
        let next = || state.next_boot_epoch().number;
        let future = u64::MAX - 10;
        fs::write(dir.join("boot-epoch"), future.to_string()).expect("writes");
        assert_eq!(next(), future + 1);
        assert_eq!(next(), future + 2);
        fs::write(dir.join("boot-epoch"), "no number").expect("writes");
        assert!(next() > 0);
        fs::write(dir.join("view.json"), "{").expect("writes");
        assert!(state.load_view().is_none());
        fs::write(dir.join("forwarding.json"), "[]").expect("writes");
        assert!(state.load_forwarding().is_none());
        fs::remove_dir_all(&dir).expect("cleans up");
    }
}
