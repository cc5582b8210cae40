//! Pure: which addresses are taken, which range is proposed, and whether one that a person names is free.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::Ipv4Net;
use sheave_api::{AddressRange, DhcpServer, ProbeResult};

use super::unable::Unable;

/// Addresses that are looked over: the highest of a wider subnet.
pub const MAX_SCANNED: u32 = 1024;

/// An inclusive range of IPv4 addresses; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    pub first: Ipv4Addr,
    pub last: Ipv4Addr,
}

impl Span {
    pub fn count(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    pub fn addresses(self) -> impl DoubleEndedIterator<Item = Ipv4Addr> {
        (u32::from(self.first)..=u32::from(self.last)).map(Ipv4Addr::from)
    }

    /// What hosts of the subnet may have and is looked over.
    pub fn of_subnet(subnet: Ipv4Net) -> Self {
        let (first, last) = (u32::from(subnet.network()) + 1, u32::from(subnet.broadcast()) - 1);
        Self { first: first.max(last.saturating_sub(MAX_SCANNED - 1)).into(), last: last.into() }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// As an entry of a pool is written.
impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = text.trim().parse::<AddressRange>().map_err(|error| error.to_string())?;
        match (range.first(), range.last()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => Ok(Self { first, last }),
            _ => Err(Unable::RangeNotIPv4(text.trim().to_owned()).to_string()),
        }
    }
}

/// Why an address cannot be in a new pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    Node(String),
    Gateway,
    Pool(String),
    Granted,
    /// Ethernet addresses that answered.
    Host(Vec<String>),
    DhcpServer,
    DhcpOffered {
        server: String,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "address of node {name}"),
            Self::Gateway => f.write_str("gateway of the nodes"),
            Self::Pool(name) => write!(f, "in AddressPool {name}"),
            Self::Granted => f.write_str("granted to a Service"),
            Self::Host(macs) => write!(f, "a host answers ({})", macs.join(", ")),
            Self::DhcpServer => f.write_str("a DHCP server"),
            Self::DhcpOffered { server } => write!(f, "offered by the DHCP server {server}"),
        }
    }
}

/// Addresses that are in use, or may be.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    addresses: BTreeMap<Ipv4Addr, Why>,
    pools: Vec<(Span, String)>,
}

impl Taken {
    /// The first reason stays.
    pub fn add(&mut self, address: Ipv4Addr, why: Why) {
        self.addresses.entry(address).or_insert(why);
    }

    pub fn add_pool(&mut self, entries: &[String], name: &str) {
        // One that cannot be read grants nothing, and IPv6 is none of these.
        self.pools.extend(entries.iter().filter_map(|entry| Some((entry.parse().ok()?, name.to_owned()))));
    }

    /// Hosts that answered, without those that answer for every address: what these say means nothing.
    pub fn add_answers(&mut self, results: &[ProbeResult], proxies: &BTreeSet<String>) {
        for result in results {
            let macs: Vec<String> = result.macs.iter().filter(|mac| !proxies.contains(*mac)).cloned().collect();
            if let Some(address) = result.address.parse().ok().filter(|_| !macs.is_empty()) {
                self.add(address, Why::Host(macs));
            }
        }
    }

    pub fn add_server(&mut self, server: &DhcpServer) {
        if let Ok(address) = server.server.parse() {
            self.add(address, Why::DhcpServer);
        }
        if let Ok(address) = server.offered.parse() {
            self.add(address, Why::DhcpOffered { server: server.server.clone() });
        }
    }

    pub fn hosts(&self) -> impl Iterator<Item = (Ipv4Addr, &[String])> {
        self.addresses.iter().filter_map(|(address, why)| match why {
            Why::Host(macs) => Some((*address, &macs[..])),
            _ => None,
        })
    }

    fn why(&self, address: Ipv4Addr) -> Option<Why> {
        let pool = || self.pools.iter().find(|(span, _)| span.first <= address && address <= span.last);
        self.addresses.get(&address).cloned().or_else(|| Some(Why::Pool(pool()?.1.clone())))
    }

    /// `Err`: the range has an address that is taken.
    pub fn check(&self, range: Span) -> Result<(), Unable> {
        if range.count() > MAX_SCANNED {
            return Err(Unable::RangeTooLarge { range, most: MAX_SCANNED });
        }
        let taken: Vec<_> = range.addresses().filter_map(|address| Some((address, self.why(address)?))).collect();
        if taken.is_empty() { Ok(()) } else { Err(Unable::RangeInUse { range, taken }) }
    }

    /// The highest `size` addresses in a row that are free: routers and DHCP ranges usually begin low.
    pub fn propose(&self, within: Span, size: u32) -> Result<Span, Unable> {
        let (mut run, mut longest): (Option<Span>, Option<Span>) = (None, None);
        for address in within.addresses().rev() {
            run = match self.why(address) {
                Some(_) => None,
                None => Some(Span { first: address, last: run.map_or(address, |run| run.last) }),
            };
            if let Some(found) = run.filter(|run| run.count() == size) {
                return Ok(found);
            }
            if run.map_or(0, Span::count) > longest.map_or(0, Span::count) {
                longest = run;
            }
        }
        Err(Unable::NoFreeRange { within, size, longest })
    }
}

