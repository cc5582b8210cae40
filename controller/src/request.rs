//! Pure: Service → what it wants, or why it cannot be served. Knows nothing of pools or grants.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sheave_api::status::REASON_GRANTING;
use sheave_api::{AddressMode, MAX_ADDRESSES, MAX_PORTS, Refusal, ServiceRef, address_mode, excerpt};

use crate::allocator::selection::Labels;
use crate::allocator::sharing::Sharing;
use crate::coverage;
use crate::family::Family;
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
    /// Ours, and it wants these addresses: of IPv4 any one or all that it names, perhaps one of IPv6 beside them.
    Wanted(Vec<Request>),
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
    /// The same for a Service that keeps its addresses.
    pub fn keeping(self, addresses: &[IpAddr]) -> Self {
        let stay = if addresses.len() == 1 { "stays" } else { "stay" };
        let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        Refused { message: format!("{}; {} {stay}", self.message, addresses.join(", ")), ..self }
    }
}

/// What the allocator must know to choose an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub service: ServiceRef,
    /// Of which family the address is to be.
    pub family: Family,
    /// Labels of the Service.
    pub labels: Labels,
    /// With which Services it may share an address.
    pub sharing: Option<Sharing>,
    /// The pool that an annotation names.
    pub pool: Option<String>,
    /// The address that an annotation (or the old `spec.loadBalancerIP`) names.
    pub address: Option<IpAddr>,
    /// The addresses that the status shows: they decide between two grants, never make one.
    pub shown: Vec<IpAddr>,
    /// Whether it has had all that the ledger grants it, whatever the status shows: somebody else has changed that.
    pub had_all: bool,
    /// The address to prefer if there is no grant: the one in the status, provided that we have not refused this Service before.
    /// So a lost ledger or a predecessor's address is taken up, and a third-party change of the status of a waiting Service has
    /// no effect.
    pub adopt: Option<IpAddr>,
}

impl Request {
    /// The same with an address of its family that is to be preferred to others.
    pub fn preferring(self, address: Option<IpAddr>) -> Self {
        let address = address.filter(|address| Family::of(*address) == self.family);
        Request { adopt: address.or(self.adopt), ..self }
    }

    /// The first of these that the status shows, else the first.
    pub fn prefer_shown(&self, addresses: impl Iterator<Item = IpAddr>) -> Option<IpAddr> {
        let addresses: Vec<IpAddr> = addresses.collect();
        addresses.iter().find(|address| self.shown.contains(address)).or(addresses.first()).copied()
    }

    /// What the Service keeps of what is granted to it although it does not get the addresses that it asks for, so many: what it has
    /// had. Of several that are not all granted it has had none; of one, whatever there is.
    pub fn stays(&self, held: &[IpAddr], count: usize) -> Vec<IpAddr> {
        let had = held.iter().copied().filter(|address| self.had_all || self.shown.contains(address));
        let had: Vec<IpAddr> = had.collect();
        match had.is_empty() && count == 1 {
            true => held.first().copied().into_iter().collect(),
            false => had,
        }
    }
}

/// Reads a Service that is ours. `unsaid`: its mode where no annotation says it.
pub fn claim(service: &ServiceView, unsaid: AddressMode) -> Claim {
    if let Some(refused) = coverage::refusal(service) {
        return Claim::Refused(refused);
    }
    match service.mode.as_ref().map(|mode| mode.unwrap_or(unsaid)) {
        Err(error) => return Claim::Refused(Refused { reason: Refusal::AddressModeUnknown, message: error.clone() }),
        Ok(AddressMode::Node) => return at_nodes(service),
        Ok(AddressMode::Pool) => {}
    }
    if let Some(message) = service.ambiguous.clone() {
        return Claim::Refused(Refused { reason: Refusal::AddressAmbiguous, message });
    }
    let wanted = match Wanted::of(service) {
        Ok(wanted) => wanted,
        Err(refused) => return Claim::Refused(refused),
    };
    let waits = [Refusal::NoPool.as_str(), Refusal::SubnetNotReported.as_str(), REASON_GRANTING];
    let refused = |reason: &str| !waits.contains(&reason);
    let refused_before = service.condition.as_ref().is_some_and(|c| !c.allocated && refused(&c.reason));
    let request = |family, address| {
        let shown = service.shown_of(family);
        let adopt = match shown[..] {
            [one] if !refused_before => Some(one),
            _ => None,
        };
        Request {
            service: service.reference(),
            family,
            labels: service.labels.clone(),
            sharing: service.sharing(),
            pool: service.pool.clone(),
            address,
            shown,
            had_all: service.had_all(),
            adopt,
        }
    };
    let v4 = wanted.v4.iter().map(|address| Some(IpAddr::V4(*address)));
    let v4: Vec<Option<IpAddr>> = if wanted.v4.is_empty() { vec![None] } else { v4.collect() };
    let second = service.wants_ipv6.then(|| request(Family::V6, wanted.v6.map(IpAddr::V6)));
    Claim::Wanted(v4.into_iter().map(|address| request(Family::V4, address)).chain(second).collect())
}

