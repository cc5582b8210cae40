//! What an address range may look like, in one place: once as CEL (`cel`), which the API server evaluates, and once as Rust,
//! which the controller uses. Tests hold the two against each other.

mod cel;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub(crate) use cel::{
    address_never_changes, addresses_schema, advertisements_schema, conditions_schema, exclusions_schema,
    failback_schema, interfaces_schema, name_is_address, namespaces_schema, placement_address, placement_has_no_owner,
    placement_has_owner, placement_is_of_address, placement_is_of_node, placement_moves, placement_name, pools_schema,
    selector_schema, selectors_schema,
};

/// Most entries that a pool may have, and as many exclusions. Bounds the cost of the CEL rules and of our own passes.
pub const MAX_ENTRIES: usize = 64;
/// A wider CIDR of IPv4 is a mistake; it also keeps a CIDR within one first octet, which the CEL rule relies on.
const MIN_PREFIX_V4: u8 = 8;
/// The same for IPv6: what a site's provider has.
const MIN_PREFIX_V6: u8 = 32;

/// An inclusive range of addresses of one family, however it was written. Never empty, only addresses that a host can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

/// Why an entry of a pool is none. The messages name the value and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedRange {
    #[error(
        "'{0}' is neither an address (192.0.2.10, 2001:db8::10), nor a CIDR (192.0.2.0/28), nor a range of one family \
         (192.0.2.10-192.0.2.20)"
    )]
    Syntax(String),
    #[error("range '{0}' ends before it starts")]
    Order(String),
    #[error(
        "'{0}' contains addresses that no host can have, or is wider than /8 (IPv6: /32); allowed are 1.0.0.0 to 223.255.255.255 \
         without 127.0.0.0/8, and IPv6 within 2000::/3 or fc00::/7"
    )]
    Unusable(String),
}

impl AddressRange {
    /// The lowest address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The highest address, of the same family.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// How many addresses there are, at least one. Exact: what a host can have is less than half of IPv6.
    pub fn count(&self) -> u128 {
        number(self.last) - number(self.first) + 1
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.first.is_ipv4() == address.is_ipv4() && self.first <= address && address <= self.last
    }

    /// Of IPv4 neither "this network" nor loopback nor multicast nor what lies above it; of IPv6 global and unique local unicast.
    fn is_usable(&self) -> bool {
        match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                let (first, last) = (first.octets()[0], last.octets()[0]);
                first >= 1 && last <= 223 && !(first <= 127 && last >= 127)
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                usable_v6().iter().any(|net| net.contains(&first) && net.contains(&last))
            }
            _ => false,
        }
    }
}

impl FromStr for AddressRange {
    type Err = MalformedRange;

    fn from_str(text: &str) -> Result<Self, MalformedRange> {
        let syntax = || MalformedRange::Syntax(text.to_string());
        let unusable = || MalformedRange::Unusable(text.to_string());
        let range = if let Some((first, last)) = text.split_once('-') {
            let (first, last) = (parse_address(first).ok_or_else(syntax)?, parse_address(last).ok_or_else(syntax)?);
            if first.is_ipv4() != last.is_ipv4() {
                return Err(syntax());
            }
            if last < first {
                return Err(MalformedRange::Order(text.to_string()));
            }
            AddressRange { first, last }
        } else if let Some(address) = parse_address(text) {
            AddressRange { first: address, last: address }
        } else {
            let net = parse_cidr(text).ok_or_else(syntax)?;
            let least = if net.addr().is_ipv4() { MIN_PREFIX_V4 } else { MIN_PREFIX_V6 };
            if net.prefix_len() < least {
                return Err(unusable());
            }
            AddressRange { first: net.network(), last: net.broadcast() }
        };
        if range.is_usable() { Ok(range) } else { Err(unusable()) }
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// Global unicast and unique local addresses (RFC 4291, RFC 4193).
fn usable_v6() -> [Ipv6Net; 2] {
    let net = |segment, length| Ipv6Net::new_assert(Ipv6Addr::new(segment, 0, 0, 0, 0, 0, 0, 0), length);
    [net(0x2000, 3), net(0xfc00, 7)]
}

/// Blanks around it are allowed. IPv4 in the notation of IPv6 is not: the API server knows no such address.
fn parse_address(text: &str) -> Option<IpAddr> {
    text.trim().parse().ok().filter(|address| !is_mapped(*address))
}

/// As strict as the API server: no leading zeros in the prefix length ("/08", which ipnet would take).
fn parse_cidr(text: &str) -> Option<IpNet> {
    let text = text.trim();
    let (address, prefix) = text.split_once('/')?;
    if prefix.len() > 1 && prefix.starts_with('0') || !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    match address.parse().ok()? {
        IpAddr::V4(address) => Ipv4Net::new(address, prefix.parse().ok()?).ok().map(IpNet::V4),
        address if is_mapped(address) => None,
        IpAddr::V6(address) => Ipv6Net::new(address, prefix.parse().ok()?).ok().map(IpNet::V6),
    }
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

#[cfg(test)]
mod tests;
