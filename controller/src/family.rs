//! Pure: the two families of addresses, and one line of numbers for both.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// A family of addresses, in the order in which a Service gets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// As `spec.ipFamilies` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The number of an address. IPv4 stands where IPv6 has its mapped addresses (::ffff:0:0/96), which no host has.
pub fn number(address: impl Into<IpAddr>) -> u128 {
    match address.into() {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// The address with this number.
pub fn address(number: u128) -> IpAddr {
    Ipv6Addr::from(number).to_canonical()
}

/// The numbers of a network, first and last.
pub fn span(network: impl Into<IpNet>) -> (u128, u128) {
    let network = network.into();
    (number(network.network()), number(network.broadcast()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_addresses_are_one_to_one_and_in_the_same_order() {
        let ordered = ["0.0.0.0", "192.0.2.1", "255.255.255.255", "2001:db8::", "2001:db8::1", "fd00::1", "ff02::1"];
        let addresses = ordered.map(|text| text.parse::<IpAddr>().unwrap());
        assert!(addresses.iter().all(|one| address(number(*one)) == *one));
        assert!(addresses.is_sorted_by_key(|one| number(*one)) && addresses.is_sorted());
        let families = addresses.map(Family::of);
        assert_eq!((families[2], families[3]), (Family::V4, Family::V6));
        assert_eq!(
            span("192.0.2.0/24".parse::<IpNet>().unwrap()),
            (number(addresses[1]) - 1, number(addresses[1]) + 254)
        );
    }
}
