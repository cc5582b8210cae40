//! HMAC-SHA256 over an advert: signed with the current key, taken with either of two.
//!
//! Read first: RFC 2104; RFC 4231 (test vectors); docs/election.md section Keys.

use alloc::vec::Vec;
use core::fmt;

use ebpf_common::siphash13;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::reject::Reject;

/// Bytes of the MAC at the end of an advert.
pub const MAC_LEN: usize = 32;

/// A key of the adverts and the byte that names it on the wire.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    pub id: u8,
    pub secret: [u8; 32],
}

impl Key {
    /// The key's name on the wire is derived from it, so that a rotation needs nothing but the keys themselves.
    pub fn new(secret: [u8; 32]) -> Self {
        let [id, ..] = hash(&secret, 0).to_le_bytes();
        Self { id, secret }
    }

    /// What an advert that is signed with another key names this one by: never [`NO_OTHER`], nor 0, which speakers send that name none.
    pub fn hint(&self) -> u8 {
        let hints = u64::from(u8::MAX - NO_OTHER);
        NO_OTHER + 1 + (hash(&self.secret, 1) % hints) as u8
    }

    /// RFC 2104 section 2: a key shorter than the block is filled with zeros.
    fn mac(&self, bytes: &[u8]) -> Hmac<Sha256> {
        let mut block = [0; 64];
        block[..self.secret.len()].copy_from_slice(&self.secret);
        let mut mac = <Hmac<Sha256> as hmac::digest::KeyInit>::new(&block.into());
        mac.update(bytes);
        mac
    }
}

fn hash(secret: &[u8; 32], purpose: u64) -> u64 {
    let (halves, _) = secret.as_chunks::<16>();
    let words = halves.iter().map(|half| u128::from_le_bytes(*half));
    words.fold(0, |sum, word| siphash13(&[sum, purpose], word as u64, (word >> 64) as u64))
}

/// [`Key::hint`] of a node that has only the key with which it signs.
pub const NO_OTHER: u8 = 1;

/// Without the secret: this lands in logs.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

/// What adverts are signed with, and what else is accepted while keys are rotated ([`crate::rotation`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyring {
    pub current: Key,
    /// The previous key, or the next one before it becomes current everywhere.
    pub other: Option<Key>,
}

/// Which key of a [`Keyring`] an advert is signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    Current,
    Other,
}

impl Keyring {
    /// Appends the MAC of everything before it.
    pub fn seal(&self, bytes: &mut Vec<u8>) {
        let mac = self.current.mac(bytes).finalize().into_bytes();
        bytes.extend_from_slice(&mac);
    }

    /// The hint of the other key.
    pub fn other_hint(&self) -> u8 {
        self.other.as_ref().map_or(NO_OTHER, Key::hint)
    }

    /// In constant time per key. Both keys may have the name that the sender wrote.
    pub fn verify(&self, id: u8, signed: &[u8], mac: &[u8]) -> Result<Signer, Reject> {
        let keys = [(Signer::Current, Some(&self.current)), (Signer::Other, self.other.as_ref())];
        let mut reject = Reject::UnknownKey;
        for (signer, key) in keys {
            let Some(key) = key.filter(|key| key.id == id) else { continue };
            match key.mac(signed).verify_slice(mac) {
                Ok(()) => return Ok(signer),
                Err(_) => reject = Reject::BadMac,
            }
        }
        Err(reject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One rotation in 256 has two keys of one name.
    #[test]
    fn both_keys_of_one_name_are_tried() {
        let [old, new] = [1, 2].map(|byte| Key { id: 7, secret: [byte; 32] });
        let (old_ring, new_ring) =
            (Keyring { current: old.clone(), other: None }, Keyring { current: new.clone(), other: None });
        let both = Keyring { current: new, other: Some(old) };
        for (ring, signer) in [(&new_ring, Signer::Current), (&old_ring, Signer::Other)] {
            let mut bytes = b"advert".to_vec();
            ring.seal(&mut bytes);
            let (signed, mac) = bytes.split_at(6);
            assert_eq!(both.verify(7, signed, mac), Ok(signer));
            assert_eq!(both.verify(8, signed, mac), Err(Reject::UnknownKey));
            assert_eq!(both.verify(7, b"tamper", mac), Err(Reject::BadMac));
        }
    }

    /// Part of the protocol: nodes of different versions must name one key alike.
    #[test]
    fn names_of_keys() {
        let names = |byte| (Key::new([byte; 32]).id, Key::new([byte; 32]).hint());
        assert_eq!([names(0), names(1), names(255)], NAMES);
        let hints: alloc::collections::BTreeSet<u8> = (0..=255).map(|byte| names(byte).1).collect();
        assert!(!hints.contains(&0) && !hints.contains(&NO_OTHER) && hints.len() > 100, "{hints:?}");
    }

    const NAMES: [(u8, u8); 3] = [(46, 78), (244, 31), (44, 251)];

    /// RFC 4231 section 4.3 (a short key is padded; 4 bytes "Jefe" and zeros are the same key).
    #[test]
    fn rfc4231_test_case_2() {
        let mut secret = [0; 32];
        secret[..4].copy_from_slice(b"Jefe");
        let mac = Key { id: 0, secret }.mac(b"what do ya want for nothing?").finalize().into_bytes();
        let expected = [
            0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e, 0x6a, 0x04, 0x24, 0x26, 0x08, 0x95, 0x75, 0xc7, 0x5a, 0x00,
            0x3f, 0x08, 0x9d, 0x27, 0x39, 0x83, 0x9d, 0xec, 0x58, 0xb9, 0x64, 0xec, 0x38, 0x43,
        ];
        assert_eq!(mac[..], expected);
    }
}
