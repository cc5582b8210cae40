//! What an address range may look like, in one place: once as CEL, which the API server evaluates, and once as Rust,
//! which the controller uses. Tests hold the two against each other.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use kube::core::{Message, Rule};
use schemars::{Schema, SchemaGenerator, json_schema};

/// Most entries that a pool may have. Bounds the cost of the CEL rules and of our own passes.
pub const MAX_ENTRIES: usize = 64;
/// More than the 31 characters an IPv4 range can have, so that most mistakes get to the rule whose message names them.
const MAX_ENTRY_LENGTH: usize = 96;
/// A wider CIDR is a mistake; it also keeps a CIDR within one first octet, which the CEL rule relies on.
const MIN_PREFIX: u8 = 8;

/// An inclusive range of IPv4 addresses, however it was written. Never empty, only addresses that a host can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    first: Ipv4Addr,
    last: Ipv4Addr,
}

/// Why an entry of a pool is none. The messages name the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedRange {
    #[error("'{0}' is neither an IPv4 CIDR (192.0.2.0/28) nor a range (192.0.2.10-192.0.2.20)")]
    Syntax(String),
    #[error("range '{0}' ends before it starts")]
    Order(String),
    #[error("'{0}' contains addresses that no host can have, or is wider than /8")]
    Unusable(String),
}

impl AddressRange {
    /// The lowest address.
    pub fn first(&self) -> Ipv4Addr {
        self.first
    }

    /// The highest address.
    pub fn last(&self) -> Ipv4Addr {
        self.last
    }

    /// How many addresses there are; at most 2^32, so always exact.
    pub fn len(&self) -> u64 {
        u64::from(u32::from(self.last) - u32::from(self.first)) + 1
    }

    /// Never: a range has at least one address.
    pub fn is_empty(&self) -> bool {
        false
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.first <= address && address <= self.last
    }

    pub fn overlaps(&self, other: &AddressRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// All addresses in order, computed one by one: a /8 costs nothing until it is walked.
    pub fn iter(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        (u32::from(self.first)..=u32::from(self.last)).map(Ipv4Addr::from)
    }
}

impl FromStr for AddressRange {
    type Err = MalformedRange;

