//! Which clients a Service admits: `spec.loadBalancerSourceRanges`, or the older annotation where the field is empty.
//!
//! Pure. The speaker enforces what this returns, the controller refuses what it cannot read; so both read it here. Follows what the
//! API server admits (`ParseCIDRSloppy` of k8s.io/utils/net: host bits are masked off, octets may have leading zeros and are decimal),
//! except IPv4-mapped IPv6 prefixes, which name a family that no packet of the Service has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::excerpt;

/// The field, as an error names it.
pub const FIELD: &str = "spec.loadBalancerSourceRanges";
/// The annotation that counts where the field is empty: entries separated by commas.
pub const ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// The clients that a Service admits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceRanges {
    /// Disjoint and in order, without host bits.
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
    restricted: bool,
}

impl SourceRanges {
    /// The list had an entry. Then a family without a range admits no client; else every client is admitted.
    pub fn is_restricted(&self) -> bool {
        self.restricted
    }

    /// Disjoint and in order, without host bits. Adjacent entries are one.
    pub fn v4(&self) -> &[Ipv4Net] {
        &self.v4
    }

    /// As [`SourceRanges::v4`].
    pub fn v6(&self) -> &[Ipv6Net] {
        &self.v6
    }

    /// Whether a client with this address is admitted.
    pub fn admits(&self, client: IpAddr) -> bool {
        !self.restricted
            || match client {
                IpAddr::V4(client) => self.v4.iter().any(|range| range.contains(&client)),
                IpAddr::V6(client) => self.v6.iter().any(|range| range.contains(&client)),
            }
    }
}

/// An entry that is no range: names the field, the value, and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{field}: '{}' is no address range; allowed are CIDRs such as 192.0.2.0/24 or 2001:db8::/32 (IPv4 prefix length 0 to 32, \
     IPv6 0 to 128)",
    excerpt(value)
)]
pub struct RangeError {
    /// [`FIELD`] or [`ANNOTATION`].
    pub field: &'static str,
    pub value: String,
}

/// Of a Service: `ranges` is its field, `annotation` the value of [`ANNOTATION`]. An entry that is no range is an error, an empty
/// one included, so that a mistake never opens a Service.
pub fn of_service(ranges: &[String], annotation: Option<&str>) -> Result<SourceRanges, RangeError> {
    if !ranges.is_empty() {
        return parse(FIELD, ranges.iter().map(String::as_str));
    }
    match annotation.map(str::trim).filter(|list| !list.is_empty()) {
        Some(list) => parse(ANNOTATION, list.split(',')),
        None => Ok(SourceRanges::default()),
    }
}

fn parse<'a>(field: &'static str, entries: impl Iterator<Item = &'a str>) -> Result<SourceRanges, RangeError> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for entry in entries {
        let error = || RangeError { field, value: entry.into() };
        let (address, length) = entry.trim().split_once('/').ok_or_else(error)?;
        let length = decimal(length, 128).ok_or_else(error)?;
        match (ipv4(address), ipv6(address)) {
            (Some(address), _) => v4.push(Ipv4Net::new(address, length).map_err(|_| error())?.trunc()),
            (None, Some(address)) => v6.push(Ipv6Net::new(address, length).map_err(|_| error())?.trunc()),
            (None, None) => return Err(error()),
        }
    }
    Ok(SourceRanges { v4: Ipv4Net::aggregate(&v4), v6: Ipv6Net::aggregate(&v6), restricted: true })
}

/// Four decimal numbers. Leading zeros are admitted, because objects that have them exist.
fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = decimal(parts.next()?, u8::MAX)?;
    }
    parts.next().is_none().then(|| octets.into())
}

fn ipv6(text: &str) -> Option<Ipv6Addr> {
    text.parse().ok().filter(|address: &Ipv6Addr| address.to_ipv4_mapped().is_none())
}

/// Digits only; `parse` alone would take a sign.
fn decimal(text: &str, max: u8) -> Option<u8> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number <= max)
}

#[cfg(test)]
mod tests;
