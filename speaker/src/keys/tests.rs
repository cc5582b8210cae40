use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::*;

fn data(cluster: u8, current: u8, previous: Option<u8>) -> BTreeMap<String, ByteString> {
    let mut data = BTreeMap::from([
        (keys::CLUSTER_ID.to_owned(), ByteString(vec![cluster; 8])),
        (keys::FLOW_HASH.to_owned(), ByteString(vec![cluster; 16])),
        (keys::CURRENT.to_owned(), ByteString(vec![current; 32])),
    ]);
    if let Some(previous) = previous {
        data.insert(keys::PREVIOUS.to_owned(), ByteString(vec![previous; 32]));
    }
    data
}

fn found(cluster: u8, current: u8, previous: Option<u8>) -> Found {
    let contents = Contents::decode(&data(cluster, current, previous)).expect("complete");
    Found { contents, kubernetes: Some("a cluster".into()) }
}

/// The keys for the rotation, once they are on disk.
async fn taken(keys: &mut Keys, found: Found, held_back: bool) -> Result<rotation::Secret> {
    let mut taken = keys.take(found, held_back).await?;
    while taken.is_none() {
        taken = keys.saved().await;
    }
    Ok(taken.expect("awaited"))
}

/// A state directory of its own for each test.
struct Disk(PathBuf, StateDir);

