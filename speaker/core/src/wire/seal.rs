//! HMAC-SHA256 over an advert: signed with the current key, taken with either of two.
//!
//! Read first: RFC 2104; RFC 4231 (test vectors); docs/election.md section Keys.

use alloc::vec::Vec;
use core::fmt;

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
    /// RFC 2104 section 2: a key shorter than the block is filled with zeros.
    fn mac(&self, bytes: &[u8]) -> Hmac<Sha256> {
        let mut block = [0; 64];
        block[..self.secret.len()].copy_from_slice(&self.secret);
        let mut mac = <Hmac<Sha256> as hmac::digest::KeyInit>::new(&block.into());
        mac.update(bytes);
        mac
    }
}

/// Without the secret: this lands in logs.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

/// What adverts are signed with, and what else is taken while keys are rotated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyring {
    pub current: Key,
    /// The previous key, or the next one before it becomes current everywhere.
    pub other: Option<Key>,
}

impl Keyring {
    /// Appends the MAC of everything before it.
    pub fn seal(&self, bytes: &mut Vec<u8>) {
        let mac = self.current.mac(bytes).finalize().into_bytes();
        bytes.extend_from_slice(&mac);
    }

    /// In constant time.
    pub fn verify(&self, id: u8, signed: &[u8], mac: &[u8]) -> Result<(), Reject> {
        let key = [Some(&self.current), self.other.as_ref()].into_iter().flatten().find(|key| key.id == id);
        key.ok_or(Reject::UnknownKey)?.mac(signed).verify_slice(mac).map_err(|_| Reject::BadMac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