/// Of an address or a pool it says nothing then.
fn at_nodes(service: &ServiceView) -> Claim {
    let named = [("an address", &service.addresses), ("a pool", &service.pool)];
    if let Some((what, value)) = named.iter().find_map(|(what, value)| Some((what, value.as_ref()?))) {
        let message = format!("{}: 'node' and {what} are asked for ('{}')", address_mode::ANNOTATION, excerpt(value));
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

/// The addresses that a Service names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    v4: BTreeSet<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

impl Wanted {
    fn of(service: &ServiceView) -> Result<Self, Refused> {
        let Some(list) = service.addresses.as_deref() else { return Ok(Wanted::default()) };
        let mut wanted = Wanted::default();
        for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            match entry.parse() {
                Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => {
                    let message = format!("'{entry}' asks for an address by DHCP; name an address or leave it out");
                    return Err(Refused { reason: Refusal::DhcpNotSupported, message });
                }
                Ok(IpAddr::V4(address)) => drop(wanted.v4.insert(address)),
                Ok(IpAddr::V6(address)) => {
                    if let Some(v4) = address.to_ipv4_mapped() {
                        return Err(malformed(format!("'{entry}' is IPv4 in the notation of IPv6; write {v4}")));
                    }
                    if wanted.v6.replace(address).is_some_and(|other| other != address) {
                        let list = excerpt(list);
                        return Err(malformed(format!("'{list}' names more than one IPv6 address; one is allowed")));
                    }
                }
                Err(_) => return Err(malformed(format!("'{}' is not an address", excerpt(entry)))),
            }
        }
        if wanted.v4.len() > MAX_ADDRESSES {
            let count = wanted.v4.len();
            return Err(malformed(format!("{count} addresses of IPv4 are named; {MAX_ADDRESSES} are allowed")));
        }
        if wanted.v4.is_empty() && wanted.v6.is_some() && !service.wants_ipv6 {
            let message = format!("'{}' names IPv6 addresses only; IPv4 is served", excerpt(list));
            return Err(Refused { reason: Refusal::IPv6NotServed, message });
        }
        Ok(wanted)
    }
}

fn malformed(message: String) -> Refused {
    Refused { reason: Refusal::AddressMalformed, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{ConditionView, Ingress, Writer, example as service};

    fn claim(service: &ServiceView) -> Claim {
        super::claim(service, AddressMode::Pool)
    }

    #[test]
    fn the_mode_is_the_annotation_s_and_else_the_cluster_s() {
        let is_node = |mode, unsaid| {
            matches!(super::claim(&ServiceView { mode: Ok(mode), ..service() }, unsaid), Claim::AtNodes(_))
        };
        let (pool, node) = (AddressMode::Pool, AddressMode::Node);
        assert_eq!([(None, pool), (None, node)].map(|(mode, unsaid)| is_node(mode, unsaid)), [false, true]);
        assert!(is_node(Some(node), pool) && !is_node(Some(pool), node));
    }

    /// Of several addresses a Service has had what its status shows; if somebody else has changed that, all that is granted.
    #[test]
    fn what_a_service_has_had_of_several_addresses_stays() {
        let address = |last| IpAddr::from([192, 0, 2, last]);
        let stays = |shown: &[u8], had_all, count| {
            let shown = shown.iter().map(|last| address(*last)).collect();
            let Claim::Wanted(requests) = claim(&service()) else { panic!() };
            Request { shown, had_all, ..requests[0].clone() }.stays(&[1, 2, 3].map(address), count)
        };
        assert_eq!(stays(&[2, 9], false, 3), [address(2)]);
        assert!(stays(&[], false, 3).is_empty());
        assert_eq!(stays(&[], false, 1), [address(1)]);
        assert_eq!(stays(&[2], true, 3), [1, 2, 3].map(address));
        let condition = Some(ConditionView { allocated: true, reason: String::new(), message: String::new() });
        let had_all = |writer| ServiceView { condition: condition.clone(), writer, ..service() }.had_all();
        assert_eq!([Writer::Us, Writer::Person, Writer::Nobody].map(had_all), [false, true, true]);
        assert!(!ServiceView { writer: Writer::Person, ..service() }.had_all(), "never shown");
    }

    #[test]
    fn wanted_addresses_are_some_of_ipv4_or_a_named_refusal() {
        let wants = |list: &str| match claim(&ServiceView { addresses: Some(list.into()), ..service() }) {
            Claim::Wanted(requests) => Ok(requests.iter().filter_map(|one| one.address).collect::<Vec<_>>()),
            Claim::Refused(refused) => Err(refused),
            other => panic!("{other:?}"),
        };
        let reason = |list: &str| match wants(list) {
            Ok(all) => Ok(Some(all.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" "))),
            Err(refused) => Err(refused.reason),
        };
        assert_eq!(reason(" 192.0.2.1 "), Ok(Some("192.0.2.1".into())));
        assert_eq!(reason("192.0.2.1,2001:db8::1"), Ok(Some("192.0.2.1".into())));
        assert_eq!(reason("2001:db8::1"), Err(Refusal::IPv6NotServed));
        assert_eq!(reason("192.0.2.20, 192.0.2.3,192.0.2.20"), Ok(Some("192.0.2.3 192.0.2.20".into())), "each once");
        let many = |count: usize| (1..=count).map(|last| format!("192.0.2.{last}")).collect::<Vec<_>>().join(",");
        assert_eq!(wants(&many(16)).unwrap().len(), 16);
        let refused = wants(&many(17)).unwrap_err();
        assert_eq!(refused.reason, Refusal::AddressMalformed);
        assert_eq!(refused.message, "17 addresses of IPv4 are named; 16 are allowed");
        assert_eq!(reason("192.0.2.256"), Err(Refusal::AddressMalformed));
        let long = ["z", "2001:db8::1,2001:db8::2,"].map(|what| wants(&what.repeat(10_000)).unwrap_err().message);
        assert!(long.iter().all(|message| message.len() < 200 && message.contains("…'")), "{long:?}");
        assert_eq!(reason("0.0.0.0"), Err(Refusal::DhcpNotSupported), "kube-vip's");
        assert_eq!(reason("::ffff:192.0.2.1"), Err(Refusal::AddressMalformed), "one address, one notation");
    }

    #[test]
    fn a_dual_stack_service_wants_one_of_each_family_and_names_either_or_both() {
        let wants = |list: Option<&str>| {
            let view = ServiceView { addresses: list.map(Into::into), wants_ipv6: true, ..service() };
            match claim(&view) {
                Claim::Wanted(requests) => {
                    assert_eq!([requests[0].family, requests[1].family], Family::ALL);
                    Ok([0, 1].map(|n| requests[n].address.map(|a| a.to_string())))
                }
                Claim::Refused(refused) => Err(refused.message),
                other => panic!("{other:?}"),
            }
        };
        let (v4, v6) = (Some("192.0.2.1".to_string()), Some("2001:db8::1".to_string()));
        assert_eq!(wants(None), Ok([None, None]));
        assert_eq!(wants(Some("2001:DB8:0::1, 192.0.2.1")), Ok([v4.clone(), v6.clone()]), "in any order and notation");
        assert_eq!(wants(Some("192.0.2.1")), Ok([v4, None]));
        assert_eq!(wants(Some("2001:db8::1")), Ok([None, v6]));
        let two = wants(Some("192.0.2.1,2001:db8::1,2001:db8::2")).unwrap_err();
        assert!(two.contains("'192.0.2.1,2001:db8::1,2001:db8::2' names more than one IPv6 address"), "{two}");
        let mapped = wants(Some("::ffff:192.0.2.1")).unwrap_err();
        assert_eq!(mapped, "'::ffff:192.0.2.1' is IPv4 in the notation of IPv6; write 192.0.2.1");
        let single = ServiceView { addresses: Some("192.0.2.1,2001:db8::1".into()), ..service() };
        assert!(matches!(claim(&single), Claim::Wanted(requests) if requests.len() == 1), "its families decide");
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
        let (dual, second) =
            (ServiceView { wants_ipv6: true, ..service() }, Ingress::V6("2001:db8::9".parse().unwrap()));
        let adopts = |ingress: Vec<Ingress>| match claim(&ServiceView { ingress, ..dual.clone() }) {
            Claim::Wanted(requests) => [0, 1].map(|n| requests[n].adopt.map(|a| a.to_string())),
            other => panic!("{other:?}"),
        };
        let (v4, v6) = (Some("192.0.2.1".to_string()), Some("2001:db8::9".to_string()));
        assert_eq!(adopts(vec![vip.clone(), second]), [v4, v6]);
        assert_eq!(adopts(vec![vip.clone(), Ingress::Other]), [None, None]);
        assert_eq!(adopts(vec![vip.clone(), vip]), [None, None]);
    }

    #[test]
    fn a_status_is_adopted_only_if_we_have_not_refused() {
        let shown = ServiceView { ingress: vec![Ingress::Vip(Ipv4Addr::new(192, 0, 2, 1), vec![])], ..service() };
        let adopts = |allocated: bool, reason: &str| {
            let condition = Some(ConditionView { allocated, reason: reason.into(), message: String::new() });
            match claim(&ServiceView { condition, ..shown.clone() }) {
                Claim::Wanted(requests) => requests[0].adopt.is_some(),
                other => panic!("{other:?}"),
            }
        };
        let first = |claim| matches!(claim, Claim::Wanted(requests) if requests[0].adopt.is_some());
        assert!(first(claim(&shown)), "never seen before");
        assert!(adopts(true, "AddressAllocated"), "its ledger entry was lost");
        assert!(adopts(false, "NoPool"), "the pools came later");
        assert!(adopts(false, "SubnetNotReported"), "the speakers came later");
        assert!(adopts(false, "Granting"), "the leader ended before it granted what it had adopted");
        assert!(!adopts(false, "PoolExhausted"), "a third-party change");
    }
}
