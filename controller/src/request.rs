//! Pure: Service → what it wants, or why it cannot be served. Knows nothing of pools or grants.

use std::net::{IpAddr, Ipv4Addr};

use sheave_api::status::REASON_GRANTING;
use sheave_api::{AddressMode, MAX_PORTS, Refusal, ServiceRef, address_mode};

use crate::allocator::selection::Labels;
use crate::allocator::sharing::Sharing;
use crate::coverage;
use crate::node_mode::{POOL_LABEL, Wanting};
use crate::view::{Port, Protocol, ServiceView};

/// What a Service is to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Another type, another class, or being deleted: nothing of ours may stay.
    Foreign,
    /// Somebody else serves it, as [`whose`](crate::whose) says: nothing of ours may stay either.
    Others(String),
    /// Ours, and its ports are to be at nodes' addresses.
    AtNodes(Wanting),
    /// Ours, and it wants an address.
    Wanted(Request),
    /// Ours, but its request cannot be served.
    Refused(Refused),
}

/// A refusal with the sentence that explains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub reason: Refusal,
    pub message: String,
}

impl Refused {
    /// The same for a Service that keeps its address.
    pub fn keeping(self, address: Ipv4Addr) -> Self {
        Refused { message: format!("{}; {address} stays", self.message), ..self }
    }
}

/// What the allocator must know to choose an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub service: ServiceRef,
    /// Labels of the Service.
    pub labels: Labels,
    /// With which Services it may share an address.
    pub sharing: Option<Sharing>,
    /// The pool that an annotation names.
    pub pool: Option<String>,
    /// The address that an annotation (or the old `spec.loadBalancerIP`) names.
    pub address: Option<Ipv4Addr>,
    /// The address that the status shows: decides between two grants, never makes one.
    pub shown: Option<Ipv4Addr>,
    /// The address to prefer if there is no grant: the one in the status, provided that we have not refused this Service before.
    /// So a lost ledger or a predecessor's address is taken up, and a third-party change of the status of a waiting Service has
    /// no effect.
    pub adopt: Option<Ipv4Addr>,
}

/// Reads a Service that is ours.
pub fn claim(service: &ServiceView) -> Claim {
    if let Some(refused) = coverage::refusal(service) {
        return Claim::Refused(refused);
    }
    match &service.mode {
        Err(error) => return Claim::Refused(Refused { reason: Refusal::AddressModeUnknown, message: error.clone() }),
        Ok(AddressMode::Node) => return at_nodes(service),
        Ok(AddressMode::Pool) => {}
    }
    if let Some(message) = service.ambiguous.clone() {
        return Claim::Refused(Refused { reason: Refusal::AddressAmbiguous, message });
    }
    let address = match service.addresses.as_deref().map(wanted_address) {
        None => None,
        Some(Ok(address)) => Some(address),
        Some(Err(refused)) => return Claim::Refused(refused),
    };
    let shown = service.shown_v4();
    let waits = [Refusal::NoPool.as_str(), Refusal::SubnetNotReported.as_str(), REASON_GRANTING];
    let refused = |reason: &str| !waits.contains(&reason);
    let refused_before = service.condition.as_ref().is_some_and(|c| !c.allocated && refused(&c.reason));
    Claim::Wanted(Request {
        service: service.reference(),
        labels: service.labels.clone(),
        sharing: service.sharing(),
        pool: service.pool.clone(),
        address,
        shown,
        adopt: shown.filter(|_| !refused_before),
    })
}

/// Of an address or a pool it says nothing then.
fn at_nodes(service: &ServiceView) -> Claim {
    let named = [("an address", &service.addresses), ("a pool", &service.pool)];
    if let Some((what, value)) = named.iter().find_map(|(what, value)| Some((what, value.as_ref()?))) {
        let message = format!("{}: 'node' and {what} are asked for ('{value}')", address_mode::ANNOTATION);
        return Claim::Refused(Refused { reason: Refusal::AddressAmbiguous, message });
    }
    let served = |port: &&Port| !matches!(port.protocol, Protocol::Other(_));
    Claim::AtNodes(Wanting {
        service: service.reference(),
        created: service.created,
        ports: service.ports.iter().filter(served).take(MAX_PORTS).cloned().collect(),
        pool: service.labels.get(POOL_LABEL).cloned(),
        local: service.local,
    })
}

