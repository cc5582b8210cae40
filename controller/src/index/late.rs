//! Pure: writes that arrive when nobody counts on them any more.
//!
//! A leader that is stopped between a decision and its request sends the request when it runs again, and one whose request got no answer
//! does not know whether it will be carried out. Every write names the version that it was decided by, so it fails where the object has
//! changed. An entry of the ledger need not have changed: where a Service is to have the address again that another leader was about to
//! release, the entry stays as it is. So it is confirmed before the Service shows the address: its version changes, and what was decided
//! before fails.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Index, SeenEntry, Write};
use crate::error::WriteError;
use crate::view::{GrantView, ServiceKey};

impl Index {
    /// Whether the address may be shown by a Service that does not: no write that is late can take it away.
    pub(crate) fn is_confirmed(&self, address: IpAddr) -> bool {
        !self.unconfirmed.contains(&address)
    }

    /// For a new leader: entries that a Service does not show. Its predecessor may be about to release them. Of IPv6 none is shown: one that
    /// is lost so is reserved again.
    pub(super) fn find_unconfirmed(&self) -> BTreeSet<IpAddr> {
        let grants = self.grants.iter().filter(|(address, grant)| address.is_ipv4() && !self.is_shown_by_all(grant));
        grants.map(|(address, _)| *address).collect()
    }

    /// Whether the entry is to be confirmed now: all that is left to do about it.
    pub(crate) fn confirm(&self, address: IpAddr) -> Option<Write> {
        let grant = self.grants.get(&address).filter(|_| !self.is_confirmed(address))?;
        Some(Write::Confirm(SeenEntry::from(grant)))
    }

    /// Takes the result of a write about an entry.
    pub(super) fn settled(&mut self, address: IpAddr, failure: Option<&WriteError>) {
        match failure {
            None => {
                self.unconfirmed.remove(&address);
                self.mark_holders(address);
            }
            Some(WriteError::Timeout | WriteError::Unavailable(_)) if address.is_ipv4() => {
                self.unconfirmed.insert(address);
            }
            // Not done, and known not to be.
            Some(_) => {}
        }
    }

    fn mark_holders(&mut self, address: IpAddr) {
        let holders = self.grants.get(&address).map(|grant| grant.services.clone()).unwrap_or_default();
        holders.iter().for_each(|holder| self.mark_service(&ServiceKey::from(holder)));
    }

    fn is_shown_by_all(&self, grant: &GrantView) -> bool {
        grant.services.iter().all(|holder| {
            let service = self.services.get(&ServiceKey::from(holder));
            service.is_some_and(|service| service.uid == holder.uid && service.shows(grant.address))
        })
    }
}

impl From<&GrantView> for SeenEntry {
    fn from(grant: &GrantView) -> Self {
        SeenEntry { address: grant.address, uid: grant.uid.clone(), version: grant.version }
    }
}