impl Disk {
    fn new(test: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("sheave-keys-{test}-{}", std::process::id()));
        let state = StateDir::open(&dir);
        Self(dir, state)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_secret_is_taken_whole_or_not_at_all() {
    let refused = |change: fn(&mut BTreeMap<String, ByteString>)| {
        let mut data = data(1, 2, Some(3));
        change(&mut data);
        Contents::decode(&data).err().expect("refused").to_string()
    };
    assert_eq!(refused(|data| _ = data.remove(keys::FLOW_HASH)), "entry flow-hash is missing");
    let short = refused(|data| _ = data.insert(keys::PREVIOUS.into(), ByteString(vec![1; 31])));
    assert_eq!(short, "entry previous: 31 bytes, expected exactly 32");
    let contents = Contents::decode(&data(1, 2, Some(3))).expect("complete");
    assert_eq!(contents.identity.cluster_id(), 0x0101_0101_0101_0101);
    assert_eq!(contents.identity.flow_key(), [0x0101_0101_0101_0101; 2]);
}

/// The Secret was deleted and made anew with everything else: cluster id and flow key stay, the new signing key is accepted.
#[tokio::test]
async fn the_disk_outlives_the_secret() {
    let disk = Disk::new("outlives");
    assert!(Keys::load(&disk.1).is_none());
    let keys = Keys::adopt(&disk.1, found(1, 10, None)).await;
    assert!(!keys.is_confirmed() && !keys.identity_differs());
    let identity = keys.identity();

    let mut keys = Keys::load(&disk.1).expect("on disk");
    assert!(keys.identity() == identity);
    keys.confirm();
    let secret = taken(&mut keys, found(9, 20, None), false).await.expect("of this Kubernetes cluster");
    assert_eq!(secret.current, Key::new([20; 32]));
    assert!(keys.identity() == identity && keys.identity_differs());

    // The speaker restarts in the middle: it signs as before and knows the new key.
    let keys = Keys::load(&disk.1).expect("on disk");
    assert!(keys.is_confirmed() && keys.identity() == identity);
    assert_eq!(keys.ring().current, Key::new([10; 32]));
    assert_eq!(keys.signing().current, Key::new([20; 32]));
    let now = speaker_core::time::Instant::ZERO;
    let config = rotation::Config::new(std::time::Duration::from_millis(160));
    let ring = rotation::Rotation::new(config, keys.signing(), Some(keys.ring()), now).ring();
    assert_eq!(ring, Keyring { current: Key::new([10; 32]), other: Some(Key::new([20; 32])) });
}

#[tokio::test]
async fn keys_are_for_root_only_and_uninstalled() {
    let disk = Disk::new("mode");
    // Left by a crash, with the rights of any file.
    std::fs::write(disk.0.join("keys.new"), "x").expect("writes");
    Keys::adopt(&disk.1, found(1, 10, None)).await;
    // What an operator copies back into the Secret.
    let text = std::fs::read_to_string(disk.0.join("keys.json")).expect("is there");
    assert!(text.contains(r#""cluster-id":"AQEBAQEBAQE=""#), "as kubectl prints it");
    let mode = std::fs::metadata(disk.0.join("keys.json")).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    std::fs::write(disk.0.join("keys.new"), "x").expect("writes");
    StateDir::remove(&disk.0).expect("removes");
    assert_eq!(std::fs::read_dir(&disk.0).expect("reads").count(), 0);
}

/// A node that is held back because its first Secret was the wrong one follows when the right one is put back, in whichever order.
#[tokio::test]
async fn a_new_node_that_is_held_back_follows_the_secret() {
    let disk = Disk::new("new");
    let mut keys = Keys::adopt(&disk.1, found(9, 20, None)).await;
    taken(&mut keys, found(9, 30, Some(20)), true).await.expect("signing keys alone");
    keys.held_back().await.expect("nothing to follow");
    let error = taken(&mut keys, found(1, 30, Some(20)), true).await.expect_err("begins anew").to_string();
    assert!(error.contains("starting anew"), "{error}");
    assert!(Keys::load(&disk.1).is_none());

    let mut keys = Keys::adopt(&disk.1, found(9, 20, None)).await;
    taken(&mut keys, found(1, 20, None), false).await.expect("no advert of another cluster comes");
    assert!(keys.held_back().await.expect_err("begins anew").to_string().contains("starting anew"));
    assert!(Keys::load(&disk.1).is_none());
}

/// A machine that was part of another cluster before: its disk does not count.
#[tokio::test]
async fn keys_of_another_kubernetes_cluster_are_removed() {
    let disk = Disk::new("other");
    let mut keys = Keys::adopt(&disk.1, found(1, 10, None)).await;
    let other = Found { kubernetes: Some("another cluster".into()), ..found(2, 20, None) };
    let error = taken(&mut keys, other, false).await.expect_err("refused").to_string();
    assert!(error.contains("another Kubernetes cluster"), "{error}");
    assert!(Keys::load(&disk.1).is_none());
}

/// The disk hangs (a file that does not open): the main loop goes on, and what peers may sign with is acknowledged once it is on disk.
#[tokio::test]
async fn a_disk_that_hangs_delays_the_acknowledgment_and_nothing_else() {
    use futures::poll;
    use nix::sys::stat::Mode;
    let disk = Disk::new("hangs");
    let mut keys = Keys::adopt(&disk.1, found(1, 10, None)).await;
    let hung = disk.0.join("keys.new");
    nix::unistd::mkfifo(&hung, Mode::S_IRWXU).expect("makes a FIFO");
    // A write to it opens when it has a reader.
    assert!(
        keys.take(found(1, 20, Some(10)), false).await.expect("taken").is_none(),
        "acknowledged before it is on disk"
    );
    assert!(poll!(std::pin::pin!(keys.saved())).is_pending());
    // The loop goes on: a rotation, and a Secret that changes again.
    let ring = Keyring { current: Key::new([20; 32]), other: Some(Key::new([10; 32])) };
    keys.set_ring(&ring);
    assert!(keys.take(found(1, 30, Some(20)), false).await.expect("taken").is_none());
    assert!(poll!(std::pin::pin!(keys.saved())).is_pending());
    assert_eq!(Keys::load(&disk.1).expect("as before").signing().current, Key::new([10; 32]));

    let reader = tokio::task::spawn_blocking(move || {
        let reader = std::fs::File::open(&hung).expect("opens with the writer");
        std::fs::remove_file(hung).expect("removes");
        reader
    });
    let _reader = reader.await.expect("reads");
    // The first write ends (a FIFO cannot be synchronized: it costs persistence), and the newest is on disk when it is acknowledged.
    assert_eq!(keys.saved().await.expect("of the first Secret").current, Key::new([20; 32]));
    assert_eq!(keys.saved().await.expect("of the second").current, Key::new([30; 32]));
    let stored = Keys::load(&disk.1).expect("on disk");
    assert_eq!((stored.signing().current, stored.ring()), (Key::new([30; 32]), ring));
    assert!(keys.take(found(1, 30, Some(20)), false).await.expect("as it is").is_some(), "it is on disk");
}
