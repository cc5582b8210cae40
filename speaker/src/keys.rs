//! What all speakers of a cluster share: the keys that sign adverts, the key of the flow hash, the cluster id.
//!
//! Read first: docs/decisions/0014. They come from the Secret `sheave-keys` ([`source`]) and stay on this node's disk. The
//! cluster id and flow key on disk count for as long as they are of this Kubernetes cluster; signing keys follow the Secret
//! (`speaker_core::rotation`).

mod file;
pub mod source;

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};
use sheave_api::keys;
use speaker_core::rotation;
use speaker_core::wire::advert::{Key, Keyring};
use tracing::{info, warn};

use crate::state::StateDir;
use file::KeyFile;

/// What every node must have alike for as long as the cluster lives. Without `Debug`: the flow key is a secret.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Identity {
    #[serde(with = "entry")]
    cluster_id: [u8; 8],
    #[serde(with = "entry")]
    flow_hash: [u8; 16],
}

impl Identity {
    /// Of a group whose members have no Secret.
    pub fn from_hash(hash: [u8; 32]) -> Self {
        let part = |start: usize| u64::from_be_bytes(std::array::from_fn(|i| hash[start + i]));
        let flow = u128::from(part(8)) << 64 | u128::from(part(16));
        Self { cluster_id: part(0).to_le_bytes(), flow_hash: flow.to_le_bytes() }
    }

    pub fn cluster_id(&self) -> u64 {
        u64::from_le_bytes(self.cluster_id)
    }

    /// SipHash key of the flow hash.
    pub fn flow_key(&self) -> [u64; 2] {
        let all = u128::from_le_bytes(self.flow_hash);
        [all as u64, (all >> 64) as u64]
    }
}

/// The meaning of the Secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents {
    pub identity: Identity,
    pub signing: rotation::Secret,
}

impl Contents {
    /// All of it or nothing: half a Secret must change no key.
    pub fn decode(data: &BTreeMap<String, ByteString>) -> Result<Self> {
        let identity =
            Identity { cluster_id: exact(data, keys::CLUSTER_ID)?, flow_hash: exact(data, keys::FLOW_HASH)? };
        let previous = data.contains_key(keys::PREVIOUS).then(|| exact(data, keys::PREVIOUS)).transpose()?;
        let signing =
            rotation::Secret { current: Key::new(exact(data, keys::CURRENT)?), previous: previous.map(Key::new) };
        Ok(Self { identity, signing })
    }
}

fn exact<const N: usize>(data: &BTreeMap<String, ByteString>, name: &str) -> Result<[u8; N]> {
    let ByteString(bytes) = data.get(name).with_context(|| format!("entry {name} is missing"))?;
    let length = bytes.len();
    <[u8; N]>::try_from(bytes.as_slice())
        .map_err(|_| anyhow::anyhow!("entry {name}: {length} bytes, expected exactly {N}"))
}

/// What is on disk, with the names and the form of the Secret's entries. Without `Debug`: these are secrets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// UID of the Kubernetes cluster that the keys are of; `None` if it could not be read.
    kubernetes: Option<String>,
    #[serde(flatten)]
    identity: Identity,
    /// This node ran with the identity, and no evidence is against it.
    confirmed: bool,
    /// What adverts are signed with.
    #[serde(with = "entry")]
    signing: [u8; 32],
    /// What else is accepted.
    #[serde(with = "entry::optional")]
    other: Option<[u8; 32]>,
    /// The Secret's entries, as they were read last.
    #[serde(with = "entry")]
    current: [u8; 32],
    #[serde(with = "entry::optional")]
    previous: Option<[u8; 32]>,
}

impl Stored {
    fn first(contents: &Contents, kubernetes: Option<String>) -> Self {
        let rotation::Secret { current, previous } = &contents.signing;
        let previous = previous.as_ref().map(|key| key.secret);
        let signing = previous.unwrap_or(current.secret);
        let other = previous.map(|_| current.secret);
        Self {
            kubernetes,
            identity: contents.identity,
            confirmed: false,
            signing,
            other,
            current: current.secret,
            previous,
        }
    }
}

/// The keys that this speaker works with, and their file. The identity does not change while it runs.
pub struct Keys {
    file: KeyFile,
    stored: Stored,
    /// The Secret names another identity.
    differs: bool,
}

impl Keys {
    /// As the speaker before this one left them.
    pub fn load(disk: &StateDir) -> Option<Self> {
        let stored = disk.load_keys()?;
        Some(Self { file: KeyFile::new(disk), stored, differs: false })
    }

    /// The first keys of this node, once they are on disk.
    pub async fn adopt(disk: &StateDir, found: Found) -> Self {
        let stored = Stored::first(&found.contents, found.kubernetes);
        let mut keys = Self { file: KeyFile::new(disk), stored, differs: false };
        info!(signing = keys.ring().current.id, "first keys of this node adopted");
        keys.save();
        keys.flush().await;
        keys
    }

    pub fn identity(&self) -> Identity {
        self.stored.identity
    }

    /// Whether this node ran with its identity before.
    pub fn is_confirmed(&self) -> bool {
        self.stored.confirmed
    }

    /// The Secret names another cluster id or flow key than this node works with.
    pub fn identity_differs(&self) -> bool {
        self.differs
    }