/// Whether a text may be the name of an object: a DNS subdomain (RFC 1123).
pub fn is_object_name(text: &str) -> bool {
    let part = |part: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty() && part.chars().all(inner) && !part.starts_with('-') && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, last)
    }

    fn span(first: u8, last: u8) -> Span {
        Span { first: ip(first), last: ip(last) }
    }

    fn answer(last: u8, macs: &[&str]) -> ProbeResult {
        ProbeResult { address: ip(last).to_string(), macs: macs.iter().map(|mac| (*mac).into()).collect() }
    }

    fn subnet() -> Span {
        Span::of_subnet("192.0.2.0/24".parse().unwrap())
    }

    #[test]
    fn the_highest_free_range_is_proposed() {
        let mut taken = Taken::default();
        assert_eq!(subnet(), span(1, 254));
        assert_eq!(taken.propose(subnet(), 16).unwrap(), span(239, 254));
        taken.add(ip(254), Why::Gateway);
        assert_eq!(taken.propose(subnet(), 16).unwrap(), span(238, 253));
        taken.add_answers(&[answer(240, &["02:00:00:00:00:01"]), answer(239, &[])], &BTreeSet::new());
        assert_eq!(taken.propose(subnet(), 16).unwrap(), span(224, 239));
        taken.add_pool(&["192.0.2.200 - 192.0.2.230".into(), "nonsense".into(), "2001:db8::/64".into()], "office");
        assert_eq!(taken.propose(subnet(), 16).unwrap(), span(184, 199));
        assert_eq!(taken.propose(subnet(), 9).unwrap(), span(245, 253));
    }

    #[test]
    fn what_dhcp_servers_offer_is_not_proposed() {
        let mut taken = Taken::default();
        let server = DhcpServer { server: ip(254).to_string(), mac: String::new(), offered: ip(250).to_string() };
        taken.add_server(&server);
        assert_eq!(taken.propose(subnet(), 4).unwrap(), span(246, 249));
        let told = taken.check(span(248, 251)).unwrap_err().to_string();
        assert_eq!(
            told,
            "RangeInUse: 192.0.2.248-192.0.2.251 is not free: 192.0.2.250: offered by the DHCP server 192.0.2.254"
        );
    }

    #[test]
    fn a_proxy_says_nothing_and_a_host_beside_it_does() {
        let (proxy, host) = ("02:00:00:00:00:0f", "02:00:00:00:00:01");
        let mut taken = Taken::default();
        taken.add_answers(&[answer(254, &[proxy]), answer(253, &[proxy, host])], &[proxy.into()].into());
        assert_eq!(taken.propose(subnet(), 1).unwrap(), span(254, 254));
        assert_eq!(taken.hosts().collect::<Vec<_>>(), [(ip(253), &[host.to_owned()][..])]);
    }

    #[test]
    fn where_nothing_is_free_the_longest_range_is_named() {
        let mut taken = Taken::default();
        (1..=254)
            .filter(|last| !(100..=106).contains(last) && *last != 200)
            .for_each(|last| taken.add(ip(last), Why::Granted));
        let told = taken.propose(subnet(), 16).unwrap_err().to_string();
        assert_eq!(
            told,
            "NoFreeRange: no 16 addresses in a row are free in 192.0.2.1-192.0.2.254; the longest free range is \
             192.0.2.100-192.0.2.106 (--size 7)"
        );
        (100..=200).for_each(|last| taken.add(ip(last), Why::Node("n1".into())));
        assert!(taken.propose(subnet(), 1).unwrap_err().to_string().ends_with("free in 192.0.2.1-192.0.2.254"));
    }

    #[test]
    fn a_range_that_is_named_is_checked() {
        let mut taken = Taken::default();
        taken.add(ip(7), Why::Node("n1".into()));
        taken.add_pool(&["192.0.2.9".into()], "office");
        assert!(taken.check(span(10, 20)).is_ok());
        let told = taken.check(span(1, 20)).unwrap_err().to_string();
        assert!(told.contains("192.0.2.7: address of node n1, 192.0.2.9: in AddressPool office"), "{told}");
        let wide: Span = "10.0.0.0/16".parse().unwrap();
        assert!(
            taken.check(wide).unwrap_err().to_string().starts_with("RangeTooLarge: 10.0.0.0-10.0.255.255 has 65536")
        );
        (0..=255).for_each(|last| taken.add(ip(last), Why::Granted));
        assert!(taken.check(span(1, 20)).unwrap_err().to_string().ends_with("and 16 more"));
    }

    #[test]
    fn ranges_are_written_as_in_a_pool() {
        let parse = |text: &str| text.parse::<Span>();
        assert_eq!(parse(" 192.0.2.1 - 192.0.2.9 ").unwrap(), span(1, 9));
        assert_eq!((parse("192.0.2.0/30").unwrap(), parse("192.0.2.4").unwrap()), (span(0, 3), span(4, 4)));
        assert!(parse("192.0.2.9-192.0.2.1").unwrap_err().contains("ends before it starts"));
        assert!(parse("office").unwrap_err().contains("'office' is neither an address"));
        assert!(parse("2001:db8::1").unwrap_err().starts_with("RangeNotIPv4: 2001:db8::1"));
    }

    #[test]
    fn a_wide_subnet_is_looked_over_at_its_high_end() {
        let wide = Span::of_subnet("10.0.0.0/8".parse().unwrap());
        assert_eq!((wide.count(), wide.to_string().as_str()), (MAX_SCANNED, "10.255.251.255-10.255.255.254"));
        assert_eq!(Span::of_subnet("192.0.2.8/29".parse().unwrap()), span(9, 14));
    }

    #[test]
    fn names_of_objects() {
        assert!(["default", "a.b-c", "1"].into_iter().all(is_object_name));
        assert!(!["", "A", "a_b", "-a", "a-", "a..b", "a: b"].into_iter().any(is_object_name));
    }
}
