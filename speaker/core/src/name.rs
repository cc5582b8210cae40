//! What is named in every protocol of the speaker: nodes, addresses, terms.

use alloc::sync::Arc;
use core::fmt;
use core::net::Ipv4Addr;

/// The name of a Kubernetes node: 1 to 253 bytes (RFC 1123 subdomain). Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeName(Arc<str>);

impl NodeName {
    pub const MAX_LEN: usize = 253;

    /// `None` unless it is a DNS subdomain name: letters, digits, `-`, `.`, no longer than [`Self::MAX_LEN`].
    pub fn new(name: &str) -> Option<Self> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
        let fits = !name.is_empty() && name.len() <= Self::MAX_LEN;
        (fits && name.bytes().all(valid)).then(|| Self(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A virtual address. IPv4 for now; the wire has room for more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vip(pub Ipv4Addr);

impl Vip {
    pub const fn octets(self) -> [u8; 4] {
        self.0.octets()
    }
}

impl From<Ipv4Addr> for Vip {
    fn from(address: Ipv4Addr) -> Self {
        Self(address)
    }
}

impl fmt::Debug for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// How often a VIP was won. Every win is one higher than any term the winner has received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term(pub u64);

impl Term {
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
