//! Every way a datagram can be refused: enum variant = metric label = log field.

use core::fmt;

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
    /// Shorter than its length fields.
    Truncated, "truncated";
    /// Longer than [`MAX_DATAGRAM`](super::advert::MAX_DATAGRAM).
    Oversized, "oversized";
    /// Not an advert, or one with a field out of range.
    Malformed, "malformed";
    WrongVersion, "wrong_version";
    WrongCluster, "wrong_cluster";
    UnknownKey, "unknown_key";
    BadMac, "bad_mac";
    /// A peer with an interval or dead time beyond what is allowed ([`Pace`](super::pace::Pace)).
    BadPace, "bad_pace";
    /// A sequence number that was already seen or is outside the window.
    Replayed, "replayed";
    /// Of an incarnation that is over.
    StaleEpoch, "stale_epoch";
    /// In the name of this node itself.
    OwnEcho, "own_echo";
    /// In the name of a node that the cluster does not have.
    UnknownNode, "unknown_node";
    /// No room for one more peer.
    TooManyPeers, "too_many_peers";
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