    fn from_str(text: &str) -> Result<Self, MalformedRange> {
        let syntax = || MalformedRange::Syntax(text.to_string());
        let unusable = || MalformedRange::Unusable(text.to_string());
        let range = if let Some((first, last)) = text.split_once('-') {
            let (first, last) = (first.parse().map_err(|_| syntax())?, last.parse().map_err(|_| syntax())?);
            if last < first {
                return Err(MalformedRange::Order(text.to_string()));
            }
            AddressRange { first, last }
        } else {
            let net = parse_cidr(text).ok_or_else(syntax)?;
            if net.prefix_len() < MIN_PREFIX {
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

impl AddressRange {
    /// Neither "this network" nor loopback nor multicast nor what lies above it.
    fn is_usable(&self) -> bool {
        let (first, last) = (self.first.octets()[0], self.last.octets()[0]);
        first >= 1 && last <= 223 && !(first <= 127 && last >= 127)
    }
}

/// As strict as the API server: no leading zeros in the prefix length ("/08", which ipnet would take).
fn parse_cidr(text: &str) -> Option<Ipv4Net> {
    let (_, prefix) = text.split_once('/')?;
    if prefix.len() > 1 && prefix.starts_with('0') || !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Schema of `AddressPool.spec.addresses`.
pub(crate) fn addresses_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_ENTRIES,
        "x-kubernetes-list-type": "set",
        "items": {
            "type": "string",
            "maxLength": MAX_ENTRY_LENGTH,
            "x-kubernetes-validations": entry_rules(),
        },
    })
}

/// Schema of a list of conditions, merged by type (as Kubernetes' own types do).
pub(crate) fn conditions_schema(generator: &mut SchemaGenerator) -> Schema {
    let item = generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>();
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": item,
    })
}

/// The three ways an entry can be wrong; the second and third hold their tongue about what an earlier one has named.
fn entry_rules() -> [Rule; 3] {
    const IS_CIDR: &str = "(isCIDR(self) && cidr(self).ip().family() == 4)";
    const IS_RANGE: &str =
        "(self.split('-').size() == 2 && self.split('-').all(end, isIP(end) && ip(end).family() == 4))";
    const OCTET: &str = "int(self.split('-')[END].split('.')[N])";
    let octet = |end: &str, n: &str| OCTET.replace("END", end).replace('N', n);
    let number = |end: &str| {
        format!(
            "({} * 16777216 + {} * 65536 + {} * 256 + {})",
            octet(end, "0"),
            octet(end, "1"),
            octet(end, "2"),
            octet(end, "3")
        )
    };
    let usable =
        |first: &str, last: &str| format!("({first} >= 1 && {last} <= 223 && !({first} <= 127 && {last} >= 127))");
    // Not wider than /8, so the first octet as written is that of every address in it.
    let cidr_octet = "int(self.split('.')[0])";

    let syntax = format!("{IS_CIDR} || {IS_RANGE}");
    let order = format!("!{IS_RANGE} || {} <= {}", number("0"), number("1"));
    let unusable = format!(
        "{IS_CIDR} ? cidr(self).prefixLength() >= {MIN_PREFIX} && {} : !{IS_RANGE} || {}",
        usable(cidr_octet, cidr_octet),
        usable(&octet("0", "0"), &octet("1", "0")),
    );
    let says = |text: &str| Message::Expression(format!("\"{}\"", text.replace("{}", "\" + self + \"")));
    [
        Rule::new(syntax)
            .message(says("'{}' is neither an IPv4 CIDR (192.0.2.0/28) nor a range (192.0.2.10-192.0.2.20)")),
        Rule::new(order).message(says("range '{}' ends before it starts")),
        Rule::new(unusable).message(says("'{}' contains addresses that no host can have, or is wider than /8")),
    ]
}

/// A VirtualIP is named like its address.
pub(crate) fn name_is_address() -> Rule {
    Rule::new("self.metadata.name == self.spec.address").message(Message::Expression(
        "\"the name '\" + self.metadata.name + \"' must be the address '\" + self.spec.address + \"'\"".to_string(),
    ))
}

/// A grant is for one address; another address is another object.
pub(crate) fn address_never_changes() -> Rule {
    Rule::new("self == oldSelf").message("the address of a VirtualIP never changes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AddressPool, AddressPoolSpec, VirtualIP, VirtualIPSpec};

    const GOOD: [&str; 9] = [
        "192.0.2.0/28",
        "192.0.2.5/24",
        "10.0.0.0/8",
        "192.0.2.7/32",
        "1.0.0.0/8",
        "223.255.255.255/32",
        "192.0.2.10-192.0.2.20",
        "192.0.2.10-192.0.2.10",
        "192.0.2.255-192.0.3.0",
    ];
    const SYNTAX: [&str; 14] = [
        "",
        "x",
        "192.0.2.10",
        "192.0.2.0/33",
        "192.0.2.0/",
        "192.0.2.0/24 ",
        "192.0.2.01-192.0.2.20",
        "192.0.2.300-192.0.3.1",
        "192.0.2.10-192.0.2.20-192.0.2.30",
        "192.0.2.10-20",
        "192.0.2.10 - 192.0.2.20",
        "2001:db8::/64",
        "2001:db8::1-2001:db8::2",
        "-",
    ];
    const ORDER: [&str; 2] = ["192.0.2.20-192.0.2.10", "192.0.3.0-192.0.2.255"];
    const UNUSABLE: [&str; 8] = [
        "0.0.0.0/0",
        "0.0.0.0/8",
        "10.0.0.0/7",
        "127.0.0.0/8",
        "224.0.0.0/24",
        "223.0.0.0-224.0.0.0",
        "126.0.0.0-128.0.0.0",
        "0.1.0.0-1.0.0.0",
    ];

    /// The result of the API server's rules; empty = accepted.
    fn cel(entry: &str) -> String {
        let spec = AddressPoolSpec { addresses: vec!["198.51.100.0/30".into(), entry.into()], ..Default::default() };
        match kube::core::cel::validate_cel(&AddressPool::new("p", spec)) {
            Ok(()) => String::new(),
            Err(errors) => format!("{errors:?}"),
        }
    }

    #[test]
    fn good_entries_pass_in_rust_and_in_cel() {
        for entry in GOOD {
            assert!(entry.parse::<AddressRange>().is_ok(), "{entry}");
            assert_eq!(cel(entry), "", "{entry}");
        }
    }

    #[test]
    fn bad_entries_are_refused_in_both_with_the_same_sentence() {
        for entry in SYNTAX.into_iter().chain(ORDER).chain(UNUSABLE) {
            let refused = entry.parse::<AddressRange>().unwrap_err();
            match refused {
                MalformedRange::Syntax(_) => assert!(SYNTAX.contains(&entry), "{entry}"),
                MalformedRange::Order(_) => assert!(ORDER.contains(&entry), "{entry}"),
                MalformedRange::Unusable(_) => assert!(UNUSABLE.contains(&entry), "{entry}"),
            }
            let said = cel(entry);
            assert!(said.contains(&refused.to_string()), "{entry}: CEL said {said}");
        }
    }

    /// The API server's Go parser refuses these; the CEL library of the tests does not.
    #[test]
    fn prefix_lengths_are_plain_decimal() {
        for entry in ["192.0.2.0/08", "192.0.2.0/+8"] {
            assert_eq!(entry.parse::<AddressRange>(), Err(MalformedRange::Syntax(entry.to_string())));
        }
    }

    #[test]
    fn a_range_is_walked_lazily_and_counted_exactly() {
        let wide: AddressRange = "10.0.0.0/8".parse().unwrap();
        assert_eq!(wide.len(), 1 << 24);
        assert_eq!(wide.iter().next(), Some(Ipv4Addr::new(10, 0, 0, 0)));
        let all: AddressRange = "192.0.2.254-192.0.3.1".parse().unwrap();
        assert_eq!(all.iter().count(), 4);
        assert_eq!(all.to_string(), "192.0.2.254-192.0.3.1");
        let neighbour: AddressRange = "192.0.3.2/31".parse().unwrap();
        assert!(!all.overlaps(&neighbour) && all.overlaps(&all) && !all.contains(neighbour.first()));
    }

    #[test]
    fn a_virtual_ip_is_named_like_its_address_and_keeps_it() {
        let vip = |name: &str, address: &str| {
            VirtualIP::new(name, VirtualIPSpec { address: address.into(), pool: "p".into(), services: vec![] })
        };
        assert!(kube::core::cel::validate_cel(&vip("192.0.2.1", "192.0.2.1")).is_ok());
        assert!(kube::core::cel::validate_cel(&vip("192.0.2.1", "192.0.2.2")).is_err());
        let moved =
            kube::core::cel::validate_cel_update(&vip("192.0.2.1", "192.0.2.2"), &vip("192.0.2.1", "192.0.2.1"));
        assert!(moved.is_err());
    }
}
