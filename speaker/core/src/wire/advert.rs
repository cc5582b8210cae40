//! Election adverts: heartbeats and claim lists over UDP.
//!
//! Read first: docs/election.md section Wire; RFC 2104 (HMAC).

use core::fmt;

/// The largest datagram that is sent or taken. Fits an Ethernet frame with room for encapsulation: adverts are never fragmented.
pub const MAX_DATAGRAM: usize = 1400;
/// The key of the adverts' HMAC-SHA256 and the byte that names it on the wire.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    pub id: u8,
    pub secret: [u8; 32],
}

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

macro_rules! rejects {
    ($($(#[$doc:meta])* $name:ident, $label:literal;)*) => {
        /// Why a datagram was not taken. The label is the metric label and the log field.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reject { $($(#[$doc])* $name,)* }

        impl Reject {
            pub const ALL: &'static [Reject] = &[$(Reject::$name),*];
            pub const fn label(self) -> &'static str { match self { $(Reject::$name => $label),* } }
        }
    };
}

rejects! {
    /// Shorter than its own lengths say.
    Truncated, "truncated";
    /// Longer than [`MAX_DATAGRAM`].
    Oversized, "oversized";
    /// Not an advert, or one with a field out of range.
    Malformed, "malformed";
    WrongVersion, "wrong_version";
    WrongCluster, "wrong_cluster";
    UnknownKey, "unknown_key";
    BadMac, "bad_mac";
    /// A sequence number that was already passed.
    Replayed, "replayed";
    /// Of an incarnation that is over.
    StaleEpoch, "stale_epoch";
    /// Sent by this node itself.
    OwnEcho, "own_echo";
    /// No room for one more peer.
    TooManyPeers, "too_many_peers";
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
