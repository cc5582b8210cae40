//! What must be true once everything has come to rest.

use super::*;

impl World {
    pub fn check(&self) {
        let mut holders: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
        for (address, grant) in &self.api.grants {
            grant.services.iter().for_each(|service| holders.entry(&service.uid).or_default().push(*address));
        }
        let mut waits = false;
        for service in self.api.services.values() {
            let held = holders.remove(service.uid.as_str()).unwrap_or_default();
            let (held, six): (Vec<IpAddr>, Vec<IpAddr>) = held.into_iter().partition(IpAddr::is_ipv4);
            self.check_second(service, &held, &six);
            match (self.replicas[self.leader].index.claim(service), &held[..]) {
                (Claim::Foreign, []) => assert!(service.condition.is_none() && !service.finalizer, "{service:?}"),
                (Claim::Foreign, held) => panic!("{} is not ours and holds {held:?}", service.key),
                (claimed, held) if !held.is_empty() => {
                    self.check_held(service, &claimed, held);
                    let condition = service.condition.as_ref().unwrap();
                    assert!(condition.allocated && service.finalizer_is_ours(), "{service:?}");
                    let named = |part: &Refused| condition.message.contains(&part.message);
                    let partly = held.iter().flat_map(|address| self.api.grants[address].partly.clone()).collect();
                    assert!(coverage::remarks(service, &partly, None).iter().all(named), "{condition:?}");
                }
                (claimed, _) => {
                    let theirs = service.class.is_none() && service.writer == Writer::Person;
                    assert!(service.ingress.is_empty() || theirs, "{service:?}");
                    assert!(!service.condition.as_ref().unwrap().allocated && !service.finalizer, "{service:?}");
                    waits |= service.addresses.is_none() && matches!(claimed, Claim::Wanted(_));
                }
            }
        }
        assert!(holders.is_empty(), "granted to a Service that does not exist: {holders:?}");
        let pool = &self.api.pools["p"];
        let range: sheave_api::AddressRange = pool.spec.addresses[0].parse().unwrap();
        let last =
            (0..=255).map(|last| Ipv4Addr::new(192, 0, 2, last)).filter(|address| range.contains((*address).into()));
        let free = last.filter(|address| !self.api.grants.contains_key(&IpAddr::V4(*address))).count();
        assert!(!waits || free == 0, "a Service waits although {free} addresses are free");
        assert_eq!(pool.status.free, i64::try_from(free).unwrap());
        let used = self.api.grants.values().filter(|grant| grant.address.is_ipv4() && grant.pool == "p").count();
        assert_eq!(pool.status.used, i64::try_from(used).unwrap());
        self.check_moves();
    }

    /// It shows what it holds: one address or all that it names, or what it had while its condition says why.
    fn check_held(&self, service: &ServiceView, claimed: &Claim, held: &[IpAddr]) {
        let address = |address: &IpAddr| match address {
            IpAddr::V4(address) => *address,
            IpAddr::V6(_) => panic!("{address}"),
        };
        let held: Vec<Ipv4Addr> = held.iter().map(address).collect();
        let shown: Vec<Ingress> =
            held.iter().map(|address| Ingress::Vip(*address, coverage::ports(service, &BTreeSet::new()))).collect();
        assert_eq!(service.ingress, shown, "{}", service.key);
        let (named, condition) = (named_by(service), service.condition.as_ref().unwrap());
        if matches!(claimed, Claim::Wanted(_)) && !named.is_empty() && held != named {
            let missing = |address: &&Ipv4Addr| !held.contains(*address);
            let said = |address: &Ipv4Addr| condition.message.contains(&address.to_string());
            assert!(named.iter().filter(missing).any(said), "{} has {held:?}: {condition:?}", service.key);
        } else if matches!(claimed, Claim::Wanted(_)) && named.is_empty() {
            // An order to move it that cannot be carried out leaves what there was.
            assert!(held.len() == 1 || self.api.moved.contains(&service.uid), "{} holds {held:?}", service.key);
        }
    }

    /// Who is to move has moved, or the other pool is full, or the Service insists on its address.
    fn check_moves(&self) {
        let room = self.api.pools.get("q").is_some_and(|pool| pool.status.free > 0);
        let of_q = |grant: &GrantView| grant.pool == "q" || grant.address.is_ipv6();
        for grant in self.api.grants.values().filter(|grant| room && grant.move_to.is_some() && !of_q(grant)) {
            let insists = |holder: &ServiceRef| {
                let service = &self.api.services[&ServiceKey::from(holder)];
                let claim = self.replicas[self.leader].index.claim(service);
                service.addresses.is_some() || !matches!(claim, Claim::Wanted(_))
            };
            assert!(grant.services.iter().any(insists), "{} has not moved", grant.address);
        }
    }
}
