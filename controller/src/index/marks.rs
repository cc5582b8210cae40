//! Pure: what is to be planned anew after a change elsewhere.

use std::net::IpAddr;

use super::{Index, Subject};
use crate::view::ServiceKey;

impl Index {
    /// The periodic full pass: heals whatever a missed fact could have left undone.
    pub fn look_at_everything(&mut self) {
        let services = self.services.iter().map(|(key, view)| Subject::Service(view.created, key.clone()));
        self.dirty.extend(services);
        self.dirty.extend(self.grants.iter().map(|(address, _)| Subject::Address(*address)));
        self.dirty.extend(self.allocator.reservations().map(Subject::Address));
        self.at_nodes.outdated = true;
        self.dirty.extend(self.pools.iter().map(|(name, _)| Subject::Pool(name.clone())));
        self.mark_advertisements();
    }

    pub(crate) fn mark_service(&mut self, service: &ServiceKey) {
        if let Some(view) = self.services.get(service) {
            self.dirty.insert(Subject::Service(view.created, service.clone()));
        }
    }

    pub(crate) fn mark_held(&mut self, uid: &str) {
        let addresses: Vec<IpAddr> = self.allocator.held_by(uid).collect();
        self.dirty.extend(addresses.into_iter().map(Subject::Address));
    }

    /// Services with a reservation that no write of their own is about: what they waited for is over.
    pub(super) fn mark_reserved(&mut self, address: IpAddr) {
        let reserved: Vec<ServiceKey> = self.allocator.reserved(address).map(ServiceKey::from).collect();
        if !reserved.is_empty() {
            self.dirty.insert(Subject::Address(address));
        }
        reserved.iter().for_each(|service| self.mark_service(service));
    }

    /// Services that have an address together with this one, and those that wait: they may fit, or no more.
    pub(super) fn mark_sharers(&mut self, uid: &str) {
        let held: Vec<IpAddr> = self.allocator.held_by(uid).collect();
        let taken = held.iter().filter_map(|address| self.allocator.taken(*address));
        let others: Vec<ServiceKey> =
            taken.flat_map(|taken| &taken.holders).map(|holder| ServiceKey::from(&holder.service)).collect();
        others.iter().for_each(|service| self.mark_service(service));
        self.mark_waiting();
    }

    /// An address may have become free: all waiting Services are planned, in order of age.
    pub(crate) fn mark_waiting(&mut self) {
        let waiting: Vec<ServiceKey> = self.waiting.keys().chain(&self.beside).cloned().collect();
        waiting.iter().for_each(|service| self.mark_service(service));
    }
}