/// The one IPv4 address in a list separated by commas. IPv6 addresses beside it are a remark ([`coverage::remarks`]).
fn wanted_address(list: &str) -> Result<Ipv4Addr, Refused> {
    let mut found = Vec::new();
    let mut other_family = false;
    for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        match entry.parse() {
            Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => {
                let message = format!("'{entry}' asks for an address by DHCP; name an address or leave it out");
                return Err(Refused { reason: Refusal::DhcpNotSupported, message });
            }
            Ok(IpAddr::V4(address)) => found.push(address),
            Ok(IpAddr::V6(_)) => other_family = true,
            Err(_) => {
                let message = format!("'{entry}' is not an address");
                return Err(Refused { reason: Refusal::AddressMalformed, message });
            }
        }
    }
    match found[..] {
        [address] => Ok(address),
        [] if other_family => Err(Refused {
            reason: Refusal::IPv6NotServed,
            message: format!("'{list}' names IPv6 addresses only; IPv4 is served"),
        }),
        _ => Err(Refused {
            reason: Refusal::AddressMalformed,
            message: format!("'{list}' must name exactly one IPv4 address"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{ConditionView, Ingress, example as service};

    #[test]
    fn wanted_addresses_are_one_ipv4_or_a_named_refusal() {
        let reason = |list: &str| match claim(&ServiceView { addresses: Some(list.into()), ..service() }) {
            Claim::Wanted(request) => Ok(request.address.map(|a| a.to_string())),
            Claim::Refused(refused) => Err(refused.reason),
            other => panic!("{other:?}"),
        };
        assert_eq!(reason(" 192.0.2.1 "), Ok(Some("192.0.2.1".into())));
        assert_eq!(reason("192.0.2.1,2001:db8::1"), Ok(Some("192.0.2.1".into())));
        assert_eq!(reason("2001:db8::1"), Err(Refusal::IPv6NotServed));
        assert_eq!(reason("192.0.2.1,192.0.2.2"), Err(Refusal::AddressMalformed));
        assert_eq!(reason("192.0.2.256"), Err(Refusal::AddressMalformed));
        assert_eq!(reason("0.0.0.0"), Err(Refusal::DhcpNotSupported), "kube-vip's");
    }

    #[test]
    fn two_sources_that_differ_are_refused_by_name() {
        let said = "spec.loadBalancerIP is 'x' and y is 'z'";
        let refused = claim(&ServiceView { ambiguous: Some(said.into()), ..service() });
        assert_eq!(refused, Claim::Refused(Refused { reason: Refusal::AddressAmbiguous, message: said.into() }));
    }

    /// C5 of November 2026: the status holds an address of ours and an IPv6 address.
    #[test]
    fn an_address_beside_ipv6_is_adopted() {
        let vip = Ingress::Vip(Ipv4Addr::new(192, 0, 2, 1), vec![]);
        let adopts = |ingress: Vec<Ingress>| match claim(&ServiceView { ingress, ..service() }) {
            Claim::Wanted(request) => request.adopt,
            other => panic!("{other:?}"),
        };
        assert_eq!(adopts(vec![vip.clone(), Ingress::V6]), Some(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!(adopts(vec![vip.clone(), Ingress::Other]), None);
        assert_eq!(adopts(vec![vip.clone(), vip]), None);
    }

    #[test]
    fn a_status_is_adopted_only_if_we_have_not_refused() {
        let shown = ServiceView { ingress: vec![Ingress::Vip(Ipv4Addr::new(192, 0, 2, 1), vec![])], ..service() };
        let adopts = |allocated: bool, reason: &str| {
            let condition = Some(ConditionView { allocated, reason: reason.into(), message: String::new() });
            match claim(&ServiceView { condition, ..shown.clone() }) {
                Claim::Wanted(request) => request.adopt.is_some(),
                other => panic!("{other:?}"),
            }
        };
        assert!(matches!(claim(&shown), Claim::Wanted(Request { adopt: Some(_), .. })), "never seen before");
        assert!(adopts(true, "AddressAllocated"), "its ledger entry was lost");
        assert!(adopts(false, "NoPool"), "the pools came later");
        assert!(adopts(false, "SubnetNotReported"), "the speakers came later");
        assert!(adopts(false, "Granting"), "the leader ended before it granted what it had adopted");
        assert!(!adopts(false, "PoolExhausted"), "a third-party change");
    }
}
