//! The files of the Secret `sheave-keys`: what authenticates heartbeats and keys the flow hash.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};
use ebpf_common::siphash13;
use sheave_api::keys;
use speaker_core::wire::advert::{Key, Keyring};

/// Everything that all speakers of a cluster share.
#[derive(Clone)]
pub struct Keys {
    pub adverts: Keyring,
    /// SipHash key of the flow hash.
    pub flow_hash: [u64; 2],
    pub cluster_id: u64,
}

impl Keys {
    pub fn read(dir: &Path) -> Result<Self> {
        let other = dir.join(keys::PREVIOUS).exists();
        Ok(Self {
            adverts: Keyring {
                current: key(exact(dir, keys::CURRENT)?),
                other: other.then(|| exact(dir, keys::PREVIOUS).map(key)).transpose()?,
            },
            flow_hash: words(&exact(dir, keys::FLOW_HASH)?),
            cluster_id: u64::from_le_bytes(exact(dir, keys::CLUSTER_ID)?),
        })
    }
}

/// The key's name on the wire is derived from it, so that a rotation needs nothing but the two files.
fn key(secret: [u8; 32]) -> Key {
    let id = secret
        .as_chunks::<16>()
        .0
        .iter()
        .map(words)
        .fold(0, |sum, [first, second]| siphash13(&[sum, 0], first, second));
    Key { id: id.to_le_bytes()[0], secret }
}

fn words(bytes: &[u8; 16]) -> [u64; 2] {
    let all = u128::from_le_bytes(*bytes);
    [all as u64, (all >> 64) as u64]
}

fn exact<const N: usize>(dir: &Path, name: &str) -> Result<[u8; N]> {
    let bytes = read(dir, name)?;
    let length = bytes.len();
    <[u8; N]>::try_from(bytes)
        .map_err(|_| anyhow::anyhow!("{}: {length} bytes, expected exactly {N}", dir.join(name).display()))
}

fn read(dir: &Path, name: &str) -> Result<Vec<u8>> {
    let path = dir.join(name);
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("{} is missing: the controller creates the Secret sheave-keys, mounted there", path.display())
        }
        other => other.with_context(|| format!("read {}", path.display())),
    }
}
