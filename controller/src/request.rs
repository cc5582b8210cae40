//! Pure: Service → what it wants, or why it cannot be served. Knows nothing of pools or grants.

use std::net::{IpAddr, Ipv4Addr};

use sheave_api::status::REASON_GRANTING;
use sheave_api::{LOAD_BALANCER_CLASS, Refusal, ServiceRef};

use crate::coverage;
use crate::view::ServiceView;

/// What a Service is to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Another type, another class, or being deleted: nothing of ours may stay.
    Foreign,
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

/// Reads a Service.
pub fn claim(service: &ServiceView) -> Claim {
    if service.deleting || !service.load_balancer {
        return Claim::Foreign;
    }
    if service.class.as_deref().is_some_and(|class| class != LOAD_BALANCER_CLASS) {
        return Claim::Foreign;
    }
    if let Some(refused) = coverage::refusal(service) {
        return Claim::Refused(refused);
    }
    let address = match service.addresses.as_deref().map(wanted_address) {
        None => None,
        Some(Ok(address)) => Some(address),
        Some(Err(refused)) => return Claim::Refused(refused),
    };
    let shown = service.shown();
    let refused = |reason: &str| ![Refusal::NoPool.as_str(), REASON_GRANTING].contains(&reason);
    let refused_before = service.condition.as_ref().is_some_and(|c| !c.allocated && refused(&c.reason));
    Claim::Wanted(Request {
        service: service.reference(),
        pool: service.pool.clone(),
        address,
        shown,
        adopt: shown.filter(|_| !refused_before),
    })
}

/// The one IPv4 address in a list separated by commas. IPv6 addresses beside it are a remark ([`coverage::remarks`]).
fn wanted_address(list: &str) -> Result<Ipv4Addr, Refused> {
    let mut found = Vec::new();
    let mut other_family = false;
    for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        match entry.parse() {
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
    fn another_type_or_class_is_foreign() {
        assert_eq!(claim(&ServiceView { load_balancer: false, ..service() }), Claim::Foreign);
        assert_eq!(claim(&ServiceView { class: Some("example.com/lb".into()), ..service() }), Claim::Foreign);
        let ours = ServiceView { class: Some("sheave.dev/sheave".into()), ..service() };
        assert!(matches!(claim(&ours), Claim::Wanted(_)));
        assert_eq!(claim(&ServiceView { deleting: true, ..ours }), Claim::Foreign);
    }

    #[test]
    fn wanted_addresses_are_one_ipv4_or_a_named_refusal() {
        let reason = |list: &str| match claim(&ServiceView { addresses: Some(list.into()), ..service() }) {
            Claim::Wanted(request) => Ok(request.address.map(|a| a.to_string())),
            Claim::Refused(refused) => Err(refused.reason),
            Claim::Foreign => panic!("ours"),
        };
        assert_eq!(reason(" 192.0.2.1 "), Ok(Some("192.0.2.1".into())));
        assert_eq!(reason("192.0.2.1,2001:db8::1"), Ok(Some("192.0.2.1".into())));
        assert_eq!(reason("2001:db8::1"), Err(Refusal::IPv6NotServed));
        assert_eq!(reason("192.0.2.1,192.0.2.2"), Err(Refusal::AddressMalformed));
        assert_eq!(reason("192.0.2.256"), Err(Refusal::AddressMalformed));
        assert_eq!(reason(""), Err(Refusal::AddressMalformed));
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
        assert!(adopts(false, "Granting"), "the leader ended before it granted what it had adopted");
        assert!(!adopts(false, "PoolExhausted"), "a third-party change");
    }
}