    pub fn ring(&self) -> Keyring {
        Keyring { current: Key::new(self.stored.signing), other: self.stored.other.map(Key::new) }
    }

    pub fn signing(&self) -> rotation::Secret {
        rotation::Secret { current: Key::new(self.stored.current), previous: self.stored.previous.map(Key::new) }
    }

    /// The Secret was read or has changed. Its keys for the rotation, if they are on disk; else [`Self::saved`] returns them: a key that
    /// peers may sign with since this node has acknowledged it must be there after a restart. `held_back`: this node is new and cannot
    /// verify the others.
    pub async fn take(&mut self, found: Found, held_back: bool) -> Result<Option<rotation::Secret>> {
        let Found { contents, kubernetes } = found;
        if let (Some(stored), Some(read)) = (&self.stored.kubernetes, &kubernetes)
            && stored != read
        {
            self.file.remove().await?;
            bail!(
                "the keys on disk are of another Kubernetes cluster ({stored}, this is {read}); removed, starting anew"
            );
        }
        let differs = contents.identity != self.stored.identity;
        if differs && held_back {
            return Err(self.start_anew().await);
        }
        if differs != std::mem::replace(&mut self.differs, differs) {
            if differs {
                let (secret, own) = (contents.identity.cluster_id(), self.stored.identity.cluster_id());
                warn!(
                    secret = format!("{secret:016x}"),
                    own = format!("{own:016x}"),
                    flow_key_differs = contents.identity.flow_hash != self.stored.identity.flow_hash,
                    "{IDENTITY_DIFFERS}: the Secret sheave-keys names another cluster id or flow key; this node keeps its own"
                );
            } else {
                info!("Secret sheave-keys has the cluster id and flow key of this node again");
            }
        }
        let before = self.stored.clone();
        self.stored.kubernetes = kubernetes.or(self.stored.kubernetes.take());
        self.stored.current = contents.signing.current.secret;
        self.stored.previous = contents.signing.previous.as_ref().map(|key| key.secret);
        if (self.stored.current, self.stored.previous) != (before.current, before.previous) {
            let previous = contents.signing.previous.as_ref().map(|key| key.id);
            info!(current = contents.signing.current.id, previous, "Secret sheave-keys has other signing keys");
        }
        if self.stored == before && self.file.is_idle() {
            return Ok(Some(contents.signing));
        }
        self.file.write(self.stored.clone(), Some(contents.signing));
        Ok(None)
    }

    /// Keys were written to disk, or could not be; those of the Secret that waited for it, for the rotation. Never, while none are being
    /// written.
    pub async fn saved(&mut self) -> Option<rotation::Secret> {
        self.file.written().await
    }

    /// All changes are on disk, or could not be written.
    pub async fn flush(&mut self) {
        while !self.file.is_idle() {
            self.saved().await;
        }
    }

    /// This node is new and cannot verify the others. If the Secret names another identity meanwhile, that is the cluster's.
    pub async fn held_back(&mut self) -> Result<()> {
        if self.differs { Err(self.start_anew().await) } else { Ok(()) }
    }

    async fn start_anew(&mut self) -> anyhow::Error {
        let reason = "the Secret sheave-keys names another cluster id or flow key than this new node took from it; starting anew";
        self.file.remove().await.err().unwrap_or_else(|| anyhow::anyhow!(reason))
    }

    /// What the rotation signs and verifies with from now on.
    pub fn set_ring(&mut self, ring: &Keyring) {
        self.stored.signing = ring.current.secret;
        self.stored.other = ring.other.as_ref().map(|key| key.secret);
        self.save();
    }

    pub fn confirm(&mut self) {
        self.stored.confirmed = true;
        self.save();
    }

    fn save(&mut self) {
        self.file.write(self.stored.clone(), None);
    }
}

/// An entry of the Secret in JSON: base64, as `kubectl get secret` prints it and takes it back.
mod entry {
    use k8s_openapi::ByteString;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        ByteString(bytes.to_vec()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[u8; N], D::Error> {
        let ByteString(bytes) = ByteString::deserialize(deserializer)?;
        let length = bytes.len();
        bytes.try_into().map_err(|_| D::Error::custom(format!("{length} bytes, expected exactly {N}")))
    }

    pub mod optional {
        use super::{ByteString, Deserialize, Deserializer, Error, Serialize, Serializer};

        pub fn serialize<S: Serializer>(bytes: &Option<[u8; 32]>, serializer: S) -> Result<S::Ok, S::Error> {
            bytes.map(|bytes| ByteString(bytes.to_vec())).serialize(serializer)
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<[u8; 32]>, D::Error> {
            let entry = Option::<ByteString>::deserialize(deserializer)?;
            let exact = |ByteString(bytes): ByteString| bytes.try_into();
            entry.map(exact).transpose().map_err(|_| D::Error::custom("expected exactly 32 bytes"))
        }
    }
}

/// The name of that in log and /readyz; the metric is `sheave_keys_identity_differs`.
pub const IDENTITY_DIFFERS: &str = "keys_identity_differs";

/// What was read from the API server.
#[derive(Clone)]
pub struct Found {
    pub contents: Contents,
    /// UID of the Kubernetes cluster, if it could be read.
    pub kubernetes: Option<String>,
}

#[cfg(test)]
mod tests;
