//! Pure: what Services take in the tables of the speakers, counted from what is known of them and of the ledger.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use sheave_api::Refusal;

use super::Index;
use crate::coverage;
use crate::places::{Changed, Need, Places};
use crate::request::Refused;
use crate::view::{Ingress, Port, ServiceKey, ServiceView};

impl Index {
    /// Counts all Services, once per lead: those that grow are followed from then on. Which of their ports had no place before stands in
    /// their statuses; of what is not written there the older Service has it.
    pub(crate) fn count_all(&mut self) {
        if self.places.is_some() {
            return;
        }
        let mut places = Places::new(self.room);
        let mut services: Vec<&ServiceView> = self.services.iter().map(|(_, service)| service).collect();
        services.sort_by_key(|service| (service.created, &service.key));
        let needs: Vec<(&ServiceKey, Need, BTreeSet<Port>)> = services
            .into_iter()
            .map(|service| (&service.key, self.need(service, &[]), said_to_have_no_place(service)))
            .collect();
        for (service, need, without) in &needs {
            let had = need.places.iter().filter(|(_, port)| !without.contains(port)).cloned().collect();
            places.set(service, Need { places: had, ranges: need.ranges });
        }
        for (service, need, _) in needs {
            places.set(service, need);
        }
        self.places = Some(places);
    }

    /// The Service, or what the ledger says of it, may have changed.
    pub(crate) fn count(&mut self, service: &ServiceKey) {
        let Some(mut places) = self.places.take() else { return };
        let need = self.services.get(service).map(|service| self.need(service, &[])).unwrap_or_default();
        let Changed { services, freed } = places.set(service, need);
        self.places = Some(places);
        services.iter().filter(|other| *other != service).for_each(|other| self.mark_service(other));
        if freed && self.waiting.values().any(|reason| *reason == Refusal::LimitReached) {
            self.mark_waiting();
            self.at_nodes.outdated = true;
        }
    }

    /// Why the Service cannot have these addresses beside those that it has: the speakers have no room for it.
    pub(crate) fn lacks_room(&self, service: &ServiceView, addresses: &[IpAddr]) -> Option<Refused> {
        self.places.as_ref()?.refusal(&service.key, &self.need(service, addresses))
    }

    /// How many service ports those may have whose ports are at addresses of nodes.
    pub(crate) fn room_at_nodes(&self) -> usize {
        let Some(places) = &self.places else { return usize::MAX };
        let of_nodes = self.at_nodes.grants.iter().flat_map(|(_, grant)| &grant.services).map(ServiceKey::from);
        places.room_without(&of_nodes.collect())
    }

    /// What has no place of a Service that has an address.
    pub(crate) fn without_place(&self, service: &ServiceKey) -> (Option<Refused>, BTreeSet<Port>) {
        self.places.as_ref().map(|places| (places.remark(service), places.left_out(service))).unwrap_or_default()
    }

    /// With these addresses beside those that the ledger has, or is about to have.
    fn need(&self, service: &ServiceView, more: &[IpAddr]) -> Need {
        let listed = self.allocator.listed(&service.uid).chain(more.iter().copied());
        let v4 = listed.filter_map(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        });
        let addresses: BTreeSet<Ipv4Addr> = v4.chain(self.at_nodes.listing(&service.uid)).collect();
        if addresses.is_empty() {
            return Need::default();
        }
        let ports: BTreeSet<&Port> = coverage::served(service).collect();
        let places = addresses.iter().flat_map(|address| ports.iter().map(move |port| (*address, (*port).clone())));
        Need { places: places.collect(), ranges: service.clients.ranges() }
    }
}

/// Ports that its status lists with this error.
fn said_to_have_no_place(service: &ServiceView) -> BTreeSet<Port> {
    let error = Refusal::LimitReached.port_error();
    let listed = service.ingress.iter().flat_map(|entry| match entry {
        Ingress::Vip(_, ports) => &ports[..],
        Ingress::V6(_) | Ingress::Other => &[],
    });
    listed.filter(|status| status.error.as_ref() == Some(&error)).map(|status| status.port.clone()).collect()
}
