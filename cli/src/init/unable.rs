//! Why `sheave init` proposes or applies nothing: each under one name (docs/pools.md, A first pool).

use std::net::Ipv4Addr;

use super::range::{Span, Why};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unable {
    #[error("NoSpeaker: no speaker has reported (kubectl get speakerstates); is the DaemonSet sheave-speaker running?")]
    NoSpeaker,
    #[error(
        "NoSubnet: no speaker has reported an IPv4 subnet of /29 or wider on its uplink (kubectl get speakerstates -o yaml)"
    )]
    NoSubnet,
    #[error("SeveralSubnets: the nodes stand in {}; name one with --subnet", .known.join(", "))]
    SeveralSubnets { known: Vec<String> },
    #[error("UnknownSubnet: {subnet} is no subnet of a node's uplink; there are {}", .known.join(", "))]
    UnknownSubnet { subnet: String, known: Vec<String> },
    #[error("RangeOutsideSubnets: {range} does not lie in one subnet of the nodes (that --subnet names); there are {}", .known.join(", "))]
    RangeOutsideSubnets { range: Span, known: Vec<String> },
    #[error("RangeNotIPv4: {0} is no range of IPv4 addresses, which alone are served")]
    RangeNotIPv4(String),
    #[error("RangeTooLarge: {range} has {} addresses; {most} are allowed, since each is probed", .range.count())]
    RangeTooLarge { range: Span, most: u32 },
    #[error("RangeInUse: {range} is not free: {}", list(.taken))]
    RangeInUse { range: Span, taken: Vec<(Ipv4Addr, Why)> },
    #[error(
        "NoFreeRange: no {size} addresses in a row are free in {within}{}",
        .longest.map_or_else(String::new, |longest| format!("; the longest free range is {longest} (--size {})", longest.count()))
    )]
    NoFreeRange { within: Span, size: u32, longest: Option<Span> },
    #[error("PoolExists: there is an AddressPool '{0}' already; another name: --pool")]
    PoolExists(String),
    #[error(
        "ScanUnderWay: SubnetScan {node} was made {seconds} s ago: another sheave init runs, or was killed \
         (kubectl delete subnetscan {node})"
    )]
    ScanUnderWay { node: String, seconds: i64 },
    #[error("NoAnswer: no speaker of the subnet has answered: {}", .0.join("; "))]
    NoAnswer(Vec<String>),
}

/// The first few.
fn list(taken: &[(Ipv4Addr, Why)]) -> String {
    let mut texts: Vec<String> = taken.iter().take(MOST).map(|(address, why)| format!("{address}: {why}")).collect();
    if let Some(more @ 1..) = taken.len().checked_sub(MOST) {
        texts.push(format!("and {more} more"));
    }
    texts.join(", ")
}

/// Addresses that an error names.
const MOST: usize = 4;
